# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator scenarios`: list the scenarios, and what the kernel promises in each."""

from __future__ import annotations

import argparse

NAME = "scenarios"
HELP = "list the scenarios of a run and what the kernel promises in each"


def add_options(parser: argparse.ArgumentParser) -> None:
    """No options."""


def main(options: argparse.Namespace) -> int:
    from orchestrator.scenarios import scenario

    for entry in scenario.load_all():
        print(f"{entry.name:<12} {entry.title}\n{'':<12} {entry.promise}")
    return 0
