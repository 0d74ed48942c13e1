"""The guest's report: KTAP version 1, with the module's counters as diagnostic lines.

The module writes it (guest/module/main.c) and the console shows its KTAP lines, so both are read by this parser:
whatever precedes the KTAP on a line (time stamps, caller ids) is passed over, and so are lines that are not KTAP.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

PREFIX = re.compile(r"^(?:<\d+>)?(?:\[\s*\d+\.\d+\](?:\[\s*[TC]\d+\])?\s?)?")
RESULT = re.compile(r"^(not ok|ok) (\d+)(?: -)? ?([^#]*?)(?:\s*# ?(SKIP|TODO)\b ?(.*))?$")
PLAN = re.compile(r"^1\.\.(\d+)$")
PAIR = re.compile(r"(\w+)=(\S+)")

RESULTS = ("old", "new", "int3", "torn")


@dataclass
class Step:
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
        return int(self.values.get(name, "0"), base)

    def total(self, result: str) -> int:
        return sum(count[result] for count in self.counts.values())


@dataclass
class Report:
    """planned: the number of the plan line, None when there was none. steps: in the order of their lines."""

    planned: int | None = None
    steps: list[Step] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether every planned result is there, once and in order."""
        return self.planned == len(self.steps) and [s.number for s in self.steps] == [*range(1, len(self.steps) + 1)]


def parse(lines: Iterable[str]) -> Report:
    report = Report()
    step = Step()
    for raw in lines:
        line = PREFIX.sub("", raw.rstrip("\r\n"), count=1)
        if plan := PLAN.match(line):
            report.planned = int(plan[1])
        elif result := RESULT.match(line):
            step.ok = result[1] == "ok"
            step.number = int(result[2])
            step.name = result[3].strip()
            step.skip = result[5].strip() if result[4] == "SKIP" else None
            report.steps.append(step)
            step = Step()
        elif line.startswith("# "):
            _diagnose(line[2:], step)
    return report


def _diagnose(text: str, step: Step) -> None:
    pairs = dict(PAIR.findall(text))
    if not pairs:
        step.said.append(text)
    elif "phase" in pairs:
        step.counts[int(pairs["cpu"]), pairs["phase"]] = {name: int(pairs[name]) for name in RESULTS}
    elif "stale" in pairs:
        step.stale[int(pairs["cpu"])] = int(pairs["stale"])
    else:
        step.values.update(pairs)
