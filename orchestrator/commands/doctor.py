# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator doctor`: what this host has, what it lacks, and what that means for a run."""

from __future__ import annotations

import argparse

NAME = "doctor"
HELP = "check what this host has, what is missing, and what that means"


def add_options(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def main(options: argparse.Namespace) -> int:
    from orchestrator import doctor

    return doctor.report()
