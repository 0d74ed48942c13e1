"""The table of mutants: for a terminal, as JSON, and as a page."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.many.mutants import Mutant, MutantResult

GOOD = ("caught", "healthy")
STYLE = {"caught": "green", "healthy": "green", "missed": "bold red", "blamed": "bold red"}

Pairs = Sequence[tuple[Mutant, MutantResult]]


def show(pairs: Pairs, seconds: float, console: Console) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("kernel", "mutant", "", "by", "s"):
        table.add_column(
            column,
            no_wrap=column != "by",
            justify="right" if column == "s" else "left",
            overflow="fold",
        )
    for mutant, result in pairs:
        word = "not counted" if mutant.unseen else result.result
        by = (
            mutant.unseen
            or ", ".join(check for check in result.checks if check in mutant.caught_by)
            or result.reason
        )
        table.add_row(
            mutant.base,
            mutant.name,
            Text(word, STYLE.get(word, "yellow")),
            by if word != "healthy" else "",
            f"{result.seconds:.0f}",
        )
    console.print(table)
    console.print(score(pairs, seconds), soft_wrap=True)


def score(pairs: Pairs, seconds: float) -> str:
    """One sentence."""
    counted = [(mutant, result) for mutant, result in pairs if not mutant.unseen]
    broken = Counter(result.result for mutant, result in counted if mutant.fault)
    whole = Counter(result.result for mutant, result in counted if not mutant.fault)
    parts = []
    if broken:
        rest = ", ".join(f"{count} {word}" for word, count in broken.items() if word != "caught")
        parts.append(
            f"{broken['caught']} of {broken.total()} mutants caught by the check that names the fault"
        )
        parts[-1] += f" ({rest})" if rest else ""
    if unseen := sum(bool(mutant.unseen) for mutant, _ in pairs):
        parts.append(f"{unseen} cannot be seen and are not counted")
    if whole:
        parts.append(f"{whole['blamed']} false alarms in {whole.total()} healthy runs")
    return f"{'; '.join(parts)}; {seconds / 60:.0f} min"


def write(pairs: Pairs, seconds: float, directory: Path) -> None:
    """mutants.json, mutants.html and mutants.md in `directory`."""
    rows = [
        {**asdict(mutant), "fault": str(mutant.fault or ""), **asdict(result)}
        for mutant, result in pairs
    ]
    told = score(pairs, seconds)
    content = {"score": told, "seconds": round(seconds), "results": rows}
    (directory / "mutants.json").write_text(json.dumps(content, indent=1) + "\n")
    (directory / "mutants.md").write_text(_markdown(pairs, told))
    cells = "\n".join(
        "<tr>"
        + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in _cells(mutant, result))
        + "</tr>"
        for mutant, result in pairs
    )
    (directory / "mutants.html").write_text(
        "<!doctype html><meta charset=utf-8><title>Mutants</title>"
        "<style>body{font:14px sans-serif}td,th{padding:2px 8px;text-align:left;border-bottom:1px solid #ddd}</style>"
        f"<h1>Kernels broken on purpose</h1><p>{html.escape(told)}"
        "<table><tr><th>kernel<th>mutant<th>what is broken<th>violates<th>standing<th>failed checks<th>reason<th>s</tr>"
        f"{cells}</table>\n"
    )


def _markdown(pairs: Pairs, told: str) -> str:
    lines = [
        told,
        "",
        "| kernel | mutant | what is broken | caught by | s |",
        "|---|---|---|---|---|",
    ]
    for mutant, result in pairs:
        if not mutant.fault:
            continue
        named = ", ".join(f"`{check}`" for check in result.checks if check in mutant.caught_by)
        by = named if result.result == "caught" else result.result
        by = f"not counted: {mutant.unseen}" if mutant.unseen else by
        title = mutant.title.partition(": ")[2] or mutant.title
        lines.append(f"| {mutant.base} | {mutant.name} | {title} | {by} | {result.seconds:.0f} |")
    whole = Counter((mutant.base, result.result) for mutant, result in pairs if not mutant.fault)
    lines += [
        "",
        *(
            f"{base}, not broken: {count} x {result}"
            for (base, result), count in sorted(whole.items())
        ),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _cells(mutant: Mutant, result: MutantResult) -> tuple[object, ...]:
    word = f"not counted: {mutant.unseen}" if mutant.unseen else result.result
    checks = ", ".join(result.checks)
    return (
        mutant.base,
        mutant.name,
        mutant.title,
        mutant.violates,
        word,
        checks,
        result.reason,
        f"{result.seconds:.0f}",
    )
