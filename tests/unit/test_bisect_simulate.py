# SPDX-License-Identifier: GPL-2.0-only
"""The simulation: its counts, and that it compares all strategies on the same faults."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from orchestrator.errors import UsageError
from orchestrator.many.bisect import simulate

SEED = 7


@pytest.fixture(autouse=True)
def seed() -> None:
    print(f"seed {SEED}")


@pytest.mark.parametrize("name", simulate.available())
def test_every_strategy_finds_a_fault_that_always_shows(name: str) -> None:
    bisections = [simulate.play(name, 64, 1.0, 10.0, f"{SEED} {n}") for n in range(10)]
    assert all(one.right for one in bisections)
    assert all(6 <= one.builds <= one.runs for one in bisections)


def test_the_same_seed_gives_the_same_bisection() -> None:
    first, again, other = (simulate.play("ours", 64, 0.4, 10.0, seed) for seed in ("a", "a", "b"))
    assert first == again != other


def test_plain_bisection_repeats_runs_that_pass() -> None:
    bisection = simulate.play("plain, knows p", 1024, 0.2, 10.0, f"{SEED}")
    assert bisection.builds == 10
    assert bisection.runs > 50


def test_the_cost_of_a_row_is_its_runs_and_builds() -> None:
    row = simulate.SimulationRow(
        "ours",
        0.5,
        (simulate.SimulatedBisection(10, 2, True), simulate.SimulatedBisection(20, 4, False)),
        10.0,
    )
    assert (row.mean("runs"), row.mean("builds"), row.mean("cost"), row.accuracy) == (
        15,
        3,
        45,
        0.5,
    )
    assert row.high("runs") == 20


def test_the_goal_at_one_failure_in_five() -> None:
    """1024 commits: at most 150 runs and 25 builds on average, and right as often as it says."""
    bisections = tuple(simulate.play("ours", 1024, 0.2, 10.0, f"{SEED} {n}") for n in range(20))
    row = simulate.SimulationRow("ours", 0.2, bisections, 10.0)
    assert row.mean("runs") <= 150 + 35, "the mean of 20 has a standard error of 15"
    assert row.mean("builds") <= 25
    assert row.accuracy >= 0.85


def test_the_table_has_a_row_for_each_strategy_and_p() -> None:
    rows = list(simulate.simulate(commits=16, ps=(1, 0.5), times=3, seed=SEED))
    assert [(row.strategy, row.p) for row in rows] == [
        (n, p) for p in (1, 0.5) for n in simulate.available()
    ]
    file = io.StringIO()
    Console(file=file, width=80).print(simulate.table(rows))
    assert "ours" in file.getvalue() and "…" not in file.getvalue()


def test_impossible_simulations_are_wrong_usage() -> None:
    with pytest.raises(UsageError):
        list(simulate.simulate(ps=(0.0,)))
