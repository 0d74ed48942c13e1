# SPDX-License-Identifier: GPL-2.0-only
"""Which candidate to run next, and how certain the answer is: pure logic, no I/O.

Candidates are numbered in order from 0 (the good end) to N (the bad end), and one of them is the
first bad one. A run of a bad candidate shows the fault with an unknown probability p in (0, 1]. A
run of a good candidate never does, or with the small probability `false_positive`. The posterior
over (first bad candidate, p) is exact, on a grid of 24 values of p that are evenly spaced in log p
from MIN_P to 1, plus p = 1 itself. It is kept as the log-likelihood of each pair, so thousands of
runs lose no precision.

The probability of an answer depends on the prior of p, and no prior suits every p. One that expects
p = 1 needs few runs if that is true, and is overconfident if p is 0.5. So there are two. The first
one expects p = 1 with probability 0.6 and otherwise any order of magnitude; it chooses what to run.
The second one is Jeffreys' prior without p = 1. The stated probability, which also ends the search,
is the lower of the two.

The next candidate is the one that gives the most information about the first bad one per cost. It
is judged by the plan "run it until it fails, at most m times", for the best m. Judged by a single
run, which says little if it passes and p is small, no build would ever be worth its cost.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import UsageError

Array = NDArray[np.float64]

MIN_P = 0.01
"""Smallest p that is considered. A rarer fault is searched for as if it had this p."""
SURE = 0.6
"""Prior probability of p = 1, for the belief that chooses. The stated probability does not depend
on this belief alone."""
DOUBT = 0.02
"""Prior probability that the good end is bad."""
AMORTISED = 1 / 3
"""Share of a build's cost that its first runs must justify. Later runs use the same build."""
GIVE_UP = 4
"""A candidate counts as untestable after this many runs that crash in another way, if none of its
runs is usable."""
PLANS = np.array([1, 2, 3, 4, 6, 8, 11, 15, 20, 27, 36, 48, 64, 90, 128], dtype=np.float64)
"""The values of m in "run until it fails, at most m times"."""
SCENARIOS = 16
"""Number of combined results of the pending runs that are considered, the likeliest ones."""


class RunOutcome(enum.StrEnum):
    """What a run counts as."""

    PASS = "pass"
    FAIL = "fail"
    OTHER = "other"
    """The kernel failed with another signature. Whether it has the fault remains unknown."""
    INFRA = "infra"
    """The run says nothing about the kernel."""
    UNTESTABLE = "untestable"
    """The kernel does not build or boot."""


@dataclass(frozen=True)
class SearchAnswer:
    """The most likely first bad candidate."""

    first: int
    last: int
    """It is one of `first` to `last`. They differ if those before `last` could not be tested."""
    probability: float
    p: float
    """How often a run of a bad candidate shows the fault: the posterior mean."""


@dataclass
class Tally:
    """The runs of one candidate, by outcome."""

    passed: int = 0
    failed: int = 0
    other: int = 0
    infra: int = 0
    untestable: bool = False

    @property
    def usable(self) -> int:
        """Number of runs that count."""
        return self.passed + self.failed

    @property
    def yields(self) -> float:
        """Expected share of usable runs among further ones."""
        return (self.usable + 1) / (self.usable + self.other + self.infra + 1)


