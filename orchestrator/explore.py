# SPDX-License-Identifier: GPL-2.0-only
"""Many seeds from one snapshot: does any schedule break the kernel, and how many were there?

Each seed is a branch with the free steps of a run, and with turns of the CPUs that are cut where
the seed says (guest/module/cuts.c). It is judged by the recorder's log and the guest's report.

An *interleaving* is what one poke was for one pair of CPUs: the order in which the log has writes,
and of each of the two int3, how it went on, and syncs. It is a string, with a letter for an event:

    W      somebody writes (the first byte, the tail)
    T R S  one CPU meets int3, goes on, syncs; t r s: the other one

CPUs have no numbers, int3 of the same CPU that follow one another count once, and a pair is the
same the other way round.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from orchestrator import rundir, ui
from orchestrator.branch import LOOKS, Branch, Branches, commands_for
from orchestrator.errors import InfraError, UsageError
from orchestrator.guest import ktap
from orchestrator.guests import surroundings
from orchestrator.host import keeper
from orchestrator.kernel.model import Kernel
from orchestrator.machine.faults import KernelFault
from orchestrator.machine.waiting import SILENCE_SECONDS
from orchestrator.run import branches_of
from orchestrator.rundir import BRANCHES
from orchestrator.scenarios.scenario import runnable, select
from orchestrator.scenarios.steps import PlanStep, plan_steps
from orchestrator.spec import RunSpec
from orchestrator.verdict import result as result_file
from orchestrator.verdict.checks import CheckResult
from orchestrator.verdict.evidence import Evidence
from orchestrator.verdict.outcome import Verdict
from orchestrator.verdict.recorded import record
from orchestrator.verdict.recorded.judge import judge
from orchestrator.verdict.recorded.judgement import Judgement, LogName, Surroundings
from orchestrator.verdict.result import RunResult
from orchestrator.watch.recorder import Records, save

SECONDS = 300.0
"""Limit for one branch, of the host's time."""
WINDOW = 20
"""Over so many seeds the number of new interleavings is looked at."""
FLAT = 0.01
"""Part of all interleavings: with less new ones in a window the curve is flat."""
SMALLER = (1, 2, 4, 8, 16, 32)
"""Numbers of CPUs that a failure is tried with."""
TRIES = 16
"""Seeds that a smaller machine is tried with. Its schedules are other ones."""
SHORTEST_MS = 5
FOUND = "found"
"""Name of the branch that shows the failure."""

Progress = Callable[["Explored"], None]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one branch is asked to do."""

    seed: int
    smp: int
    steps: tuple[PlanStep, ...]
    cuts: bool = True
    """Whether turns are cut where the seed says."""

    def commands(self, emulated: Sequence[str] | None) -> str:
        """Lines for guest/init/steps."""
        return commands_for(self.steps, emulated, self.seed if self.cuts else None)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One branch that was run and judged."""

    plan: Plan
    failure: str = ""
    """What the kernel did wrong, in a sentence; empty for nothing."""
    check: str = ""
    """The check that says so: a claim, `guest` or `console`."""
    details: tuple[str, ...] = ()
    interleavings: frozenset[str] = frozenset()
    pokes: int = 0
    seconds: float = 0.0


@dataclass(kw_only=True)
class Explored:
    """What an exploration has found so far."""

    seeds: int = 0
    pokes: int = 0
    interleavings: set[str] = field(default_factory=set)
    curve: list[int] = field(default_factory=list)
    """Number of different interleavings after each seed."""
    why: str = ""
    """Why it has ended."""
    failed: Trial | None = None
    """The first seed that failed."""
    shrunk: Trial | None = None
    """The same failure, made as small as possible."""
    directory: Path | None = None
    """Has the branch of `shrunk`, for `orchestrator replay`."""
    seconds: float = 0.0

    def add(self, trial: Trial) -> None:
        self.seeds += 1
        self.pokes += trial.pokes
        self.interleavings |= trial.interleavings
        self.curve.append(len(self.interleavings))

    @property
    def flat(self) -> bool:
        """Whether there is hardly anything new any more."""
        if len(self.curve) <= WINDOW:
            return False
        return self.curve[-1] - self.curve[-1 - WINDOW] < FLAT * self.curve[-1]


def interleavings(log: Records) -> tuple[frozenset[str], int]:
    """The interleavings in a log, and the number of pokes."""
    kinds = log["kind"]
    letters = {record.WRITE: "W", record.TRAP: "T", record.RESUME: "R", record.SYNC: "S"}
    ends = [-1, *np.flatnonzero(kinds == record.UNLOCK).tolist(), len(log)]
    of_interest = np.flatnonzero(np.isin(kinds, list(letters)))
    events = [(letters[int(kinds[at])], int(log["cpu"][at])) for at in of_interest.tolist()]
    bounds = np.searchsorted(of_interest, ends)
    found: set[str] = set()
    pokes = 0
    for start, end in itertools.pairwise(bounds.tolist()):
        part = events[start:end]
        if any(letter == "W" for letter, _ in part):
            pokes += 1
            found.update(_of_poke(part))
    return frozenset(found), pokes


