# SPDX-License-Identifier: GPL-2.0-only
"""What bisections cost and how often they are right, simulated with made-up faults.

Our search is compared with git_bayesect (the real library, if it is installed) and with plain
bisection that repeats each step. All strategies get the same histories and random numbers. They
differ in what they know beforehand, which their docstrings state.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import multiprocessing
import os
import random
import signal
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from rich import box
from rich.table import Table

from orchestrator.errors import SIGNALS, UsageError
from orchestrator.many.bisect.search import RunOutcome, Search

CONFIDENCE = 0.95
LIMIT = 20_000
"""Runs after which a bisection counts as failed."""
PR_SET_PDEATHSIG = 1
"""Of prctl(2): the signal that this process gets when its parent ends."""

RunCandidate = Callable[[int], bool]
"""Runs a candidate, numbered from 0 (good) to N (bad). Returns whether the fault showed."""


def ours(commits: int, p: float, build: float, run: RunCandidate) -> int:
    """Search, as the command uses it.

    It does not know p, and has to see the bad end fail and the good end run.
    """
    search = Search(commits + 1, build=build)
    for _ in range(LIMIT):
        if search.done:
            break
        (candidate,) = search.propose()
        search.record(candidate, RunOutcome.FAIL if run(candidate) else RunOutcome.PASS)
    return search.answer().first


def git_bayesect(commits: int, p: float, build: float, run: RunCandidate) -> int:
    """hauntsaninja's git_bayesect, as its `run` command drives it.

    It knows neither p nor that good candidates never fail, and ignores the cost of builds. It
    numbers candidates from the newest (0) to the oldest.
    """
    import git_bayesect as library
    import numpy

    bisector = library.Bisector(numpy.ones(commits))
    with numpy.errstate(all="ignore"):
        for _ in range(LIMIT):
            index = bisector.select()
            bisector.record(index, run(commits - index))
            if bisector.distribution.max() >= CONFIDENCE:
                break
        return commits - int(bisector.distribution.argmax())


def plain(commits: int, p: float, build: float, run: RunCandidate) -> int:
    """Plain bisection that runs each candidate until it fails, at most r times.

    It knows p, which nobody does in practice. r is the smallest number for which all steps together
    are right with 95 % if the candidate of each step is bad.
    """
    steps = math.ceil(math.log2(commits))
    repeats = 1 if p == 1 else math.ceil(math.log(1 - CONFIDENCE ** (1 / steps)) / math.log(1 - p))
    good, bad = 0, commits
    while bad - good > 1:
        middle = (good + bad) // 2
        if any(run(middle) for _ in range(repeats)):
            bad = middle
        else:
            good = middle
    return bad


STRATEGIES: dict[str, Callable[[int, float, float, RunCandidate], int]] = {
    "ours": ours,
    "git_bayesect": git_bayesect,
    "plain, knows p": plain,
}


@dataclass(frozen=True)
class SimulatedBisection:
    """The cost and the success of one bisection."""

    runs: int
    builds: int
    """Number of candidates that were run at least once."""
    right: bool


def play(name: str, commits: int, p: float, build: float, seed: str) -> SimulatedBisection:
    """Simulate a bisection of `commits` after a good one. `seed` chooses the first bad one."""
    rng = random.Random(seed)
    first_bad = rng.randint(1, commits)
    runs: list[int] = []

    def run(candidate: int) -> bool:
        runs.append(candidate)
        return candidate >= first_bad and rng.random() < p

    right = STRATEGIES[name](commits, p, build, run) == first_bad
    return SimulatedBisection(len(runs), len(set(runs)), right)


@dataclass(frozen=True)
class SimulationRow:
    """A row of the table: one strategy at one p."""

    strategy: str
    p: float
    bisections: tuple[SimulatedBisection, ...]
    build: float
    """Cost of a build, in runs."""

    @property
    def accuracy(self) -> float:
        return statistics.mean(one.right for one in self.bisections)

    def mean(self, quantity: str) -> float:
        """The mean of `runs`, `builds` or `cost`."""
        return statistics.mean(self._values(quantity))

    def high(self, quantity: str) -> float:
        """The 95th percentile of `runs`, `builds` or `cost`."""
        values = sorted(self._values(quantity))
        return values[min(len(values) - 1, math.ceil(0.95 * len(values)) - 1)]

    def _values(self, quantity: str) -> list[float]:
        weights = {"runs": (1.0, 0.0), "builds": (0.0, 1.0), "cost": (1.0, self.build)}
        run, build = weights[quantity]
        return [run * one.runs + build * one.builds for one in self.bisections]


def available() -> list[str]:
    """The strategies that are installed."""
    return [name for name in STRATEGIES if name != "git_bayesect" or importlib.util.find_spec(name)]


def simulate(
    *,
    commits: int = 1024,
    ps: Sequence[float] = (1, 0.5, 0.2, 0.05),
    times: int = 200,
    build: float = 10.0,
    seed: int = 1,
) -> Iterator[SimulationRow]:
    """Simulate `times` bisections of each strategy at each p, and yield the rows as they are done.

    build: cost of a build, in runs. Raises UsageError for a value that is out of range.
    """
    if commits < 2 or times < 1 or not all(0 < p <= 1 for p in ps) or build < 0:
        raise UsageError(
            "a simulation takes at least 2 commits, at least 1 bisection, p in (0, 1], "
            "and no negative cost"
        )
    # A process of the pool that has not got to _belong_to() yet has our handlers.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    pool = multiprocessing.Pool(len(os.sched_getaffinity(0)), _belong_to, (os.getpid(),))
    with pool:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for p in ps:
            seeds = [f"{seed} {p} {number}" for number in range(times)]
            for name in available():
                bisections = pool.imap(partial(play, name, commits, p, build), seeds, chunksize=5)
                yield SimulationRow(name, p, tuple(bisections), build)


def _belong_to(parent: int) -> None:
    """Make this process end with its parent, which alone handles signals."""
    for number in SIGNALS.keys() - {signal.SIGTERM}:  # Ctrl-C reaches all of the terminal
        signal.signal(number, signal.SIG_IGN)
    # How the pool ends us. Not even for a moment ignored: one that is pending would be dropped.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def table(rows: Sequence[SimulationRow]) -> Table:
    """The rows as a table for a terminal: means and 95th percentiles."""
    result = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    headings = ("p(fail)", "strategy", "runs", "95 %", "builds", "95 %", "cost", "95 %", "right")
    for heading in headings:
        justify: Literal["left", "right"] = "left" if heading == "strategy" else "right"
        result.add_column(heading, justify=justify, no_wrap=True)
    for row in rows:
        cells = [f"{row.p:g}", row.strategy]
        for quantity in ("runs", "builds", "cost"):
            digits = 1 if quantity == "builds" else 0
            cells += [f"{row.mean(quantity):.{digits}f}", f"{row.high(quantity):.0f}"]
        result.add_row(*cells, f"{100 * row.accuracy:.1f} %")
    return result
