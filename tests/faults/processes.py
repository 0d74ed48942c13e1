# SPDX-License-Identifier: GPL-2.0-only
"""The processes of one trial, found by a marker that they inherit in their environment."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

MARKER = "ORCHESTRATOR_FAULT"

PROC = Path("/proc")


@dataclass(frozen=True)
class Process:
    pid: int
    program: str
    """Name of the program's file."""
    words: tuple[str, ...]
    """Its command line."""

    @property
    def role(self) -> str:
        """What it does in a run: qemu, gdb, compiler, shell, relay, orchestrator or other."""
        if any(word.endswith(("relay_qemu.py", "relay_gdb.py")) for word in self.words):
            return "relay"
        if self.program.startswith("qemu-system") or self.program == "qemu":
            return "qemu" if "-kernel" in self.words else "probe"
        if self.program == "gdb":
            return "gdb"
        if self.program in ("make", "gcc", "cc1", "as", "ld", "ld.bfd", "collect2", "ccache"):
            return "compiler"
        if self.program in ("sh", "dash", "bash"):
            return "shell"
        if "orchestrator" in self.words:
            return "orchestrator"
        return "other"

    def send(self, number: int) -> bool:
        """Whether the process was there to receive the signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
            return True
        return False

    def __str__(self) -> str:
        return f"{self.pid} {' '.join(self.words)[:100] or self.program}"


def marked(value: str) -> list[Process]:
    """Living processes whose environment has MARKER=value or MARKER=value/…; not ourselves."""
    wanted = f"{MARKER}={value}".encode()
    found = []
    for entry in PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")  # a zombie has none
            if not any(one == wanted or one.startswith(wanted + b"/") for one in variables):
                continue
            program = (entry / "exe").readlink().name.removesuffix(" (deleted)")
            words = (entry / "cmdline").read_bytes().split(b"\0")[:-1]
        except OSError:  # it has just ended
            continue
        text = tuple(word.decode(errors="replace") for word in words)
        found.append(Process(int(entry.name), _known_as(program, entry), text))
    return found


def _known_as(program: str, entry: Path) -> str:
    """gcc's file is x86_64-linux-gnu-gcc-12 and as is ...-as; this gives the short names."""
    with contextlib.suppress(OSError):
        command = (entry / "comm").read_text().strip()
        if command in ("gcc", "cc1", "as", "ld", "make", "sh", "gdb", "ccache", "collect2"):
            return command
    return program


def memory_peak(pid: int) -> int:
    """Largest resident size of a process so far, in MiB; 0 if it is gone."""
    with contextlib.suppress(OSError):
        for line in (PROC / str(pid) / "status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) >> 10
    return 0


def end_all(value: str) -> None:
    """Kill every process of a trial, and wait until they are gone."""
    deadline = time.monotonic() + 10
    while (left := marked(value)) and time.monotonic() < deadline:
        for process in left:
            process.send(signal.SIGKILL)
        time.sleep(0.05)
