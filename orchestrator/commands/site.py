# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator site`: the history as a static page that a CI job can publish."""

from __future__ import annotations

import argparse
from pathlib import Path

from orchestrator.commands import document
from orchestrator.commands.options import add_kernel_filter
from orchestrator.errors import EXIT_PASS, UsageError, sentence
from orchestrator.options import whole

NAME = "site"
HELP = "write the history as a static page, with the reports of its runs"
EXAMPLES = (
    ("site public", "then publish the folder"),
    ("site public --kernel 'debian:*' --count 200", ""),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "directory", type=Path, metavar="DIR", help="folder for index.html and the reports"
    )
    add_kernel_filter(parser)
    parser.add_argument(
        "--count",
        type=whole(1, 100_000),
        default=1000,
        metavar="N",
        help="show the newest N runs (default: 1000)",
    )
    document.add_json(parser)


def main(options: argparse.Namespace) -> int:
    from orchestrator import ui
    from orchestrator.many import history
    from orchestrator.report import site

    folder: Path = options.directory
    page = folder / site.INDEX
    if page.exists() and not (folder / site.REPORTS).is_dir():
        raise UsageError(f"{page} is none of ours: name another folder")
    runs = history.past(kernel=options.kernel, count=options.count)
    try:
        reports = site.write(folder, runs, history.flaky(kernel=options.kernel))
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {sentence(error)}") from error
    if options.json:
        return document.show("site", page=page.resolve(), runs=len(runs), reports=reports)
    ui.show(f"{page.resolve()}: {len(runs)} runs, {reports} of them with a report")
    return EXIT_PASS
