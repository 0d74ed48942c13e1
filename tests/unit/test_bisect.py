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
from orchestrator.errors import BuildError, InfraError, UsageError
from orchestrator.host.paths import PROJECT
from orchestrator.kernel import checkout, patches
from orchestrator.kernel.model import KernelRequest
from orchestrator.many.bisect.bisection import Bisection, _enough, explained
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
        self.is_ended = False
        """Whether it starts no run, as between stop() and go_on()."""

    def test(self, number: int, attempt: int) -> RunSummary:
        if self.is_ended:
            return RunSummary("infra", reason="the bisection was stopped")
        with self._lock:
            self.runs.append(number)
            return self.answer(number, attempt)

    def test_without(self, number: int, attempt: int) -> RunSummary:
        raise UsageError("this one cannot")

    def stop(self) -> None:
        self.stopped = self.is_ended = True

    def go_on(self) -> None:
        self.is_ended = False


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
    with pytest.raises(BuildError, match="gcc says no"):
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


IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@example.org")


def git(tree: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", tree, *arguments], check=True, capture_output=True, text=True
    ).stdout


def state(tree: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in tree.rglob("*"))


def test_each_commit_is_a_kernel_of_its_own_name(tree: Path) -> None:
    before = state(tree)
    commits = Commits(KernelRequest(tree=tree), tree, "v1", "v4")
    assert [one.title for one in commits.candidates] == ["step 1", "step 2", "step 3", "step 4"]
    for number in (2, 0, 3):
        commit = git(tree, "rev-parse", f"v{number + 1}").strip()
        with commits.request(number) as request:
            # which repeat.sh of its run names, too
            assert request.argv() == ["--kernel", f"git:{tree}@{commit}"]
            with checkout.checked_out(request.selector) as folder:
                assert (folder / "file").read_text() == f"{number + 1}\n"
                (folder / "left over").touch()
    assert state(tree) == before, "the tree was written to"
    assert commits.reference(2).startswith(f'Fixes: {git(tree, "rev-parse", "v3")[:12]} ("step 3")')
    assert "1 file changed" in commits.reference(2)


def test_only_commits_that_touch_a_path_are_candidates(tree: Path) -> None:
    (tree / "other").write_text("other\n")
    git(tree, "add", "other")
    git(tree, *IDENTITY, "commit", "-qm", "another file")
    commits = Commits(KernelRequest(), tree, "v3", "HEAD", ["file"])
    assert [one.title for one in commits.candidates] == ["step 3", "step 4", "step 5"]
    commits = Commits(KernelRequest(), tree, "v3", "HEAD", ["other"])
    assert [one.title for one in commits.candidates] == ["step 3", "another file"]
    with pytest.raises(UsageError, match="no commit after v3 touches nothing/here, up to HEAD"):
        Commits(KernelRequest(), tree, "v3", "HEAD", ["nothing/here"])


def test_the_tip_without_a_commit_has_its_revert_as_a_patch(tree: Path, tmp_path: Path) -> None:
    commits = Commits(KernelRequest(patches=(tmp_path / "a",)), tree, "v0", "v5")
    request = commits.without(2, tmp_path)
    commit = git(tree, "rev-parse", "v2").strip()
    assert request.selector.endswith(git(tree, "rev-parse", "v5").strip())
    assert [path.name for path in request.patches] == ["a", f"revert-{commit[:12]}.patch"]
    assert "-2\n+1\n" in request.patches[-1].read_text()


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


def test_a_series_is_what_patch_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    mails = Path(__file__).parent.parent / "data" / "mails" / "thread-with-tip-mails.mbox"
    series = Series(KernelRequest(selector="6.1-plain"), mails)
    assert [one.title for one in series.candidates] == [
        "no patch",
        "[PATCH v2 1/3] kernel: first",
        "[PATCH v2 2/3] kernel: second",
        "[PATCH v2 3/3] kernel: third",
    ]
    with series.request(3) as request:
        assert patches.canonical(request.patches) == patches.canonical([mails])
        assert request.patches[1].name.startswith("0002-kernel-second-")
    assert '"[PATCH v2 2/3] kernel: second", ' in series.reference(2)
    without = series.without(2, tmp_path)
    assert patches.canonical(without.patches) == [
        patches.canonical([mails])[number] for number in (0, 2)
    ]


# -- the confirmation


class Confirming(FakeTester):
    """Also answers for the bad end without the candidate that was found."""

    def __init__(
        self,
        answer: Callable[[int, int], RunSummary],
        without: Callable[[int], RunSummary],
    ) -> None:
        super().__init__(answer)
        self.without = without

    def test_without(self, number: int, attempt: int) -> RunSummary:
        return self.without(attempt)


BROKEN = RunSummary("build-error", (), "revert-x.patch does not apply: a.c: hunk #1", 1.0)
INFRA = RunSummary("infra", (), "no KVM", 1.0)


def _refuse(attempt: int) -> RunSummary:
    raise UsageError("nobody knows how")


