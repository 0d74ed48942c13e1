# SPDX-License-Identifier: GPL-2.0-only
"""The console's transport: bytes from a pipe in, lines with times and findings out."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path

import pytest

from orchestrator.guest.klog import FaultScanner
from orchestrator.machine.console import KEPT, MAX_LINE, GuestConsole


def console(tmp_path: Path, *chunks: bytes) -> GuestConsole:
    """A console that has read `chunks` to their end."""
    reader = GuestConsole(tmp_path / "console.jsonl")
    write = os.dup(reader.output)
    reader.start()
    for chunk in chunks:
        os.write(write, chunk)
    os.close(write)
    reader.close()
    assert reader.ended
    return reader


def test_a_line_may_arrive_in_pieces(tmp_path: Path) -> None:
    reader = console(tmp_path, b"[    0.0", b"00000] Linux version 6.1\r", b"\nsecond\r\n")
    assert reader.lines == ["[    0.000000] Linux version 6.1", "second"]
    written = [json.loads(line) for line in (tmp_path / "console.jsonl").read_text().splitlines()]
    assert [entry["line"] for entry in written] == reader.lines
    assert all(entry["time"] > 1.7e9 for entry in written)


def test_an_unfinished_last_line_counts(tmp_path: Path) -> None:
    reader = console(tmp_path, b"one\r\n[    1.0] Kernel panic - not syncing: cut sh")
    assert [finding.kind for finding in reader.scanner.findings] == ["panic"]


def test_bytes_that_are_not_text_are_replaced(tmp_path: Path) -> None:
    assert console(tmp_path, b"\xff\xfe\x00x\n").lines == ["\ufffd\ufffd\x00x"]


def test_a_line_without_an_end_is_cut_and_is_a_loss(tmp_path: Path) -> None:
    """Nobody looks for a fault in the rest, so its absence proves nothing."""
    start = time.monotonic()
    reader = console(tmp_path, *[b"x" * 65536] * 1600, b"\nnext\n")
    assert time.monotonic() - start < 20
    assert [len(line) for line in reader.lines] == [MAX_LINE, 4]
    assert reader.lost == (
        "line 1 of the console is longer than 4096 bytes, and its rest was not scanned"
    )
    assert not console(tmp_path, b"x" * MAX_LINE + b"\r\n").lost


def test_a_guest_that_prints_without_end_takes_a_limited_amount_of_memory(tmp_path: Path) -> None:
    reader = console(tmp_path, *[b"y\n" * 30_000] * 2)
    assert reader.scanner.lines == 60_000
    assert KEPT <= len(reader.lines) <= 2 * KEPT


def test_a_full_disk_does_not_end_the_console(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    broken = [True]

    def write(file: int, data: bytes) -> int:
        if broken[0] and data.startswith(b"{"):  # the log's lines, not the pipe's
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, data)

    monkeypatch.setattr(os, "write", write)
    reader = console(tmp_path, b"[ 1.0] one\n", b"[ 2.0] WARNING: CPU: 0 PID: 1 at a.c:1 f\n")
    broken[0] = False
    assert [finding.kind for finding in reader.scanner.findings] == ["warn"]
    assert reader.lost == ""
    assert reader.log.lost == "console.jsonl could not be written: No space left on device"


def test_a_fault_of_the_scan_is_a_loss_and_the_pipe_is_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe that nobody reads would stop the guest, and the kernel would be blamed."""

    def feed(self: FaultScanner, line: str) -> None:
        raise RecursionError("too deep")

    monkeypatch.setattr(FaultScanner, "feed", feed)
    reader = console(tmp_path, *[b"line\n" * 10_000] * 30)  # more than the pipe holds
    assert reader.lost == "the console is no longer read: RecursionError: too deep"


def test_the_guest_is_ready_when_its_init_says_so(tmp_path: Path) -> None:
    assert console(tmp_path, b"[ 1.0] orchestrator: guest ready: cpus=2\n").ready
    assert not console(tmp_path, b"[ 1.0] Linux version\n").ready
