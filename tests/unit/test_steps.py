# SPDX-License-Identifier: GPL-2.0-only
"""The steps of a run: their order, duration and commands."""

from __future__ import annotations

from pathlib import Path

from orchestrator.scenarios.scenario import Scenario
from orchestrator.scenarios.steps import MIN_FREE_MS, UNHURRIED, PlanStep, plan_steps

CPUS = (0, 1, 2, 3)


def scenario(name: str, **fields: object) -> Scenario:
    return Scenario.model_validate({"name": name, "title": "t", "promise": "p.", **fields})


ALL = [
    scenario("hotplug", site="nop5", gated=False, companion="true"),
    scenario("site", site="nop5"),
    scenario("code", code=Path("code.c")),
    scenario("seen", code=Path("seen.c"), watched=True),
    scenario("key", site="key", how="owner"),
]


def order(steps: list[PlanStep]) -> list[tuple[str, str]]:
    return [(step.scenario.name, step.part) for step in steps]


def test_watched_steps_come_first_and_exclusive_ones_last() -> None:
    steps = plan_steps(ALL, CPUS, 1.0, 1)
    assert order(steps) == [
        *[("site", "gated")] * 2, *[("key", "gated")] * 2, ("seen", "watched"),
        ("site", "free"), ("key", "free"), ("code", "free"), ("seen", "free"), ("hotplug", "free"),
    ]  # fmt: skip
    assert [step.number for step in steps] == list(range(1, 11))
    assert [step.is_watched for step in steps] == [True] * 5 + [False] * 5


def test_scenarios_with_companions_come_last_in_request_order() -> None:
    requested = [scenario("other", site="nop2", companion="true"), ALL[0], *ALL[1:3]]
    steps = plan_steps(requested, CPUS, 1.0, 1)
    assert order(steps) == [
        *[("other", "gated")] * 2, *[("site", "gated")] * 2,
        ("site", "free"), ("code", "free"), ("other", "free"), ("hotplug", "free"),
    ]  # fmt: skip


def test_parts_that_do_not_run_free_take_no_share_of_the_time() -> None:
    steps = plan_steps(
        [scenario("a", site="nop5"), scenario("s", code=Path("s.c"), watched=True, weight=4)],
        CPUS,
        2.0,
        1,
    )
    assert {step.scenario.name: milliseconds(step) for step in steps if not step.is_watched} == {
        "a": 400,
        "s": 1600,
    }


def milliseconds(step: PlanStep) -> int:
    return int(step.command.split(" ms=")[1].split()[0])


def test_the_free_running_time_is_shared_by_weight() -> None:
    steps = plan_steps(
        [scenario("a", site="nop5"), scenario("b", site="nop2", weight=3)], CPUS, 2.0, 1
    )
    assert {step.scenario.name: milliseconds(step) for step in steps if step.part == "free"} == {
        "a": 500,
        "b": 1500,
    }


def test_free_running_steps_have_a_minimum_duration() -> None:
    steps = plan_steps(ALL, CPUS, 0.01, 1)
    assert {milliseconds(step) for step in steps if not step.is_watched} == {MIN_FREE_MS}


def test_a_step_may_go_on_until_a_cpu_was_offline() -> None:
    steps = plan_steps([scenario("a", site="nop5", gated=False, offline=9)], CPUS, 1, 1)
    assert [step.command.partition(" offline=")[2] for step in steps] == [f"9 {UNHURRIED}"]


def test_the_seed_determines_every_choice() -> None:
    def commands(seed: int) -> list[str]:
        return [step.command for step in plan_steps(ALL, CPUS, 1.0, seed)]

    assert commands(7) == commands(7)
    assert commands(7) != commands(8)
    pokers = {step.poker for seed in range(20) for step in plan_steps(ALL, CPUS, 1.0, seed)}
    assert pokers == set(CPUS)


def test_commands_are_in_the_modules_syntax() -> None:
    by_part = {
        (step.scenario.name, step.part): step.command for step in plan_steps(ALL, (2,), 1.0, 1)
    }
    assert by_part["site", "gated"] == "step site=nop5 how=direct cpu=2 gated=1 passes=1"
    assert by_part["key", "free"] == "step site=key how=owner cpu=2 ms=200"
    assert by_part["seen", "watched"].startswith("scenario seen cpu=2 watched=1 ms=1 seed=")
    assert by_part["code", "free"].startswith("scenario code cpu=2 ms=200 seed=")


def test_what_is_known_to_be_lacking_is_reported_and_not_run() -> None:
    """The numbers of the other steps, and so their seeds and CPUs, stay as they are."""
    why = "the kernel ignores its command line (CONFIG_CMDLINE_OVERRIDE)"
    steps = plan_steps(ALL, CPUS, 1.0, 7, {"hotplug": why})
    others = [step for step in steps if step.scenario.name != "hotplug"]
    assert [step.command for step in steps if step.lacks] == [f"skip hotplug.free {why}"]
    assert others == [
        step for step in plan_steps(ALL, CPUS, 1.0, 7) if step.scenario.name != "hotplug"
    ]


def test_sysctls_are_switched_while_watched_and_then_free_running() -> None:
    watched, free = plan_steps([scenario("knobs", sysctls=("kernel/a", "net/b"))], CPUS, 2.0, 1)
    assert watched.is_watched and not free.is_watched
    assert watched.command.startswith("sysctl knobs.watched kernel/a,net/b flips=")
    assert free.command == "sysctl knobs.free kernel/a,net/b ms=2000"
