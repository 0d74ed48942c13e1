"""Which candidate to run next, and how sure we are: pure logic, no I/O.

Candidates 0 (the good end) to N (the bad end) are in order, and the first bad one is looked for. A run of a bad one
shows the fault with a probability p in (0, 1] that nobody knows; a run of a good one never does, or with the small
probability `false_positive`. Over (first bad one, p) everything is exact: p is a grid of 24 values, evenly spaced in
log p from MIN_P to 1, and p = 1 itself. What is kept is the log-likelihood of each pair, so that thousands of runs lose
nothing.

What the answer's probability means depends on what one believes of p beforehand, and no single belief is right for each
p: one that expects p = 1 needs few runs if that is so, and is too sure of itself when p is 0.5. So there are two. One
expects p = 1 with probability 0.6 and else any order of magnitude; it chooses what to run. The other is Jeffreys' prior
without p = 1. The probability that is stated, and that stops the search, is the lesser of the two.

The next candidate is that with the most information on the first bad one by cost, where the plan that is weighed is
"run it until it fails, at most m times", for the best m: a single run that passes says little when p is small, and
judged by that no build would ever be worth its cost.
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
"""A fault that shows more rarely than in one run of a hundred is looked for as if it showed that often."""
SURE = 0.6
"""How much the belief that chooses expects p = 1. The stated probability does not rest on it alone."""
DOUBT = 0.02
"""Probability, beforehand, that the good end is bad."""
AMORTISED = 1 / 3
"""Part of a build's cost that its first runs must earn: later ones profit as well."""
GIVE_UP = 4
"""Runs that crash in another way, with none that says anything, after which a candidate counts as untestable."""
PLANS = np.array([1, 2, 3, 4, 6, 8, 11, 15, 20, 27, 36, 48, 64, 90, 128], dtype=np.float64)
"""The m in "run until it fails, at most m times"."""
SCENARIOS = 16
"""Of what runs under way may end in, so many combinations are weighed."""


class RunOutcome(enum.StrEnum):
    """What a run said. other: the kernel failed, but not with the signature that is looked for; whether the fault would
    have shown is unknown. infra: nothing about the kernel. untestable: it does not build or boot."""

    PASS = "pass"
    FAIL = "fail"
    OTHER = "other"
    INFRA = "infra"
    UNTESTABLE = "untestable"


@dataclass(frozen=True)
class SearchAnswer:
    """The first bad candidate is one of `first` to `last` (equal, unless those between could not be tested), with
    `probability`. p: how often a run of a bad one shows the fault, by the posterior's mean."""

    first: int
    last: int
    probability: float
    p: float


@dataclass
class Tally:
    """Runs of one candidate by what they said."""

    passed: int = 0
    failed: int = 0
    other: int = 0
    infra: int = 0
    untestable: bool = False

    @property
    def usable(self) -> int:
        return self.passed + self.failed

    @property
    def yields(self) -> float:
        """The part of further runs to be expected to say something."""
        return (self.usable + 1) / (self.usable + self.other + self.infra + 1)


