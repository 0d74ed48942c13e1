# SPDX-License-Identifier: GPL-2.0-only
"""The search: its answers, its proposals, and whether it is right as often as it says."""

from __future__ import annotations

import os
import random
import time

import numpy as np
import pytest

from orchestrator.errors import UsageError
from orchestrator.many.bisect.search import RunOutcome, Search

SEED = int(os.environ.get("BISECT_SEED", "20261124"))


@pytest.fixture
def rng() -> random.Random:
    print(f"seed {SEED} (set BISECT_SEED to change it)")
    return random.Random(SEED)


def solve(
    search: Search,
    first_bad: int,
    p: float,
    rng: random.Random,
    broken: frozenset[int] = frozenset(),
) -> int:
    """Run `search` to its end on a fault that begins at `first_bad`. Returns the number of runs."""
    for runs in range(100_000):
        proposed = [] if search.done else search.propose()
        if not proposed:
            return runs
        (candidate,) = proposed
        if candidate in broken:
            search.record(candidate, RunOutcome.UNTESTABLE)
        else:
            search.record(
                candidate,
                RunOutcome.FAIL if candidate >= first_bad and rng.random() < p else RunOutcome.PASS,
            )
    raise AssertionError("the search does not end")


def test_both_ends_run_first() -> None:
    search = Search(100)
    assert search.propose(2) == [99, 0]
    search.record(99, RunOutcome.PASS)
    assert search.propose() == [99], "there is nothing to look for until the bad end fails"
    search.record(99, RunOutcome.FAIL)
    assert search.propose() == [0]
    search.record(0, RunOutcome.PASS)
    assert 0 < search.propose()[0] < 99


def test_a_good_end_that_fails_is_the_answer() -> None:
    search = Search(100)
    search.record(99, RunOutcome.FAIL)
    search.record(0, RunOutcome.FAIL)
    assert search.done
    assert (search.answer().first, search.answer().last) == (0, 0)


def test_a_fault_that_always_shows_costs_what_plain_bisection_costs(rng: random.Random) -> None:
    runs = []
    for _ in range(30):
        first_bad = rng.randint(1, 1024)
        search = Search(1025)
        runs.append(solve(search, first_bad, 1.0, rng))
        assert search.answer().first == search.answer().last == first_bad
        assert sum(1 for tally in search.tallies if tally.usable) <= 13
    assert np.mean(runs) <= 18, (
        "10 steps, 2 for the ends, and a few runs without a build to be sure that p is 1"
    )


@pytest.mark.parametrize("p", [0.7, 0.5, 0.2])
def test_it_is_right_at_least_as_often_as_it_says(p: float, rng: random.Random) -> None:
    right, times = 0, 150
    for _ in range(times):
        first_bad = rng.randint(1, 64)
        search = Search(65)
        solve(search, first_bad, p, rng)
        assert search.answer().probability >= 0.95
        right += search.answer().first == first_bad
    assert right / times >= 0.95 - 2 * (0.95 * 0.05 / times) ** 0.5, (
        "less often than chance allows for 95 %"
    )


def test_more_confidence_costs_more_runs(rng: random.Random) -> None:
    few, many = (
        sum(
            solve(Search(65, confidence=confidence), 20, 0.3, random.Random(f"{SEED} {n}"))
            for n in range(10)
        )
        for confidence in (0.8, 0.999)
    )
    assert few < many


def test_untestable_candidates_form_one_answer_with_the_next_candidate(rng: random.Random) -> None:
    search = Search(33)
    solve(search, 17, 1.0, rng, broken=frozenset({14, 15, 16, 17, 18}))
    assert (search.answer().first, search.answer().last) == (14, 19)


def test_an_untestable_candidate_does_not_widen_an_answer_elsewhere(
    rng: random.Random,
) -> None:
    search = Search(33)
    solve(search, 9, 1.0, rng, broken=frozenset({16, 20}))
    assert (search.answer().first, search.answer().last) == (9, 9)


