# SPDX-License-Identifier: GPL-2.0-only
"""One seed twice, once on a busy host, has one fingerprint; and a run is replayed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_branches import busy

pytestmark = pytest.mark.vm

WHAT = ("--smp", "4", "--duration", "0.3", "--scenario", "nop5", "--scenario", "kprobe-beside")


def orchestrator(*arguments: str) -> str:
    command = [sys.executable, "-m", "orchestrator", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    print(done.stderr[-3000:], done.stdout[-6000:])
    assert done.returncode == 0
    return done.stdout


def fingerprint(directory: Path, seed: int) -> str:
    orchestrator("run", *WHAT, "--seed", str(seed), "--output", str(directory))
    return str(json.loads((directory / "verdict.json").read_text())["fingerprint"])


def test_a_seed_has_one_fingerprint_and_its_run_is_replayed(tmp_path: Path) -> None:
    first = fingerprint(tmp_path / "first", 1)
    with busy(8):
        assert fingerprint(tmp_path / "busy", 1) == first
    assert fingerprint(tmp_path / "other", 2) != first
    lines = orchestrator("replay", str(tmp_path / "first")).splitlines()
    assert [line.partition(" (")[0] for line in lines] == [
        "code: the same course",
        "sites: the same course",
    ]
