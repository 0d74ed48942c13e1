# SPDX-License-Identifier: GPL-2.0-only
"""Programs that are asked something and may do anything instead of answering."""

from __future__ import annotations

import shlex
import time
from pathlib import Path

import pytest

from orchestrator.errors import InfraError
from orchestrator.host import proc, tools


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("sleep 60", "did not end within"),
        ("echo version 9.1.0; exec >&- 2>&-; sleep 60", "did not end within"),
        ("exec yes", "prints more than 1 MiB"),
        ("echo a library is missing; exit 3", r"does not run: a library is missing \(status 3\)"),
        ("kill -9 $$", r"does not run: it prints nothing \(status -9\)"),
        (f"echo version {'9' * 5000}.1", "prints no version"),
        ("echo version ٣.٤", "prints no version"),
        (":", "prints no version"),
    ],
)
def test_a_qemu_that_does_not_say_its_version_is_an_error(
    script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proc, "ANSWER_SECONDS", 0.5)
    start = time.monotonic()
    with pytest.raises(InfraError, match=message):
        tools.qemu(program(tmp_path / "qemu", script))
    assert time.monotonic() - start < 5


def test_what_a_program_started_does_not_delay_its_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proc, "ANSWER_SECONDS", 1.0)
    pid = tmp_path / "pid"
    script = f"sleep 5 & echo $! >{shlex.quote(str(pid))}; echo version 9.1.0"
    assert tools.qemu(program(tmp_path / "qemu", script)).version == (9, 1, 0)


def test_a_file_that_is_no_program_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "qemu"
    file.write_bytes(b"\0\1")
    file.chmod(0o755)
    with pytest.raises(InfraError, match="does not run"):
        tools.qemu(file)
