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


@pytest.mark.parametrize(
    "line",
    [
        "cc: fatal error: Killed signal terminated program cc1",
        "cc: internal compiler error: File size limit exceeded signal terminated program cc1",
        "make[2]: *** [scripts/Makefile.build:250: kernel/fork.o] Killed",
        "collect2: fatal error: ld terminated with signal 9 [Killed]",
        "clang: error: unable to execute command: Killed",
        "virtual memory exhausted: Cannot allocate memory",
        "cc1: out of memory allocating 65536 bytes after a total of 1048576 bytes",
        "/tmp/ccQ.s: Fatal error: can't write 36 bytes to section .data: 'No space left on device'",
        "fatal: unable to write new index file: Disk quota exceeded",
        "ld: cannot open output file vmlinux.o: Read-only file system",
        "make: fork: Resource temporarily unavailable",
        "/bin/sh: 1: Cannot fork",
        "/src/scripts/check-local-export: 25: awk: not found",
        "/bin/bash: line 1: bc: command not found",
        "make[2]: flex: No such file or directory",
        "objtool: error while loading shared libraries: libelf.so.1: cannot open",
    ],
)
def test_what_the_host_refuses_is_no_fault_of_what_was_built(line: str) -> None:
    output = f"  CC      kernel/fork.o\n{line}\nmake: *** [Makefile:1901: kernel] Error 2"
    assert proc.host_trouble(output) == line


@pytest.mark.parametrize(
    "line",
    [
        "kernel/fork.c:1:2: error: #error File too large for this config",
        '   12 |         panic("Cannot allocate memory");',
        "make[2]: *** [scripts/Makefile.build:250: kernel/fork.o] Error 1",
        "make[2]: *** [scripts/Makefile.modpost:145: Module.symvers] Segmentation fault",
        "ld: kernel/fork.o: undefined reference to `out_of_memory'",
        "make[2]: *** No rule to make target 'kernel/nowhere.o', needed by 'kernel/built-in.a'.",
        "kernel/fork.c:3:10: fatal error: linux/nowhere.h: No such file or directory",
        "grep: kernel/nowhere.c: No such file or directory",
    ],
)
def test_an_error_in_the_source_is_not_the_hosts(line: str) -> None:
    assert proc.host_trouble(line) == ""


def test_a_compiler_without_memory_ends_as_a_fault_of_the_host(tmp_path: Path) -> None:
    (tmp_path / "big.c").write_text(f"int a[] = {{{'1,' * 300_000}}};\n")
    compiler = program(tmp_path / "cc", 'ulimit -v 80000; exec gcc "$@"')
    with pytest.raises(InfraError, match=r"cc failed: .*memory"):
        proc.run([compiler, "-c", tmp_path / "big.c", "-o", tmp_path / "big.o"], check=False)