class Search:
    """candidates: both ends included. build: cost of building each (or of any), run: of one run, in any unit.

    prior: weight of each candidate to be the first bad one, that of the good end included; None for all alike.
    confidence: at which to stop. false_positive: probability that a run of a good candidate shows the very signature.
    It is 0 because a healthy kernel does not fail a check: one that does has another fault, with another signature.
    Give one only if the good end is known to fail so now and then: a single failure is no proof then, and that costs
    runs.
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
        self._quiet = (1 - self._p)[
            :, None
        ] ** PLANS  # probability of no failure in m runs of a bad candidate
        self._length = (1 - self._quiet) / self._p[:, None]  # runs until it fails, at most m
        self._false_quiet = (1 - false_positive) ** PLANS
        self._false_length = (1 - self._false_quiet) / false_positive if false_positive else PLANS

    # -- what was seen

    def record(self, candidate: int, seen: RunOutcome) -> None:
        """Take what a run of `candidate` said."""
        tally = self.tallies[candidate]
        self._built[candidate] |= (
            seen is not RunOutcome.INFRA
        )  # an infra run may have ended before the build
        match seen:
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
        """What a build and a run really cost, now that some were measured. Both in the same unit."""
        self._build[:], self._run = build, run

    def built(self, candidate: int) -> None:
        """It need not be built (again)."""
        self._built[candidate] = True

    def _vote(self, candidate: int, if_bad: Array, if_good: float) -> None:
        self._log[: candidate + 1] += if_bad
        if if_good == -np.inf:
            self._log = self._log[
                : candidate + 1
            ]  # what comes later cannot be the first bad one any more
        elif if_good:
            self._log[candidate + 1 :] += if_good
        self._log -= self._log.max()

    # -- what that means

    def posterior(self) -> Array:
        """Probability of each candidate to be the first bad one, by the belief that chooses."""
        whole = np.zeros(len(self.tallies))
        mass = self._joint(0).sum(axis=1)
        whole[: len(mass)] = mass
        return whole

    def answer(self) -> SearchAnswer:
        """The likeliest first bad candidate as things stand. Those that nothing could tell apart are one."""
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
        """The bad end was seen to fail, and the good end to run."""
        return self.tallies[self.bad_end].failed > 0 and self.tallies[0].usable > 0

    @property
    def done(self) -> bool:
        return self.verified and self.answer().probability >= self.confidence

    def _joint(self, belief: int) -> Array:
        """P(first bad one, p) by one of the two beliefs."""
        weights = np.exp(self._log) * self._beliefs[belief]
        return np.asarray(weights / weights.sum())

    def _groups(self, live: int) -> NDArray[np.intp]:
        """A number for each first bad one; equal where no candidate that can be tested lies between."""
        testable = np.flatnonzero([not tally.untestable for tally in self.tallies])
        return np.searchsorted(testable, np.arange(live))

    # -- what to do next

    def propose(self, count: int = 1, under_way: Iterable[int] = ()) -> list[int]:
        """`count` candidates to run now, for as many idle cores, knowing that `under_way` are being run already.

        Each is chosen for what it adds to those before it, whatever they end in: with p = 1 and three cores the range
        is quartered, with a small p the same candidate is run several times. Fewer, or none, when nothing more can be
        learnt.
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
        there = self._built.copy()
        there[pending] = True
        building = np.where(there, 0.0, self._build * AMORTISED)[:live, None]
        yields = np.array(
            [0.0 if tally.untestable else tally.yields for tally in self.tallies[:live]]
        )
        score = yields[:, None] * informs / (building + self._run * length)
        at = int(score.argmax())
        return at // len(PLANS) if score.flat[at] > 1e-12 else None

    def _scenarios(self, pending: Sequence[int]) -> list[tuple[float, Array]]:
        """(probability, P(first bad one, p)) for the likeliest of what the runs under way may end in."""
        joints = [self._joint(belief) for belief in range(len(self._beliefs))]
        answer = self.answer()
        # The belief that chooses learns nothing more where it is sure; then the other one has to be convinced.
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
            scenarios = sorted(split, key=lambda one: -one[0])[:SCENARIOS]
        total = sum(weight for weight, _ in scenarios)
        return [(weight / total, joint) for weight, joint in scenarios]

    def _worth(self, joint: Array) -> tuple[Array, Array]:
        """Of each (candidate, plan): bits on the first bad one that it is expected to give, and runs that it takes."""
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
    """The grid of p, its last point 1, and the two priors on it."""
    edges = np.linspace(np.log(MIN_P), 0, 25)
    grid = np.exp((edges[1:] + edges[:-1]) / 2)
    chooses = np.append(np.full(len(grid), (1 - SURE) / len(grid)), SURE)
    jeffreys = grid / np.sqrt(grid * (1 - grid))  # the density, times the width of a step in log p
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
    """Of an event of probability q, in bits."""
    q = np.clip(q, 1e-15, 1 - 1e-15)
    return np.asarray(-(q * np.log2(q) + (1 - q) * np.log2(1 - q)))
