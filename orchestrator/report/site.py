# SPDX-License-Identifier: GPL-2.0-only
"""The history as a static page: what a CI job can publish. See `orchestrator site`."""

from __future__ import annotations

import contextlib
import platform
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import EXIT_KERNEL_FAILED, EXIT_PASS
from orchestrator.host import version
from orchestrator.host.files import write_report
from orchestrator.many.history import Flaky, PastRun
from orchestrator.report import html

TEMPLATE = "site.html.j2"
INDEX = "index.html"
REPORTS = "runs"
"""Folder of the reports below that of the page."""
DAYS = 30
"""Number of days with runs that are columns of the first table."""
FLAKY = 50
"""Lines of the table of flaky results."""
WORST = ("fail", "error", "pass")


@dataclass(frozen=True)
class Row:
    """A run in the list."""

    past: PastRun
    status: str
    """pass; fail: the kernel is at fault; error: no verdict."""
    when: str
    reason: str
    link: str
    """To its report, relative to the page; empty if it has none any more."""


@dataclass(frozen=True)
class DayCell:
    """The runs of a kernel on one day."""

    text: str
    status: str
    title: str


@dataclass(frozen=True)
class KernelRow:
    """A kernel in the first table."""

    kernel: str
    cells: Sequence[DayCell]
    last_good: str
    """Day of the last run that passed."""


def write(directory: Path, runs: Sequence[PastRun], flaky: Sequence[Flaky]) -> int:
    """Write the page and copies of the reports into `directory`. Returns the number of reports.

    Reports of runs that are not among `runs` are removed. Raises OSError.
    """
    (directory / REPORTS).mkdir(parents=True, exist_ok=True)
    rows = [_row(run, _copy(run, directory)) for run in runs]
    kept = {Path(row.link).parent.name for row in rows if row.link}
    for old in (directory / REPORTS).iterdir():
        if old.name.isdecimal() and old.name not in kept:
            shutil.rmtree(old, ignore_errors=True)
    write_report(directory / INDEX, render(rows, flaky))
    return len(kept)


def render(rows: Sequence[Row], flaky: Sequence[Flaky]) -> str:
    days = sorted({_day(row.past) for row in rows})[-DAYS:]
    return html.render(
        TEMPLATE,
        sentence=_sentence(rows),
        made=time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        host=platform.node(),
        version=version.version(),
        shapes=sorted({row.past.smp for row in rows}),
        days=days,
        grid=_grid(rows, days),
        flaky=flaky[:FLAKY],
        runs=rows,
    )


def status(run: PastRun) -> str:
    return {EXIT_PASS: "pass", EXIT_KERNEL_FAILED: "fail"}.get(run.exit_status, "error")


def _row(run: PastRun, link: str) -> Row:
    when = "?"
    with contextlib.suppress(ValueError, OverflowError, OSError, TypeError):  # a damaged number
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(run.ended))
    reason = run.reason if status(run) != "pass" else ""
    return Row(run, status(run), when, reason, link)


def _day(run: PastRun) -> str:
    return _row(run, "").when[:10]


def _copy(run: PastRun, directory: Path) -> str:
    """Copy the report of a run. Returns the link to it, empty if there is none."""
    source = Path(run.directory) / "report.html"
    link = f"{REPORTS}/{run.id}/report.html"
    target = directory / link
    try:
        if not source.is_file():
            # The run's directory may be gone, but not the copy that was made before.
            return link if target.is_file() else ""
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
    except (OSError, ValueError):  # a damaged name
        return ""
    return link


def _sentence(rows: Sequence[Row]) -> str:
    counts = [sum(row.status == which for row in rows) for which in ("pass", "fail", "error")]
    kernels = len({row.past.kernel for row in rows})
    if not rows:
        return "No runs so far"
    return (
        f"{len(rows):,} runs of {kernels} kernels: {counts[0]:,} passed, in {counts[1]:,} the "
        f"kernel failed, {counts[2]:,} have no verdict"
    )


def _grid(rows: Sequence[Row], days: Sequence[str]) -> list[KernelRow]:
    """Kernels in the order of their newest runs."""
    by_kernel: dict[str, list[Row]] = {}
    for row in rows:
        by_kernel.setdefault(row.past.kernel, []).append(row)
    grid = []
    for kernel, of_kernel in by_kernel.items():
        cells = [_cell([row for row in of_kernel if row.when[:10] == day]) for day in days]
        good = next((row.when[:10] for row in of_kernel if row.status == "pass"), "never")
        grid.append(KernelRow(kernel, cells, good))
    return grid


def _cell(rows: Sequence[Row]) -> DayCell:
    if not rows:
        return DayCell("", "none", "no run")
    passed = sum(row.status == "pass" for row in rows)
    worst = next(which for which in WORST if any(row.status == which for row in rows))
    mark = {"fail": " ✗", "error": " ?", "pass": ""}[worst]
    bad = next((row for row in rows if row.status == worst), rows[0])
    seconds = sum(row.past.seconds for row in rows) / len(rows)
    title = f"{passed} of {len(rows)} passed, {seconds:.0f} s each on average"
    return DayCell(
        f"{passed}/{len(rows)}{mark}", worst, f"{title}; {bad.reason}" if bad.reason else title
    )
