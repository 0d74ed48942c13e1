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

from orchestrator import cli
from orchestrator import replay as module
from orchestrator.options import to_json
from orchestrator.spec import RunSpec
from orchestrator.verdict import result as result_file
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
        monkeypatch.setattr(module, "branches_of", lambda *_: made)
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
