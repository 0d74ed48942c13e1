# SPDX-License-Identifier: GPL-2.0-only
"""A run as one HTML page that needs no other file: report.html in the run's directory."""

from __future__ import annotations

import itertools
import math
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from orchestrator.host.files import write_report
from orchestrator.report import html, timeline
from orchestrator.report.failure import explain
from orchestrator.report.files import name
from orchestrator.report.picture import svg, wrong_at
from orchestrator.report.tables import said_once
from orchestrator.report.terminal import PHASES
from orchestrator.report.timeline import Timeline
from orchestrator.rundir import files_of
from orchestrator.verdict import result as result_file
from orchestrator.verdict.cases import Case, cases
from orchestrator.verdict.checks import expected_coverage, seen_coverage
from orchestrator.verdict.evidence import Evidence, StepEvidence
from orchestrator.verdict.measures import LatencyBucket
from orchestrator.verdict.model import cpu_names
from orchestrator.verdict.recorded.judgement import PLACE
from orchestrator.verdict.result import RunResult, VerdictRecord

TEMPLATE = "page.html.j2"
CONSOLE_LINES = 4000
"""The page shows only this many lines from the end of the console."""
REFERENCE = re.compile(rf"\[event (\d+)\]|{PLACE.pattern}")
"""An event or a record that a text names."""
MAX_TICKS = 9
"""More numbers below the histogram do not fit a phone."""
AFTER = {
    1: "after int3 was written (phase 1)",
    2: "after the tail was written (phase 2)",
    3: "after the first byte was written (phase 3)",
}
"""Which sync is missing, by phase."""
WRONG = {
    "writes": "does not write code in the order of the protocol",
    "bytes": "has other bytes in its code than it wrote",
    "sync": "goes on patching too early",
    "int3": "lets a CPU run into an int3 that should not be there",
    "consumed": "mishandles an int3 that it wrote itself",
    "irqs": "patches code with interrupts disabled",
    "lock": "patches code without text_mutex",
    "stopper": "stops the whole machine to patch code",
    "sites": "leaves a branch or a call as it should not be",
}
"""What a kernel does that breaks a claim, by check (NAMED in verdict/model.py)."""
LEFT, RIGHT = 125, 670
"""Where the scale of the durations begins and ends."""


@dataclass(frozen=True)
class Cell:
    """What a CPU did in a scenario."""

    text: str
    title: str
    style: str
    """seen, fail if it was not seen in all phases, none."""
    heat: float = 0
    """From 0 to 1."""


@dataclass(frozen=True)
class Column:
    """A scenario in the heat map."""

    name: str
    status: str
    text: str
    cells: dict[int, Cell] = field(default_factory=dict)
    """By CPU; empty if the scenario does not have to show each CPU."""


@dataclass(frozen=True)
class Heat:
    rows: Sequence[int] = ()
    columns: Sequence[Column] = ()


@dataclass(frozen=True)
class Bar:
    """Durations of the pokes of a scenario."""

    label: str
    text: str
    mean: float
    """Its place on the scale."""
    longest: float


@dataclass(frozen=True)
class Histogram:
    """The durations of all free-running pokes."""

    summary: str
    buckets: Sequence[LatencyBucket]
    bars: Sequence[tuple[LatencyBucket | None, float]]
    """All buckets from the first to the last, None for one without pokes; height in percent."""
    ticks: Sequence[tuple[float, str]]
    """Place from the left, in percent, and duration."""

    @property
    def highest(self) -> int:
        """Number of pokes of the highest bar."""
        return max(bucket.pokes for bucket in self.buckets)


def write(result: RunResult) -> None:
    """Write report.html into the run's directory."""
    write_report(result.directory / "report.html", render(result))


def render(result: RunResult) -> str:
    evidence, record = result.evidence, result_file.record(result)
    line = timeline.of_failure(result.directory, record.failure, result.spec.smp)
    failed = line is not None
    if not line and not result.verdict.exit_status:
        line = timeline.of_example(result.directory, result.spec.smp)
    latency, ticks = _latency(record)
    all_cases = cases(result)
    return html.render(
        TEMPLATE,
        title=name(result),
        headline=headline(record),
        result=result,
        record=record,
        case_groups=_case_groups(all_cases),
        line=line,
        failed=failed,
        picture=svg(line) if line else "",
        wrong_at=wrong_at(line) if line else None,
        parts=_parts(line, record.failure.guest if record.failure else ""),
        heat=_heat(evidence, all_cases),
        phases=PHASES,
        met=list(_met(evidence)),
        histogram=_histogram(record),
        latency=latency,
        ticks=ticks,
        explained="\n".join(explain(result)),
        command=shlex.join(("orchestrator", *record.command)),
        console=_console(result),
    )


