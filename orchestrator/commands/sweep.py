# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator sweep`: run every cell of a matrix."""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.commands import document
from orchestrator.commands.options import MAX_JOBS, add_output, add_verbosity
from orchestrator.errors import UsageError
from orchestrator.options import whole

if TYPE_CHECKING:
    from orchestrator.many.sweep.matrix import Cell
    from orchestrator.many.sweep.sweep import CellResult

NAME = "sweep"
HELP = "run every cell of a matrix of kernels and machines"
EXAMPLES = (
    ("sweep matrix.yaml", ""),
    ("sweep matrix.yaml --scheduler tcp://host:8786", "on a dask cluster"),
)
STATUSES = (
    (0, "all cells passed"),
    (1, "a kernel failed"),
    (125, "no kernel failed, but not every cell has a verdict"),
    (129, "wrong usage"),
    (130, "interrupted (128 plus the number of the signal)"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Runs every cell of a matrix of kernels and machines (docs/sweep.md). "
        "Repeat the command to continue an interrupted sweep."
    )
    parser.add_argument(
        "matrix",
        type=Path,
        metavar="MATRIX.yaml",
        help="kernels, options of the runs, and what to exclude",
    )
    parser.add_argument(
        "--jobs",
        type=whole(1, MAX_JOBS),
        metavar="N",
        help="parallel runs (default: as many as cores and free memory hold)",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="rerun cells even if nothing that they depend on has changed",
    )
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="run on the workers of this dask scheduler"
    )
    add_output(parser, "directory for the results (default: one per matrix in the state directory)")
    document.add_json(parser)
    add_verbosity(parser)


def main(options: argparse.Namespace) -> int:
    from orchestrator.host.paths import state_dir
    from orchestrator.many.sweep.sweep import exit_status
    from orchestrator.report import sweep as report

    directory, results, seconds = perform(options, state_dir() / "sweeps")
    if options.json:
        content = report.content(results, seconds)
        return document.show("sweep", exit_status(results), directory=directory, **content)
    print(f"results: {directory}/sweep.html, sweep.json, junit.xml")
    return exit_status(results)


def perform(options: argparse.Namespace, home: Path) -> tuple[Path, dict[Cell, CellResult], float]:
    """Run the sweep that `options` ask for, write its reports and print its table.

    home: where its directory is without --output. Returns the directory, the results and how many
    seconds it took.
    """

    from orchestrator.host.paths import locked, output_directory, real
    from orchestrator.many.sweep.matrix import read
    from orchestrator.many.sweep.place import Cluster, LocalHost, Place
    from orchestrator.many.sweep.sweep import CELLS, Sweep
    from orchestrator.report import sweep as report
    from orchestrator.ui import SafeConsole

    if options.jobs and options.scheduler:
        raise UsageError(
            "--jobs is for this host: `dask worker --nthreads` sets how many runs a worker takes"
        )
    plan = read(options.matrix)
    file = real(options.matrix)
    key = hashlib.sha256(str(file).encode(errors="surrogateescape")).hexdigest()[:8]
    directory = real(options.output or home / f"{file.stem[:100]}-{key}")
    output_directory(directory, "the results of a sweep")
    cells = directory / CELLS
    if any(directory.iterdir()) and not cells.is_dir():
        raise UsageError(f"{directory} is not empty and belongs to no sweep: name another one")
    if cells.is_symlink():
        raise UsageError(f"{cells} is a link: a sweep removes and replaces what is in there")

    def refuse() -> None:
        raise UsageError(f"the same sweep is running in another process ({directory})")

    start = time.monotonic()
    with locked(cells / ".lock", refuse):
        place: Place = Cluster(options.scheduler) if options.scheduler else LocalHost(options.jobs)
        results = Sweep(plan, directory, place, again=options.again).run()
        seconds = time.monotonic() - start
        report.write(results, seconds, directory)
    if not options.json:
        report.show(results, seconds, SafeConsole())
    return directory, results, seconds
