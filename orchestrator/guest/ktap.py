# SPDX-License-Identifier: GPL-2.0-only
"""The test module's report: KTAP version 1, with the module's counters as diagnostic lines.

The module writes it (guest/module/report.c), and the console shows its KTAP lines. This parser
reads both, so it skips what precedes the KTAP on a line (time stamp, caller) and other lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

VERSION = re.compile(r"^KTAP version \d+$")
PREFIX = re.compile(r"^(?:<\d+>)?(?:\[\s*\d+\.\d+\](?:\[\s*[TC]\d+\])?\s?)?")
RESULT = re.compile(r"^(not ok|ok) (\d+)(?: -)? ?([^#]*?)(?:\s*# ?(SKIP|TODO)\b ?(.*))?$")
PLAN = re.compile(r"^1\.\.(\d+)$")
PAIR = re.compile(r"(\w+)=(\S+)")

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
    """Why the step was skipped; None if it was not."""
    counts: dict[CpuPhase, dict[str, int]] = field(default_factory=dict)
    """Number of passes, by result (one of RESULTS), for each CPU and phase."""
    stale: dict[int, int] = field(default_factory=dict)
    """cpu -> passes that did not go the way of the bytes last written."""
    values: dict[str, str] = field(default_factory=dict)
    """The other `key=value` diagnostics."""
    complaints: list[str] = field(default_factory=list)
    """Diagnostics that are sentences: each says what does not hold."""

    def integer(self, name: str, base: int = 10) -> int:
        """The value `name` as a number; 0 if it is missing or not a number."""
        try:
            return int(self.values.get(name, "0"), base)
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
    """Diagnostic lines that could not be parsed."""

    @property
    def whole(self) -> bool:
        """Whether every planned result is there, once and in order, with all of its counters."""
        numbers = [step.number for step in self.steps]
        return (
            self.planned == len(numbers)
            and numbers == [*range(1, len(numbers) + 1)]
            and not self.damaged
        )

    def step(self, number: int) -> StepReport | None:
        """The result with this number; None if there is none, or more than one."""
        matches = [step for step in self.steps if step.number == number]
        return matches[0] if len(matches) == 1 else None


def parse(lines: Iterable[str]) -> GuestReport:
    """The last report in `lines`. A kernel with KUnit tests prints others before ours."""
    report = GuestReport()
    step = StepReport()
    for raw in lines:
        line = PREFIX.sub("", raw.rstrip("\r\n"), count=1)
        if VERSION.match(line):
            report, step = GuestReport(), StepReport()
        elif plan := PLAN.match(line):
            report.planned = int(plan[1])
        elif result := RESULT.match(line):
            step.ok = result[1] == "ok"
            step.number = int(result[2])
            step.name = result[3].strip()
            step.skip = result[5].strip() if result[4] == "SKIP" else None
            report.steps.append(step)
            step = StepReport()
        elif line.startswith("# "):
            try:
                _add_diagnostic(line[2:], step)
            except (KeyError, ValueError):  # two lines of the console ran into each other
                report.damaged.append(line)
    return report


def _add_diagnostic(text: str, step: StepReport) -> None:
    pairs = dict(PAIR.findall(text))
    if not PAIR.match(text):
        step.complaints.append(text)
    elif "phase" in pairs:
        key = CpuPhase(int(pairs["cpu"]), pairs["phase"])
        step.counts[key] = {name: int(pairs[name]) for name in RESULTS}
    elif "stale" in pairs:
        step.stale[int(pairs["cpu"])] = int(pairs["stale"])
    else:
        step.values.update(pairs)