class Search:
    """A search for the first bad one of several candidates.

    - candidates: their number, including both ends.
    - build: cost of a build, for each candidate or for any. run: cost of a run. Both in one unit.
    - prior: weight of each candidate, including the good end, to be the first bad one; None for
      equal weights.
    - confidence: probability of the answer at which the search is done.
    - false_positive: probability that a run of a good candidate shows the signature. The default is
      0, because a healthy kernel does not fail a check, and another fault has another signature.
      Give one only if the good end is known to fail like this now and then. A single failure is no
      proof then, and the search needs more runs.

    Raises UsageError for a value that is out of range.
    """

    def __init__(
        self,
        candidates: int,
        *,
        build: float | Sequence[float] = 10.0,
        run: float = 1.0,
        prior: Sequence[float] | None = None,
        confidence: float = 0.95,
        false_positive: float = 0.0,
    ) -> None:
        if candidates < 2:
            raise UsageError("a bisection needs a good and a bad end")
        if not 0.5 < confidence < 1:
            raise UsageError(
                f"--confidence takes a probability between 0.5 and 1, not {confidence:g}"
            )
        if not 0 <= false_positive < 0.5:
            raise UsageError(
                f"a probability of false positives is 0 to 0.5, not {false_positive:g}"
            )
        self.bad_end = candidates - 1
        self.confidence = confidence
        self.false_positive = false_positive
        self.tallies = [Tally() for _ in range(candidates)]
        self._build = np.broadcast_to(np.asarray(build, dtype=np.float64), (candidates,)).copy()
        self._built = np.zeros(candidates, dtype=bool)
        self._run = run
        self._p, beliefs = _beliefs()
        self._beliefs = beliefs
        with np.errstate(divide="ignore"):
            self._log_p, self._log_q = np.log(self._p), np.log1p(-self._p)
            self._log_false = float(np.log(false_positive))
            weights = _prior(candidates, prior)
            self._log = np.log(weights)[:, None] + np.zeros_like(self._p)
        # For each (p, plan), a bad candidate: the probability of no failure in m runs, and the
        # expected number of runs until it fails, at most m.
        self._quiet = (1 - self._p)[:, None] ** PLANS
        self._length = (1 - self._quiet) / self._p[:, None]
        self._false_quiet = (1 - false_positive) ** PLANS
        self._false_length = (1 - self._false_quiet) / false_positive if false_positive else PLANS

    # -- runs and their cost

    def record(self, candidate: int, outcome: RunOutcome) -> None:
        """Take a run of `candidate` into account."""
        tally = self.tallies[candidate]
        # An infra run may have ended before the build.
        self._built[candidate] |= outcome is not RunOutcome.INFRA
        match outcome:
            case RunOutcome.PASS:
                tally.passed += 1
                self._vote(candidate, self._log_q, float(np.log1p(-self.false_positive)))
            case RunOutcome.FAIL:
                tally.failed += 1
                self._vote(candidate, self._log_p, self._log_false)
            case RunOutcome.OTHER:
                tally.other += 1
                tally.untestable |= tally.other >= GIVE_UP and not tally.usable
            case RunOutcome.INFRA:
                tally.infra += 1
            case RunOutcome.UNTESTABLE:
                tally.untestable = True

    def cost(self, *, build: float, run: float) -> None:
        """Set the measured cost of a build and of a run, in the same unit."""
        self._build[:], self._run = build, run

    def _vote(self, candidate: int, if_bad: Array, if_good: float) -> None:
        self._log[: candidate + 1] += if_bad
        if if_good == -np.inf:
            # Later candidates can no longer be the first bad one.
            self._log = self._log[: candidate + 1]
        elif if_good:
            self._log[candidate + 1 :] += if_good
        self._log -= self._log.max()

    # -- the answer

    def posterior(self) -> Array:
        """Probability of each candidate to be the first bad one, by the belief that chooses.

        Shape: (candidates,).
        """
        whole = np.zeros(len(self.tallies))
        mass = self._joint(0).sum(axis=1)
        whole[: len(mass)] = mass
        return whole

    def answer(self) -> SearchAnswer:
        """The most likely first bad candidate so far, or range of candidates."""
        joints = [self._joint(belief) for belief in range(len(self._beliefs))]
        groups = self._groups(len(joints[0]))
        masses = [np.bincount(groups, weights=joint.sum(axis=1)) for joint in joints]
        best = int(masses[0].argmax())
        members = np.flatnonzero(groups == best)
        return SearchAnswer(
            first=int(members[0]),
            last=int(members[-1]),
            probability=float(min(mass[best] for mass in masses)),
            p=float(joints[1].sum(axis=0) @ self._p),
        )

    @property
    def verified(self) -> bool:
        """Whether the bad end has failed and the good end has run."""
        return self.tallies[self.bad_end].failed > 0 and self.tallies[0].usable > 0

    @property
    def done(self) -> bool:
        return self.verified and self.answer().probability >= self.confidence

    def _joint(self, belief: int) -> Array:
        """P(first bad candidate, p) by one of the two beliefs."""
        weights = np.exp(self._log) * self._beliefs[belief]
        return np.asarray(weights / weights.sum())

    def _groups(self, live: int) -> NDArray[np.intp]:
        """A group number for each possible first bad candidate.

        Two are in one group if no testable candidate lies between them.
        """
        testable = np.flatnonzero([not tally.untestable for tally in self.tallies])
        return np.searchsorted(testable, np.arange(live))

    # -- the next run

    def propose(self, count: int = 1, under_way: Iterable[int] = ()) -> list[int]:
        """`count` candidates to run now, while those of `under_way` are running already.

        Each is chosen for the information that it adds to those before it, whatever their results.
        So with p = 1 and three cores the range is divided into four, and with a small p the same
        candidate runs several times. Returns fewer, or none, if nothing more can be learnt.
        """
        pending, chosen = list(under_way), list[int]()
        while len(chosen) < count:
            best = self._best(pending)
            if best is None:
                break
            pending.append(best)
            chosen.append(best)
        return chosen

    def _best(self, pending: Sequence[int]) -> int | None:
        if not self.verified:
            bad_end, good_end = self.tallies[self.bad_end], self.tallies[0]
            if not bad_end.failed and self.bad_end not in pending:
                return self.bad_end
            if not good_end.usable and not good_end.untestable and 0 not in pending:
                return 0
            return None if bad_end.failed else self.bad_end
        live = len(self._log)
        informs, length = np.zeros((live, len(PLANS))), np.zeros((live, len(PLANS)))
        for weight, joint in self._scenarios(pending):
            more, runs = self._worth(joint)
            informs += weight * more
            length += weight * runs
        built = self._built.copy()
        built[pending] = True
        building = np.where(built, 0.0, self._build * AMORTISED)[:live, None]
        yields = np.array(
            [0.0 if tally.untestable else tally.yields for tally in self.tallies[:live]]
        )
        score = yields[:, None] * informs / (building + self._run * length)
        at = int(score.argmax())
        return at // len(PLANS) if score.flat[at] > 1e-12 else None

    def _scenarios(self, pending: Sequence[int]) -> list[tuple[float, Array]]:
        """The most likely combined results of the pending runs.

        Each with its probability and P(first bad candidate, p) after it.
        """
        joints = [self._joint(belief) for belief in range(len(self._beliefs))]
        answer = self.answer()
        # Once the belief that chooses is sure, it learns nothing more, and the other one has to be
        # convinced.
        sure = joints[0].sum(axis=1)[answer.first : answer.last + 1].sum() >= self.confidence
        scenarios = [(1.0, joints[1 if sure else 0])]
        for candidate in pending:
            bad = (np.arange(len(self._log)) <= candidate)[:, None]
            fails = np.where(bad, self._p, self.false_positive)
            split = [
                (weight * mass, part / mass)
                for weight, joint in scenarios
                for part in (joint * fails, joint * (1 - fails))
                if (mass := float(part.sum())) > 1e-9
            ]
            scenarios = sorted(split, key=lambda scenario: -scenario[0])[:SCENARIOS]
        total = sum(weight for weight, _ in scenarios)
        return [(weight / total, joint) for weight, joint in scenarios]

    def _worth(self, joint: Array) -> tuple[Array, Array]:
        """Expected information about the first bad candidate, in bits, and expected number of runs.

        Both of shape (candidates, plans).
        """
        mass = joint.sum(axis=1)
        later = (1 - np.cumsum(mass))[:, None].clip(0, 1)
        quiet = joint @ self._quiet
        with np.errstate(divide="ignore", invalid="ignore"):
            noise = mass[:, None] * _entropy(
                np.where(mass[:, None] > 0, quiet / mass[:, None], 1.0)
            )
        outcome = _entropy(np.cumsum(quiet, axis=0) + later * self._false_quiet)
        informs = outcome - np.cumsum(noise, axis=0) - later * _entropy(self._false_quiet)
        runs = np.cumsum(joint @ self._length, axis=0) + later * self._false_length
        return informs.clip(min=0), runs


