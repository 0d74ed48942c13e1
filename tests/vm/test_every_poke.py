# SPDX-License-Identifier: GPL-2.0-only
"""The recorder in a real run: every poke from boot on is in its log and judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from orchestrator.verdict.recorded import record
from orchestrator.watch.recorder import load

pytestmark = pytest.mark.vm


def test_every_poke_of_a_run_is_recorded_and_judged(tmp_path: Path) -> None:
    directory = tmp_path / "a,b"
    command = [sys.executable, "-m", "orchestrator", "run", "--output", str(directory)]
    scenarios = ["nop5", "kprobe-beside", "hotplug"]
    what = [word for name in scenarios for word in ("--scenario", name)]
    command += ["--smp", "2", "--duration", "0.5"]
    done = subprocess.run([*command, *what], capture_output=True, text=True, timeout=600)
    print(done.stderr[-3000:], done.stdout[-6000:])
    assert done.returncode == 0
    checks = {
        check["check"]: check
        for check in json.loads((directory / "verdict.json").read_text())["checks"]
    }
    assert checks["record"]["status"] == "pass"
    for owner in ("test module", "jump labels", "kprobes"):
        assert owner in checks["record"]["text"]
    assert any("while a CPU was offline" in line for line in checks["record"]["details"])

    assert not list(directory.rglob("recorder.?.log"))
    log = load(directory / "branches" / "sites" / "recorder.log.gz")
    cpus = log["cpu"][log["kind"] == record.SYNC]
    assert np.array_equal(np.unique(cpus), [0, 1])
    boot = load(directory / "branches" / "boot" / "recorder.log.gz")
    writes = boot[boot["kind"] == record.WRITE]
    assert writes["word"][0, 6] == 1, "the log begins while only one CPU is online"


def test_the_jumps_of_bpf_programs_are_patched_and_judged(tmp_path: Path) -> None:
    """In Debian's kernel: ours have no BPF."""
    command = [sys.executable, "-m", "orchestrator", "run", "--kernel", "debian:6.12"]
    command += ["--output", str(tmp_path / "run"), "--smp", "2", "--duration", "0.5"]
    command += ["--scenario", "nop5", "--scenario", "bpf"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    print(done.stderr[-3000:], done.stdout[-6000:])
    assert done.returncode == 0
    report = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert report["pokes"]["BPF"] > 10
