# SPDX-License-Identifier: GPL-2.0-only
"""A run in branches: which steps each has, and what is made of what comes back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from orchestrator import planned as module
from orchestrator.errors import InfraError
from orchestrator.guest import ktap
from orchestrator.guest.klog import scan
from orchestrator.guests import Guest, collect, surroundings
from orchestrator.host.logs import Log
from orchestrator.machine.faults import KernelFault, TimedOut
from orchestrator.machine.qemu import PARAMETERS
from orchestrator.machine.waiting import Silence
from orchestrator.planned import BESIDE, CODE, SITES, WATCHED, PlannedObserver, parts_of
from orchestrator.scenarios.scenario import select
from orchestrator.scenarios.steps import PlanStep, plan_steps
from orchestrator.survey import lines_for_steps
from orchestrator.verdict.evidence import Evidence
from orchestrator.watch.events import Recording
from orchestrator.watch.recorder import RECORD

SCENARIOS = ("nop5", "key", "kprobe-beside", "contexts", "hotplug")
NUMBERS = {WATCHED: range(1, 5), SITES: range(5, 7), CODE: range(7, 9), BESIDE: range(9, 10)}
"""The steps of each branch."""


class Branch:
    """A branch that has ended, or that fails."""

    def __init__(self, directory: Path, name: str, error: Exception | None) -> None:
        directory.mkdir(exist_ok=True)
        self.name = name
        self.error = error
        self.snapshot = SNAPSHOT
        self.recorder = SimpleNamespace(
            read=lambda: {(0x1000, 1): 7}, lost_int3="", lost="", why_not=None, ordered=True,
            looks=2, lines=(), address=lambda _: 0, save_int3=lambda _: None,
        )  # fmt: skip
        logs: list[Log] = []

        def log(name: str) -> Log:
            logs.append(Log(directory / name))
            return logs[-1]

        self.machine = SimpleNamespace(
            silence=Silence(),
            console=SimpleNamespace(lines=["KTAP version 1"], scanner=SimpleNamespace(findings=[])),
            ended=lambda: not error,
            post_mortem=contextlib.nullcontext,
            qmp=SimpleNamespace(lost="", find=lambda name: name),
            directory=directory,
            logs=logs,
            log=log,
        )

    def wait(self, seconds: float) -> None:
        if self.error:
            raise self.error

    def report(self) -> str:
        numbers = NUMBERS[self.name]
        return "\n".join(
            ["KTAP version 1", f"1..{len(numbers)}", *(f"ok {number} a" for number in numbers)]
        )

    def output(self) -> list[str]:
        return ["companion hotplug 0"] if self.name == BESIDE else []

    def records(self) -> Any:
        return np.zeros(0, RECORD)


SNAPSHOT = SimpleNamespace(
    addresses={}, module_symbols=[], cpus=[0, 1], command_line=" ".join(PARAMETERS)
)


class Branches:
    """Starts such branches."""

    snapshot, kernel_lines = SNAPSHOT, ()

    def __init__(self, directory: Path, **errors: Exception) -> None:
        self.directory = directory
        self.errors = errors
        self.parts: dict[str, list[PlanStep]] = {}
        self.spec = SimpleNamespace(requested=(), append=())

    def start(
        self,
        stack: object,
        name: str,
        steps: list[PlanStep],
        seed: int,
        attach: Callable[[Any], None] | None = None,
    ) -> Branch:
        self.parts[name] = steps
        one = Branch(self.directory / name, name, self.errors.get(name))
        if attach:
            attach(one.machine)
        return one

    def keep_boot_log(self) -> None: ...

    def boot_log(self) -> Any:
        return np.zeros(0, RECORD)


@pytest.fixture(autouse=True)
def watch(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is asked of GDB."""
    asked: list[str] = []

    class Gdb(contextlib.nullcontext[Any]):
        impossible: ClassVar[dict[str, str]] = {}
        points = ("write",)

        def __enter__(self) -> Any:
            return self

        def recording(self) -> Recording:
            return Recording()

        def end(self) -> None:
            asked.append("end")

    monkeypatch.setattr(module, "Watch", lambda *_, **__: Gdb())
    return asked


def observer(branches: Branches) -> PlannedObserver:
    return PlannedObserver(
        scenarios=select(SCENARIOS),
        duration=1,
        seed=1,
        evidence=Evidence(requested_cpus=2),
        branches=branches,  # type: ignore[arg-type]
    )


