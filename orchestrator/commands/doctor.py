# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator doctor`: check this host, and say what a missing part means for a run."""

from __future__ import annotations

import argparse

from orchestrator.commands import document

NAME = "doctor"
HELP = "check what this host has, what is missing, and what that means"
EXAMPLES = (
    ("doctor", ""),
    ("doctor --json", "for a program"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    document.add_json(parser)


def main(options: argparse.Namespace) -> int:
    from orchestrator import doctor

    if not options.json:
        return doctor.report()
    found = list(doctor.diagnoses())
    status = doctor.exit_status(diagnosis for _, diagnosis in found)
    rows = [
        {"group": group, "state": entry.state, "name": entry.name, "text": entry.text}
        for group, entry in found
    ]
    return document.show("doctor", status, diagnoses=rows)
