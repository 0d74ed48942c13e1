# SPDX-License-Identifier: GPL-2.0-only
"""A run as a mail to those who wrote the code: `orchestrator show RUN --mail`."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from orchestrator.report import timeline
from orchestrator.report.tables import said_once
from orchestrator.report.terminal import why_blind
from orchestrator.report.timeline import Timeline
from orchestrator.verdict.result import VerdictRecord

WIDTH = 72
"""Of what is prose; tables and traces are not wrapped."""
MOST_ROWS = 40
"""Rows of the poke's table; of a longer one the middle is left out."""
ERRORS = "First failure:"
"""How the section of report.txt begins that explains the first failure."""


def mail(directory: Path, verdict: VerdictRecord) -> str:
    """The text of the mail, with the lines that a person has to fill in."""
    sections = [
        _head(verdict),
        _tested(verdict),
        _verdict(verdict),
        _poke(timeline.of_failure(directory, verdict.failure, verdict.smp or 0)),
        _explained(directory),
        _repeat(verdict),
        _tags(verdict),
    ]
    return "\n\n".join("\n".join(lines) for lines in map(list, sections) if lines) + "\n"


def _head(verdict: VerdictRecord) -> Iterator[str]:
    kernel = f"{verdict.name or 'linux'} on {verdict.smp} CPUs"
    yield "To: "
    if verdict.exit_status == 0:
        yield f"Subject: Tested: {kernel}: text poking works"
    elif verdict.exit_status == 1:
        what = verdict.failure.check if verdict.failure else "failure"
        yield f"Subject: [BUG] {kernel}: text poking fails ({what})"
    else:
        yield f"Subject: {kernel}: no verdict on text poking ({verdict.outcome})"


def _tested(verdict: VerdictRecord) -> Iterator[str]:
    """What was tested."""
    yield from _wrapped(
        "I ran orchestrator, which patches instructions of a test module and of the kernel while "
        "every CPU executes them, and checks every write, sync and int3."
    )
    yield ""
    kernel, machine = verdict.kernel, verdict.machine
    if kernel:
        yield f"  kernel:   {kernel.name}, {kernel.release}"
        for key in ("package", "version", "tree", "commit", "compiler"):
            if value := kernel.origin.get(key):
                yield f"  {key + ':':<9} {value}"
        for patch in kernel.patches:
            yield f"  patch:    {patch}"
    if machine:
        yield f"  machine:  {machine.smp} CPUs ({machine.cpu}), QEMU {machine.qemu},"
        yield f"            {machine.accelerator}"
    for edit in verdict.edited:
        yield f"  edited:   {edit}"
    yield f"  seed:     {verdict.seed}"
    if verdict.started:
        yield f"  date:     {verdict.started}"


def _verdict(verdict: VerdictRecord) -> Iterator[str]:
    yield from _wrapped(f"Verdict: {verdict.outcome.upper()}. {verdict.reason}.")
    for checks in said_once(verdict.with_status("fail", "blind"), why_blind):
        mark = "FAIL" if checks[0].status == "fail" else "blind"
        names = ", ".join(check.check for check in checks)
        yield ""
        yield from _wrapped(f"{mark:>5} {names}: {checks[0].text}", indent="  ")
    passed = [check.check for check in verdict.with_status("pass")]
    if passed:
        yield ""
        yield from _wrapped(f"Checks that passed: {', '.join(passed)}.")


def _poke(line: Timeline | None) -> Iterator[str]:
    """The failed poke as a table."""
    if not line:
        return
    yield f"The poke that failed{f', {line.title}' if line.title else ''} ({line.source}):"
    yield ""
    rows = [_row(*row) for row in line.rows()]
    shown = rows
    if len(rows) > MOST_ROWS:
        wrong = next((at for at, row in enumerate(rows) if row.startswith("!")), len(rows))
        start = max(0, min(wrong - MOST_ROWS // 2, len(rows) - MOST_ROWS))
        shown = rows[start : start + MOST_ROWS]
        if start:
            shown = [f"  ... {start} more", *shown]
        if rest := len(rows) - start - MOST_ROWS:
            shown = [*shown, f"  ... {rest} more"]
    yield "  number  CPU  what"
    yield from shown


def _row(number: str, cpu: str, _: str, text: str, wrong: bool) -> str:
    mark = "!" if wrong else " "
    return f"{mark} {number:>6}  {cpu:>3}  {text}"


def _explained(directory: Path) -> list[str]:
    """The bytes, and where each CPU was: that section of report.txt."""
    file = directory / "report.txt"
    if not file.is_file():
        return []
    lines = iter(file.read_text(errors="replace").splitlines())
    found: list[str] = []
    for line in lines:
        if line.startswith(ERRORS) or found:
            if not line.strip():
                break
            found.append(line)
    return [f"  {line}" for line in found]


def _repeat(verdict: VerdictRecord) -> Iterator[str]:
    yield "To repeat it:"
    yield ""
    yield f"  {shlex.join(('orchestrator', *verdict.command))}"
    if verdict.version:
        yield ""
        yield f"  (orchestrator {verdict.version})"


def _tags(verdict: VerdictRecord) -> Iterator[str]:
    if verdict.exit_status == 0:
        yield "Tested-by: YOUR NAME <YOUR ADDRESS>"
    elif verdict.exit_status == 1:
        yield "Reported-by: YOUR NAME <YOUR ADDRESS>"
    else:
        yield "(No verdict: this says nothing about the kernel.)"


def _wrapped(text: str, indent: str = "") -> Iterable[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=indent, subsequent_indent=f"{indent}{'  ' if indent else ''}",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