def headline(verdict: VerdictRecord) -> str:
    """The verdict in one sentence, for somebody who has never seen such a report."""
    kernel, failure = verdict.name or "the kernel", verdict.failure
    on = f"{verdict.smp} CPUs" if verdict.smp != 1 else "one CPU"
    if not verdict.exit_status:
        return f"{kernel} patches its own code safely on {on}: {verdict.reason}."
    if verdict.exit_status != 1 or not failure:
        return verdict.reason
    if failure.check == "sync" and failure.cpus:
        everyone = failure.cpus == tuple(range(verdict.smp or 0))
        who = f"none of the {on}" if everyone else cpu_names(failure.cpus)
        did = "synced" if everyone else "did not sync"
        write = AFTER.get(failure.phase or 0, "after a write")
        return (
            f"{kernel} goes on patching too early: {who} {did} {write}, so stale code may still "
            "be executed."
        )
    if failure.check in WRONG:
        return f"{kernel} {WRONG[failure.check]}: {failure.text}."
    return verdict.reason


def _case_groups(all_cases: Sequence[Case]) -> list[tuple[str, list[list[Case]]]]:
    """Heading and rows of each table. Checks that saw nothing for the same reason are one row."""
    checks = [case for case in all_cases if case.group == "claim"]
    scenarios = [[case] for case in all_cases if case.group == "scenario"]
    return [("Checks", said_once(checks, lambda case: case.unseen)), ("Scenarios", scenarios)]


def _parts(line: Timeline | None, guest: str) -> Callable[[str], Iterator[tuple[str, str]]]:
    """Cuts a text into pieces, each with the number of the event or record in `line` that it names.

    guest: whose log `line` is from, if it is from one.
    """
    rows = {row[0] for row in line.rows()} if line else set()

    def parts(text: str) -> Iterator[tuple[str, str]]:
        end = 0
        for found in REFERENCE.finditer(text):
            event, record, of = found.groups()
            if line and line.source != timeline.EVENTS:
                event = record if guest == (of or "") else None
            yield text[end : found.start()], ""
            yield found[0], event if event in rows else ""
            end = found.end()
        yield text[end:], ""

    return parts


def _heat(evidence: Evidence, all_cases: Sequence[Case]) -> Heat:
    """All scenarios; those that must show each CPU in each phase have a cell for each."""
    by_name: dict[str, list[StepEvidence]] = {}
    for step in evidence.coverage_steps:
        by_name.setdefault(step.scenario.name, []).append(step)
    columns = [
        Column(case.name, case.status, case.text, _cells(evidence, by_name.get(case.name, [])))
        for case in all_cases
        if case.group == "scenario"
    ]
    return Heat(evidence.cpus, columns if evidence.cpus else ())


def _cells(evidence: Evidence, steps: Sequence[StepEvidence]) -> dict[int, Cell]:
    passes: Counter[int] = Counter()
    expected: Counter[int] = Counter()
    seen: Counter[int] = Counter()
    for step in steps:
        found, due = seen_coverage(step), expected_coverage(evidence, step)
        for key, count in found.items():
            passes[key.cpu] += count
        expected.update(key.cpu for key in due)
        seen.update(key.cpu for key in due & found.keys())
    if not expected:
        return {}
    most = max(max(passes.values(), default=0), 1)
    cells = {}
    for cpu in evidence.cpus:
        title = f"seen in {seen[cpu]} of {expected[cpu]} phases, {passes[cpu]} passes"
        heat = round(0.08 + 0.27 * math.log1p(passes[cpu]) / math.log1p(most), 2)
        if not expected[cpu]:
            cells[cpu] = Cell("", "nothing to see", "none")
        elif seen[cpu] < expected[cpu]:
            cells[cpu] = Cell(f"✗ {seen[cpu]}/{expected[cpu]}", title, "fail")
        else:
            cells[cpu] = Cell(str(passes[cpu]), title, "seen", heat)
    return cells


