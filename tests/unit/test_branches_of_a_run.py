# SPDX-License-Identifier: GPL-2.0-only
"""Which steps of a run go to a branch, and what the observer makes of what comes back."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_observer import observer, watch

from orchestrator.guest import ktap
from orchestrator.guest.klog import scan
from orchestrator.machine import cpus
from orchestrator.machine.faults import KernelFault, TimedOut
from orchestrator.machine.waiting import Silence
from orchestrator.scenarios.scenario import select
from orchestrator.scenarios.steps import PlanStep, plan_steps
from orchestrator.survey import lines_for_steps
from orchestrator.text import symbols
from orchestrator.watch.events import Recording

SCENARIOS = ("nop5", "key", "kprobe-beside", "contexts", "hotplug")


class Branch:
    """A branch that has ended, or that fails."""

    def __init__(self, directory: Path, name: str, error: Exception | None = None) -> None:
        self.name = name
        self.error = error
        self.text = "KTAP version 1\n1..1\nok 3 nop5.direct.free\n"
        self.snapshot = SimpleNamespace(module_symbols=[])
        self.recorder = SimpleNamespace(read=lambda: {(0x1000, 1): 7})
        self.machine = SimpleNamespace(
            silence=Silence(),
            console=SimpleNamespace(lines=["KTAP version 1"]),
            ended=lambda: not error,
            post_mortem=contextlib.nullcontext,
            qmp=None,
            spec=SimpleNamespace(smp=4),
            log=lambda name: SimpleNamespace(start_over=lambda: None, write=lambda _: None),
        )

    def wait(self, seconds: float) -> None:
        if self.error:
            raise self.error

    def report(self) -> str:
        return self.text

    def output(self) -> list[str]:
        return ["companion hotplug 0"]


def planned(*, branches: Any, tmp_path: Path) -> tuple[list[PlanStep], dict[str, list[PlanStep]]]:
    """The steps that stay in the guest that GDB watches, and those of each branch."""
    one = dataclasses.replace(observer(tmp_path), scenarios=select(SCENARIOS), branches=branches)
    steps = plan_steps(one.scenarios, (0, 1), 1, 1)
    with one._in_branches(steps, 1) as (here, _):
        return here, branches.parts if branches else {}


def test_what_runs_free_and_needs_nobody_goes_to_branches(tmp_path: Path) -> None:
    parts: dict[str, list[PlanStep]] = {}

    def start(stack: object, name: str, steps: list[PlanStep], seed: int) -> Branch:
        parts[name] = steps
        return Branch(tmp_path, name)

    here, _ = planned(branches=SimpleNamespace(start=start, parts=parts), tmp_path=tmp_path)
    assert [step.scenario.name for step in parts["sites"]] == ["nop5", "key"]
    assert {step.scenario.name for step in parts["code"]} == {"kprobe-beside", "hotplug"}
    # QEMU injects the NMIs of contexts when we ask it to.
    assert {step.scenario.name for step in here if not step.is_watched} == {"contexts"}
    assert {step.number for step in [*here, *parts["sites"], *parts["code"]]} == {*range(1, 10)}
    lines = lines_for_steps(parts["code"], numbered=True).splitlines()
    assert all(f"number {step.number};" in " ".join(lines) for step in parts["code"])
    assert any(line.startswith("hotplug number ") for line in lines)


def test_without_branches_all_steps_stay_together(tmp_path: Path) -> None:
    here, parts = planned(branches=None, tmp_path=tmp_path)
    assert not parts and [step.number for step in here] == [*range(1, 10)]


def test_the_reports_of_all_guests_are_one(tmp_path: Path) -> None:
    one = observer(tmp_path, dev_orchestrator=b"KTAP version 1\n1..2\nok 1 a\nok 2 b\n")
    one._collect(watch(Recording()), True, [Branch(tmp_path, "sites")])
    assert [step.number for step in one.evidence.report.steps] == [1, 2, 3]
    assert one.evidence.report.whole and not one.evidence.lost["guest"]
    assert one.evidence.companions["hotplug"].status == 0
    assert one.evidence.qemu_free.total() == 7


def test_a_branch_that_did_not_end_is_a_loss(tmp_path: Path) -> None:
    one = observer(tmp_path, dev_orchestrator=b"KTAP version 1\n1..2\nok 1 a\nok 2 b\n")
    one._collect(watch(Recording()), True, [Branch(tmp_path, "code", TimedOut("it", 1))])
    assert "the branch code was read off the console" in one.evidence.lost["guest"]


def test_a_fault_in_a_branch_ends_the_run_and_shows_its_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu = {"cpu": 1, "rip": 0x1000, "stack": [], "interrupts": True, "user": False}
    monkeypatch.setattr(cpus, "snapshot", lambda *_: [cpu])
    monkeypatch.setattr(symbols, "where", lambda *_: "CPU 1: somewhere")
    one = observer(tmp_path)
    finding = scan(["Linux version 6.1", "Oops: 0000 [#1] SMP"]).findings[0]
    fault = KernelFault("the end", finding, [finding])
    with pytest.raises(KernelFault):
        one._wait_for([Branch(tmp_path, "code", fault)])
    assert one.evidence.hang_report == ("CPU 1: somewhere",)


def test_two_reports_with_the_same_number_are_not_whole() -> None:
    first = ktap.parse(["KTAP version 1", "1..1", "ok 1 a"])
    first.add(ktap.parse(["KTAP version 1", "1..1", "ok 1 b"]))
    assert not first.whole