def _of_poke(events: Sequence[tuple[str, int]]) -> Iterator[str]:
    cpus = sorted({cpu for _, cpu in events})
    for one, other in itertools.combinations(cpus, 2):
        first = "".join(
            letter if letter == "W" or cpu == one else letter.lower()
            for letter, cpu in events
            if letter == "W" or cpu in (one, other)
        )
        first = re.sub(r"(TR|tr)\1+", r"\1", first)
        second = re.sub(r"W", "w", first).swapcase()
        yield min(first, second)


class Explorer:
    """Runs plans from the snapshots of one kernel."""

    def __init__(self, spec: RunSpec, directory: Path, *, cuts: bool = True) -> None:
        """directory: gets the branches."""
        self.spec = spec
        self._directory = directory
        self._cuts = cuts
        self.kernel: Kernel | None = None
        self._branches: dict[int, Branches] = {}
        self._around: dict[int, tuple[Surroundings, Judgement]] = {}

    def branches(self, smp: int) -> Branches:
        """What makes branches with so many CPUs. Boots a guest if there is no snapshot."""
        if smp not in self._branches:
            spec = replace(self.spec, smp=smp)
            self.kernel, made = branches_of(spec, self._directory / f"smp{smp}")
            recorder = made.recorder()
            recorder.configure(made.kernel_lines)
            around = surroundings(recorder, made.snapshot.module_symbols)
            self._around[smp] = around, judge(made.boot_log(), around)
            self._branches[smp] = made
        return self._branches[smp]

    def plan(self, seed: int, smp: int) -> Plan:
        """The plan of a seed: the free steps of sites, or all free steps if any were named."""
        spec = self.spec
        scenarios = runnable(select(spec.scenarios, spec.skip), spec.scenarios, headers=True)
        cpus = self.branches(smp).snapshot.cpus
        steps = tuple(
            step
            for step in plan_steps(scenarios, cpus, spec.duration, seed)
            if not step.is_watched and (step.scenario.site or spec.scenarios)
        )
        if not steps:
            raise UsageError("none of these scenarios pokes while nothing is held")
        return Plan(seed=seed, smp=smp, steps=steps, cuts=self._cuts)

    def run(self, plan: Plan, keep: Branches | None = None, name: str = "") -> Trial:
        """Run one plan, and judge it.

        keep: where the branch is to stay. Raises what went wrong without the kernel.
        """
        branches = keep or self.branches(plan.smp)
        around, boot = self._around[plan.smp]
        commands = plan.commands(branches.snapshot.emulated)
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            one = branches.carry_out(stack, name or f"seed{plan.seed}", commands, plan.seed)
            fault = ""
            try:
                with one.machine.silence.limit(SILENCE_SECONDS):
                    one.wait(SECONDS)
            except KernelFault as error:
                fault = str(error)
            log = one.records()
            if keep:
                save(log, one.machine.log("recorder.log.gz"))
            if one.recorder.lost:
                raise InfraError(one.recorder.lost)
            if not fault and one.recorder.looks != LOOKS:
                raise InfraError("the recorder did not look at the kernel's text")
            so_far = Judgement(sites=copy.deepcopy(boot.sites))
            judged = judge(log, around, so_far, LogName(FOUND))
            check, details = _failure(plan, one, judged, fault)
        found, pokes = interleavings(log)
        return Trial(
            plan=plan,
            failure=details[0] if details else "",
            check=check,
            details=details,
            interleavings=found,
            pokes=pokes,
            seconds=time.monotonic() - began,
        )


def _failure(plan: Plan, one: Branch, judged: Judgement, fault: str) -> tuple[str, tuple[str, ...]]:
    """The check that failed, and what is wrong, one line each."""
    if judged.violations:
        first = min(judged.violations, key=lambda violation: violation.record)
        lines = [f"{v.text} [{v.place}]" for v in judged.violations]
        lines.insert(0, f"{first.text} [{first.place}]")
        return first.claim, tuple(dict.fromkeys(lines))
    if fault:
        return "console", (fault,)
    report = ktap.parse(one.report().splitlines())
    wanted = [step.number for step in plan.steps]
    if report.damaged or [step.number for step in report.steps] != wanted:
        raise InfraError("the guest's report is incomplete")
    for step in report.steps:
        if not step.ok and not step.skip and not step.missed:
            said = "; ".join(step.complaints) or "a promise was broken"
            return "guest", (f"{step.name}: {said}",)
    return "", ()


