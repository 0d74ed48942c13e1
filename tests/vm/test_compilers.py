# SPDX-License-Identifier: GPL-2.0-only
"""A kernel and a test module built by clang and lld, and parameters of the user's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.vm

SHORT = ("--smp", "2", "--scenario", "nop5", "--duration", "0.3")


def run(directory: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "orchestrator", "run", *SHORT, "--output", str(directory)]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=3600)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.skipif(
    not all(map(shutil.which, ("clang", "ld.lld", "llvm-ar"))), reason="needs clang, lld and llvm"
)
def test_a_kernel_built_by_clang_passes(tmp_path: Path) -> None:
    status, output = run(tmp_path / "run", "--kernel", "6.1-plain", "--make", "LLVM=1")
    assert status == 0, output
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    assert verdict["name"] == "6.1-plain + LLVM=1"
    assert "clang version" in verdict["kernel"]["origin"]["compiler"]
    assert "LLD" in verdict["kernel"]["origin"]["compiler"]


def test_a_kernel_with_kaslr_and_pti_is_run_as_its_users_run_it(tmp_path: Path) -> None:
    status, output = run(tmp_path / "run", "--append", "kaslr pti=on threadirqs")
    assert status == 0, output
    assert "not in effect: nokaslr nopti" in output
    command_line = (tmp_path / "run" / "console.log").read_text()
    assert "pti=on threadirqs" in command_line and "nokaslr" not in command_line
