# SPDX-License-Identifier: GPL-2.0-only
"""What run's -q, -v, --skip, --timeout and --dry-run do."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest
from good_run import Run

from orchestrator import cli, doctor, run, ui
from orchestrator.errors import InterruptedRun, TimeUp, UsageError
from orchestrator.host import interrupts, tools
from orchestrator.kernel import obtain
from orchestrator.machine import accel
from orchestrator.machine.accel import Accel
from orchestrator.scenarios.scenario import load_all, select
from orchestrator.spec import RunSpec
from orchestrator.verdict.outcome import judge


@pytest.fixture
def levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test sets in ui is undone."""
    monkeypatch.setattr(ui, "quiet", False)
    monkeypatch.setattr(ui, "verbose", False)


@pytest.fixture(autouse=True)
def nothing_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands of other tests hold signals when they end."""
    monkeypatch.setattr(interrupts, "_held", 0)


def test_skip_leaves_scenarios_out() -> None:
    names = [scenario.name for scenario in load_all()]
    assert [one.name for one in select([], ["nop5"])] == [name for name in names if name != "nop5"]
    assert [one.name for one in select(["nop*"], ["nop5"])] == [
        name for name in names if name.startswith("nop") and name != "nop5"
    ]


@pytest.mark.parametrize(
    ("patterns", "skip", "text"),
    [
        ([], ["nop55"], "did you mean nop5?"),
        (["nop5"], ["nop5"], "leaves out all"),
        ([], ["*"], "leaves out all"),
    ],
)
def test_skipping_nothing_or_everything_is_wrong_usage(
    patterns: list[str], skip: list[str], text: str
) -> None:
    with pytest.raises(UsageError, match=text):
        select(patterns, skip)


def test_skip_and_timeout_are_repeated_by_repeat_sh() -> None:
    argv = RunSpec(skip=("nop5", "key*"), timeout=90).argv()
    assert argv[argv.index("--timeout") + 1] == "90"
    assert [argv[at + 1] for at, word in enumerate(argv) if word == "--skip"] == ["nop5", "key*"]


# -- --timeout


def test_a_run_whose_time_is_up_is_infra_and_says_why() -> None:
    evidence = Run().evidence()
    cell = run._Cell(RunSpec(timeout=0.1), [], ("run",), Path(), evidence)
    with run._errors_as_evidence(cell), interrupts.limited(0.1):
        time.sleep(10)
    assert isinstance(evidence.error, InterruptedRun)
    verdict = judge(evidence)
    assert (verdict.outcome, verdict.exit_status) == ("infra", 125)
    assert verdict.reason == "the run took longer than --timeout 0.1s"


def test_no_limit_is_left_behind() -> None:
    with interrupts.limited(0.05):
        pass
    time.sleep(0.1)
    with interrupts.limited(0):
        time.sleep(0.01)


def test_a_limit_waits_while_signals_are_held() -> None:
    finished = False
    with contextlib.suppress(TimeUp), interrupts.limited(0.05):
        with interrupts.held():
            time.sleep(0.2)
            finished = True
        time.sleep(5)
        finished = False
    assert finished


# -- -q and -v


def test_quiet_hides_progress_and_keeps_warnings(
    levels: None, capsys: pytest.CaptureFixture[str]
) -> None:
    ui.quiet = True
    with ui.step("booting") as step:
        step.progress("half")
    ui.say("a remark")
    with ui.saying_what_fails("a file"):
        raise OSError(28, "No space left on device")
    output = capsys.readouterr().err
    assert "booting" not in output and "remark" not in output
    assert "a file could not be written: No space left on device" in output


def test_only_verbose_shows_the_guest(levels: None, capsys: pytest.CaptureFixture[str]) -> None:
    ui.guest_line("Linux version 6.1")
    assert capsys.readouterr().err == ""
    ui.verbose = True
    ui.guest_line("Linux version 6.1\x1b[2J")
    assert capsys.readouterr().err == "  guest |  Linux version 6.1\\x1b[2J\n"


def test_the_options_reach_the_screen(levels: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "-v", "--scenario", "nop55"]) == 129
    assert ui.verbose and not ui.quiet
    assert cli.main(["run", "-q", "--scenario", "nop55"]) == 129
    assert ui.quiet and not ui.verbose
    assert cli.main(["run", "-q", "-v"]) == 129


# -- --dry-run


def test_a_dry_run_says_what_it_would_do_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(
        doctor.HostProbes, "qemu", tools.Qemu(binary=Path("/q"), version=(10, 0, 2))
    )
    single = Accel(kind="tcg", thread="single", why="no KVM")
    monkeypatch.setattr(accel, "choose", lambda *_: single)
    monkeypatch.setattr(obtain, "identify", lambda _: ("0" * 64, Path("/nowhere")))
    monkeypatch.setattr(run, "run", lambda *_: pytest.fail("it ran"))
    assert cli.main(["run", "--dry-run", "--smp", "4", "--scenario", "nop5"]) == 0
    output = capsys.readouterr().out
    assert "6.1-int3 (not in the cache: fetched or built first)" in output
    assert "4 CPUs (max,la57=off), 1024 MiB, tcg,thread=single, QEMU 10.0.2, seed 1" in output
    assert "1: nop5" in output and "no such run so far" in output
    assert not (tmp_path / "orchestrator" / "runs").exists()
