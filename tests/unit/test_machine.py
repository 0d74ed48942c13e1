# SPDX-License-Identifier: GPL-2.0-only
"""Parts of a Machine that need no QEMU."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator.errors import LostVM
from orchestrator.host import proc
from orchestrator.machine import machine as module
from orchestrator.machine.machine import Machine
from orchestrator.machine.waiting import until


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


def test_a_qemu_that_somebody_has_stopped_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSED_SECONDS", 0.5)
    machine = Machine.__new__(Machine)
    machine._ending, machine._paused = False, None
    machine.qmp = SimpleNamespace(gone=False, find=lambda _: None)  # type: ignore[assignment]
    machine.console = SimpleNamespace(ended=False)  # type: ignore[assignment]
    with subprocess.Popen(["sleep", "60"]) as machine.process:
        try:
            for number in (signal.SIGSTOP, signal.SIGCONT):  # a short stop is none
                machine.process.send_signal(number)
                stopped = number == signal.SIGSTOP
                assert until(
                    lambda stopped=stopped: (proc.state(machine.process.pid) == "T") == stopped,  # type: ignore[misc]
                    10,
                    machine._check_qemu,
                )
            time.sleep(0.6)
            machine._check_qemu()
            machine.process.send_signal(signal.SIGSTOP)
            with pytest.raises(LostVM, match="somebody has stopped the process of QEMU"):
                until(lambda: False, 10, machine._check_qemu)
        finally:
            machine.process.kill()
    assert proc.state(machine.process.pid) == ""
