# SPDX-License-Identifier: GPL-2.0-only
"""Bisections with a fake tester, with real child processes, and over real git histories."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import cli
from orchestrator.errors import InfraError, UsageError
from orchestrator.kernel.model import KernelRequest
from orchestrator.many.bisect.bisection import Bisection, explained
from orchestrator.many.bisect.candidates import Commits, Ready, Series
from orchestrator.many.bisect.tester import ChildTester, RunSummary, property_signature
from orchestrator.spec import RunSpec

SYNC = RunSummary("fail", ("sync",), "sync: no CPU had run do_sync_core", 1.0)
PASS = RunSummary("pass", seconds=1.0)


class FakeTester:
    """Returns what `answer(number, attempt)` returns."""

    def __init__(self, answer: Callable[[int, int], RunSummary]) -> None:
        self.answer, self._lock = answer, threading.Lock()
        self.runs, self.stopped = list[int](), False

    def test(self, number: int, attempt: int) -> RunSummary:
        with self._lock:
            self.runs.append(number)
            return self.answer(number, attempt)

    def stop(self) -> None:
        self.stopped = True


def ready(count: int) -> Ready:
    return Ready(KernelRequest(), [f"debian:6.1.{number}" for number in range(count)])


def test_the_first_bad_candidate_is_found_and_explained(tmp_path: Path) -> None:
    fake = FakeTester(lambda number, _: SYNC if number >= 11 else PASS)
    bisection = Bisection(ready(32), fake, tmp_path / "log")
    answer = bisection.run()
    assert (answer.first, answer.last) == (11, 11)
    assert fake.runs[:2] == [31, 0] and fake.stopped
    text = explained(bisection, answer)
    assert "the first bad candidate is debian:6.1.11" in text
    assert "debian:6.1.10 is good, debian:6.1.11 is bad" in text
    assert "signature:   sync" in text


@pytest.mark.parametrize("jobs", [1, 3])
def test_an_intermittent_fault_is_found(tmp_path: Path, jobs: int) -> None:
    seed = int(os.environ.get("BISECT_SEED", "5"))
    print(f"seed {seed}")
    rng = random.Random(seed)
    fake = FakeTester(lambda number, _: SYNC if number >= 40 and rng.random() < 1 / 3 else PASS)
    answer = Bisection(ready(64), fake, tmp_path / "log", jobs=jobs, confidence=0.999).run()
    assert (answer.first, answer.last) == (40, 40)


def test_another_crash_does_not_mislead_the_search(tmp_path: Path) -> None:
    oops = RunSummary("oops", ("console: oops: general protection fault",), "oops", 1.0)
    # From 5 on, every second run fails in another way.
    fake = FakeTester(
        lambda number, attempt: (
            oops if number >= 5 and attempt % 2 else SYNC if number >= 20 else PASS
        )
    )
    bisection = Bisection(ready(32), fake, tmp_path / "log")
    assert bisection.run().first == 20
    assert bisection.signature == "sync"


def test_another_signature_can_be_requested(tmp_path: Path) -> None:
    both = RunSummary("fail", ("sync", "int3"), "both", 1.0)
    other = RunSummary("fail", ("sync",), "sync", 1.0, passed=("int3",))
    fake = FakeTester(lambda number, _: both if number >= 9 else other if number >= 4 else PASS)
    assert Bisection(ready(16), fake, tmp_path / "log", signature="int3").run().first == 9


def test_candidates_that_do_not_build_are_narrowed_down(tmp_path: Path) -> None:
    broken = RunSummary("build-error", (), "does not build", 1.0)
    fake = FakeTester(
        lambda number, _: broken if number in (7, 8, 9) else SYNC if number >= 8 else PASS
    )
    bisection = Bisection(ready(16), fake, tmp_path / "log")
    answer = bisection.run()
    assert (answer.first, answer.last) == (7, 10)
    assert "cannot be tested: does not build" in explained(bisection, answer)
    assert "is one of these" in explained(bisection, answer)


def test_infra_never_votes_and_ends_a_bisection_without_other_results(tmp_path: Path) -> None:
    infra = RunSummary("infra", (), "no KVM", 1.0)
    sick = FakeTester(lambda number, _: infra if 0 < number < 15 else SYNC if number else PASS)
    with pytest.raises(InfraError, match="5 runs in a row"):
        Bisection(ready(16), sick, tmp_path / "log").run()
    well = FakeTester(lambda number, _: SYNC if number >= 6 else PASS)
    assert Bisection(ready(16), well, tmp_path / "log").run().first == 6


@pytest.mark.parametrize("end", [0, 15])
def test_an_end_that_cannot_be_tested_is_reported(tmp_path: Path, end: int) -> None:
    broken = RunSummary("build-error", (), "gcc says no", 1.0)
    fake = FakeTester(lambda number, _: broken if number == end else SYNC if number else PASS)
    with pytest.raises(UsageError, match="gcc says no"):
        Bisection(ready(16), fake, tmp_path / "log").run()


def test_a_bad_end_that_passes_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="passed 100 runs"):
        Bisection(ready(16), FakeTester(lambda number, attempt: PASS), tmp_path / "log").run()


def test_a_good_end_that_fails_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the good end .* is bad itself"):
        Bisection(ready(16), FakeTester(lambda number, attempt: SYNC), tmp_path / "log").run()


def test_an_interrupted_bisection_continues(tmp_path: Path) -> None:
    def answer(number: int, attempt: int) -> RunSummary:
        return SYNC if number >= 11 else PASS

    whole = FakeTester(answer)
    Bisection(ready(32), whole, tmp_path / "whole").run()

    def interrupt(number: int, attempt: int) -> RunSummary:
        if len(first.runs) == 5:
            raise KeyboardInterrupt
        return answer(number, attempt)

    first, second = FakeTester(interrupt), FakeTester(answer)
    with pytest.raises(KeyboardInterrupt):
        Bisection(ready(32), first, tmp_path / "log").run()
    with (tmp_path / "log").open("a") as log:
        log.write('{"candidate": "debian:6.1.3", "ou')  # killed in the middle of a line
    assert Bisection(ready(32), second, tmp_path / "log").run().first == 11
    assert first.runs[:4] + second.runs == whole.runs
    finished = FakeTester(answer)
    assert Bisection(ready(32), finished, tmp_path / "log").run().first == 11
    assert finished.runs == []


def test_a_log_of_another_bisection_is_refused(tmp_path: Path) -> None:
    Bisection(
        ready(8), FakeTester(lambda number, _: SYNC if number else PASS), tmp_path / "log"
    ).run()
    with pytest.raises(UsageError, match="another bisection"):
        Bisection(ready(9), FakeTester(lambda number, _: PASS), tmp_path / "log")


def test_logged_runs_are_judged_again_for_another_signature(tmp_path: Path) -> None:
    both = RunSummary("fail", ("sync", "int3"), "both", 1.0)
    other = RunSummary("fail", ("sync",), "sync", 1.0, passed=("int3",))
    fake = FakeTester(lambda number, _: both if number >= 9 else other if number >= 4 else PASS)
    assert Bisection(ready(16), fake, tmp_path / "log").run().first == 4
    before = len(fake.runs)
    again = Bisection(ready(16), fake, tmp_path / "log", signature="int3")
    assert again.run().first == 9
    assert len(again.entries) == len(fake.runs) > before


# -- child processes


PROGRAM = """
import json, pathlib, sys
arguments = sys.argv[1:]
kernel = arguments[arguments.index("--kernel") + 1]
output = pathlib.Path(arguments[arguments.index("--output") + 1])
number = int(kernel.rpartition(".")[2])
if number == 3:
    print("orchestrator: there is no such kernel")
    sys.exit(129)
