"""The simulation: that it counts what it says, and that the comparison is one."""

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
def test_a_fault_that_always_shows_is_found_by_all(name: str) -> None:
    played = [simulate.play(name, 64, 1.0, 10.0, f"{SEED} {n}") for n in range(10)]
    assert all(one.right for one in played)
    assert all(6 <= one.builds <= one.runs for one in played)


def test_the_same_seed_gives_the_same_bisection() -> None:
    first, again, other = (simulate.play("ours", 64, 0.4, 10.0, seed) for seed in ("a", "a", "b"))
    assert first == again != other


def test_plain_bisection_repeats_what_passes() -> None:
    played = simulate.play("plain, told p", 1024, 0.2, 10.0, f"{SEED}")
    assert played.builds == 10
    assert played.runs > 50


def test_a_line_tells_cost_from_runs_and_builds() -> None:
    line = simulate.SimulationRow(
        "ours",
        0.5,
        (simulate.SimulatedBisection(10, 2, True), simulate.SimulatedBisection(20, 4, False)),
        10.0,
    )
    assert (line.mean("runs"), line.mean("builds"), line.mean("cost"), line.accuracy) == (
        15,
        3,
        45,
        0.5,
    )
    assert line.high("runs") == 20


def test_the_goal_at_one_failure_in_five() -> None:
    """1024 commits: at most 150 runs and 25 builds on average, and right as often as is said."""
    played = tuple(simulate.play("ours", 1024, 0.2, 10.0, f"{SEED} {n}") for n in range(20))
    line = simulate.SimulationRow("ours", 0.2, played, 10.0)
    assert line.mean("runs") <= 150 + 35, "the mean of 20 has a standard error of 15"
    assert line.mean("builds") <= 25
    assert line.accuracy >= 0.85


def test_the_table_has_a_line_for_each_strategy_and_p() -> None:
    lines = list(simulate.simulate(commits=16, ps=(1, 0.5), times=3, seed=SEED))
    assert [(line.strategy, line.p) for line in lines] == [
        (n, p) for p in (1, 0.5) for n in simulate.available()
    ]
    file = io.StringIO()
    Console(file=file, width=80).print(simulate.table(lines))
    assert "ours" in file.getvalue() and "…" not in file.getvalue()


def test_what_cannot_be_simulated_is_wrong_usage() -> None:
    with pytest.raises(UsageError):
        list(simulate.simulate(ps=(0.0,)))
