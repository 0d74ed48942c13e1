# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator export`: runs in the formats of other programs."""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "export"
HELP = "export runs as a KCIDB report"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directories of runs")
    parser.add_argument(
        "--kcidb",
        action="store_true",
        required=True,
        help="a KCIDB report (I/O schema 5.3) as JSON",
    )
    parser.add_argument(
        "--origin",
        required=True,
        metavar="NAME",
        help="name of the submitter, as registered with KCIDB",
    )


def main(options: argparse.Namespace) -> int:
    import json

    from orchestrator.report import kcidb

    print(json.dumps(kcidb.report(options.runs, options.origin), indent=1))
    return 0
