"""What a sweep came to: the table for a terminal, and sweep.json, junit.xml and sweep.html in its directory."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.errors import EXIT_KERNEL_FAILED, EXIT_PASS
from orchestrator.host.paths import write_whole
from orchestrator.many.sweep.matrix import Cell
from orchestrator.many.sweep.sweep import CellResult
from orchestrator.report import html
from orchestrator.report.files import suites
from orchestrator.verdict.cases import Case, Status

TEMPLATE = "sweep.html.j2"
STYLE = {"pass": "green", "fail": "bold red", "error": "yellow"}

Results = Mapping[Cell, CellResult]


def status(result: CellResult) -> Status:
    """pass; fail: the kernel's fault; error: no verdict."""
    return {EXIT_PASS: "pass", EXIT_KERNEL_FAILED: "fail"}.get(result.exit_status, "error")  # type: ignore[return-value]


def show(results: Results, seconds: float, console: Console) -> None:
    columns = shapes(results)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("kernel", no_wrap=True)
    for words in columns.values():
        table.add_column(words, justify="right", overflow="fold")
    for kernel in rows(results):
        found = {shape: _of(results, kernel, shape) for shape in columns}
        table.add_row(
            kernel,
            *(Text(counted(own), STYLE[worst(own)] if own else "") for own in found.values()),
        )
    console.print(table)
    for cell, result in wrong(results):
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
    """Write the files into `directory`, each whole or not at all."""
    columns = shapes(results)
    told = {
        "score": score(results, seconds),
        "seconds": round(seconds, 1),
        "cells": [
            {"cell": cell.name, "asked": asdict(cell), **asdict(result)}
            for cell, result in results.items()
        ],
    }
    write_whole(directory / "sweep.json", json.dumps(told, indent=1) + "\n")
    write_whole(directory / "junit.xml", suites("orchestrator sweep", _cases(results)))
    page = html.render(
        TEMPLATE,
        score=told["score"],
        columns=columns.values(),
        rows={
            kernel: [[(cell, result, status(result), _link(result, directory)) for cell, result in own]
                     for own in (_of(results, kernel, shape) for shape in columns)]
            for kernel in rows(results)
        },
        wrong=[(cell, result, status(result), _link(result, directory)) for cell, result in wrong(results)],
    )  # fmt: skip
    write_whole(directory / "sweep.html", page)
    write_whole(directory / "sweep.md", markdown(results, score(results, seconds)))


def markdown(results: Results, said: str) -> str:
    """A table of kernels by machine shape, for a README or a mail, with what a pass was worth."""
    columns = shapes(results)
    lines = [said, "", "| kernel | release | " + " | ".join(columns.values()) + " | by |"]
    lines.append("|---" * (len(columns) + 3) + "|")
    for kernel in rows(results):
        found = [_of(results, kernel, shape) for shape in columns]
        all_of = [result for own in found for _, result in own]
        cells = [kernel, *dict.fromkeys(result.release for result in all_of if result.release)][:2]
        without_module = any("without the test module" in result.reason for result in all_of)
        seen = [
            f"{counted(own)}, {max(result.seconds for _, result in own):.0f} s" if own else "-"
            for own in found
        ]
        by = "its own pokes" if without_module else "the test module"
        lines.append("| " + " | ".join([*cells, *[""] * (2 - len(cells)), *seen, by]) + " |")
    return "\n".join(lines) + "\n"


def score(results: Results, seconds: float) -> str:
    """One sentence."""
    counts = Counter(status(result) for result in results.values())
    kept = sum(result.kept for result in results.values())
    said = f"{counts['pass']} of {len(results)} cells passed, {counts['fail']} failed, {counts['error']} no verdict"
    return f"{said}{f'; {kept} known from before' if kept else ''}; {seconds / 60:.1f} min"


def shapes(results: Results) -> dict[tuple[str, ...], str]:
    """The machine shapes, in the order of the matrix, each with what tells it from the others."""
    found = list(dict.fromkeys(cell.shape for cell in results))
    differ = [
        at for at in range(len(found[0])) if at == 0 or len({shape[at] for shape in found}) > 1
    ]
    return {shape: " ".join(shape[at] for at in differ) for shape in found}


def rows(results: Results) -> list[str]:
    """The kernels: those with failures first, then those without a verdict, else in the order of the matrix."""
    rank = {"fail": 0, "error": 1, "pass": 2}
    kernels = dict.fromkeys(cell.kernel for cell in results)
    worsts = {
        kernel: worst([(c, r) for c, r in results.items() if c.kernel == kernel])
        for kernel in kernels
    }
    return sorted(kernels, key=lambda kernel: rank[worsts[kernel]])


def wrong(results: Results) -> list[tuple[Cell, CellResult]]:
    """What did not pass: failures first."""
    found = [(cell, result) for cell, result in results.items() if status(result) != "pass"]
    return sorted(found, key=lambda pair: status(pair[1]) != "fail")


def worst(own: Sequence[tuple[Cell, CellResult]]) -> Status:
    found = {status(result) for _, result in own}
    return "fail" if "fail" in found else "error" if "error" in found else "pass"


def counted(own: Sequence[tuple[Cell, CellResult]]) -> str:
    """`pass`, or of several `2 pass 1 fail`."""
    words = {"pass": "pass", "fail": "FAIL", "error": "no verdict"}
    counts = Counter(words[status(result)] for _, result in own)
    return (
        " ".join(
            word if len(own) == 1 else f"{count} {word}" for word, count in counts.most_common()
        )
        or "-"
    )


def _of(results: Results, kernel: str, shape: tuple[str, ...]) -> list[tuple[Cell, CellResult]]:
    return [
        (cell, result)
        for cell, result in results.items()
        if (cell.kernel, cell.shape) == (kernel, shape)
    ]


def _cases(results: Results) -> dict[str, list[tuple[Case, float]]]:
    told: dict[str, list[tuple[Case, float]]] = {}
    for cell, result in results.items():
        details = [f"checks that failed: {', '.join(result.failed)}"] if result.failed else []
        details += [result.directory] if result.directory else []
        name = " ".join((*cell.shape, f"seed{cell.seed}"))
        case = Case(
            "sweep", name, status(result), f"{result.outcome}: {result.reason}", tuple(details)
        )
        told.setdefault(cell.kernel, []).append((case, result.seconds))
    return told


def _link(result: CellResult, directory: Path) -> str:
    """The run's page, or what there is in its place; relative, so that the folder can be moved."""
    if not result.directory:
        return ""
    place = Path(result.directory)
    page = next(
        (path for path in (place / "report.html", place / "log", place) if path.is_file()), place
    )
    return os.path.relpath(page, directory)
