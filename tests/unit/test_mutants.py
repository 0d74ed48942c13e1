"""Kernels broken on purpose: how they are described, and what a run of one comes to."""

from __future__ import annotations

import json
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
def test_each_says_what_is_broken_and_who_is_to_notice(mutant: Mutant) -> None:
    assert mutant.base in definition.names() or mutant.base.startswith("debian:")
    assert mutant.title and mutant.violates
    known = {*CLAIMS, *(function.__name__ for function in CHECKS)}
    known |= {
        f"{check}/{entry.name}" for check in ("guest", "console") for entry in scenario.load_all()
    }
    assert set(mutant.caught_by) <= known
    assert bool(mutant.caught_by) != bool(mutant.unseen)
    assert mutant.fault
    assert (
        textedit.read_edits(mutant.fault)
        if mutant.fault.suffix == ".yaml"
        else "\n--- a/" in mutant.fault.read_text()
    )


def test_there_are_enough_of_both_algorithms() -> None:
    counted = [mutant.base for mutant in ALL if not mutant.unseen]
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
    with pytest.raises(UsageError, match=r"there are of 6\.1-int3, 6\.1-plain, debian"):
        mutants.select((), "6.2")


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("Subject: x\n", "one of the two"),
        ("Subject: x\nCaught-by: sync\nCannot-be-seen: why\n", "one of the two"),
    ],
)
def test_a_head_that_does_not_say_it_is_wrong(tmp_path: Path, head: str, said: str) -> None:
    patch = tmp_path / "x.patch"
    patch.write_text(f"{head}---\n--- a/f\n+++ b/f\n")
    with pytest.raises(UsageError, match=said):
        mutants.read(patch)


BROKEN = Mutant(
    base="k", name="m", fault=Path("m.patch"), title="t", caught_by=("sync", "guest/held-off")
)
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
        (WHOLE, 1, "fail", ("sync",), "blamed"),
        (WHOLE, 125, "infra", (), "untested"),
    ],
)
def test_what_a_run_comes_to(
    mutant: Mutant, status: int, outcome: str, checks: tuple[str, ...], result: str
) -> None:
    assert mutants.judge(mutant, status, outcome, checks) == result


def test_the_failed_checks_of_a_verdict() -> None:
    verdict = {
        "checks": [
            {"check": "sync", "status": "fail", "details": ["nop5: between"]},
            {"check": "writes", "status": "pass", "details": []},
            {
                "check": "guest",
                "status": "fail",
                "details": ["held-off.free: a", "nop5.direct.on: b", "hotplug: c"],
            },
            {"check": "coverage", "status": "blind", "details": []},
        ]
    }
    assert mutants.failed(verdict) == (
        "sync",
        "guest/held-off",
        "guest/nop5",
        "guest/hotplug",
        "guest",
    )
    oops = {
        "check": "console",
        "status": "fail",
        "details": [],
        "text": "the kernel reports: int3, in scenario jcc",
    }
    assert mutants.failed({"checks": [oops]}) == ("console/jcc", "console")


def test_a_result_is_kept_for_its_content_and_not_run_again(
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
    came: list[str] = []
    for _ in range(2):
        results = mutants.run_all(chosen, 2, False, lambda mutant, result: came.append(mutant.name))
        assert [result.name for result in results] == ["a", "b", "infra"]
        assert results[0].checks == ("sync",)
    assert sorted(ran) == ["a", "b", "infra", "infra"], "what could not be tested is tested again"
    assert len(came) == 6
    mutants.run_all(chosen[:1], 1, True, lambda mutant, result: None)
    assert ran[-1] == "a", "again"


def test_the_table_counts_what_can_be_counted(tmp_path: Path) -> None:
    unseen = Mutant(base="k", name="barrier", fault=Path("b"), title="t", unseen="strong <order>")
    pairs = [
        (BROKEN, MutantResult("k", "m", "caught", ("sync",), "r", 10.0, "")),
        (BROKEN, MutantResult("k", "m2", "missed", (), "r", 10.0, "")),
        (unseen, MutantResult("k", "barrier", "missed", (), "r", 10.0, "")),
        (WHOLE, MutantResult("k", "healthy-1", "healthy", (), "r", 10.0, "")),
    ]
    told = report.score(pairs, 600)
    assert told == (
        "1 of 2 mutants caught by the check that names the fault (1 missed); 1 cannot be seen and are not counted; "
        "0 false alarms in 1 healthy runs; 10 min"
    )
    report.write(pairs, 600, tmp_path)
    assert json.loads((tmp_path / "mutants.json").read_text())["score"] == told
    assert "strong &lt;order&gt;" in (tmp_path / "mutants.html").read_text()
