# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator export`: convert runs for other programs."""

from __future__ import annotations

import argparse

NAME = "export"
HELP = "export runs as a KCIDB report"
EXAMPLES = (("export --kcidb --origin me RUN", ""),)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="number, name or directory of a run")
    parser.add_argument(
        "--kcidb",
        action="store_true",
        required=True,
        help="print a KCIDB report (I/O schema 5.3) as JSON",
    )
    parser.add_argument(
        "--origin",
        required=True,
        metavar="NAME",
        help="name of the submitter, as registered with KCIDB",
    )


def main(options: argparse.Namespace) -> int:
    import json

    from orchestrator.commands.show import directory_of
    from orchestrator.report import kcidb

    runs = [directory_of(name) for name in options.runs]
    print(json.dumps(kcidb.report(runs, options.origin), indent=1))
    return 0
