# SPDX-License-Identifier: GPL-2.0-only
"""The first failure of a run, explained: the bytes, where each CPU was, and the console then."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import EXIT_KERNEL_FAILED, EXIT_PASS
from orchestrator.report import timeline
from orchestrator.rundir import files_of, replay_command
from orchestrator.text.disasm import describe
from orchestrator.text.symbols import where as where_is
from orchestrator.verdict import measures
from orchestrator.verdict.evidence import StepEvidence
from orchestrator.verdict.model import Poke, Violation
from orchestrator.verdict.result import RunResult

CONSOLE_SECONDS = 1.0
"""How much of the console is shown, in seconds before and after the failure."""
MAX_LINES = 12
"""Maximum number of console lines shown."""


def explain(result: RunResult) -> Iterator[str]:
    """Lines of text; none when nothing failed.

    GDB may have seen a violation that the recorder's log excuses, such as a deferred sync.
    """
    if result.verdict.exit_status == EXIT_PASS:
        return
    yield from _explain(result)
    failed = result.verdict.exit_status == EXIT_KERNEL_FAILED
    if failed and (command := replay_command(result.directory)):
        yield f"Again, event by event: {command}"


def _explain(result: RunResult) -> Iterator[str]:
    evidence = result.evidence
    if first := next(evidence.violations(), None):
        yield from _explain_violation(result, *first)
        return
    failed = {one.check: one.text for one in result.verdict.results if one.status == "fail"}
    failure = measures.first_failure(evidence, failed)
    if failure and failure.record is not None:
        log = files_of(result.directory, failure.guest) / timeline.LOG
        yield f"First failure: {failure.check}: {failure.text}"
        yield f"  See record {failure.record} of {log.relative_to(result.directory)}."
    if evidence.findings:
        finding = evidence.findings[0]
        console = [line for _, line in _console(files_of(result.directory, finding.guest))]
        lines = [evidence.decoded.get(line, line) for line in console]
        of = f" of the branch {finding.guest}" if finding.guest else ""
        yield f"The console{of} from line {finding.line} on:"
        yield from _shorten(lines[max(0, finding.line - 3) : finding.last])


def _explain_violation(
    result: RunResult, step: StepEvidence, poke: Poke, violation: Violation
) -> Iterator[str]:
    names = result.evidence.names
    # Where CPUs did not sync, that of the event is another one: the sentence names them.
    cpu = f", CPU {violation.cpu}" if violation.cpu >= 0 and not violation.cpus else ""
    where = f"{step.name}, phase {violation.phase}{cpu}"
    yield f"First failure: {violation.claim}, in {where}: {violation.text}"
    yield f"  The site is {names.name(poke.site)}. See event {violation.event} of events.jsonl."
    contents = {
        "old": poke.old,
        "new": poke.new,
        "actual": violation.actual,
        "expected": violation.expected,
    }
    for label, code in contents.items():
        if code is not None:
            meaning = describe(code, poke.site, poke.old, poke.new, names.name)
            yield f"  {label + ':':<10}{code.hex(' '):<24}{meaning}"
    snapshots = step.watched.cpu_snapshots if step.watched else []
    if snapshot := next((one for one in snapshots if one["n"] >= violation.event - 1), None):
        yield "  Where each CPU was at that moment (function < possible callers on its stack):"
        for state in snapshot["cpus"]:
            yield f"    {where_is(state, names)}"
    lines = [
        line
        for time, line in _console(result.directory)
        if abs(time - violation.time) < CONSOLE_SECONDS
    ]
    if lines:
        yield "  The console at about that time:"
        for line in _shorten(lines):
            yield f"    {line}"


def _shorten(lines: list[str]) -> list[str]:
    if len(lines) <= MAX_LINES:
        return lines
    return [*lines[:MAX_LINES], f"… and {len(lines) - MAX_LINES} more lines in console.log"]


def _console(directory: Path) -> list[tuple[float, str]]:
    """(seconds since the epoch, line) for the whole console."""
    file = directory / "console.jsonl"
    if not file.is_file():
        return []
    entries = (json.loads(line) for line in file.read_text().splitlines())
    return [(entry["time"], entry["line"]) for entry in entries]
