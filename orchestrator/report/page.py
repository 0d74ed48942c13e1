# SPDX-License-Identifier: GPL-2.0-only
"""A run as one HTML page that needs no other file: report.html in the run's directory."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from orchestrator.host.files import write_report
from orchestrator.report import html
from orchestrator.report.failure import explain
from orchestrator.report.files import name
from orchestrator.report.terminal import PHASES
from orchestrator.text.keys import PhaseCpu
from orchestrator.verdict.cases import cases
from orchestrator.verdict.checks import expected_coverage, seen_coverage
from orchestrator.verdict.evidence import Evidence
from orchestrator.verdict.result import RunResult

TEMPLATE = "page.html.j2"
BARS = 60
"""Number of bars in the chart of int3 over time."""
CONSOLE_LINES = 4000
"""The page shows only this many lines from the end of the console."""


@dataclass(frozen=True)
class Bar:
    """One bar of a chart."""

    label: str
    text: str
    """The value, as text."""
    size: float
    """Length from 0 to 100."""


def write(result: RunResult) -> None:
    """Write report.html into the run's directory."""
    write_report(result.directory / "report.html", render(result))


def render(result: RunResult) -> str:
    evidence = result.evidence
    return html.render(
        TEMPLATE,
        title=name(result),
        result=result,
        cases=cases(result),
        coverage=_coverage(evidence),
        phases=PHASES,
        hits=_hits(result.directory / "events.jsonl"),
        latency=_latency(evidence),
        explained="\n".join(explain(result)),
        console=_console(result),
    )


def _coverage(evidence: Evidence) -> dict[int, list[tuple[int, int, bool]]]:
    """By CPU, a tuple for each phase: passes, steps that must cover it, whether all of them do."""
    passes: Counter[PhaseCpu] = Counter()
    expected: Counter[PhaseCpu] = Counter()
    covered: Counter[PhaseCpu] = Counter()
    for step in evidence.coverage_steps:
        seen = seen_coverage(step)
        must_see = expected_coverage(evidence, step)
        passes.update(seen)
        expected.update(must_see)
        covered.update(must_see & seen.keys())
    rows = {}
    for cpu in evidence.cpus if expected else ():
        keys = [PhaseCpu(phase, cpu) for phase in range(4)]
        rows[cpu] = [(passes[key], expected[key], covered[key] == expected[key]) for key in keys]
    return rows


def _hits(events: Path) -> list[Bar]:
    """int3 that GDB saw over time, from its first event to its last."""
    lines = events.read_text().splitlines() if events.is_file() else []
    all_events = [json.loads(line) for line in lines]
    if len(all_events) < 2:
        return []
    start, span = all_events[0]["t"], all_events[-1]["t"] - all_events[0]["t"]
    if span <= 0:
        return []
    counts = Counter(
        min(int((event["t"] - start) / span * BARS), BARS - 1)
        for event in all_events
        if event["kind"] == "int3"
    )
    most = max(counts.values(), default=0)
    return [
        Bar(f"{number * span / BARS:.1f} s", f"{counts[number]} int3", 100 * counts[number] / most)
        for number in range(BARS)
        if most
    ]


def _latency(evidence: Evidence) -> list[Bar]:
    """Duration of a free-running poke by scenario; the bar is the mean."""
    means: list[tuple[str, float, float]] = []
    for step in evidence.free_steps:
        report = step.guest
        if report and (pokes := report.integer("pokes")):
            mean = report.integer("poke_ns") / pokes / 1e6
            means.append((step.scenario.name, mean, report.integer("poke_ns_max") / 1e6))
    longest = max((mean for _, mean, _ in means), default=0.0)
    return [
        Bar(scenario, f"mean {mean:.2f} ms, max {maximum:.1f} ms", 100 * mean / longest)
        for scenario, mean, maximum in means
        if longest
    ]


def _console(result: RunResult) -> list[tuple[int, str, bool]]:
    """For each line of the console: number, text, and whether it belongs to a finding."""
    file = result.directory / "console.log"
    lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
    marked = {number for f in result.evidence.findings for number in range(f.line, f.last + 1)}
    numbered = [(number, line, number in marked) for number, line in enumerate(lines, 1)]
    return numbered[-CONSOLE_LINES:]
