# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator sweep`: from its options to the table."""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import UsageError
from orchestrator.host.paths import locked, state_dir

if TYPE_CHECKING:
    from orchestrator.many.sweep.matrix import Cell, SweepPlan
    from orchestrator.many.sweep.sweep import CellResult

NAME = "sweep"
HELP = "run every cell of a matrix of kernels and machines"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description = "Runs every cell of a matrix of kernels and machines (docs/sweep.md). Interrupted, it goes on."
    parser.add_argument(
        "matrix",
        type=Path,
        metavar="MATRIX.yaml",
        help="kernels, smp, accel, cpu, scenarios, repeats",
    )
    parser.add_argument(
        "--jobs", type=int, metavar="N", help="runs at a time (what cores and free memory hold)"
    )
    parser.add_argument(
        "--again", action="store_true", help="also what has a result for this very content"
    )
    parser.add_argument(
        "--scheduler", metavar="ADDRESS", help="run on the workers of this dask scheduler"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="keep everything there; goes on from what is there",
    )


def main(options: argparse.Namespace) -> int:
    from orchestrator.many.sweep.sweep import exit_status

    _, directory, results = perform(options, state_dir() / "sweeps")
    print(f"kept in: {directory}/sweep.html, sweep.json, junit.xml")
    return exit_status(results)


def perform(
    options: argparse.Namespace, home: Path
) -> tuple[SweepPlan, Path, dict[Cell, CellResult]]:
    """Run the sweep that `options` ask for and show its table. home: where its directory goes without --output."""
    from rich.console import Console

    from orchestrator.many.sweep.matrix import read
    from orchestrator.many.sweep.place import Cluster, LocalHost, Place
    from orchestrator.many.sweep.sweep import Sweep
    from orchestrator.report import sweep as report

    if options.jobs is not None and options.jobs < 1:
        raise UsageError(f"--jobs takes 1 or more, not {options.jobs}")
    if options.jobs and options.scheduler:
        raise UsageError(
            "--jobs is for this host: how many runs a worker takes is `dask worker --nthreads`"
        )
    plan = read(options.matrix)
    file = options.matrix.resolve()
    key = hashlib.sha256(str(file).encode(errors="surrogateescape")).hexdigest()[:8]
    directory: Path = (options.output or home / f"{file.stem}-{key}").resolve()
    if directory.exists() and any(directory.iterdir()) and not (directory / "cells").is_dir():
        raise UsageError(f"{directory} is not empty, and no sweep's: name another directory")

    def refuse() -> None:
        raise UsageError(f"the same sweep is under way in another process ({directory})")

    start = time.monotonic()
    with locked(directory / "cells" / ".lock", refuse):
        place: Place = Cluster(options.scheduler) if options.scheduler else LocalHost(options.jobs)
        results = Sweep(plan, directory, place, again=options.again).run()
        seconds = time.monotonic() - start
        report.write(results, seconds, directory)
    report.show(results, seconds, Console())
    return plan, directory, results
