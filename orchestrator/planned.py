# SPDX-License-Identifier: GPL-2.0-only
"""A run in branches: each part has a guest of its own, which finds its plan and ends by itself.

All begin at once. GDB watches one of them; the others repeat themselves (docs/determinism.md).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator import ui
from orchestrator.branch import Branch, Branches
from orchestrator.course import Course
from orchestrator.guests import Boot, PlannedGuest
from orchestrator.machine.faults import KernelFault, TimedOut
from orchestrator.machine.machine import Machine
from orchestrator.machine.waiting import SILENCE_SECONDS
from orchestrator.scenarios.steps import PlanStep
from orchestrator.survey import companions
from orchestrator.watch.watch import Watch

WATCHED, SITES, CODE, BESIDE = "watched", "sites", "code", "beside"
"""Names of the branches: the one with GDB, the one that pokes sites with nothing alongside, the one
with code scenarios, and the one with those that have a script alongside."""


@dataclass(frozen=True, kw_only=True)
class PlannedObserver(Course):
    """Takes the scenarios through branches."""

    branches: Branches
    boot: Boot = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "boot", Boot(self.branches.boot_log))

    def observe(self) -> None:
        snapshot = self.branches.snapshot
        self.evidence.cpus = tuple(snapshot.cpus)
        self.look_up_parameters(self.branches.spec, snapshot.command_line)
        self.branches.keep_boot_log()
        for seed in self.rounds():
            self._observe_round(seed)

    def memory(self) -> dict[str, float]:
        return {}

    def _observe_round(self, seed: int) -> None:
        parts = parts_of(self.plan(seed))
        self.evidence.consoles = {}
        with contextlib.ExitStack() as stack:
            with ui.step("starting the branches"):
                # The one that takes longest comes first.
                guests = [
                    self._start(stack, name, parts[name], seed)
                    for name in (CODE, BESIDE, SITES, WATCHED)
                    if parts[name] or name == WATCHED
                ]
            with self.collecting(guests):
                self.boot.judged(guests[0])  # while they run
                for guest in reversed(guests):
                    self._wait_for(guest)

    def _start(
        self, stack: contextlib.ExitStack, name: str, steps: Sequence[PlanStep], seed: int
    ) -> PlannedGuest:
        watches: list[Watch] = []
        if name == WATCHED:
            branch = self._start_watched(stack, steps, seed, watches)
        else:
            branch = self.branches.start(stack, name, steps, seed)
        self.evidence.consoles[name] = branch.machine.console
        snapshot = branch.snapshot
        return PlannedGuest(
            name=name,
            machine=branch.machine,
            recorder=branch.recorder,
            addresses=snapshot.addresses,
            module_symbols=snapshot.module_symbols,
            kernel_lines=self.branches.kernel_lines,
            watch=watches[0] if watches else None,
            evidence=self.evidence,
            branch=branch,
            boot=self.boot,
        )

    def _start_watched(
        self,
        stack: contextlib.ExitStack,
        steps: Sequence[PlanStep],
        seed: int,
        watches: list[Watch],
    ) -> Branch:
        """Start the branch that GDB watches. Its files are those of the run."""
        watching = stack.enter_context(contextlib.ExitStack())

        def attach(machine: Machine) -> None:
            addresses = dict(self.branches.snapshot.addresses)
            watch = Watch(machine, addresses, machine.directory, at_once=True)
            self.evidence.impossible_breakpoints = watch.impossible
            watches.append(watching.enter_context(watch))
            self.evidence.breakpoints = tuple(watch.points)

        branch = self.branches.start(stack, WATCHED, steps, seed, attach)
        stack.callback(watching.close)  # before the machine ends
        return branch

    def _wait_for(self, guest: PlannedGuest) -> None:
        """Wait until it has ended. Raises what went wrong in it."""
        doing = {
            WATCHED: "GDB watches: holding the poker in each phase",
            SITES: "free-running: poking as fast as possible",
            CODE: "free-running: code scenarios",
            BESIDE: "free-running: poking with other activity in the guest",
        }
        with ui.step(doing[guest.name]), guest.machine.silence.limit(SILENCE_SECONDS):
            try:
                guest.wait(self.part_seconds)
            except (TimedOut, KernelFault) as error:
                with guest.machine.post_mortem():
                    guest.explain(error)
        self.evidence.companions |= companions(guest.branch.output())
        counts = guest.recorder.read()
        if guest.name == WATCHED:
            self.evidence.qemu_gated = counts
        elif guest.name == SITES:
            self.evidence.qemu_free = counts


def parts_of(steps: Sequence[PlanStep]) -> Mapping[str, list[PlanStep]]:
    """The steps by the branch in which they run."""
    free = [step for step in steps if not step.is_watched]
    return {
        WATCHED: [step for step in steps if step.is_watched],
        # The free-running ledger has only the sites, not what code scenarios poke.
        SITES: [s for s in free if not s.scenario.code and not s.scenario.exclusive],
        CODE: [s for s in free if s.scenario.code and not s.scenario.exclusive],
        BESIDE: [s for s in free if s.scenario.exclusive],
    }
