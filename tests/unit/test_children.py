# SPDX-License-Identifier: GPL-2.0-only
"""A run in a child process: what comes back, and that none is left behind."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest

from orchestrator.kernel.model import KernelRequest
from orchestrator.many.children import Children, Stopped
from orchestrator.spec import RunSpec
from orchestrator.verdict.result import VerdictRecord

SLEEPER = (
    sys.executable,
    "-c",
    "import os, sys, time; print(os.getpid(), flush=True); time.sleep(60)",
)
WRITER = """
import json, pathlib, sys
directory = pathlib.Path(sys.argv[-1])
directory.mkdir()
verdict = {"schema": 2, "outcome": "pass", "reason": "r", "exit_status": 0, "kernel": None,
           "edited": [], "hang_report": [], "soak": None, "checks": [], "seconds": {}}
(directory / "verdict.json").write_text(json.dumps(verdict))
"""
DEAF = (
    sys.executable,
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)",
)


def alive(log: Path) -> bool:
    try:
        os.kill(int(log.read_text().split()[0]), 0)
    except ProcessLookupError:
        return False
    return True


def test_the_verdict_is_read_back_or_the_last_line_says_why_there_is_none(tmp_path: Path) -> None:
    ended = Children().run(
        RunSpec(), tmp_path / "run", tmp_path / "log", program=(sys.executable, "-c", WRITER)
    )
    assert (ended.status, ended.verdict) == (
        0,
        VerdictRecord(outcome="pass", reason="r", exit_status=0),
    )
    program = ("sh", "-c", "echo one; echo orchestrator: there is no such kernel >&2; exit 129")
    ended = Children().run(RunSpec(), tmp_path / "other", tmp_path / "log", program=program)
    assert (ended.status, ended.verdict, ended.why) == (129, None, "there is no such kernel")
    ended = Children().run(
        RunSpec(), tmp_path / "other", tmp_path / "log", program=("sh", "-c", "kill -9 $$")
    )
    assert (ended.status, ended.why) == (-9, "it ended with status -9")


def test_the_status_of_wrong_usage_is_not_mistaken_for_that_of_sighup(tmp_path: Path) -> None:
    for sentence, wrong in (("there is no such kernel", True), ("interrupted by SIGHUP", False)):
        program = ("sh", "-c", f"echo orchestrator: {sentence} >&2; exit 129")
        ended = Children().run(RunSpec(), tmp_path / "run", tmp_path / "log", program=program)
        assert (ended.status, ended.wrong_request, ended.why) == (129, wrong, sentence)


def test_a_child_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    ended = Children().run(
        RunSpec(), tmp_path / "run", tmp_path / "log", program=SLEEPER, longest=0.6
    )
    assert ended.status is None and "had not ended after" in ended.why
    assert not alive(tmp_path / "log")


def test_stop_ends_all_children_and_starts_no_others(tmp_path: Path) -> None:
    children = Children()
    threading.Timer(0.7, children.stop).start()
    with pytest.raises(Stopped):
        children.run(RunSpec(), tmp_path / "run", tmp_path / "log", program=SLEEPER)
    assert not alive(tmp_path / "log")
    with pytest.raises(Stopped):
        children.run(RunSpec(), tmp_path / "run", tmp_path / "log2", program=SLEEPER)


def test_an_unwanted_child_is_ended_even_if_it_ignores_the_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.many.children.GRACE", 0.3)
    start = time.monotonic()
    with pytest.raises(Stopped):
        Children().run(
            RunSpec(), tmp_path / "run", tmp_path / "log", program=DEAF, unwanted=lambda: True
        )
    assert time.monotonic() - start < 20


def test_a_kernel_request_as_arguments() -> None:
    assert KernelRequest(selector="debian:6.1").argv() == ["--kernel", "debian:6.1"]
    request = KernelRequest(
        tree=Path("/t"),
        patches=(Path("/p"), Path("/q")),
        fragments=(Path("/f"),),
        settings=("CONFIG_X=y",),
    )
    assert request.argv() == (
        ["--tree", "/t", "--patch", "/p", "--patch", "/q", "--config", "/f", "--set", "CONFIG_X=y"]
    )
    image = KernelRequest(bzimage=Path("/b"), headers=Path("/h"))
    assert image.argv() == ["--bzimage", "/b", "--headers", "/h"]
