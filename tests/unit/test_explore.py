# SPDX-License-Identifier: GPL-2.0-only
"""Exploring schedules: what counts as new, when it ends, and how a failure is made smaller."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from orchestrator import explore as module
from orchestrator.errors import InfraError
from orchestrator.explore import Explored, Plan, Trial, interleavings
from orchestrator.machine.waiting import Silence
from orchestrator.scenarios.scenario import select
from orchestrator.scenarios.steps import plan_steps
from orchestrator.spec import RunSpec
from orchestrator.verdict.recorded import record
from orchestrator.verdict.recorded.judgement import Judgement, Surroundings
from orchestrator.watch.recorder import RECORD, Records

KINDS = {
    "W": record.WRITE,
    "T": record.TRAP,
    "R": record.RESUME,
    "S": record.SYNC,
    "U": record.UNLOCK,
    "P": record.PASS,
}


def log(text: str) -> Records:
    """A log from words such as T1: an int3 on CPU 1."""
    words = text.split()
    records = np.zeros(len(words), RECORD)
    for at, word in enumerate(words):
        records["kind"][at], records["cpu"][at] = KINDS[word[0]], int(word[1:])
    return records


@pytest.mark.parametrize(
    ("text", "strings", "pokes"),
    [
        ("", [], 0),
        ("T1 R1 U0", [], 0),
        ("W0 S0 S1 W0 U0", ["WSsW"], 1),
        # Which CPUs these are does not matter, nor what the log has besides.
        ("W7 S7 P3 S3 W7 U7", ["WSsW"], 1),
        ("W0 S0 S1 U0 W1 S1 S0 U1", ["WSs"], 2),
        # Whether an int3 is handled before the write or after it does.
        ("W0 T1 R1 S0 U0 W0 T1 S0 R1 U0", ["WTRs", "WTsR"], 2),
        ("W0 T1 R1 T1 R1 T1 R1 S0 U0 W0 T1 R1 S0 U0", ["WTRs"], 2),
        # Three CPUs are three pairs, and what another one writes is a write.
        ("W0 S0 T1 R1 T2 U0", ["WSTr", "WSt", "WTRt"], 1),
    ],
)
def test_an_interleaving_is_the_order_for_a_pair_of_cpus(
    text: str, strings: list[str], pokes: int
) -> None:
    found, count = interleavings(log(text))
    assert count == pokes
    assert len(found) == len(strings), found


def test_the_curve_is_flat_when_hardly_anything_is_new() -> None:
    found = Explored(curve=[100] * module.WINDOW)
    assert not found.flat
    found.curve.append(100)
    assert found.flat
    found.curve.append(102)
    assert not found.flat


SPEC = RunSpec(smp=8, scenarios=("nop5", "line", "page"), duration=0.6)


class Explorer:
    """Plans fail as a function says."""

    def __init__(self, fails: Callable[[Plan], bool]) -> None:
        self._fails = fails
        self.spec = SPEC
        self.ran: list[Plan] = []

    def plan(self, seed: int, smp: int) -> Plan:
        steps = plan_steps(select(SPEC.scenarios), range(smp), SPEC.duration, seed)
        return Plan(seed=seed, smp=smp, steps=tuple(s for s in steps if not s.is_watched))

    def run(self, plan: Plan) -> Trial:
        self.ran.append(plan)
        return Trial(plan=plan, failure="no" if self._fails(plan) else "", check="sync")


def milliseconds(plan: Plan) -> list[int]:
    return [int(ms) for step in plan.steps for ms in re.findall(r"ms=(\d+)", step.command)]


def sites(plan: Plan) -> set[str | None]:
    return {step.scenario.site for step in plan.steps}


@pytest.mark.parametrize(
    ("fails", "steps", "smp", "longest"),
    [
        (lambda plan: True, 1, 1, 2 * module.SHORTEST_MS),
        (lambda plan: "page" in sites(plan), 1, 1, 2 * module.SHORTEST_MS),
        (lambda plan: {"line", "page"} <= sites(plan) and plan.smp >= 4, 2, 4, 10),
        (lambda plan: min(milliseconds(plan)) > 60 and plan.smp > 2, 1, 4, 200),
        (lambda plan: plan.smp == 8 and len(plan.steps) == 3, 3, 8, 2 * module.SHORTEST_MS),
    ],
)
def test_a_failure_is_made_as_small_as_it_still_fails(
    fails: Callable[[Plan], bool], steps: int, smp: int, longest: int
) -> None:
    explorer: Any = Explorer(fails)
    small = module._shrunk(explorer, explorer.run(explorer.plan(1, 8))).plan
    assert fails(small)
    assert (len(small.steps), small.smp) == (steps, smp)
    assert max(milliseconds(small)) <= longest


def test_a_plan_says_which_schedule_it_wants() -> None:
    plan = Explorer(bool).plan(7, 2)
    commands = plan.commands(["jmp32", "call"]).splitlines()
    assert commands[0] == "- cuts 7;emulates jmp32,call;plan 3"
    assert len(commands) == 2
    plain = Plan(seed=7, smp=2, steps=plan.steps, cuts=False)
    assert plain.commands(None).startswith("- plan 3\n")


@pytest.mark.parametrize(
    ("found", "seconds", "seeds", "why"),
    [
        (Explored(seeds=3), 0, 0, ""),
        (Explored(seeds=3), 0, 3, "the number of seeds is reached"),
        (Explored(seeds=3), 5, 0, "the time is up"),
        (Explored(curve=[4] * 30), 0, 0, "the last 20 seeds showed hardly anything new"),
    ],
)
def test_it_ends_by_a_limit_or_when_nothing_new_comes(
    found: Explored, seconds: float, seeds: int, why: str
) -> None:
    assert module._why_end(found, 6.0, seconds, seeds) == why


def test_a_failure_ends_it(tmp_path: Path) -> None:
    found = Explored(seeds=1)
    found.failed = Explorer(lambda _: True).run(Explorer(bool).plan(1, 2))
    assert module._why_end(found, 0.0, 0, 0) == "a seed failed"


@pytest.mark.parametrize(
    ("lost", "looks", "message"),
    [
        ("7 events found no room", 2, "7 events found no room"),
        ("", 1, "did not look at the kernel's text"),
    ],
)
def test_what_the_recorder_did_not_see_is_no_pass(
    lost: str, looks: int, message: str, tmp_path: Path
) -> None:
    one = SimpleNamespace(
        machine=SimpleNamespace(silence=Silence()),
        recorder=SimpleNamespace(lost=lost, looks=looks),
        wait=lambda _: None,
        records=lambda: log("W0 S0 U0"),
    )
    branches: Any = SimpleNamespace(
        carry_out=lambda *_: one, snapshot=SimpleNamespace(emulated=None)
    )
    explorer = module.Explorer(SPEC, tmp_path)
    explorer._branches[2] = branches
    explorer._around[2] = Surroundings(name=lambda _: None), Judgement()
    with pytest.raises(InfraError, match=message):
        explorer.run(Explorer(bool).plan(1, 2))