output.mkdir(parents=True)
check = {"check": "sync", "status": "fail", "text": "", "details": []}
bad = number >= 6
verdict = {"schema": 2, "outcome": "fail" if bad else "pass", "reason": "r",
           "exit_status": int(bad), "checks": [check] if bad else [],
           "kernel": None, "edited": [], "hang_report": [], "soak": None, "seconds": {}}
(output / "verdict.json").write_text(json.dumps(verdict))
(output / "console.log").write_text("[    0.1] booting\\n")
pokes = "# pokes by=new_name\\n" if number >= 4 else ""
(output / "guest.ktap").write_text("KTAP version 1\\n" + pokes)
sys.exit(bad)
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_real_children_are_run(tmp_path: Path, jobs: int) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    candidates = ready(9)
    tester = ChildTester(
        candidates, RunSpec(smp=2), tmp_path / "runs", program=(sys.executable, str(program))
    )
    assert tester.test(3, 0).outcome == "build-error"
    assert tester.test(3, 0).reason == "there is no such kernel"
    bisection = Bisection(candidates, tester, tmp_path / "log", jobs=jobs)
    assert bisection.run().first == 6
    assert all(Path(entry.summary.directory).is_dir() for entry in bisection.entries)


def test_a_property_can_be_bisected_like_a_fault(tmp_path: Path) -> None:
    candidates, program = ready(9), tmp_path / "program.py"
    program.write_text(PROGRAM)
    tester = ChildTester(
        candidates,
        RunSpec(),
        tmp_path / "runs",
        shows="by=new|by=newer",
        program=(sys.executable, str(program)),
    )
    bisection = Bisection(
        candidates, tester, tmp_path / "log", signature=property_signature("by=new|by=newer")
    )
    answer = bisection.run()
    assert (answer.first, answer.last) == (3, 4), (
        "3 cannot be tested; from 6 on the kernel fails as well"
    )
    assert "# pokes by=new_name" in explained(bisection, answer)


