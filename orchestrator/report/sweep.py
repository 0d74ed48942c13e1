# SPDX-License-Identifier: GPL-2.0-only
"""The results of a sweep: a table for a terminal, and in the sweep's directory sweep.json,
sweep.html, sweep.md and junit.xml."""

from __future__ import annotations

import json
import os
import urllib.parse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from orchestrator import ui
from orchestrator.errors import EXIT_KERNEL_FAILED, EXIT_PASS
from orchestrator.host.files import write_report
from orchestrator.many.sweep.matrix import Cell
from orchestrator.many.sweep.sweep import CellResult
from orchestrator.report import html, tables
from orchestrator.report.files import github_summary, suites
from orchestrator.verdict.cases import Case, Status

TEMPLATE = "sweep.html.j2"
STYLE = {"pass": "green", "fail": "bold red", "error": "yellow"}

Results = Mapping[Cell, CellResult]


def status(result: CellResult) -> Status:
    """pass; fail: the kernel is at fault; error: no verdict."""
    return {EXIT_PASS: "pass", EXIT_KERNEL_FAILED: "fail"}.get(result.exit_status, "error")  # type: ignore[return-value]


def show(results: Results, seconds: float, console: Console) -> None:
    """Print the table, the cells that did not pass, and the score."""
    columns = shapes(results)
    headings = list(columns.values())
    table = tables.terminal(("kernel", *headings), fold=("kernel",))
    for kernel in rows(results):
        by_shape = [_cells(results, kernel, shape) for shape in columns]
        table.add_row(
            kernel,
            *(Text(counted(cells), STYLE[worst(cells)] if cells else "") for cells in by_shape),
        )
    tables.show(table, console)
    for cell, result in not_passed(results):
        mark = "FAIL" if status(result) == "fail" else result.outcome
        console.print(
            Text.assemble((mark, STYLE[status(result)]), f"  {cell.name}: {result.reason}"),
            soft_wrap=True,
        )
        if result.directory:
            console.print(
                f"      {result.directory}", markup=False, highlight=False, soft_wrap=True
            )
    console.print(score(results, seconds), markup=False, highlight=False, soft_wrap=True)


def write(results: Results, seconds: float, directory: Path) -> None:
    """Write the files into `directory`, each whole or not at all. One that fails costs a line."""
    columns = shapes(results)
    sentence = score(results, seconds)

    def with_links(cells: Sequence[tuple[Cell, CellResult]]) -> list[tuple[object, ...]]:
        return [(cell, result, status(result), _link(result, directory)) for cell, result in cells]

    page = html.render(
        TEMPLATE,
        score=sentence,
        columns=columns.values(),
        rows={
            kernel: [with_links(_cells(results, kernel, shape)) for shape in columns]
            for kernel in rows(results)
        },
        not_passed=with_links(not_passed(results)),
    )
    files = {
        "sweep.json": json.dumps(content(results, seconds), indent=1) + "\n",
        "junit.xml": suites("orchestrator sweep", _cases(results)),
        "sweep.html": page,
        "sweep.md": markdown(results, sentence),
    }
    with ui.saying_what_fails("GitHub's summary"):
        github_summary(files["sweep.md"])
    for name, text in files.items():
        with ui.saying_what_fails(name):
            write_report(directory / name, text)


def content(results: Results, seconds: float) -> dict[str, Any]:
    """The results as JSON values, for sweep.json and `--json`."""
    return {
        "score": score(results, seconds),
        "seconds": round(seconds, 1),
        "cells": [
            {"cell": cell.name, "asked": cell.to_json(), **asdict(result)}
            for cell, result in results.items()
        ],
    }


def markdown(results: Results, sentence: str) -> str:
    """A table of kernels by machine shape, for a README or a mail, below `sentence`."""
    columns = shapes(results)
    lines = []
    for kernel in rows(results):
        by_shape = [_cells(results, kernel, shape) for shape in columns]
        of_kernel = [result for cells in by_shape for _, result in cells]
        release = next((result.release for result in of_kernel if result.release), "")
        verdicts = [
            f"{counted(cells)}, {max(result.seconds for _, result in cells):.0f} s"
            if cells
            else "-"
            for cells in by_shape
        ]
        without_module = any("without the test module" in result.reason for result in of_kernel)
        poker = "kernel's own pokes" if without_module else "test module"
        lines.append([kernel, release, *verdicts, poker])
    table = tables.markdown(("kernel", "release", *columns.values(), "tested by"), lines)
    return "\n".join([sentence, "", *table]) + "\n"


