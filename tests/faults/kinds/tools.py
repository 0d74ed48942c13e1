# SPDX-License-Identifier: GPL-2.0-only
"""A QEMU or GDB that lies, hangs or dies: a relay in its place (relay_qemu.py, relay_gdb.py)."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Callable, Iterator

from faults.fault import HEALTHY, INFRA, NOTICED, SURVIVED, Fault
from faults.trial import Trial
from faults.world import HERE

QEMU: dict[str, frozenset[int | str]] = {
    **dict.fromkeys(
        (
            "dies-0", "dies-1", "dies-139", "dies-SEGV", "dies-ABRT", "qmp-cut", "qmp-reset",
            "qmp-paused", "qmp-powerdown", "qmp-out-hangs", "qmp-in-hangs", "qmp-out-garbage",
            "qmp-out-huge", "qmp-out-deep", "qmp-out-flipped", "qmp-out-dropped", "qmp-out-twice",
            "qmp-no-events", "qmp-in-slow", "qmp-nmi",
            "line-cut", "line-out-hangs", "line-in-hangs", "line-out-garbage", "line-out-flipped",
            "line-in-flipped", "line-out-dropped", "line-out-twice",
            "console-cut", "console-garbage", "stderr-flood",
            "no-recorder", "refuses-plugins", "version-garbage", "version-huge", "version-new",
            "version-none", "version-fails", "version-hangs", "version-old", "old-cpu",
        ),
        NOTICED,
    ),
    "qmp-quit-ignored": SURVIVED,
    "one-cpu": frozenset({INFRA}),
    "little-memory": frozenset({INFRA}),
    "wrong-initrd": frozenset({INFRA}),
    "unknown-option": frozenset({INFRA}),
}  # fmt: skip

GDB: dict[str, frozenset[int | str]] = {
    **dict.fromkeys(
        (
            "dies-after:3", "dies-after:12", "dies-after:20", "dies:1", "dies:2.5", "ends-at-once",
            "hangs-after:3", "hangs-after:14", "refuses:0", "refuses:12", "refuses-breakpoints",
            "no-python", "no-stops", "garbage:1", "bad-records:1", "flood:1", "silent:1",
            "wrong-tokens:10",
        ),
        NOTICED,
    ),
    "slow": NOTICED,
    "interrupt-lost:1": SURVIVED,
    "interrupt-lost:3": SURVIVED,
}  # fmt: skip

SHORT = ("dies-SEGV", "qmp-out-garbage", "interrupt-lost:1")


def faults() -> Iterator[Fault]:
    for mode, allowed in QEMU.items():
        yield Fault(
            name=f"qemu/{mode}",
            prepare=_qemu(mode),
            allowed=allowed,
            kernel=HEALTHY if allowed == frozenset({INFRA}) else "either",
            limit=240,
            short=mode in SHORT,
        )
    for mode, allowed in GDB.items():
        yield Fault(
            name=f"gdb/{mode}",
            prepare=_gdb(mode),
            allowed=allowed,
            limit=240,
            short=mode in SHORT,
        )


def _qemu(mode: str) -> Callable[[Trial], None]:
    def prepare(trial: Trial) -> None:
        seconds = trial.rng.uniform(0.5, 10)
        trial.note = f"{seconds:.1f} s"
        trial.env["FAULT_QEMU"] = f"{mode}:{seconds * trial.world.scale}"
        trial.env["FAULT_QEMU_REAL"] = shlex.join(trial.world.qemu)
        relay = trial.world.scratch / "qemu"  # one path: what is made for a QEMU is cached by it
        if not relay.exists():
            temporary = trial.directory / "qemu"
            temporary.write_text(_script("relay_qemu.py"))
            temporary.chmod(0o755)
            temporary.replace(relay)
        trial.arguments += ["--qemu", str(relay)]

    return prepare


def _gdb(mode: str) -> Callable[[Trial], None]:
    def prepare(trial: Trial) -> None:
        folder = trial.directory / "bin"
        folder.mkdir()
        (folder / "gdb").write_text(_script("relay_gdb.py"))
        (folder / "gdb").chmod(0o755)
        trial.env["FAULT_GDB"] = mode
        trial.env["FAULT_GDB_REAL"] = shutil.which("gdb") or "gdb"
        trial.env["PATH"] = f"{folder}:{trial.env['PATH']}"

    return prepare


def _script(name: str) -> str:
    return f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(HERE / name))} "$@"\n'
