"""What a bisection costs, and how often it is right, played through on faults that are made up: no kernel is run.

Ours is compared with git_bayesect (the real library, if it is installed) and with plain bisection that repeats each
step. All are given the same histories and the same chance; what each knows beforehand differs, and is said.
"""

from __future__ import annotations

import importlib.util
import math
import os
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

from rich import box
from rich.table import Table

from orchestrator.errors import UsageError
from orchestrator.many.bisect.search import RunOutcome, Search

CONFIDENCE = 0.95
LIMIT = 20_000
"""Runs after which a bisection counts as failed."""

Try = Callable[[int], bool]
"""Runs a candidate, by its number from 0 (good) to N (bad), and says whether the fault showed."""


def ours(commits: int, p: float, build: float, once: Try) -> int:
    """Search as the command uses it: it knows nothing of p and has to see the bad end fail, and the good end run."""
    search = Search(commits + 1, build=build)
    for _ in range(LIMIT):
        if search.done:
            break
        (candidate,) = search.propose()
        search.record(candidate, RunOutcome.FAIL if once(candidate) else RunOutcome.PASS)
    return search.answer().first


def git_bayesect(commits: int, p: float, build: float, once: Try) -> int:
    """hauntsaninja's git_bayesect, as its `run` command drives it: it knows nothing of p, nor that good ones never
    fail, and does not count builds. It numbers from the newest (0) to the oldest."""
    import git_bayesect as library
    import numpy

    bisector = library.Bisector(numpy.ones(commits))
    with numpy.errstate(all="ignore"):
        for _ in range(LIMIT):
            index = bisector.select()
            bisector.record(index, once(commits - index))
            if bisector.distribution.max() >= CONFIDENCE:
                break
        return commits - int(bisector.distribution.argmax())


def plain(commits: int, p: float, build: float, once: Try) -> int:
    """Plain bisection that runs each candidate until it fails, at most r times. It is told p, which in life nobody
    knows, and r is the least for which all steps together are right with 95 % if each meets a bad candidate."""
    steps = math.ceil(math.log2(commits))
    repeats = 1 if p == 1 else math.ceil(math.log(1 - CONFIDENCE ** (1 / steps)) / math.log(1 - p))
    good, bad = 0, commits
    while bad - good > 1:
        middle = (good + bad) // 2
        if any(once(middle) for _ in range(repeats)):
            bad = middle
        else:
            good = middle
    return bad


STRATEGIES: dict[str, Callable[[int, float, float, Try], int]] = {
    "ours": ours,
    "git_bayesect": git_bayesect,
    "plain, told p": plain,
}


@dataclass(frozen=True)
class SimulatedBisection:
    """One bisection: runs and builds (candidates run at least once), and whether the answer was right."""

    runs: int
    builds: int
    right: bool


def play(name: str, commits: int, p: float, build: float, seed: str) -> SimulatedBisection:
    """One bisection of `commits` after a good one, the first bad one drawn by `seed`."""
    chance = random.Random(seed)
    first_bad = chance.randint(1, commits)
    runs: list[int] = []

    def once(candidate: int) -> bool:
        runs.append(candidate)
        return candidate >= first_bad and chance.random() < p

    right = STRATEGIES[name](commits, p, build, once) == first_bad
    return SimulatedBisection(len(runs), len(set(runs)), right)


@dataclass(frozen=True)
class SimulationRow:
    """A line of the table: a strategy at one p."""

    strategy: str
    p: float
    played: tuple[SimulatedBisection, ...]
    build: float

    @property
    def accuracy(self) -> float:
        return statistics.mean(one.right for one in self.played)

    def mean(self, what: str) -> float:
        return statistics.mean(self._values(what))

    def high(self, what: str) -> float:
        """The 95th percentile."""
        values = sorted(self._values(what))
        return values[min(len(values) - 1, math.ceil(0.95 * len(values)) - 1)]

    def _values(self, what: str) -> list[float]:
        run, build = {"runs": (1.0, 0.0), "builds": (0.0, 1.0), "cost": (1.0, self.build)}[what]
        return [run * one.runs + build * one.builds for one in self.played]


def available() -> list[str]:
    """The strategies that can be played here."""
    return [name for name in STRATEGIES if name != "git_bayesect" or importlib.util.find_spec(name)]


def simulate(
    *,
    commits: int = 1024,
    ps: Sequence[float] = (1, 0.5, 0.2, 0.05),
    times: int = 200,
    build: float = 10.0,
    seed: int = 1,
) -> Iterator[SimulationRow]:
    """Play each strategy `times` times at each p; the lines as they are done. build: its cost in runs."""
    if commits < 2 or times < 1 or not all(0 < p <= 1 for p in ps) or build < 0:
        raise UsageError(
            "a simulation takes at least 2 commits and 1 bisection, p in (0, 1], and no negative cost"
        )
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for p in ps:
            seeds = [f"{seed} {p} {number}" for number in range(times)]
            for name in available():
                played = pool.map(partial(play, name, commits, p, build), seeds, chunksize=5)
                yield SimulationRow(name, p, tuple(played), build)


def table(lines: Sequence[SimulationRow]) -> Table:
    """Mean and 95th percentile of each, for a terminal."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in (
        "p(fail)",
        "strategy",
        "runs",
        "95 %",
        "builds",
        "95 %",
        "cost",
        "95 %",
        "right",
    ):
        shown.add_column(
            heading, justify="left" if heading == "strategy" else "right", no_wrap=True
        )
    for line in lines:
        cells = [f"{line.p:g}", line.strategy]
        for what in ("runs", "builds", "cost"):
            digits = 1 if what == "builds" else 0
            cells += [f"{line.mean(what):.{digits}f}", f"{line.high(what):.0f}"]
        shown.add_row(*cells, f"{100 * line.accuracy:.1f} %")
    return shown
