# SPDX-License-Identifier: GPL-2.0-only
"""A recorded run of a healthy kernel, in which the tests break one thing at a time.

`orchestrator run --kernel debian:6.1 --smp 2 --duration 0.5 --scenario nop5 --scenario one
--scenario key` (6.1.176, QEMU 10.0.2, TCG) wrote golden/pass-smp2.*: what GDB saw, what the guest
reported, and what QEMU counted at the sites.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchestratorError
from orchestrator.guest import ktap
from orchestrator.guest.klog import Finding
from orchestrator.scenarios.scenario import select
from orchestrator.scenarios.steps import plan_steps
from orchestrator.verdict import model
from orchestrator.verdict.evidence import OBSERVERS, Companion, Evidence, StepEvidence
from orchestrator.verdict.recorded.judgement import Judgement

GOLDEN = Path(__file__).with_name("golden")
Event = dict[str, Any]

_EVENTS = [
    json.loads(line) for line in (GOLDEN / "pass-smp2.events.jsonl").read_text().splitlines()
]
for _event in _EVENTS:
    if _event["kind"] == "window":
        _task = _event["task"]
    elif _event["kind"] == "write":
        _event["owner"] = _task  # the recording is older than this field
_KTAP = (GOLDEN / "pass-smp2.guest.ktap").read_text().splitlines()
_LEDGER = json.loads((GOLDEN / "pass-smp2.ledger.json").read_text())

SCENARIOS = [scenario for scenario in select([]) if scenario.name in ("nop5", "one", "key")]
NOP5_ON, NOP5_OFF, ONE_ON, ONE_OFF, KEY_ON, KEY_OFF = range(1, 7)
"""Sequence numbers of the run's pokes."""


class Run:
    """The recorded run. Change it, then call evidence(). Most fields are those of Evidence."""

    def __init__(self) -> None:
        self.events: list[Event] = copy.deepcopy(_EVENTS)
        """GDB's events."""
        self.report = list(_KTAP)
        """The lines of the guest's report."""
        self.scenarios = list(SCENARIOS)
        self.requested_cpus = 2
        self.cpus: tuple[int, ...] = (0, 1)
        self.breakpoints: tuple[str, ...] = ("write", "sync", "int3", "stopper")
        self.companions: dict[str, Companion] = {}
        self.findings: list[Finding] = []
        self.error: OrchestratorError | None = None
        self.no_qemu_ledger: str | None = None
        self.lost = dict.fromkeys(OBSERVERS, "")
        """Why an observer missed something."""
        self.record: Judgement | None = Judgement(
            judged=Counter({"test module": 6}), sites_looked_at=20
        )
        self.no_record: str | None = None
        self.qemu: Counter[tuple[int, int]] = Counter()
        """Added to what QEMU counted in the gated part."""

    # -- what to break

    def poke(self, seq: int) -> list[Event]:
        """The events of one poke. They are not copies: changing one changes the run."""
        windows = [at for at, event in enumerate(self.events) if event["kind"] == "window"] + [
            len(self.events)
        ]
        cut = [self.events[start:end] for start, end in itertools.pairwise(windows)]
        return next(part for part in cut if part[0]["seq"] == seq)

    def find(self, seq: int, kind: str, number: int = 0, **fields: object) -> Event:
        """The event of a poke with this kind and these fields; number: which one, from 0."""
        matches = [
            e
            for e in self.poke(seq)
            if e["kind"] == kind and all(e.get(k) == v for k, v in fields.items())
        ]
        return matches[number]

    def index(self, event: Event) -> int:
        return next(number for number, other in enumerate(self.events) if other is event)

    def drop(self, *events: Event) -> None:
        for event in events:
            del self.events[self.index(event)]

    def insert(self, before: Event, **fields: object) -> None:
        self.events.insert(
            self.index(before), {"n": 0, "t": before["t"], "step": before["step"], **fields}
        )

    def say(self, number: int, old: str, new: str | None) -> None:
        """In the guest's report on step `number`, change the first line that contains `old`.

        new: the replacement; None drops the line.
        """
        start = next(
            at for at, line in enumerate(self.report) if line.startswith(f"# step={number} ")
        )
        at = next(at for at in range(start, len(self.report)) if old in self.report[at])
        if new is None:
            del self.report[at]
        else:
            self.report[at] = self.report[at].replace(old, new)

    def code(
        self, name: str, *sentences: str, skip: str | None = None, missed: str | None = None
    ) -> None:
        """Run the code scenario `name` as step 10, reported as scenario.c does.

        sentences: its failed assertions.
        skip, missed: what it lacks, and what could not be done.
        """
        self.scenarios += select([name])
        self.report[self.report.index("1..9")] = "1..10"
        self.report += [
            f"# step=10 name={name} seq=7",
            *(f"# {sentence}" for sentence in sentences),
        ]
        why = ""
        if not sentences:
            why = f" # SKIP {skip}" if skip else f" # ERROR {missed}" if missed else ""
        self.report += [
            "# announced=18 elapsed_ns=210000000",
            f"{'not ' if sentences or missed else ''}ok 10 {name}.free{why}",
        ]

    def take(self, durations: dict[int, int]) -> Run:
        """Report how many pokes took how long (ns), which the module of the recording did not."""
        end = next(at for at, line in enumerate(self.report) if line.startswith("ok 9 "))
        self.report[end:end] = [f"# from_ns={ns} pokes={n}" for ns, n in durations.items()]
        return self

    # -- the results

    def watched(self, seq: int) -> model.WatchedStep:
        return model.follow(self.poke(seq), self.cpus)

    def violations(self, seq: int) -> list[str]:
        """The broken claims, each once, in the order in which they were seen."""
        return list(
            dict.fromkeys(v.claim for poke in self.watched(seq).announced for v in poke.violations)
        )

    def evidence(self) -> Evidence:
        report = ktap.parse(self.report)
        events = model.by_step(self.events)
        seen = []
        for step in plan_steps(self.scenarios, (0, 1), 0.5, 1):
            guest = report.step(step.number)
            watched = None
            if step.is_watched:
                watched = model.follow(events.get(step.number, []), self.cpus)
            seen.append(StepEvidence(step=step, guest=guest, watched=watched))
        total = Counter(
            {
                (int(at, 16), int(cpu)): n
                for at, by_cpu in _LEDGER.items()
                for cpu, n in by_cpu.items()
            }
        )
        gated_part = _qemu_gated()
        evidence = Evidence(
            requested_cpus=self.requested_cpus,
            cpus=self.cpus,
            breakpoints=self.breakpoints,
            steps=seen,
            companions=self.companions,
            findings=self.findings,
            lost=dict(self.lost),
            error=self.error,
            qemu_gated=gated_part + self.qemu,
            qemu_free=total - gated_part,
            no_qemu_ledger=self.no_qemu_ledger,
            record=self.record,
            no_record=self.no_record,
        )
        evidence.take_report(report, self.lost["guest"])
        return evidence


def targets_of(seq: int) -> tuple[int, ...]:
    """Where a CPU that hits int3 in this poke may resume."""
    return tuple(
        next(event for event in _EVENTS if event["kind"] == "window" and event["seq"] == seq)[
            "targets"
        ]
    )


def _qemu_gated() -> Counter[tuple[int, int]]:
    """QEMU's count after the gated part.

    It was equal to GDB's. The golden file has only the sum of both parts.
    """
    return Counter((event["ip"], event["cpu"]) for event in _EVENTS if event["kind"] == "int3")