def test_neither_infra_nor_another_crash_votes() -> None:
    search = Search(33)
    search.record(32, RunOutcome.FAIL)
    search.record(0, RunOutcome.PASS)
    before = search.posterior()
    middle = search.propose()[0]
    for outcome in (RunOutcome.INFRA, RunOutcome.OTHER, RunOutcome.INFRA):
        search.record(middle, outcome)
    assert np.array_equal(search.posterior(), before)
    assert not search.tallies[middle].untestable


def test_a_candidate_that_always_crashes_otherwise_is_abandoned(rng: random.Random) -> None:
    search = Search(33)
    search.record(32, RunOutcome.FAIL)
    search.record(0, RunOutcome.PASS)
    runs = 0
    while (middle := search.propose()[0]) == 16 or runs == 0:
        search.record(middle, RunOutcome.OTHER)
        runs += 1
        assert runs < 6
    assert middle != 16


def test_an_expensive_build_is_avoided_by_running_a_built_candidate_again() -> None:
    def after_a_pass(build: float) -> int:
        search = Search(101, build=build)
        for candidate, outcome in ((100, RunOutcome.PASS),) * 6 + (
            (100, RunOutcome.FAIL),
            (0, RunOutcome.PASS),
            (50, RunOutcome.PASS),
        ):
            search.record(candidate, outcome)
        return search.propose()[0]

    assert after_a_pass(build=300.0) == 50
    assert after_a_pass(build=0.0) != 50


def test_idle_cores_split_the_range_further() -> None:
    search = Search(1025)
    search.record(1024, RunOutcome.FAIL)
    search.record(0, RunOutcome.PASS)
    proposed = sorted(search.propose(3))
    assert len(set(proposed)) == 3
    assert 150 < proposed[0] < 400 < proposed[1] < 650 < proposed[2] < 900
    assert search.propose(1, under_way=proposed)[0] not in proposed


def test_with_false_positives_one_failure_is_not_proof(rng: random.Random) -> None:
    search = Search(65, false_positive=0.02)
    search.record(64, RunOutcome.FAIL)
    search.record(0, RunOutcome.PASS)
    search.record(5, RunOutcome.FAIL)
    assert search.posterior()[6:].sum() > 0.001
    right = 0
    for _ in range(20):
        first_bad = rng.randint(1, 64)
        search = Search(65, false_positive=0.02)
        for _ in range(3000):
            if search.done:
                break
            (at,) = search.propose()
            search.record(
                at,
                RunOutcome.FAIL
                if rng.random() < (0.5 if at >= first_bad else 0.02)
                else RunOutcome.PASS,
            )
        right += search.answer().first == first_bad
    assert right >= 17


def test_thousands_of_runs_lose_no_precision() -> None:
    search = Search(1025)
    search.record(1024, RunOutcome.FAIL)
    for _ in range(5000):
        search.record(511, RunOutcome.PASS)
        search.record(512, RunOutcome.FAIL)
    assert search.posterior().sum() == pytest.approx(1)
    assert search.answer().first == 512
    assert search.answer().probability == pytest.approx(1)


def test_a_step_over_1024_candidates_takes_milliseconds() -> None:
    search = Search(1025)
    search.record(1024, RunOutcome.FAIL)
    search.record(0, RunOutcome.PASS)
    start = time.process_time()
    for _ in range(20):
        search.propose()
    assert (time.process_time() - start) / 20 < 0.1


@pytest.mark.parametrize(
    ("candidates", "options"),
    [
        (1, {}),
        (9, {"confidence": 1.0}),
        (9, {"false_positive": 0.7}),
        (3, {"prior": [1, 2]}),
        (2, {"prior": [0, 0]}),
    ],
)
def test_impossible_arguments_are_wrong_usage(candidates: int, options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Search(candidates, **options)  # type: ignore[arg-type]