def test_a_full_disk_is_infra(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    summary = ChildTester(ready(2), RunSpec(), tmp_path / "file").test(0, 0)
    assert summary.outcome == "infra" and summary.reason.startswith("Not a directory: ")


def test_a_child_that_dies_or_is_stopped_is_infra(tmp_path: Path) -> None:
    candidates = ready(3)
    dying = ChildTester(candidates, RunSpec(), tmp_path / "a", program=("sh", "-c", "kill -9 $$"))
    assert dying.test(0, 0).outcome == "infra"
    long = ChildTester(
        candidates, RunSpec(), tmp_path / "b", program=("sh", "-c", "exec sleep 100")
    )
    threading.Timer(0.3, long.stop).start()
    assert long.test(0, 0).outcome == "infra"


# -- commits and series


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tree = tmp_path / "linux"
    tree.mkdir()
    git(tree, "init", "-q")
    for number in range(6):
        (tree / "file").write_text(f"{number}\n")
        git(tree, "add", "file")
        git(
            tree,
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@example.org",
            "commit",
            "-qm",
            f"step {number}",
        )
        git(tree, "tag", f"v{number}")
    return tree


def git(tree: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", tree, *arguments], check=True, capture_output=True, text=True
    ).stdout


def state(tree: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in tree.rglob("*"))


def test_each_commit_is_checked_out_outside_the_tree(tree: Path) -> None:
    before = state(tree)
    commits = Commits(KernelRequest(), tree, "v1", "v4")
    assert [one.title for one in commits.candidates] == ["step 1", "step 2", "step 3", "step 4"]
    for number in (2, 0, 3):
        with commits.request(number) as request:
            assert request.tree and request.tree != tree
            assert (request.tree / "file").read_text() == f"{number + 1}\n"
            (request.tree / "left over").touch()
    assert state(tree) == before, "the tree was written to"
    assert commits.reference(2).startswith(f'Fixes: {git(tree, "rev-parse", "v3")[:12]} ("step 3")')
    assert "1 file changed" in commits.reference(2)


def test_each_job_has_a_checkout_of_its_own(tree: Path) -> None:
    commits = Commits(KernelRequest(), tree, "v0", "v5", slots=2)
    with commits.request(1) as one, commits.request(4) as other:
        assert one.tree and other.tree
        assert [(one.tree / "file").read_text(), (other.tree / "file").read_text()] == [
            "1\n",
            "4\n",
        ]


@pytest.mark.parametrize(
    ("good", "bad"), [("v4", "v1"), ("v1", "v1"), ("v1", "v9"), ("--help", "v1")]
)
def test_ends_without_a_history_between_them_are_wrong_usage(
    tree: Path, good: str, bad: str
) -> None:
    with pytest.raises(UsageError):
        Commits(KernelRequest(), tree, good, bad)


def test_the_candidates_of_a_series_are_its_prefixes(tmp_path: Path) -> None:
    (tmp_path / "patches").mkdir()
    for name in ("a.patch", "patches/b.patch"):
        (tmp_path / name).write_text("--- a/x\n+++ b/x\n@@ -1 +1 @@\n-1\n+2\n")
    (tmp_path / "series").write_text("a.patch # first\n\nb.patch\n")
    series = Series(KernelRequest(selector="6.1-plain"), tmp_path / "series")
    with series.request(0) as none, series.request(2) as both:
        assert none.patches == ()
        assert [path.name for path in both.patches] == ["a.patch", "b.patch"]
    assert "b.patch, patch 2 of 2" in series.reference(2)
    (tmp_path / "series").write_text("c.patch\n")
    with pytest.raises(UsageError, match=r"series:1: there is no patch c\.patch"):
        Series(KernelRequest(), tmp_path / "series")


# -- the command


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "debian:6.1",
        "debian:6.1 debian:6.1",
        "--tree . --good HEAD",
        "--series nowhere",
        "a b --series c",
        "a b --confidence 1",
        "a b --jobs 0",
        "a b --tree .",
        "a b --shows (",
        "a b --smp 0",
        "--simulate --probability 0",
        "--simulate --times 0",
    ],
)
def test_wrong_usage_is_129(
    arguments: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert cli.main(["bisect", *arguments.split()]) == 129
    assert capsys.readouterr().err.startswith("orchestrator: ")
    assert not list(tmp_path.rglob("*.jsonl"))


def test_the_simulation_prints_its_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(
            ["bisect", "--simulate", "--commits=16", "--times=2", "--probability=1", "--seed=3"]
        )
        == 0
    )
    output = capsys.readouterr().out
    assert "seed 3" in output and "ours" in output and "plain" in output


def test_the_log_has_a_line_for_each_run(tmp_path: Path) -> None:
    Bisection(
        ready(8), FakeTester(lambda number, _: SYNC if number >= 3 else PASS), tmp_path / "log"
    ).run()
    head, first, *_ = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert head["version"] == 2
    assert (first["candidate"], first["outcome"], first["summary"]["signatures"]) == (
        "debian:6.1.7",
        "fail",
        ["sync"],
    )
