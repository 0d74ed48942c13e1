# SPDX-License-Identifier: GPL-2.0-only
"""What verdict.json says in numbers about a run: coverage, pokes, durations, the first failure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from orchestrator.verdict.checks import expected_coverage, uncovered
from orchestrator.verdict.evidence import Evidence
from orchestrator.verdict.recorded.reading import TEST_MODULE

SHORTEST = 4
"""Nanoseconds with which the first bucket of durations begins."""


@dataclass(frozen=True, kw_only=True)
class Uncovered:
    """The CPUs that a scenario did not show in a phase."""

    scenario: str
    phase: int
    cpus: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How many combinations of phase and CPU were seen, over all steps that must cover them."""

    seen: int = 0
    expected: int = 0
    missing: tuple[Uncovered, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Duration of the free-running pokes of one scenario, by the guest's clock."""

    scenario: str
    pokes: int
    mean_ms: float
    max_ms: float


@dataclass(frozen=True, kw_only=True)
class LatencyBucket:
    """The number of free-running pokes, of all scenarios, with a duration in one interval."""

    from_ms: float
    below_ms: float
    pokes: int


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The first failure, as far as it is known where it was. The reason says it in words."""

    check: str
    text: str
    step: str | None = None
    """The step of the run, such as nop5.direct.on."""
    phase: int | None = None
    cpu: int | None = None
    site: str | None = None
    """Symbol and offset of the patched instruction."""
    old: str | None = None
    """Bytes in hexadecimal; so are the next three. actual and expected: of a site that held the
    wrong ones."""
    new: str | None = None
    actual: str | None = None
    expected: str | None = None
    event: int | None = None
    """Its number in events.jsonl."""
    guest: str = ""
    """The branch in which it was seen; empty if there is one guest only."""
    record: int | None = None
    """Its number in recorder.log.gz, if only the recorder saw it."""
    since: int | None = None
    """Record of the write after which something is missing or wrong."""
    cpus: tuple[int, ...] = ()
    """The CPUs that did not sync, where these are missing, or the one that did something wrong."""
    console_line: int | None = None
    """Its line in console.log."""


def coverage(evidence: Evidence) -> Coverage:
    """What coverage_steps had to show, and what they showed."""
    total, unseen = 0, 0
    missing: dict[tuple[str, int], set[int]] = {}
    for step in evidence.coverage_steps:
        total += len(expected_coverage(evidence, step))
        for phase, cpus in uncovered(evidence, step).items():
            unseen += len(cpus)
            missing.setdefault((step.scenario.name, phase), set()).update(cpus)
    gaps = tuple(
        Uncovered(scenario=scenario, phase=phase, cpus=tuple(sorted(cpus)))
        for (scenario, phase), cpus in sorted(missing.items())
    )
    return Coverage(seen=total - unseen, expected=total, missing=gaps)


def pokes(evidence: Evidence) -> dict[str, int]:
    """The number of pokes by owner: all that were judged; without a record those that GDB watched,
    of the test module or of a kernel function."""
    if evidence.record:
        return dict(evidence.record.judged.most_common())
    watched = [step.watched for step in evidence.watched_steps if step.watched]
    owners = Counter({TEST_MODULE: sum(len(one.announced) for one in watched)})
    owners.update(evidence.kernel_pokers)
    return dict(owners.most_common())


def latencies(evidence: Evidence) -> tuple[Latency, ...]:
    """Durations by scenario, in the order of the run."""
    reports = [(step.scenario.name, step.guest) for step in evidence.free_steps if step.guest]
    found = []
    for name in dict.fromkeys(name for name, _ in reports):
        own = [report for scenario, report in reports if scenario == name]
        if count := sum(report.integer("pokes") for report in own):
            mean = sum(report.integer("poke_ns") for report in own) / count
            longest = max(report.integer("poke_ns_max") for report in own)
            found.append(
                Latency(
                    scenario=name,
                    pokes=count,
                    mean_ms=round(mean / 1e6, 3),
                    max_ms=round(longest / 1e6, 3),
                )
            )
    return tuple(found)


def latency_histogram(evidence: Evidence) -> tuple[LatencyBucket, ...]:
    """How durations are distributed, in their order and without empty buckets.

    Empty if the guest's module did not count durations.
    """
    counts: Counter[int] = Counter()
    for step in evidence.free_steps:
        for begin, count in step.guest.durations.items() if step.guest else ():
            counts[_begin(begin)] += count
    return tuple(
        LatencyBucket(from_ms=begin / 1e6, below_ms=(begin + _width(begin)) / 1e6, pokes=count)
        for begin, count in sorted(counts.items())
        if count
    )


def _width(begin: int) -> int:
    """Of a bucket: there are four for each power of two (bucket_of() in guest/module/poker.c)."""
    return 1 << (begin.bit_length() - 3)


def _begin(duration: int) -> int:
    """Where its bucket begins. The module reports only such durations; a hostile guest, any."""
    duration = max(duration, SHORTEST)
    return duration - duration % _width(duration)


def first_failure(evidence: Evidence, failed: dict[str, str]) -> Failure | None:
    """The first failure of a run; failed: the texts of its failed checks, by name."""
    if first := next(evidence.violations(), None):
        step, poke, violation = first
        return Failure(
            check=violation.claim,
            text=violation.text,
            step=step.name,
            phase=violation.phase,
            cpu=violation.cpu if violation.cpu >= 0 else None,
            site=evidence.names.name(poke.site),
            old=poke.old.hex(),
            new=poke.new.hex(),
            actual=violation.actual.hex() if violation.actual is not None else None,
            expected=violation.expected.hex() if violation.expected is not None else None,
            event=violation.event,
            cpus=violation.cpus,
        )
    for check, text in failed.items():
        if recorded := evidence.record.violations_of(check) if evidence.record else []:
            of = recorded[0]
            return Failure(
                check=check,
                text=of.text,
                guest=of.log.guest,
                record=of.record,
                since=of.since,
                cpus=of.cpus,
            )
        if check == "console" and evidence.findings:
            found = evidence.findings[0]
            return Failure(check=check, text=text, guest=found.guest, console_line=found.line)
        return Failure(check=check, text=text)
    return None
