# SPDX-License-Identifier: GPL-2.0-only
"""The scripts that run alongside scenarios: what they blame the kernel for, and what not."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from orchestrator.scenarios.scenario import Scenario, load_all
from orchestrator.verdict.evidence import BROKEN, HOLDS, SKIP

COULD_NOT = 3
COMPANIONS = {scenario.name: scenario for scenario in load_all() if scenario.companion}


def run(scenario: Scenario, directory: Path, **programs: str) -> tuple[int, str]:
    """Exit status and last line of the script. Each of the programs is a line of shell."""
    for name, line in programs.items():
        (directory / name).write_text(f"#!/bin/sh\n{line}\n")
        (directory / name).chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", scenario.companion or ""],
        env={**os.environ, "PATH": f"{directory}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
    )
    return done.returncode, (done.stdout.splitlines() or [""])[-1]


@pytest.mark.parametrize("name", COMPANIONS)
def test_every_script_is_one(name: str) -> None:
    subprocess.run(["sh", "-n", "-c", COMPANIONS[name].companion or ""], check=True)


@pytest.mark.parametrize(
    ("insmod", "rmmod", "status", "message"),
    [
        ("true", "true", HOLDS, "loads=1"),
        # orch_guest.ko returns EINVAL if one of its branches goes the wrong way.
        ("Invalid argument", "true", BROKEN, "does not follow its key"),
        ("Cannot allocate memory", "true", COULD_NOT, "Cannot allocate memory"),
        ("true", "Resource temporarily unavailable", COULD_NOT, "cannot be removed"),
        ("true", "Function not implemented", SKIP, "cannot be removed"),
    ],
)
def test_only_a_branch_that_goes_the_wrong_way_is_the_fault_of_the_kernel(
    tmp_path: Path, insmod: str, rmmod: str, status: int, message: str
) -> None:
    lines = [text if text == "true" else f"echo '{text}'; exit 1" for text in (insmod, rmmod)]
    found = run(COMPANIONS["modules"], tmp_path, insmod=lines[0], rmmod=lines[1])
    assert found[0] == status
    assert message in found[1]


def test_a_program_that_is_missing_shows_nothing(tmp_path: Path) -> None:
    status, _ = run(COMPANIONS["int3-user"], tmp_path)
    assert status not in (HOLDS, BROKEN, SKIP)
