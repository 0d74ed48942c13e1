"""What went wrong first, for a person: the moment, the bytes, where each CPU was, and what the console said then."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from orchestrator.text.disasm import describe
from orchestrator.text.symbols import where
from orchestrator.verdict.evidence import StepEvidence
from orchestrator.verdict.model import Poke, Violation
from orchestrator.verdict.result import RunResult

AROUND = 1.0
"""Seconds before and after the moment for which the console is shown."""
LINES = 12


def explain(result: RunResult) -> Iterator[str]:
    """Lines of text; none when nothing was wrong."""
    evidence = result.evidence
    if first := next(evidence.violations(), None):
        yield from _moment(result, *first)
    elif evidence.findings:
        finding = evidence.findings[0]
        lines = [line for _, line in _console(result.directory)]
        yield f"the console from line {finding.line} on:"
        yield from _some(lines[max(0, finding.line - 3) : finding.last])


def _moment(
    result: RunResult, seen: StepEvidence, poke: Poke, violation: Violation
) -> Iterator[str]:
    names = result.evidence.names
    cpu = f" on CPU {violation.cpu}" if violation.cpu >= 0 else ""
    yield f"what went wrong first: {violation.claim}, in {seen.name}, phase {violation.phase}{cpu}: {violation.text}"
    yield f"  the site is {names.name(poke.site)}; event {violation.event} of events.jsonl"
    held = {
        "old": poke.old,
        "new": poke.new,
        "seen": violation.seen,
        "expected": violation.expected,
    }
    for word, code in held.items():
        if code is not None:
            meaning = describe(code, poke.site, poke.old, poke.new, names.name)
            yield f"  {word + ':':<10}{code.hex(' '):<24}{meaning}"
    cpu_snapshots = seen.watched.cpu_snapshots if seen.watched else []
    if look := next((look for look in cpu_snapshots if look["n"] >= violation.event - 1), None):
        yield "  where each CPU was then, and who on its stack may have called it:"
        for one in look["cpus"]:
            yield f"    {where(one, names)}"
    said = [
        line for time, line in _console(result.directory) if abs(time - violation.time) < AROUND
    ]
    if said:
        yield "  what the console said around then:"
        for line in _some(said):
            yield f"    {line}"


def _some(lines: list[str]) -> list[str]:
    return (
        lines
        if len(lines) <= LINES
        else [*lines[:LINES], f"… and {len(lines) - LINES} more lines: see console.log"]
    )


def _console(directory: Path) -> list[tuple[float, str]]:
    """(seconds since the epoch, line) of the whole console."""
    file = directory / "console.jsonl"
    if not file.exists():
        return []
    told = (json.loads(line) for line in file.read_text().splitlines())
    return [(entry["time"], entry["line"]) for entry in told]
