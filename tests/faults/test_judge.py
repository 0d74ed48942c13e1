# SPDX-License-Identifier: GPL-2.0-only
"""The judge of the fault injection: it must find what is wrong, or the injection proves nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from faults import campaign, processes
from faults.fault import BROKEN, HEALTHY, NOTICED, SURVIVED, Fault
from faults.judge import judge
from faults.kinds import FAULTS, SHARES
from faults.trial import Trial
from faults.world import World, _qemu

VERDICT = "{word}  a reason\nkept in: {directory}\n"


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    """A trial of a run that ended, with a healthy kernel and status 0; the tests damage it."""
    return ended(tmp_path)


def ended(
    directory: Path, status: int = 0, outcome: str = "pass", kernel: str = HEALTHY, **fault: object
) -> Trial:
    options = {"allowed": NOTICED, "kernel": kernel, **fault}
    trial = Trial(Fault(name="test/it", **options), 0, 1, World(directory))  # type: ignore[arg-type]
    trial.run_directory.mkdir()
    record = {"outcome": outcome, "reason": "a reason", "exit_status": status}
    trial.file("verdict.json").write_text(json.dumps(record))
    said = VERDICT.format(word=outcome.upper(), directory=trial.run_directory)
    (trial.directory / "stdout").write_text(said)
    (trial.directory / "stderr").write_text("")
    trial.status = status
    trial.started = trial.injected = time.monotonic() - 5
    trial.over = time.monotonic()
    return trial


def kinds(trial: Trial) -> list[str]:
    return [finding.kind for finding in judge(trial)]


def test_a_run_as_it_should_be_has_no_findings(trial: Trial) -> None:
    assert not judge(trial)


@pytest.mark.parametrize(
    ("kernel", "status", "outcome", "found"),
    [
        (HEALTHY, 0, "pass", []),
        (HEALTHY, 125, "infra", []),
        (HEALTHY, 1, "fail", ["wrong verdict"]),
        (HEALTHY, 125, "panic", ["wrong verdict"]),
        (HEALTHY, 2, "infra", ["wrong status"]),
        (HEALTHY, 129, "infra", ["wrong status"]),
        (BROKEN, 1, "fail", []),
        (BROKEN, 125, "lost-vm", []),
        (BROKEN, 0, "pass", ["wrong verdict"]),
        (BROKEN, 1, "pass", ["wrong verdict"]),
    ],
)
def test_verdicts(tmp_path: Path, kernel: str, status: int, outcome: str, found: list[str]) -> None:
    assert kinds(ended(tmp_path, status, outcome, kernel)) == found


def test_a_fault_that_must_be_survived(tmp_path: Path) -> None:
    assert kinds(ended(tmp_path, 125, "infra", allowed=SURVIVED)) == ["wrong status"]


def test_a_fault_that_came_too_late_allows_nothing(tmp_path: Path) -> None:
    trial = ended(tmp_path, 125, "infra")
    trial.injected = 0
    assert kinds(trial) == ["wrong status"]


def test_lost_results(trial: Trial) -> None:
    trial.file("verdict.json").unlink()
    assert kinds(trial) == ["lost result"]


def test_a_verdict_that_differs_from_the_status(trial: Trial) -> None:
    record = {"outcome": "pass", "exit_status": 125}
    trial.file("verdict.json").write_text(json.dumps(record))
    assert kinds(trial) == ["lost result"]


def test_stdout_must_have_verdict_and_directory(trial: Trial) -> None:
    stdout = trial.directory / "stdout"
    stdout.write_text("PASS  a reason\n")
    assert kinds(trial) == ["lost result"]
    stdout.write_text(f"kept in: {trial.run_directory}\n")
    assert kinds(trial) == ["lost result"]


def test_tracebacks(trial: Trial) -> None:
    trace = "Traceback (most recent call last):\n  File x\nValueError: odd\n"
    (trial.directory / "stderr").write_text(trace)
    (finding,) = judge(trial)
    assert (finding.kind, finding.text) == ("traceback", "stderr: ValueError: odd")


def test_files_left_behind(trial: Trial) -> None:
    (trial.directory / "tmp" / "x").touch()
    (trial.run_directory.parent / "b").touch()
    (finding,) = judge(trial)
    assert (finding.kind, finding.text) == ("left behind", "out/b, tmp/x")


def test_a_wrong_place_for_results_is_not_searched(trial: Trial) -> None:
    trial.run_directory = Path("/proc/self/run")
    assert "left behind" not in kinds(trial)


def test_an_orphan_is_found_and_ended(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faults.judge.ORPHAN_SECONDS", 0.2)
    orphan = subprocess.Popen(["sleep", "60"], env=trial.env)
    while not processes.marked(trial.marker):
        time.sleep(0.01)
    (finding,) = judge(trial)
    assert finding.kind == "orphan" and "sleep 60" in finding.text
    assert orphan.wait(5) < 0


def test_a_command_that_does_not_end_is_killed(tmp_path: Path) -> None:
    fault = Fault(name="test/slow", kernel=HEALTHY, limit=0.5)
    trial = Trial(fault, 0, 1, World(tmp_path))
    trial.wrapper = [sys.executable, "-c", "import time; time.sleep(60)"]
    trial.run()
    assert kinds(trial)[0] == "hangs"
    assert not processes.marked(trial.marker)


def test_names_are_unique_and_every_kind_has_a_share_and_a_short_fault() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(names) == len(set(names))
    assert {fault.kind for fault in FAULTS} == set(SHARES)
    assert {fault.kind for fault in FAULTS if fault.short} == set(SHARES)
    assert sum(SHARES.values()) == 300


def test_300_faults_have_every_kind_by_its_share() -> None:
    pairs = campaign.select(FAULTS, seed=7, count=300, only=())
    assert len(pairs) == 300
    for kind, share in SHARES.items():
        assert abs(sum(fault.kind == kind for fault, _ in pairs) - share) <= 1


def test_one_fault_is_tried_again_by_its_name() -> None:
    ((fault, number),) = campaign.select(FAULTS, 1, None, ["signal/qemu-KILL#3"])
    assert (fault.name, number) == ("signal/qemu-KILL", 3)


@pytest.mark.parametrize("words", [["env", "A=b c", "D=e", "/q", "-L", "x"], ["/q", "-L", "x"]])
def test_how_qemu_is_started_is_read_from_the_file_of_a_run(words: list[str]) -> None:
    line = ["cd", "/of a/run", "&&", *words, "-name", "x=y", "-smp", "2"]
    assert _qemu(line) == tuple(word for word in words if word != "env")
