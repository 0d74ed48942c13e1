# SPDX-License-Identifier: GPL-2.0-only
"""The console's transport: bytes from a pipe in, lines with times and findings out."""

from __future__ import annotations

import json
import os
from pathlib import Path

from orchestrator.machine.console import GuestConsole


def console(tmp_path: Path, *chunks: bytes) -> GuestConsole:
    """A console that has read `chunks` to their end."""
    reader = GuestConsole(tmp_path / "console.jsonl")
    write = os.dup(reader.output)
    reader.start()
    for chunk in chunks:
        os.write(write, chunk)
    os.close(write)
    reader.close()
    assert not reader._thread.is_alive()
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


def test_a_megabyte_without_a_newline_is_read_in_seconds(tmp_path: Path) -> None:
    reader = console(tmp_path, *[b"x" * 65536] * 16)
    assert [len(line) for line in reader.lines] == [1 << 20]


def test_the_guest_is_ready_when_its_init_says_so(tmp_path: Path) -> None:
    assert console(tmp_path, b"[ 1.0] orchestrator: guest ready: cpus=2\n").ready
    assert not console(tmp_path, b"[ 1.0] Linux version\n").ready
