# SPDX-License-Identifier: GPL-2.0-only
"""The course of a run, whatever the guests are in which it takes place."""

from __future__ import annotations

import contextlib
import itertools
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from orchestrator import ui
from orchestrator.guests import Guest, collect
from orchestrator.machine import qemu
from orchestrator.machine.faults import KernelFault, NoAnswer
from orchestrator.machine.qemu import MachineSpec
from orchestrator.scenarios.scenario import Scenario
from orchestrator.scenarios.steps import DURATION, PlanStep, plan_steps
from orchestrator.verdict.evidence import Evidence, StepEvidence

PART_SECONDS = 600
"""Limit for the steps of one part, on top of their planned duration. A silent guest is given up
much sooner."""


@dataclass(frozen=True, kw_only=True)
class Course(ABC):
    """Takes the scenarios through guests, and fills in `evidence` as far as it gets."""

    scenarios: Sequence[Scenario]
    duration: float | None
    """Seconds for all free-running steps together, as plan_steps() takes them."""
    seed: int
    """Seed of every random choice."""
    evidence: Evidence
    another_round: Callable[[], bool] = lambda: False
    """Called when all scenarios have run and the evidence is complete. True repeats them, with
    another seed; the callee clears the evidence."""

    @abstractmethod
    def observe(self) -> None:
        """Run everything.

        Raises BootError when nothing could be poked, otherwise the error that ended the run early.
        """

    @abstractmethod
    def memory(self) -> dict[str, float]:
        """MiB in use in what lasts as long as the run, by user."""

    @property
    def free_seconds(self) -> float:
        """Seconds for all free-running steps together, or more than they take."""
        return self.duration or DURATION

    @property
    def part_seconds(self) -> float:
        """Limit for the steps of one part."""
        return PART_SECONDS + 4 * self.free_seconds

    def rounds(self) -> Iterator[int]:
        """Yields the seed of each round."""
        for number in itertools.count():
            yield self.seed + number
            if not self.another_round():
                return

    def plan(self, seed: int) -> list[PlanStep]:
        """The steps of a round, all of which are in the evidence from now on."""
        lacking = self._lacking()
        steps = plan_steps(self.scenarios, self.evidence.cpus, self.duration, seed, lacking)
        self.evidence.steps = [StepEvidence(step=step, guest=None) for step in steps]
        return steps

    @contextlib.contextmanager
    def collecting(self, guests: Sequence[Guest]) -> Iterator[None]:
        """Whatever ends the block, take what the observers of the guests saw.

        Ctrl-C means to stop now, not to wait for an answer of a guest.
        """
        try:
            yield
        finally:
            if not isinstance(cause := sys.exc_info()[1], KeyboardInterrupt):
                hangs = getattr(cause, "outcome", "") == "hang"
                answers = not hangs and not isinstance(cause, NoAnswer)
                if answers and not isinstance(cause, KernelFault):  # explain() has asked
                    for guest in guests:
                        guest.excuse_programs()
                collect(self.evidence, guests, answers=answers, ended=cause is not None)

    def look_up_parameters(self, spec: MachineSpec, command_line: str) -> None:
        """Find out which of our kernel parameters did not arrive, and say what that means.

        command_line: the guest's /proc/cmdline.
        """
        # The user may have asked to do without some of ours, which means the same for a run.
        wanted = tuple(dict.fromkeys((*qemu.PARAMETERS, *qemu.parameters(spec))))
        missing = self.evidence.not_taken = qemu.not_taken(wanted, command_line)
        if not missing:
            return
        ui.say(f"{len(missing)} parameters are not in effect: {' '.join(missing)}")
        for parameter in missing:
            if meaning := qemu.WITHOUT.get(parameter):
                ui.say(f"without {parameter}: {meaning}")

    def _lacking(self) -> dict[str, str]:
        """What the kernel lacks for scenarios that need a parameter that it did not take."""
        missing = self.evidence.not_taken
        # Its own line may have some of the same.
        ignored = len(missing) > len(qemu.PARAMETERS) / 2
        return {
            scenario.name: "the kernel ignores its command line (CONFIG_CMDLINE_OVERRIDE)"
            if ignored
            else f"the kernel did not take the parameter {parameter}"
            for scenario in self.scenarios
            for parameter in scenario.append
            if parameter in missing
        }