def score(results: Results, seconds: float) -> str:
    """One sentence."""
    counts = Counter(status(result) for result in results.values())
    kept = sum(result.kept for result in results.values())
    sentence = (
        f"{counts['pass']} of {len(results)} cells passed, {counts['fail']} failed, "
        f"{counts['error']} without a verdict"
    )
    earlier = f"; {kept} of these results are from before" if kept else ""
    return f"{sentence}{earlier}; {seconds / 60:.1f} min"


def shapes(results: Results) -> dict[tuple[str, ...], str]:
    """The machine shapes in the order of the matrix, each with a name made of what differs."""
    found = list(dict.fromkeys(cell.shape for cell in results))
    varying = [
        index
        for index in range(len(found[0]))
        if index == 0 or len({shape[index] for shape in found}) > 1
    ]
    return {shape: " ".join(shape[index] for index in varying) for shape in found}


def rows(results: Results) -> list[str]:
    """The kernels: failed ones first, then those without a verdict, then in matrix order."""
    rank = {"fail": 0, "error": 1, "pass": 2}
    statuses = {
        kernel: worst([(cell, result) for cell, result in results.items() if cell.kernel == kernel])
        for kernel in dict.fromkeys(cell.kernel for cell in results)
    }
    return sorted(statuses, key=lambda kernel: rank[statuses[kernel]])


def not_passed(results: Results) -> list[tuple[Cell, CellResult]]:
    """The cells that did not pass, failures first."""
    pairs = [(cell, result) for cell, result in results.items() if status(result) != "pass"]
    return sorted(pairs, key=lambda pair: status(pair[1]) != "fail")


def worst(cells: Sequence[tuple[Cell, CellResult]]) -> Status:
    statuses = {status(result) for _, result in cells}
    return "fail" if "fail" in statuses else "error" if "error" in statuses else "pass"


def counted(cells: Sequence[tuple[Cell, CellResult]]) -> str:
    """`pass` for one cell, `2 pass 1 FAIL` for several, `-` for none."""
    words = {"pass": "pass", "fail": "FAIL", "error": "no verdict"}
    counts = Counter(words[status(result)] for _, result in cells)
    if len(cells) == 1:
        return next(iter(counts))
    return " ".join(f"{count} {word}" for word, count in counts.most_common()) or "-"


def _cells(results: Results, kernel: str, shape: tuple[str, ...]) -> list[tuple[Cell, CellResult]]:
    """The cells of one kernel and machine shape."""
    return [
        (cell, result)
        for cell, result in results.items()
        if (cell.kernel, cell.shape) == (kernel, shape)
    ]


def _cases(results: Results) -> dict[str, list[tuple[Case, float]]]:
    """The cells as test cases with their seconds, by kernel."""
    by_kernel: dict[str, list[tuple[Case, float]]] = {}
    for cell, result in results.items():
        details = [f"failed checks: {', '.join(result.failed)}"] if result.failed else []
        details += [result.directory] if result.directory else []
        case = Case(
            group="sweep",
            name=" ".join((*cell.shape, f"seed{cell.seed}")),
            status=status(result),
            text=f"{result.outcome}: {result.reason}",
            details=tuple(details),
        )
        by_kernel.setdefault(cell.kernel, []).append((case, result.seconds))
    return by_kernel


def _link(result: CellResult, directory: Path) -> str:
    """A relative link to the run's page, or to its log or directory if it has none."""
    if not result.directory:
        return ""
    run = Path(result.directory)
    candidates = (run / "report.html", run / "log")
    target = next((path for path in candidates if path.is_file()), run)
    return urllib.parse.quote(os.path.relpath(target, directory))