@pytest.mark.parametrize(
    ("without", "holds", "text"),
    [
        (lambda _: PASS, True, "confirmed:   it failed again, and the bad end without it passed"),
        (lambda _: SYNC, False, "REFUTED:     it failed again, but the bad end without it fails"),
        (lambda _: BROKEN, None, "unconfirmed: it failed again; without it the bad end is no test"),
        (lambda _: INFRA, None, "unconfirmed: it failed again; 5 runs of the bad end without it"),
        (_refuse, None, "unconfirmed: it failed again; nobody knows how"),
        (lambda attempt: INFRA if attempt < 2 else PASS, True, "confirmed: "),
    ],
)
def test_what_was_found_is_confirmed(
    without: Callable[[int], RunSummary], holds: bool | None, text: str, tmp_path: Path
) -> None:
    fake = Confirming(lambda number, _: SYNC if number >= 5 else PASS, without)
    bisection = Bisection(ready(8), fake, tmp_path / "log")
    answer = bisection.run()
    confirmation = bisection.confirm(answer)
    assert confirmation.holds is holds
    assert text in explained(bisection, answer, confirmation)


def test_a_fault_that_does_not_show_again_is_not_confirmed(tmp_path: Path) -> None:
    fake = Confirming(lambda number, _: SYNC if number >= 5 else PASS, lambda _: PASS)
    bisection = Bisection(ready(8), fake, tmp_path / "log")
    answer = bisection.run()
    fake.answer = lambda number, _: PASS
    confirmation = bisection.confirm(answer)
    assert confirmation.holds is None and "did not fail again in" in confirmation.text


def test_a_rare_fault_needs_more_passes_than_one_that_always_shows(tmp_path: Path) -> None:
    assert _enough(1.0) == 1 and _enough(0.5) == 5 and _enough(0.2) == 14 and _enough(0.01) == 30


# -- what a maintainer brings


def test_a_fault_in_some_schedules_among_kernels_that_neither_build_nor_boot(
    tmp_path: Path,
) -> None:
    """40 commits: the fault shows in one run out of three; four do not build, one does not boot."""
    rng = random.Random(7)
    reset = RunSummary("boot-error", (), "the guest reset itself while booting", 1.0)

    def answer(number: int, _: int) -> RunSummary:
        if number in (11, 12, 13, 30):
            return RunSummary("build-error", (), "a.c:1: error: x", 1.0)
        if number in (24, 25):
            return reset
        return SYNC if number >= 21 and rng.random() < 1 / 3 else PASS

    fake = Confirming(answer, lambda _: PASS)
    bisection = Bisection(ready(41), fake, tmp_path / "log")
    found = bisection.run()
    assert (found.first, found.last) == (21, 21)
    assert bisection.confirm(found).holds


def test_five_kernels_that_do_not_boot_do_not_end_the_search(tmp_path: Path) -> None:
    reset = RunSummary("boot-error", (), "the guest reset itself while booting", 1.0)
    fake = FakeTester(
        lambda number, _: reset if 3 <= number < 12 else SYNC if number >= 14 else PASS
    )
    assert Bisection(ready(16), fake, tmp_path / "log").run().first == 14


def test_each_build_has_a_line_and_a_long_one_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.many.bisect.bisection.HEARTBEAT", 0.02)

    def slow(number: int, _: int) -> RunSummary:
        threading.Event().wait(0.1)
        return SYNC if number >= 5 else PASS

    fake = FakeTester(slow)
    Bisection(ready(16), fake, tmp_path / "log").run()
    lines = capsys.readouterr().err
    for number in set(fake.runs):
        assert f"building and running debian:6.1.{number}\n" in lines or (
            f"building and running debian:6.1.{number}; " in lines
        )
    assert "candidates are likely, about 4 more to build" in lines
    assert "s so far" in lines


# -- the command


def test_the_command_takes_paths_and_output(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    seen: list[Bisection] = []

    def run(bisection: Bisection) -> object:
        seen.append(bisection)
        raise UsageError("enough")

    monkeypatch.setattr(Bisection, "run", run)
    arguments = [
        "--tree",
        str(tree),
        "--good",
        "v1",
        "--bad",
        "v4",
        "--output",
        str(tmp_path / "x"),
    ]
    assert cli.main(["bisect", *arguments, "--", "file"]) == 129
    (bisection,) = seen
    assert bisection._log == tmp_path / "x" / "log.jsonl"
    assert isinstance(bisection.candidates, Commits) and bisection.candidates.paths == ["file"]


def test_a_bisection_needs_a_folder_of_its_own(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    foreign = tmp_path / "lib.so.1"
    foreign.write_text("mine")
    arguments = ["--tree", str(tree), "--good", "v1", "--bad", "v4", "--output", str(tmp_path)]
    assert cli.main(["bisect", *arguments, "--restart"]) == 129
    assert foreign.exists()


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
        "--tree . --good a --bad b --kernel 6.1-int3",
        f"--kernel nowhere --series {PROJECT}/kernels/3.10-int3.mbox",
        f"--kernel debian:6.12 --series {PROJECT}/kernels/3.10-int3.mbox",
        "a b --shows (",
        "a b --smp 0",
        "--simulate --probability 0",
        "--simulate --times 0",
        "--simulate --tree .",
        "--simulate a b",
        "a b --commits 16",
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
