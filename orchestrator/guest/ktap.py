"""The guest's report: KTAP version 1, with the module's counters as diagnostic lines.

The module writes it (guest/module/main.c) and the console shows its KTAP lines, so both are read by this parser:
whatever precedes the KTAP on a line (time stamps, caller ids) is passed over, and so are lines that are not KTAP.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

VERSION = re.compile(r"^KTAP version \d+$")
PREFIX = re.compile(r"^(?:<\d+>)?(?:\[\s*\d+\.\d+\](?:\[\s*[TC]\d+\])?\s?)?")
RESULT = re.compile(r"^(not ok|ok) (\d+)(?: -)? ?([^#]*?)(?:\s*# ?(SKIP|TODO)\b ?(.*))?$")
PLAN = re.compile(r"^1\.\.(\d+)$")
PAIR = re.compile(r"(\w+)=(\S+)")

RESULTS = ("old", "new", "int3", "torn")


@dataclass
class StepReport:
    """One result line and the diagnostics before it.

    counts: passes by (cpu, phase), each a dict by RESULTS; the phase of a free-running pass is `free`.
    stale: passes by cpu that went another way than the bytes last written. values: `key=value` diagnostics as text.
    said: the other diagnostics, sentences on what does not hold.
    """

    number: int = 0
    name: str = ""
    ok: bool = False
    skip: str | None = None
    counts: dict[tuple[int, str], dict[str, int]] = field(default_factory=dict)
    stale: dict[int, int] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def integer(self, name: str, base: int = 10) -> int:
        """The value `name` as a number; 0 where there is none, or none that can be read."""
        try:
            return int(self.values.get(name, "0"), base)
        except ValueError:
            return 0

    def total(self, result: str) -> int:
        return sum(count[result] for count in self.counts.values())


@dataclass
class GuestReport:
    """planned: the number of the plan line, None when there was none. steps: in the order of their lines.
    damaged: lines of counters that could not be read.
    """

    planned: int | None = None
    steps: list[StepReport] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

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
        """The result with this number, None when there is none or there are several."""
        found = [step for step in self.steps if step.number == number]
        return found[0] if len(found) == 1 else None


def parse(lines: Iterable[str]) -> GuestReport:
    """The last report in `lines`: a kernel with KUnit tests has others on its console before ours."""
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
                _diagnose(line[2:], step)
            except (KeyError, ValueError):  # two lines of a console got mixed up
                report.damaged.append(line)
    return report


def _diagnose(text: str, step: StepReport) -> None:
    pairs = dict(PAIR.findall(text))
    if not PAIR.match(text):
        step.said.append(text)
    elif "phase" in pairs:
        step.counts[int(pairs["cpu"]), pairs["phase"]] = {
            name: int(pairs[name]) for name in RESULTS
        }
    elif "stale" in pairs:
        step.stale[int(pairs["cpu"])] = int(pairs["stale"])
    else:
        step.values.update(pairs)