def _met(evidence: Evidence) -> Iterator[tuple[int, int, int, int]]:
    """Phase in which int3 was executed, phase in which the CPU went on, int3, and CPUs."""
    counts: Counter[tuple[int, int]] = Counter()
    cpus: dict[tuple[int, int], set[int]] = {}
    for (cpu, here, there), count in evidence.record.met.items() if evidence.record else ():
        counts[here, there] += count
        cpus.setdefault((here, there), set()).add(cpu)
    for (here, there), count in sorted(counts.items()):
        yield here, there, count, len(cpus[here, there])


def _latency(verdict: VerdictRecord) -> tuple[list[Bar], list[tuple[float, str]]]:
    """Durations by scenario, and the ticks of their scale."""
    found = [one for one in verdict.latencies if 0 < one.mean_ms <= one.max_ms]
    if not found:
        return [], []
    low = math.floor(math.log10(min(one.mean_ms for one in found)))
    high = max(math.ceil(math.log10(max(one.max_ms for one in found))), low + 1)

    def place(value: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (math.log10(value) - low) / (high - low), 1)

    bars = [
        Bar(
            one.scenario,
            f"{one.pokes} pokes, {one.mean_ms:.2f} ms, at most {one.max_ms:.1f} ms",
            place(one.mean_ms),
            place(one.max_ms),
        )
        for one in found
    ]
    return bars, [(place(10.0**power), f"{10.0**power:g} ms") for power in range(low, high + 1)]


def _histogram(verdict: VerdictRecord) -> Histogram | None:
    """How durations are distributed; None if that is not known."""
    buckets = verdict.latency_histogram
    if not buckets:
        return None
    first, end = _place(buckets[0].from_ms), _place(buckets[-1].below_ms)
    highest = max(bucket.pokes for bucket in buckets)
    by_place = {round(_place(bucket.from_ms)): bucket for bucket in buckets}
    bars = [
        (bucket, 100 * bucket.pokes / highest) if (bucket := by_place.get(place)) else (None, 0.0)
        for place in range(round(first), round(end))
    ]
    ticks = [
        (round(100 * (_place(mark) - first) / (end - first), 1), f"{mark:g} ms")
        for mark in _round_durations(buckets[0].from_ms, buckets[-1].below_ms)
    ]
    return Histogram(_latency_summary(verdict), buckets, bars, ticks)


def _round_durations(low: float, high: float) -> Sequence[float]:
    """Some round numbers in this interval, at most MAX_TICKS."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1,)):
        found = [
            mark
            for power in powers
            for digit in digits
            if low <= (mark := digit * 10.0**power) <= high
        ]
        if len(found) <= MAX_TICKS:
            break
    return found[:: math.ceil(len(found) / MAX_TICKS) or 1]


def _place(duration_ms: float) -> float:
    """Where a duration is on a scale on which each bucket is as wide as the others."""
    mantissa, power = math.frexp(duration_ms * 1e6)
    return 4 * (power + 2 * mantissa)


def _latency_summary(verdict: VerdictRecord) -> str:
    buckets = verdict.latency_histogram
    total = sum(bucket.pokes for bucket in buckets)
    longest = max((one.max_ms for one in verdict.latencies), default=0)

    def below(part: float) -> str:
        sums = itertools.accumulate(bucket.pokes for bucket in buckets)
        reached = next(at for at, count in enumerate(sums) if count >= part * total)
        return f"{min(buckets[reached].below_ms, longest):.2g} ms"

    return (
        f"Half of {total:,} pokes took at most {below(0.5)}, 99 of 100 at most {below(0.99)}, "
        f"and the longest took {longest:.2g} ms."
    )


def _console(result: RunResult) -> list[tuple[int, str, bool]]:
    """For each line of the console: number, text, and whether it belongs to a finding.

    If there are several guests, it is the console with the first finding.
    """
    findings = result.evidence.findings
    guest = findings[0].guest if findings else ""
    file = files_of(result.directory, guest) / "console.log"
    lines = file.read_text(errors="replace").splitlines() if file.is_file() else []
    marked = {number for f in findings if f.guest == guest for number in range(f.line, f.last + 1)}
    numbered = [(number, line, number in marked) for number, line in enumerate(lines, 1)]
    return numbered[-CONSOLE_LINES:]
