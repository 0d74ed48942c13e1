# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator show`: a run as a mail, and as a trace for Perfetto."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from good_run import Run
from recorded import CPUS, Written
from test_results import result_of
from test_timeline import without_sync

from orchestrator import cli
from orchestrator.report import mail, timeline, trace
from orchestrator.verdict import result as result_file
from orchestrator.verdict.measures import Failure
from orchestrator.verdict.result import VerdictRecord, record


def run_directory(run: Run, directory: Path) -> VerdictRecord:
    """The verdict of a run, whose files are in `directory`."""
    lines = [json.dumps(event) for event in run.events]
    (directory / timeline.EVENTS).write_text("\n".join(lines) + "\n")
    result = result_of(run, directory)
    (directory / "spec.json").write_text("{}")
    (directory / "report.txt").write_text("checks\n\nFirst failure: sync\n  old: 90\n\nFAIL\n")
    result_file.write(result)
    return record(result)


# -- the mail


def test_a_mail_of_a_failure_has_the_poke_and_how_to_repeat_it(tmp_path: Path) -> None:
    text = mail.mail(tmp_path, run_directory(without_sync(), tmp_path))
    assert text.splitlines()[1].startswith("Subject: [BUG] debian:6.1 on 2 CPUs")
    assert "!           1  has not synced\n" in text
    assert "  First failure: sync\n    old: 90\n\nTo repeat it:" in text
    assert "  orchestrator run --kernel debian:6.1 --smp 2" in text
    assert text.endswith("Reported-by: YOUR NAME <YOUR ADDRESS>\n")


def test_a_mail_of_a_pass_can_be_answered_with_tested_by(tmp_path: Path) -> None:
    text = mail.mail(tmp_path, run_directory(Run(), tmp_path))
    assert "Tested-by: YOUR NAME" in text and "Reported-by" not in text
    assert "Checks that passed: writes, bytes, sync" in text


def test_a_run_without_a_verdict_is_nobodys_fault(tmp_path: Path) -> None:
    verdict = VerdictRecord(outcome="infra", reason="no QEMU", exit_status=125, smp=2)
    text = mail.mail(tmp_path, verdict)
    assert "says nothing about the kernel" in text and "-by:" not in text


