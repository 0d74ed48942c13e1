# SPDX-License-Identifier: GPL-2.0-only
"""Mutants: how they are described, and how their runs are classified."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.kernel import definition
from orchestrator.many import mutants
from orchestrator.many.children import Children
from orchestrator.many.mutants import Mutant, MutantResult
from orchestrator.report import mutants as report
from orchestrator.scenarios import scenario
from orchestrator.text import edit as textedit
from orchestrator.verdict.checks import CHECKS
from orchestrator.verdict.model import CLAIMS

ALL = mutants.select()


@pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: f"{mutant.base}/{mutant.name}")
def test_each_mutant_says_what_is_broken_and_which_check_sees_it(mutant: Mutant) -> None:
    assert mutant.base in definition.names() or mutant.base.startswith("debian:")
    assert mutant.title and bool(mutant.violates) == mutant.broken
    known = {*CLAIMS, *(check.name for check in CHECKS)}
    known |= {
        f"{check}/{entry.name}" for check in ("guest", "console") for entry in scenario.load_all()
    }
    assert set(mutant.caught_by) <= known
    assert [bool(mutant.caught_by), bool(mutant.unseen), not mutant.broken].count(True) == 1
    assert mutant.fault
    assert (
        textedit.read_edits(mutant.fault)
        if mutant.fault.suffix == ".yaml"
        else "\n--- a/" in mutant.fault.read_text()
    )


def test_there_are_enough_mutants_of_each_algorithm() -> None:
    counted = [mutant.base for mutant in ALL if mutant.broken and not mutant.unseen]
    assert len(counted) >= 40
    assert min(counted.count(base) for base in ("6.1-int3", "6.1-plain")) >= 15
    assert min(counted.count(base) for base in ("debian:6.12", "debian:7.3")) >= 8


def test_select_by_pattern_and_kernel() -> None:
    assert {mutant.name for mutant in mutants.select(["sync-after-*"], "6.1-int3")} == {
        "sync-after-int3-missing", "sync-after-tail-missing", "sync-after-first-byte-missing"
    }  # fmt: skip
    assert {mutant.base for mutant in mutants.select((), "6.1-plain")} == {"6.1-plain"}
    with pytest.raises(UsageError, match="did you mean no-int3"):
        mutants.select(["no-int4"])
    with pytest.raises(UsageError, match=r"only of 6\.1-int3, 6\.1-plain, debian"):
        mutants.select((), "6.2")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("Subject: x\n", "needs either"),
        ("Subject: x\nCaught-by: sync\nCannot-be-seen: why\n", "needs either"),
    ],
)
def test_an_incomplete_head_is_an_error(tmp_path: Path, head: str, message: str) -> None:
    patch = tmp_path / "x.patch"
    patch.write_text(f"{head}---\n--- a/f\n+++ b/f\n")
    with pytest.raises(UsageError, match=message):
        mutants.read(patch)


BROKEN = Mutant(
    base="k", name="m", fault=Path("m.patch"), title="t", caught_by=("sync", "guest/held-off")
)
SAME = Mutant(base="k", name="m", fault=Path("m"), title="t", equivalent="it is")
WHOLE = Mutant(base="k", name="healthy-1", fault=None, title="t")


@pytest.mark.parametrize(
    ("mutant", "status", "outcome", "checks", "result"),
    [
        (BROKEN, 1, "fail", ("sync",), "caught"),
        (BROKEN, 1, "panic", ("console", "guest/held-off", "guest"), "caught"),
        (BROKEN, 1, "fail", ("guest", "guest/nop5"), "otherwise"),
        (BROKEN, 1, "oops", ("console",), "otherwise"),
        (BROKEN, 1, "hang", (), "hang"),
        (BROKEN, 1, "timeout", ("console",), "hang"),
        (BROKEN, 0, "pass", (), "missed"),
        (BROKEN, 125, "build-error", (), "untested"),
        (BROKEN, 125, "infra", ("sync",), "untested"),
        (WHOLE, 0, "pass", (), "healthy"),
        (SAME, 0, "pass", (), "healthy"),
        (SAME, 1, "fail", ("sync",), "blamed"),
        (WHOLE, 1, "fail", ("sync",), "blamed"),
        (WHOLE, 125, "infra", (), "untested"),
    ],
)
def test_the_classes_of_runs(
    mutant: Mutant, status: int, outcome: str, checks: tuple[str, ...], result: str
) -> None:
    assert mutants.judge(mutant, status, outcome, checks) == result


def test_a_mutant_is_a_run_with_a_patch_or_with_edits(tmp_path: Path) -> None:
    patch, edits = tmp_path / "m.patch", tmp_path / "m.yaml"
    assert (
        replace(BROKEN, fault=patch).spec().argv()
        == (
            f"--kernel k --patch {patch} --smp 4 --accel auto --memory 1024 --duration 1 --seed 1"
        ).split()
    )
    assert replace(BROKEN, fault=edits).spec().argv()[-2:] == ["--edit-text", str(edits)]
    (_, second) = mutants.healthy(["k"], 2)
    assert (second.name, second.spec().seed, second.spec().edits) == ("healthy-2", 2, None)


def test_a_mutant_with_a_kept_result_is_not_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutants, "state_dir", lambda: tmp_path)
    ran: list[str] = []

    def run(mutant: Mutant, directory: Path, children: Children) -> MutantResult:
        ran.append(mutant.name)
        result = "caught" if mutant.name != "infra" else "untested"
        return MutantResult(mutant.base, mutant.name, result, ("sync",), "why", 1.0, str(directory))

    monkeypatch.setattr(mutants, "_run", run)
    chosen = [Mutant(base="k", name=name, fault=None, title="t") for name in ("a", "b", "infra")]
    reported: list[str] = []
    for _ in range(2):
        results = mutants.run_all(
            chosen, 2, False, lambda mutant, result: reported.append(mutant.name)
        )
        assert [result.name for result in results] == ["a", "b", "infra"]
        assert results[0].checks == ("sync",)
    assert sorted(ran) == ["a", "b", "infra", "infra"], "an untested mutant is run again"
    assert len(reported) == 6
    mutants.run_all(chosen[:1], 1, True, lambda mutant, result: None)
    assert ran[-1] == "a", "again=True"


@pytest.mark.parametrize("content", ["{", "[]", '{"base": 1}', ""])
def test_a_damaged_result_is_made_again(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutants, "state_dir", lambda: tmp_path)
    (tmp_path / "mutants").mkdir()
    (tmp_path / "mutants" / f"{mutants._identity(WHOLE)}.json").write_text(content)
    fresh = MutantResult("k", "healthy-1", "healthy", (), "r", 1.0, "")
    monkeypatch.setattr(mutants, "_run", lambda *_: fresh)
    assert mutants.run_all([WHOLE], 1, False, lambda *_: None) == [fresh]


def test_a_full_disk_makes_a_mutant_untested_and_loses_no_other_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mutants, "state_dir", lambda: tmp_path)
    monkeypatch.setattr(mutants, "write_whole", full)
    monkeypatch.setattr(Children, "run", full)
    (result,) = mutants.run_all([WHOLE], 1, False, lambda *_: None)
    assert (result.result, result.reason) == ("untested", "no verdict: No space left on device")
    fresh = MutantResult("k", "healthy-1", "healthy", (), "r", 1.0, "")
    monkeypatch.setattr(mutants, "_run", lambda *_: fresh)
    assert mutants.run_all([WHOLE], 1, False, lambda *_: None) == [fresh]
    assert "could not be written: No space left" in capsys.readouterr().err


def test_the_score_counts_the_mutants_that_can_be_seen(tmp_path: Path) -> None:
    unseen = Mutant(base="k", name="barrier", fault=Path("b"), title="t", unseen="strong <order>")
    pairs = [
        (BROKEN, MutantResult("k", "m", "caught", ("sync",), "r", 10.0, "")),
        (BROKEN, MutantResult("k", "m2", "missed", (), "r", 10.0, "")),
        (unseen, MutantResult("k", "barrier", "missed", (), "r", 10.0, "")),
        (WHOLE, MutantResult("k", "healthy-1", "healthy", (), "r", 10.0, "")),
    ]
    score = report.score(pairs, 600)
    assert score == (
        "1 of 2 mutants caught by the check that names the fault (1 missed); "
        "1 cannot be seen and are not counted; 0 false alarms in 1 healthy runs; 10 min"
    )
    report.write(pairs, 600, tmp_path)
    assert json.loads((tmp_path / "mutants.json").read_text())["score"] == score
    assert "strong &lt;order&gt;" in (tmp_path / "mutants.html").read_text()
