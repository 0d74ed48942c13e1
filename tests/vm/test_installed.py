# SPDX-License-Identifier: GPL-2.0-only
"""The program from a wheel, in a fresh environment, started from anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from orchestrator.host.paths import PROJECT

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of an environment with the wheel. Libraries come from that of the tests."""
    directory = tmp_path_factory.mktemp("installed")
    script = "import sys, setuptools.build_meta as b; b.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", script, str(directory)], cwd=PROJECT, check=True)
    (wheel,) = directory.glob("*.whl")
    environment = directory / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    python = environment / "bin" / "python"
    command = [python, "-m", "pip", "install", "-qq", "--no-deps", "--no-index", wheel]
    subprocess.run(command, check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return environment / "bin" / "orchestrator"


def test_an_installed_program_passes_a_run(program: Path, tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    arguments = [
        "run",
        "--smp",
        "2",
        "--scenario",
        "nop5",
        "--duration",
        "0.5",
        "--output",
        "results",
    ]
    done = subprocess.run(
        [program, *arguments], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    verdict = json.loads((tmp_path / "results" / "verdict.json").read_text())
    assert verdict["outcome"] == "pass"
    assert str(program.parent) in (tmp_path / "results" / "repeat.sh").read_text()
