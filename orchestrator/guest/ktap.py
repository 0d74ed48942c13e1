# SPDX-License-Identifier: GPL-2.0-only
"""The test module's report: KTAP version 1, with the module's counters as diagnostic lines.

The module writes it (guest/module/report.c), and the console shows its KTAP lines. This parser
reads both, so it skips what precedes the KTAP on a line (time stamp, caller) and other lines.

The guest may be mad, or hostile: whatever it says is read in linear time, and numbers that no
counter can have are damage.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

VERSION = re.compile(r"^KTAP version \d+$")
PREFIX = re.compile(r"^(?:<\d+>)?(?:\[\s*\d+\.\d+\](?:\[\s*[TC]\d+\])?\s?)?")
RESULT = re.compile(r"^(not ok|ok) (\d{1,9})(?!\d)(?: -)? ?([^#]*)(?:# ?(\w+) ?(.*))?$")
PLAN = re.compile(r"^1\.\.(\d{1,9})$")
RESULT_OR_PLAN = re.compile(r"^((not )?ok|1\.\.)\W*\d")
SENTENCE = "! "
"""What a sentence begins with, so that it cannot be taken for facts: `# ! x=1 is missing`. Modules
before November 2026 did not mark their sentences."""
LONGEST = 4096
"""Characters of a line. The module's longest has a few hundred."""
MANY = 10_000
"""Results of a report. A run has some hundred steps."""
DIGITS = 20
"""Of a counter: the module's are u64."""

RESULTS = ("old", "new", "int3", "torn")
"""The ways in which a pass through a site can go: enum orch_result in guest/module/orch.h."""


class CpuPhase(NamedTuple):
    cpu: int
    phase: str
    """A digit, or `free` for passes that belong to no phase."""


@dataclass
class StepReport:
    """One result line, and the diagnostic lines before it."""

    number: int = 0
    name: str = ""
    ok: bool = False
    skip: str | None = None
    """What the kernel or the machine lacks for the step; None if it was not skipped."""
    missed: str | None = None
    """Why the step could not be done this time, so that it shows nothing; None if it was done."""
    counts: dict[CpuPhase, dict[str, int]] = field(default_factory=dict)
    """Number of passes, by result (one of RESULTS), for each CPU and phase."""
    stale: dict[int, int] = field(default_factory=dict)
    """cpu -> passes that did not go the way of the bytes last written."""
    durations: dict[int, int] = field(default_factory=dict)
    """Number of free-running pokes, by the shortest duration of their bucket in ns."""
    values: dict[str, str] = field(default_factory=dict)
    """The other `key=value` diagnostics."""
    complaints: list[str] = field(default_factory=list)
    """Diagnostics that are sentences: each says what does not hold."""

    def integer(self, name: str, base: int = 10) -> int:
        """The value `name` as a number; 0 if it is missing or not a number."""
        value = self.values.get(name, "0")
        try:
            return int(value, base) if len(value) <= DIGITS else 0
        except ValueError:
            return 0

    def total(self, result: str) -> int:
        """The number of passes with `result`, over all CPUs and phases."""
        return sum(count[result] for count in self.counts.values())


@dataclass
class GuestReport:
    planned: int | None = None
    """Number of results that the plan line announces; None if there was no plan line."""
    steps: list[StepReport] = field(default_factory=list)
    """In the order of their result lines."""
    damaged: list[str] = field(default_factory=list)
    """Lines that could not be parsed: diagnostics, results and plans."""

    @property
    def whole(self) -> bool:
        """Whether every planned result is there, once and in order, with all of its counters."""
        numbers = [step.number for step in self.steps]
        return (
            self.planned == len(numbers)
            and numbers == [*range(1, len(numbers) + 1)]
            and not self.damaged
        )

    def add(self, other: GuestReport) -> None:
        """Add the report of another guest, which has carried out another part of the plan."""
        if self.planned is not None and other.planned is not None:
            self.planned += other.planned
        self.steps = sorted([*self.steps, *other.steps], key=lambda step: step.number)
        self.damaged += other.damaged

    def step(self, number: int) -> StepReport | None:
        """The result with this number; None if there is none, or more than one."""
        matches = [step for step in self.steps if step.number == number]
        return matches[0] if len(matches) == 1 else None


def merged(reports: Iterable[GuestReport]) -> GuestReport:
    """The report of all guests, each of which has carried out another part of the plan."""
    first, *others = reports
    for other in others:
        first.add(other)
    return first


def parse(lines: Iterable[str]) -> GuestReport:
    """The last report in `lines`. A kernel with KUnit tests prints others before ours."""
    report = GuestReport()
    step = StepReport()
    for raw in lines:
        line = PREFIX.sub("", raw.rstrip("\r\n"), count=1)
        if len(line) > LONGEST or len(report.steps) > MANY:
            report.damaged.append(line[:LONGEST])
        elif VERSION.match(line):
            report, step = GuestReport(), StepReport()
        elif plan := PLAN.match(line):
            report.planned = int(plan[1])
        elif result := RESULT.match(line):
            step.ok = result[1] == "ok"
            step.number = int(result[2])
            step.name = result[3].strip()
            step.skip = result[5].strip() if result[4] == "SKIP" else None
            step.missed = result[5].strip() if result[4] == "ERROR" else None
            report.steps.append(step)
            step = StepReport()
        elif line.startswith("# "):
            try:
                _add_diagnostic(line[2:], step)
            except (KeyError, ValueError):  # two lines of the console ran into each other
                report.damaged.append(line)
        elif RESULT_OR_PLAN.match(line):
            report.damaged.append(line)
    return report


def _add_diagnostic(text: str, step: StepReport) -> None:
    words = text.split()
    pairs = dict(word.split("=", 1) for word in words if "=" in word)
    if text.startswith(SENTENCE):
        step.complaints.append(text.removeprefix(SENTENCE))
    elif words and "=" not in words[0]:
        step.complaints.append(text)
    elif "phase" in pairs:
        key = CpuPhase(_count(pairs["cpu"]), pairs["phase"])
        step.counts[key] = {name: _count(pairs[name]) for name in RESULTS}
    elif "stale" in pairs:
        step.stale[_count(pairs["cpu"])] = _count(pairs["stale"])
    elif "from_ns" in pairs:
        step.durations[_count(pairs["from_ns"])] = _count(pairs["pokes"])
    elif any("=" not in word for word in words):  # a sentence of an older module: `x=1 is missing`
        step.complaints.append(text)
    else:
        step.values.update(pairs)


def _count(text: str) -> int:
    """A counter's value. Raises ValueError if the module cannot have counted that."""
    if len(text) > DIGITS or not text.isdecimal():
        raise ValueError(text)
    return int(text)
