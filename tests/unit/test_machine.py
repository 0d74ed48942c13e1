# SPDX-License-Identifier: GPL-2.0-only
"""Parts of a Machine that need no QEMU."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.machine.machine import Machine


def test_guest_memory_is_read_through_no_file_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU runs in another directory, and the disk of ours may be full."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()

    def execute(command: str, *, filename: str, val: int, size: int) -> None:
        assert command == "memsave"
        # Like QEMU: another process, in the run's directory.
        script = f'printf %{size}s | tr " " x >"$1"'
        subprocess.run(["sh", "-c", script, "sh", filename], check=True, cwd=tmp_path / "run")

    machine = Machine.__new__(Machine)
    machine.directory = Path("run")  # relative, as --output may be
    machine.qmp = SimpleNamespace(execute=execute)  # type: ignore[assignment]
    files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    assert machine.read_memory(0xFFFFFFFF81000000, 5) == b"xxxxx"
    assert not list((tmp_path / "run").iterdir())
    assert len(os.listdir("/proc/self/fd")) == files  # noqa: PTH208
