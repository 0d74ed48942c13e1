# SPDX-License-Identifier: GPL-2.0-only
"""Files for people: whatever happens to one, its writer goes on."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.host.logs import Log, MemoryFile


def test_lines_are_in_the_file_at_once(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    log.write("one\n")
    log.write(b"two\n")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    assert log.lost == ""
    log.close()
    log.write("three\n")
    assert (tmp_path / "log").read_text() == "one\ntwo\n" and log.lost == ""


def test_a_disk_that_is_full_for_a_while_costs_lines_and_is_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(tmp_path / "log")
    log.write("one\n")
    real = os.write

    def full(file: int, data: bytes) -> int:
        if len(data) > 2:
            return real(file, data[:2])  # the last block takes two bytes
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    log.write("two\n")
    monkeypatch.setattr(os, "write", real)
    log.write("three\n")
    assert (tmp_path / "log").read_text() == "one\ntw\nthree\n"
    assert log.lost == "log could not be written: No space left on device"


def test_a_file_that_may_not_grow_ends_nobody(tmp_path: Path) -> None:
    """With a real limit, in a process of its own."""
    script = (
        "from pathlib import Path; from orchestrator.host.logs import Log;"
        f"log = Log(Path({str(tmp_path / 'log')!r}));"
        "[log.write('x' * 99 + chr(10)) for _ in range(100)]; print(log.lost)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
    )
    assert done.stdout.strip() == "log could not be written: File too large", done.stderr
    assert (tmp_path / "log").stat().st_size == 4096


def test_a_device_that_is_always_full_ends_nobody() -> None:
    log = Log(Path("/dev/full"))
    log.write("x")
    assert "No space left" in log.lost


def test_a_device_is_not_taken_for_a_truncated_file() -> None:
    log = Log(Path("/dev/null"))
    log.write("x")
    assert log.lost == ""


DAMAGE: dict[str, Callable[[Path], object]] = {
    "removed": lambda path: path.unlink(),
    "replaced": lambda path: [path.unlink(), path.write_text("foreign\n")],
    "truncated": lambda path: os.truncate(path, 3),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_what_others_do_to_a_file_is_noticed(tmp_path: Path, how: str) -> None:
    log = Log(tmp_path / "log")
    log.write("one\n")
    DAMAGE[how](tmp_path / "log")
    log.write("two\n" if how != "truncated" else "")
    assert f"log was {how} during the run" in log.lost


def test_a_file_that_cannot_be_opened_is_lost(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    log = Log(tmp_path / "log")
    log.write("one\n")
    assert log.lost == "log could not be written: Is a directory"


@pytest.mark.timeout(10)
def test_a_fifo_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    log = Log(tmp_path / "log")
    log.write("one\n")
    assert log.lost.startswith("log could not be written: No such device")


def test_a_log_can_start_over(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    log.write("the first round\n")
    log.start_over()
    log.write("the second\n")
    assert (tmp_path / "log").read_text() == "the second\n" and log.lost == ""


def test_another_process_can_write_to_a_memory_file() -> None:
    file = MemoryFile("events", b"one\n")
    subprocess.run(["sh", "-c", f"echo two >> {file.path}"], check=True)
    assert file.read() == b"one\ntwo\n"
    assert file.read(4) == b"two\n"
    assert file.size() == 8
    with file.path.open("a") as writer:
        file.clear()
        writer.write("three\n")
    assert file.read() == b"three\n"
    file.close()