def test_what_gdb_watches_sites_and_the_rest_have_a_branch_each() -> None:
    parts = parts_of(plan_steps(select(SCENARIOS), (0, 1), 1, 1))
    assert [step.scenario.name for step in parts[SITES]] == ["nop5", "key"]
    assert [step.scenario.name for step in parts[CODE]] == ["contexts", "kprobe-beside"]
    assert [step.scenario.name for step in parts[BESIDE]] == ["hotplug"]
    assert {name: [step.number for step in steps] for name, steps in parts.items()} == {
        name: [*numbers] for name, numbers in NUMBERS.items()
    }
    lines = lines_for_steps(parts[CODE] + parts[BESIDE], numbered=True).splitlines()
    assert all(f"number {number};" in " ".join(lines) for number in range(7, 10))
    assert any(line.startswith("hotplug number ") for line in lines)


def test_all_branches_begin_at_once_and_their_reports_are_one(
    tmp_path: Path, watch: list[str]
) -> None:
    branches = Branches(tmp_path)
    one = observer(branches)
    one.observe()
    evidence = one.evidence
    assert [*branches.parts] == [CODE, BESIDE, SITES, WATCHED]
    assert evidence.report and evidence.report.whole and watch == ["end"]
    assert [step.number for step in evidence.report.steps] == [*range(1, 10)]
    assert not any(evidence.lost[name] for name in ("guest", "gdb", "ledger", "qmp", "record"))
    assert evidence.companions["hotplug"].status == 0
    assert evidence.qemu_gated == evidence.qemu_free == {(0x1000, 1): 7}
    assert {*evidence.fingerprints} == {CODE, BESIDE, SITES} and evidence.fingerprint


def test_a_part_without_steps_has_no_branch(tmp_path: Path) -> None:
    one = observer(branches := Branches(tmp_path))
    object.__setattr__(one, "scenarios", select(["nop5"]))
    one.observe()
    assert [*branches.parts] == [SITES, WATCHED]


@pytest.mark.parametrize("name", [CODE, BESIDE, SITES, WATCHED])
def test_a_branch_that_did_not_end_is_a_loss_and_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    explained: list[str] = []

    def explain(self: Guest, error: Exception) -> None:
        explained.append(self.name)
        raise error

    monkeypatch.setattr(Guest, "explain", explain)
    finding = scan(["Linux version 6.1", "Oops: 0000 [#1] SMP"]).findings[0]
    for error in (TimedOut("it", 1), KernelFault("the end", finding, [finding])):
        one = observer(Branches(tmp_path, **{name: error}))
        with pytest.raises(type(error)):
            one.observe()
        assert explained.pop() == name
        assert f"the branch {name} was read off the console" in one.evidence.lost["guest"]
        assert not one.evidence.fingerprint or name == WATCHED


def test_a_guest_that_cannot_be_asked_is_a_hang_only_if_it_owes_something(tmp_path: Path) -> None:
    one = observer(Branches(tmp_path))
    with contextlib.ExitStack() as stack:
        guest = one._start(stack, CODE, [], 1)
        object.__setattr__(guest, "watch", gdb := SimpleNamespace(cpu_snapshot=list))
        gdb.survey = lambda _: [{"cpu": 1, "ip": 1, "traps": 99, "int3": 0}]
        with pytest.raises(TimedOut, match="CPU 1 keeps trapping at 1") as caught:
            guest.explain(TimedOut("the end", 1))
        assert caught.value.outcome == "hang"
        gdb.survey, gdb.step = lambda _: [], lambda: 7
        with pytest.raises(TimedOut, match="step 7 has begun and does not end"):
            guest.explain(TimedOut("the end", 1))


def test_a_guest_whose_text_was_not_looked_at_has_no_whole_log(tmp_path: Path) -> None:
    one = observer(Branches(tmp_path))
    with contextlib.ExitStack() as stack:
        guest = one._start(stack, SITES, [], 1)
        guest.recorder.looks = 1  # type: ignore[misc]
        collect(one.evidence, [guest])
    assert one.evidence.lost["record"] == "the text of the branch sites was not looked at"


def test_an_end_without_the_plan_is_no_verdict(tmp_path: Path) -> None:
    error = InfraError("the guest has ended without having carried out its plan")
    with pytest.raises(InfraError):
        observer(Branches(tmp_path, code=error)).observe()


def test_two_reports_with_the_same_number_are_not_whole() -> None:
    reports = [ktap.parse(["KTAP version 1", "1..1", "ok 1 a"]) for _ in range(2)]
    assert not ktap.merged(reports).whole


def test_the_text_of_another_module_may_be_between_that_of_ours_and_its_data() -> None:
    recorder: Any = SimpleNamespace(lines=[], address=lambda _: 0)
    around = surroundings(
        recorder,
        [
            "ffffffffa0001000 t orch_nop5_site\t[orch]",
            "ffffffffa0001ff0 t __SCT__orch_zero\t[orch]",
            "ffffffffa0008000 b orch_report\t[orch]",
        ],
    )
    assert around.module == (0xFFFFFFFFA0001000, 0xFFFFFFFFA0002000)
