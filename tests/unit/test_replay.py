# SPDX-License-Identifier: GPL-2.0-only
"""Replaying a run: what is compared, and which runs cannot be replayed. Boots nothing."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_json import run_result

from orchestrator import cli, rundir
from orchestrator import replay as module
from orchestrator.errors import UsageError
from orchestrator.options import to_json
from orchestrator.spec import RunSpec
from orchestrator.verdict import result as result_file
from orchestrator.verdict.checks import CheckResult
from orchestrator.verdict.recorded import record
from orchestrator.watch.recorder import RECORD, Records

PLAN = "end of the plan 12\n- plan 1\n- number 3;step site=nop5 how=direct cpu=0 ms=50\n"


def log(*numbers: int) -> Records:
    records = np.zeros(len(numbers), RECORD)
    records["number"] = numbers
    return records


@pytest.fixture(autouse=True)
def own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """The directory of a run with one branch."""
    directory = tmp_path / "run"
    folder = directory / "branches" / "sites"
    folder.mkdir(parents=True)
    result_file.write(run_result(directory))
    (directory / "spec.json").write_text(json.dumps(to_json(RunSpec(seed=5))))
    (directory / "branches" / "snapshot").write_text("abc - def\n6\n")
    (folder / "plan").write_text(PLAN)
    (folder / "recorder.log.gz").write_bytes(gzip.compress(log(1, 2, 3).tobytes()))
    return directory


class Branches:
    """Branches whose logs are made up."""

    def __init__(self, records: Records, identity: str = "abc - def") -> None:
        self.snapshot = SimpleNamespace(identity=identity)
        self.asked: list[tuple[Any, ...]] = []
        self._records = records

    def carry_out(self, _: contextlib.ExitStack, *arguments: object) -> Any:
        self.asked.append(arguments)
        return SimpleNamespace(wait=lambda _: None, records=lambda: self._records)


@pytest.fixture
def branches(monkeypatch: pytest.MonkeyPatch) -> Any:
    def use(made: Branches) -> Branches:
        monkeypatch.setattr(module, "branches_of", lambda *_: (SimpleNamespace(), made))
        return made

    return use


@pytest.mark.parametrize(
    ("before", "now", "at"),
    [
        (log(), log(), None),
        (log(1, 2), log(1, 2), None),
        (log(1, 2), log(1, 3), 1),
        (log(1, 2), log(1), 1),
        (log(1), log(1, 2), 1),
    ],
)
def test_the_first_record_that_differs_is_found(before: Records, now: Records, at: Any) -> None:
    assert module.first_difference(before, now) == at


def test_a_branch_gets_the_same_plan_and_seed(
    finished: Path, branches: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    made = branches(Branches(log(1, 2, 3)))
    assert cli.main(["replay", str(finished)]) == 0
    assert made.asked == [("sites", PLAN.partition("\n")[2], 6)]
    assert capsys.readouterr().out == "sites: the same course (3 events)\n"


def test_another_course_is_no_fault_of_the_kernel(
    finished: Path, branches: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    branches(Branches(log(1, 2, 4), identity="abc - fed"))
    assert cli.main(["replay", str(finished)]) == 125
    shown = capsys.readouterr()
    assert shown.out == "sites: another course from event 2 on (3 events)\n"
    assert "the snapshot of that run is gone" in shown.err


def test_a_run_without_branches_cannot_be_replayed(
    finished: Path, branches: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "branches" / "sites" / "plan").unlink()
    assert cli.main(["replay", str(finished)]) == 129
    assert "only a run with a fingerprint is replayed" in capsys.readouterr().err


def test_a_run_that_has_not_ended_cannot_be_replayed(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "verdict.json").unlink()
    assert cli.main(["replay", str(finished)]) == 129
    assert "is not the directory of a finished run" in capsys.readouterr().err


# -- which event is meant


def records(*rows: tuple[int, int, int]) -> Records:
    """rows: kind, CPU and number."""
    made = np.zeros(len(rows), RECORD)
    for at, (kind, cpu, number) in enumerate(rows):
        made["kind"][at], made["cpu"][at], made["number"][at] = kind, cpu, number
    return made


def test_an_int3_after_which_a_cpu_did_not_go_on_is_found() -> None:
    trap, resume, other = record.TRAP, record.RESUME, record.SYNC
    assert module.unanswered_int3(records()) is None
    assert module.unanswered_int3(records((trap, 0, 0), (trap, 1, 0), (resume, 0, 0))) == 1
    assert module.unanswered_int3(records((trap, 0, 0), (other, 1, 0), (resume, 0, 0))) is None
    # A trap within a trap: the inner one is answered, the outer one is not.
    assert module.unanswered_int3(records((trap, 0, 0), (trap, 0, 0), (resume, 0, 1))) == 0
    assert module.unanswered_int3(records((trap, 0, 0), (trap, 0, 0), (resume, 0, 0))) is None


def run_with(*checks: CheckResult, names: tuple[str, ...] = ("code", "sites")) -> Any:
    verdict = SimpleNamespace(checks=checks, fingerprint="12")
    logs = {name: records((record.SYNC, 0, 0)) for name in names}
    return SimpleNamespace(verdict=verdict, names=[*names], log=logs.__getitem__)


WRONG = CheckResult("sync", "fail", "CPU 1 did not", ("CPU 1 did not [record 12 of sites]",))
LATER = CheckResult("sync", "fail", "x", ("CPU 1 ran it [record 12 of sites, round 3] too early",))
OTHER = CheckResult("irqs", "fail", "off", ("off [record 7]",))


@pytest.mark.parametrize(
    ("at", "run", "event"),
    [
        ("sites:7", run_with(), ("sites", 7)),
        ("7", run_with(names=("sites",)), ("sites", 7)),
        ("failure", run_with(WRONG), ("sites", 12)),
        ("sync", run_with(OTHER, WRONG), ("sites", 12)),
        ("sync", run_with(LATER), ("sites", 12)),
        ("irqs", run_with(OTHER, names=("code",)), ("code", 7)),
    ],
)
def test_an_event_is_named_by_number_claim_or_failure(at: str, run: Any, event: Any) -> None:
    assert module._event(run, at) == event


@pytest.mark.parametrize(
    ("at", "run", "message"),
    [
        ("7", run_with(), "say which branch: code:7 or sites:7"),
        ("irqs", run_with(OTHER), "say which branch: code:7 or sites:7"),
        ("irqs", run_with(WRONG), "no event is known to have broken irqs"),
        ("failure", run_with(), "what failed is no event of a branch"),
        ("nonsense", run_with(), "--at takes a number, BRANCH:NUMBER, failure, or one of"),
    ],
)
def test_what_is_no_event_is_refused(at: str, run: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        module._event(run, at)


def test_a_guest_that_went_down_is_looked_at_where_it_did_not_go_on() -> None:
    run = run_with(names=("sites",))
    run.verdict.fingerprint = None
    assert module._event(run, "failure") == ("sites", 0)
    log = records((record.SYNC, 0, 0), (record.TRAP, 1, 0), (record.SYNC, 0, 0))
    run.log = lambda _: log
    assert module._event(run, "failure") == ("sites", 1)


@pytest.mark.parametrize("arguments", [["--back", "3"], ["--gdb"]])
def test_going_back_needs_an_event(
    finished: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["replay", str(finished), *arguments]) == 129
    assert "need --at EVENT" in capsys.readouterr().err


def test_a_run_with_branches_names_the_command_that_replays_it(
    finished: Path, tmp_path: Path
) -> None:
    assert rundir.replay_command(tmp_path) is None
    assert rundir.replay_command(finished) == f"orchestrator replay {finished} --at failure"