@pytest.mark.parametrize("content", ["", '{"schema": 2', "[]", '{"schema": 2}', "pipe"])
def test_a_damaged_verdict_is_named(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_directory(Run(), tmp_path)
    verdict = tmp_path / "verdict.json"
    verdict.unlink()
    if content == "pipe":
        os.mkfifo(verdict)
    else:
        verdict.write_text(content)
    assert cli.main(["show", str(tmp_path)]) == 129
    assert capsys.readouterr().err.startswith(f"orchestrator: {verdict} is ")


def test_a_long_poke_is_cut_around_its_failure(tmp_path: Path) -> None:
    log = Written()
    every = (1 << 64) - 1
    for offset, data in ((0, "cc"), (1, "fb000000"), (0, "e9")):
        log.write(0xFFFFFFFF81001000, offset, bytes.fromhex(data), online=every)
        log.sync(*(cpu for cpu in range(64) if cpu != 7 or offset != 1))
    (tmp_path / timeline.LOG).write_bytes(gzip.compress(log.records.tobytes()))
    third = [at for at, kind in enumerate(log.records["kind"].tolist()) if kind == 1][2]
    failure = Failure(check="sync", text="", record=third, since=third, cpus=(7,))
    verdict = VerdictRecord(outcome="fail", reason="", exit_status=1, smp=64, failure=failure)
    lines = mail.mail(tmp_path, verdict).splitlines()
    marked = [line for line in lines if line.startswith("!")]
    assert marked[0].endswith("has not synced") and " 7 " in marked[0]
    assert len([line for line in lines if line.startswith("  ... ")]) == 2
    assert len(lines) < 80


# -- the trace


def test_a_trace_has_a_lane_for_each_cpu_and_marks_the_failure(tmp_path: Path) -> None:
    made = trace.trace(tmp_path, run_directory(without_sync(), tmp_path))
    entries = made["traceEvents"]
    lanes = [e["args"]["name"] for e in entries if e["name"] == "thread_name"]
    assert lanes == ["CPU 0", "CPU 1", "pokes"]
    assert [e["name"] for e in entries if e.get("s") == "g"] == ["FAIL: sync"]
    pokes = [e for e in entries if e.get("cat") == "poke"]
    assert len([e for e in pokes if e["ph"] == "b"]) == len(pokes) / 2 == 6
    traps = [e for e in entries if e["name"] == "int3"]
    assert traps and all(trap["dur"] > 0 and "resumes" in trap["args"] for trap in traps)
    assert "it cannot be read" in made["otherData"]["left out"][timeline.LOG]


def test_the_recorders_log_is_in_the_trace_in_its_order(tmp_path: Path) -> None:
    log = Written()
    log.poke()
    log.trap(0xFFFFFFFF81001000, 0xFFFFFFFF81001005)
    (tmp_path / timeline.LOG).write_bytes(gzip.compress(log.records.tobytes()))
    (tmp_path / timeline.EVENTS).write_text("")
    made = trace.trace(tmp_path, run_directory_verdict())
    names = [e["name"] for e in made["traceEvents"] if e["ph"] == "X"]
    assert names == [
        "write cc", *["sync"] * CPUS, "write fb000000", *["sync"] * CPUS, "write e9",
        *["sync"] * CPUS, "unlock", "int3",
    ]  # fmt: skip
    assert made["otherData"]["left out"] == "nothing"
    assert {e["ph"] for e in made["traceEvents"]} == {"M", "X", "b", "e"}


def run_directory_verdict() -> VerdictRecord:
    return VerdictRecord(outcome="pass", reason="", exit_status=0, smp=CPUS)


def test_a_trace_is_bounded_and_says_what_it_leaves_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace, "MOST", 10)
    log = Written()
    for _ in range(5):
        log.poke()
    (tmp_path / timeline.LOG).write_bytes(gzip.compress(log.records.tobytes()))
    verdict = run_directory(without_sync(), tmp_path)
    made = trace.trace(tmp_path, verdict)
    left_out = made["otherData"]["left out"]
    assert left_out[timeline.EVENTS].startswith("the last ")
    assert left_out[timeline.LOG].startswith("all but records ")
    assert len(made["traceEvents"]) < 50


def test_only_a_failing_run_leaves_a_trace_by_itself(tmp_path: Path) -> None:
    trace.write(result_of(Run(), tmp_path))
    assert not (tmp_path / trace.FILE).exists()
    run_directory(without_sync(), tmp_path)
    trace.write(result_of(without_sync(), tmp_path))
    assert json.loads((tmp_path / trace.FILE).read_text())["otherData"]["outcome"] == "fail"


# -- the command


def test_show_prints_the_mail_and_writes_the_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_directory(without_sync(), tmp_path)
    file = tmp_path / "t.json"
    assert cli.main(["show", str(tmp_path), "--mail", "--trace", str(file)]) == 0
    assert "Reported-by" in capsys.readouterr().out
    assert json.loads(file.read_text())["traceEvents"]


def test_a_trace_does_not_take_the_place_of_a_device_or_of_a_runs_own_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    run_directory(Run(), tmp_path / "run")
    device, link = tmp_path / "device", tmp_path / "link"
    device.symlink_to("/dev/null")
    link.symlink_to(tmp_path / "file")
    for file in (device, link):
        assert cli.main(["show", str(tmp_path / "run"), "--trace", str(file)]) == 0
        assert file.is_symlink()
    assert "traceEvents" in (tmp_path / "file").read_text()
    verdict = tmp_path / "run" / "verdict.json"
    before = verdict.read_text()
    for name in (verdict, ""):
        assert cli.main(["show", str(tmp_path / "run"), "--trace", str(name)]) == 129
    assert verdict.read_text() == before
    assert "belongs to the run" in capsys.readouterr().err


def test_a_trace_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_directory(Run(), tmp_path)
    missing = tmp_path / "missing" / "t.json"
    assert cli.main(["show", str(tmp_path), "--trace", str(missing)]) == 129
    assert "cannot be written" in capsys.readouterr().err
    assert cli.main(["show", str(tmp_path), "--mail", "--json"]) == 129
