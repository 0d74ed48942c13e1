# SPDX-License-Identifier: GPL-2.0-only
"""The steps of a run: the scenarios' parts in order, each with its command for the test module."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.scenarios.scenario import Part, Scenario

DURATION = 3.0
"""Seconds for all free-running steps together, where nobody says how many."""
MIN_FREE_MS = 50
"""Minimum duration of a free-running step, in ms."""
MAX_FREE_MS = 400
"""Maximum, by weight, where nobody says how long: a single scenario need not take DURATION."""
UNHURRIED = "gap=2000 burst=64 pause=20000"
"""For a step beside which CPUs go offline, from which busy CPUs would keep them for minutes."""
WATCHED_FLIPS = 2
"""How often each sysctl is switched while GDB watches. Every switch writes dozens of sites. An even
number leaves the sysctl as it was."""


@dataclass(frozen=True)
class PlanStep:
    """One planned step of a run."""

    number: int
    """From 1, as in the guest's report."""
    scenario: Scenario
    part: Part
    poker: int
    """CPU that the poking thread runs on."""
    command: str
    """A line for /dev/orchestrator, or for guest/init/flip when there is no module."""
    lacks: str | None = None
    """What the kernel or the machine lacks for it, None if nothing. Then `command` only reports
    that, and nothing may run alongside."""

    @property
    def is_watched(self) -> bool:
        """Whether GDB watches it."""
        return self.part in ("gated", "watched")


def plan_steps(
    scenarios: Sequence[Scenario],
    cpus: Sequence[int],
    duration: float | None,
    seed: int,
    lacking: Mapping[str, str] | None = None,
) -> list[PlanStep]:
    """All steps of a run, in this order: gated, watched, free-running sites, free-running code, and
    free-running scenarios that need the guest to themselves.

    cpus: the CPUs that are online in the guest.
    duration: seconds for all free-running steps together; None for as long as they need.
    seed: seed of every random choice.
    lacking: what is known to be lacking for a scenario, by its name.
    """
    rng = random.Random(seed)
    parts = [(part, scenario) for scenario in scenarios for part in scenario.parts]
    free = [scenario for part, scenario in parts if part == "free"]
    ms_per_weight = 1000 * (duration or DURATION) / max(sum(one.weight for one in free), 1e-9)
    if duration is None:
        ms_per_weight = min(ms_per_weight, MAX_FREE_MS)

    def rank(item: tuple[Part, Scenario]) -> tuple[bool, int, bool]:
        part, scenario = item
        is_free = part == "free"
        return (
            is_free and scenario.exclusive,
            ("gated", "watched", "free").index(part),
            is_free and scenario.code is not None,
        )

    steps = []
    for number, (part, scenario) in enumerate(sorted(parts, key=rank), 1):
        poker = rng.choice(cpus)
        ms = max(MIN_FREE_MS, round(ms_per_weight * scenario.weight))
        command = _command(scenario, part, poker, ms, rng)
        if lacks := (lacking or {}).get(scenario.name):
            command = f"skip {scenario.name}.{part} {lacks}"
        steps.append(PlanStep(number, scenario, part, poker, command, lacks))
    return steps


def _command(scenario: Scenario, part: Part, poker: int, ms: int, rng: random.Random) -> str:
    if scenario.sysctls:
        amount = f"flips={WATCHED_FLIPS}" if part == "watched" else f"ms={ms}"
        return f"sysctl {scenario.name}.{part} {','.join(scenario.sysctls)} {amount}"
    if scenario.code:
        mode = "watched=1 ms=1" if part == "watched" else f"ms={ms}"
        return f"scenario {scenario.name} cpu={poker} {mode} seed={rng.randrange(1 << 31)}"
    mode = f"gated=1 passes={scenario.passes}" if part == "gated" else f"ms={ms}"
    if scenario.offline:
        mode += f" offline={scenario.offline} {UNHURRIED}"
    return f"step site={scenario.site} how={scenario.how} cpu={poker} {mode}"
