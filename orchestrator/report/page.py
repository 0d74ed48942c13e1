"""A run as one HTML page that needs nothing else: report.html in the run's directory."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from orchestrator.host.paths import write_whole
from orchestrator.report import html
from orchestrator.report.failure import explain
from orchestrator.report.files import name
from orchestrator.verdict.cases import cases
from orchestrator.verdict.checks import expected_coverage, seen_coverage
from orchestrator.verdict.evidence import Evidence
from orchestrator.verdict.result import RunResult

TEMPLATE = "page.html.j2"
BARS = 60
"""Of the drawing of int3 over time."""
CONSOLE_LINES = 4000
"""Of the console's end that the page shows; the file has all."""


@dataclass(frozen=True)
class Bar:
    """One bar of a drawing: label, what it stands for as text, and its size from 0 to 100."""

    label: str
    text: str
    size: float


def write(result: RunResult) -> None:
    """Write report.html into the run's directory."""
    write_whole(result.directory / "report.html", render(result))


def render(result: RunResult) -> str:
    evidence = result.evidence
    return html.render(
        TEMPLATE,
        title=name(result),
        result=result,
        cases=cases(result),
        coverage=_coverage(evidence),
        phases=("0 old", "1 cc+old", "2 cc+new", "3 new"),
        hits=_hits(result.directory / "events.jsonl"),
        latency=_latency(evidence),
        explained="\n".join(explain(result)),
        console=_console(result),
    )


def _coverage(evidence: Evidence) -> dict[int, list[tuple[int, int, bool]]]:
    """By CPU, for each phase: passes seen, steps in which it was to be seen, and whether it was in all of them."""
    passes: Counter[tuple[int, int]] = Counter()
    wanted: Counter[tuple[int, int]] = Counter()
    met: Counter[tuple[int, int]] = Counter()
    for seen in evidence.coverage_steps:
        counted, expected = seen_coverage(seen), expected_coverage(evidence, seen)
        passes.update(counted)
        wanted.update(expected)
        met.update(expected & counted.keys())
    return {
        cpu: [(passes[p, cpu], wanted[p, cpu], met[p, cpu] == wanted[p, cpu]) for p in range(4)]
        for cpu in (evidence.cpus if wanted else ())
    }


def _hits(events: Path) -> list[Bar]:
    """int3 that GDB saw, over the time from its first event to its last."""
    lines = events.read_text().splitlines() if events.exists() else []
    told = [json.loads(line) for line in lines]
    if len(told) < 2 or (span := told[-1]["t"] - told[0]["t"]) <= 0:
        return []
    counts = Counter(
        min(int((event["t"] - told[0]["t"]) / span * BARS), BARS - 1)
        for event in told
        if event["kind"] == "int3"
    )
    most = max(counts.values(), default=0)
    return [
        Bar(f"{number * span / BARS:.1f} s", f"{counts[number]} int3", 100 * counts[number] / most)
        for number in range(BARS)
        if most
    ]


def _latency(evidence: Evidence) -> list[Bar]:
    """How long a poke takes, by scenario, running free: the mean as the bar."""
    means: list[tuple[str, float, float]] = []
    for seen in evidence.free:
        step = seen.guest
        if step and (pokes := step.integer("pokes")):
            means.append(
                (
                    seen.scenario.name,
                    step.integer("poke_ns") / pokes / 1e6,
                    step.integer("poke_ns_max") / 1e6,
                )
            )
    longest = max((mean for _, mean, _ in means), default=0.0)
    return [
        Bar(scenario, f"{mean:.2f} ms, at most {most:.1f} ms", 100 * mean / longest)
        for scenario, mean, most in means
        if longest
    ]


def _console(result: RunResult) -> list[tuple[int, str, bool]]:
    """Number, text, and whether it is part of what the scan found, of each line of the console."""
    file = result.directory / "console.log"
    lines = file.read_text(errors="replace").splitlines() if file.exists() else []
    found = {number for f in result.evidence.findings for number in range(f.line, f.last + 1)}
    numbered = [(number, line, number in found) for number, line in enumerate(lines, 1)]
    return numbered[-CONSOLE_LINES:]