def explore(
    spec: RunSpec,
    *,
    seconds: float,
    seeds: int,
    jobs: int,
    cuts: bool = True,
    shrink: bool = True,
    on_progress: Progress = lambda _: None,
) -> Explored:
    """Run seeds from spec.seed on, until one fails, nothing new comes, or the limits are reached.

    seconds, seeds: limits; 0 for none.

    Raises UsageError, and what a run raises when something other than the kernel failed.
    """
    began, found = time.monotonic(), Explored()
    with keeper.temporary_directory() as temporary:
        explorer = Explorer(spec, temporary, cuts=cuts)
        explorer.branches(spec.smp)
        numbers = itertools.count(spec.seed)
        with ThreadPoolExecutor(jobs) as pool:
            running: set[Future[Trial]] = set()
            while not found.why:
                while len(running) < jobs:
                    plan = explorer.plan(next(numbers), spec.smp)
                    running.add(pool.submit(explorer.run, plan))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for trial in (future.result() for future in done):
                    found.add(trial)
                    if trial.failure and not found.failed:
                        found.failed = trial
                on_progress(found)
                found.why = _why_end(found, time.monotonic() - began, seconds, seeds)
        if found.failed:
            found.shrunk = _shrunk(explorer, found.failed) if shrink else found.failed
            found.directory = _kept(explorer, found.shrunk)
    found.seconds = time.monotonic() - began
    return found


def _why_end(found: Explored, passed: float, seconds: float, seeds: int) -> str:
    if found.failed:
        return "a seed failed"
    if seeds and found.seeds >= seeds:
        return "the number of seeds is reached"
    if seconds and passed >= seconds:
        return "the time is up"
    if found.flat:
        return f"the last {WINDOW} seeds showed hardly anything new"
    return ""


# -- the smallest plan that fails


def _shrunk(explorer: Explorer, failed: Trial) -> Trial:
    """The shortest plan and the smallest machine that show the failure."""
    with ui.step("looking for a smaller failure"):
        best = _fewer_steps(explorer, failed)
        best = _shorter(explorer, best)
        for smp in SMALLER:
            if smp >= best.plan.smp:
                break
            for seed in range(best.plan.seed, best.plan.seed + TRIES):
                pokers = explorer.plan(seed, smp).steps
                numbers = {step.number for step in best.plan.steps}
                steps = tuple(step for step in pokers if step.number in numbers)
                plan = replace(best.plan, seed=seed, smp=smp, steps=steps)
                if again := _fails(explorer, plan):
                    return _shorter(explorer, again)
        return best


def _fewer_steps(explorer: Explorer, failed: Trial) -> Trial:
    for step in failed.plan.steps:
        if again := _fails(explorer, replace(failed.plan, steps=(step,))):
            return again
    best = failed
    for step in failed.plan.steps:
        steps = tuple(other for other in best.plan.steps if other is not step)
        if steps and (again := _fails(explorer, replace(best.plan, steps=steps))):
            best = again
    return best


def _shorter(explorer: Explorer, best: Trial) -> Trial:
    """With steps of half the time, as often as that still fails."""
    while True:
        times = [re.search(r"\bms=(\d+)", step.command) for step in best.plan.steps]
        if any(ms is None or int(ms[1]) < 2 * SHORTEST_MS for ms in times):
            return best
        steps = tuple(
            replace(step, command=re.sub(r"\bms=\d+", f"ms={int(ms[1]) // 2}", step.command))
            for step, ms in zip(best.plan.steps, times, strict=True)
            if ms
        )
        again = _fails(explorer, replace(best.plan, steps=steps))
        if not again:
            return best
        best = again


def _fails(explorer: Explorer, plan: Plan) -> Trial | None:
    trial = explorer.run(plan)
    return trial if trial.failure else None


def _kept(explorer: Explorer, trial: Trial) -> Path:
    """Run a failing plan once more, in a directory that `orchestrator replay` takes."""
    plan, kernel = trial.plan, explorer.kernel
    spec = replace(explorer.spec, smp=plan.smp, seed=plan.seed)
    directory = rundir.create(spec, ("explore",))
    branches = replace(explorer.branches(plan.smp), directory=directory / BRANCHES)
    again = explorer.run(plan, branches, FOUND)
    if not again.failure:
        raise InfraError(f"a failure did not show again, although the branch is the same: {trial}")
    check = CheckResult(again.check, "fail", again.failure, again.details)
    result_file.write(
        RunResult(
            spec=spec,
            directory=directory,
            name=kernel.name if kernel else "",
            kernel=kernel,
            machine=branches.spec,
            evidence=Evidence(requested_cpus=plan.smp),
            verdict=Verdict("fail", again.failure, (check,)),
            seconds={},
            started=time.time(),
        )
    )
    return directory


def jobs_here() -> int:
    """How many branches run at a time if nobody says."""
    return max(1, os.cpu_count() or 1)