def _beliefs() -> tuple[Array, tuple[Array, Array]]:
    """The grid of p, whose last point is 1, and the two priors on it."""
    edges = np.linspace(np.log(MIN_P), 0, 25)
    grid = np.exp((edges[1:] + edges[:-1]) / 2)
    chooses = np.append(np.full(len(grid), (1 - SURE) / len(grid)), SURE)
    # The density, times the width of a step in log p.
    jeffreys = grid / np.sqrt(grid * (1 - grid))
    return np.append(grid, 1.0), (chooses, np.append(jeffreys / jeffreys.sum(), 0.0))


def _prior(candidates: int, weights: Sequence[float] | None) -> Array:
    if weights is None:
        prior = np.full(candidates, (1 - DOUBT) / (candidates - 1))
        prior[0] = DOUBT
        return prior
    prior = np.asarray(weights, dtype=np.float64)
    if prior.shape != (candidates,) or (prior < 0).any() or not prior.sum() > 0:
        raise UsageError("a prior is one weight for each candidate, none negative, not all zero")
    return np.asarray(prior / prior.sum())


def _entropy(q: Array) -> Array:
    """Entropy of an event of probability q, in bits."""
    q = np.clip(q, 1e-15, 1 - 1e-15)
    return np.asarray(-(q * np.log2(q) + (1 - q) * np.log2(1 - q)))
