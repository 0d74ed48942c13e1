# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator doctor`: check this host, and say what a missing part means for a run."""

from __future__ import annotations

import argparse

NAME = "doctor"
HELP = "check what this host has, what is missing, and what that means"


def add_options(parser: argparse.ArgumentParser) -> None:
    """No options."""


def main(options: argparse.Namespace) -> int:
    from orchestrator import doctor

    return doctor.report()
