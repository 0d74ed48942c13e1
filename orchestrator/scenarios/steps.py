"""What a run does, step by step: the scenarios' parts in their order, each with the test module's command for it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.scenarios.scenario import Part, Scenario

LEAST_MS = 50
"""Of a step that runs free."""
FLIPS = 2
"""Of each sysctl while GDB watches; every one writes dozens of sites. An even number leaves it as it was."""


@dataclass(frozen=True)
class PlanStep:
    """number: from 1, as in the guest's report. poker: CPU to poke from. command: a line for /dev/orchestrator."""

    number: int
    scenario: Scenario
    part: Part
    poker: int
    command: str

    @property
    def is_watched(self) -> bool:
        """Whether GDB watches it."""
        return self.part in ("gated", "watched")


def plan_steps(
    scenarios: Sequence[Scenario], cpus: Sequence[int], duration: float, seed: int
) -> list[PlanStep]:
    """All steps of a run.

    First what GDB watches: the gated steps, then code; then what runs free, and last what needs the guest for itself.
    duration: seconds for all that runs free. seed: of every random choice.
    """
    rng = random.Random(seed)
    parts = [(part, scenario) for scenario in scenarios for part in scenario.parts]
    running = [scenario for part, scenario in parts if part in ("free", "alone")]
    unit = 1000 * duration / max(sum(scenario.weight for scenario in running), 1e-9)

    def rank(item: tuple[Part, Scenario]) -> tuple[bool, int]:
        part, scenario = item
        return part in ("free", "alone") and scenario.alone, (
            "gated",
            "watched",
            "free",
            "alone",
        ).index(part)

    steps = []
    for number, (part, scenario) in enumerate(sorted(parts, key=rank), 1):
        poker = rng.choice(cpus)
        ms = max(LEAST_MS, round(unit * scenario.weight))
        if scenario.sysctls:
            words = f"sysctl {scenario.name}.{part} {','.join(scenario.sysctls)}"
            words += f" flips={FLIPS}" if part == "watched" else f" ms={ms}"
            steps.append(PlanStep(number, scenario, part, poker, words))
            continue
        words = (
            f"scenario {scenario.name}"
            if scenario.code
            else f"step site={scenario.site} how={scenario.how}"
        )
        words += f" cpu={poker}"
        if part == "gated":
            words += f" gated=1 passes={scenario.passes}"
        elif part == "watched":
            words += f" watched=1 ms=1 seed={rng.randrange(1 << 31)}"
        else:
            words += f" ms={ms}"
            if scenario.code:
                words += f" seed={rng.randrange(1 << 31)}"
        steps.append(PlanStep(number, scenario, part, poker, words))
    return steps
