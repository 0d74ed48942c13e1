# SPDX-License-Identifier: GPL-2.0-only
"""The results of mutation testing: for a terminal, as JSON, Markdown, and an HTML page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from orchestrator.host.files import write_report
from orchestrator.many.mutants import Mutant, MutantResult
from orchestrator.report import html, tables
from orchestrator.report.files import github_summary

TEMPLATE = "mutants.html.j2"
GOOD = ("caught", "healthy")
STYLE = {"caught": "green", "healthy": "green", "missed": "bold red", "blamed": "bold red"}

Pairs = Sequence[tuple[Mutant, MutantResult]]


def show(pairs: Pairs, seconds: float, console: Console) -> None:
    """Print the table and the score."""
    headings = ("kernel", "mutant", "result", "by", "s")
    table = tables.terminal(headings, left=4, fold=("by",))
    for mutant, result in pairs:
        word = "not counted" if mutant.unseen else result.result
        by = mutant.unseen or ", ".join(_naming_checks(mutant, result)) or result.reason
        table.add_row(
            mutant.base,
            mutant.name,
            Text(word, STYLE.get(word, "yellow")),
            by if word != "healthy" else "",
            f"{result.seconds:.0f}",
        )
    tables.show(table, console)
    console.print(score(pairs, seconds), soft_wrap=True)


def score(pairs: Pairs, seconds: float) -> str:
    """One sentence."""
    counted = [(mutant, result) for mutant, result in pairs if not mutant.unseen]
    broken = Counter(result.result for mutant, result in counted if mutant.broken)
    healthy = Counter(result.result for mutant, result in counted if not mutant.broken)
    parts = []
    if broken:
        others = ", ".join(f"{count} {word}" for word, count in broken.items() if word != "caught")
        caught = f"{broken['caught']} of {broken.total()} mutants caught"
        parts.append(
            f"{caught} by the check that names the fault{f' ({others})' if others else ''}"
        )
    if unseen := sum(bool(mutant.unseen) for mutant, _ in pairs):
        parts.append(f"{unseen} cannot be seen and are not counted")
    if healthy:
        parts.append(f"{healthy['blamed']} false alarms in {healthy.total()} healthy runs")
    return f"{'; '.join(parts)}; {seconds / 60:.0f} min"


def write(pairs: Pairs, seconds: float, directory: Path) -> None:
    """Write mutants.json, mutants.html and mutants.md into `directory`."""
    sentence = score(pairs, seconds)
    text = json.dumps(content(pairs, seconds), indent=1)
    write_report(directory / "mutants.json", text + "\n")
    write_report(directory / "mutants.md", _markdown(pairs, sentence))
    github_summary(_markdown(pairs, sentence))
    page = html.render(
        TEMPLATE,
        score=sentence,
        columns=(
            "kernel", "mutant", "fault", "violates", "result", "failed checks", "reason", "s"
        ),
        rows=[(mutant, result, result.result in GOOD) for mutant, result in pairs],
    )  # fmt: skip
    write_report(directory / "mutants.html", page)


def content(pairs: Pairs, seconds: float) -> dict[str, Any]:
    """The results as JSON values, for mutants.json and `--json`."""
    rows = [
        {**asdict(mutant), "fault": str(mutant.fault or ""), **asdict(result)}
        for mutant, result in pairs
    ]
    return {"score": score(pairs, seconds), "seconds": round(seconds), "results": rows}


def _markdown(pairs: Pairs, sentence: str) -> str:
    """A table of the mutants, and a line for each kind of healthy run."""
    rows = []
    for mutant, result in pairs:
        if not mutant.fault:
            continue
        by: str = result.result
        if mutant.equivalent:
            by = f"{result.result} (equivalent)"
        if result.result == "caught":
            by = ", ".join(f"`{check}`" for check in _naming_checks(mutant, result))
        if mutant.unseen:
            by = f"not counted: {mutant.unseen}"
        title = mutant.title.partition(": ")[2] or mutant.title
        rows.append([mutant.base, mutant.name, title, by, f"{result.seconds:.0f}"])
    healthy = Counter((mutant.base, result.result) for mutant, result in pairs if not mutant.fault)
    lines = [
        sentence,
        "",
        *tables.markdown(("kernel", "mutant", "fault", "caught by", "seconds"), rows),
        "",
        *(
            f"{base}, healthy: {count} x {result}"
            for (base, result), count in sorted(healthy.items())
        ),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _naming_checks(mutant: Mutant, result: MutantResult) -> list[str]:
    """The failed checks that name the fault."""
    return [check for check in result.checks if check in mutant.caught_by]
