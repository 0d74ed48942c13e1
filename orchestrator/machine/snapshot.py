# SPDX-License-Identifier: GPL-2.0-only
"""Saving a running guest to a file, and restoring guests from it.

QEMU writes each page of memory at its own place in the file (mapped-ram, since 9.0). So the file is
as large as the memory, but has holes where the guest has never used it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from orchestrator.errors import InfraError
from orchestrator.host.tools import Qemu
from orchestrator.machine.machine import Machine
from orchestrator.machine.waiting import until

QEMU_SNAPSHOTS = (9, 0)
"""The first version that has mapped-ram."""
SECONDS = 60.0
"""Limit for saving or restoring, which take less than a second each on a quiet host."""
FAST = 0.01
"""Seconds between two looks at the progress. The usual interval is a fifth of what it takes."""


def why_not(qemu: Qemu) -> str:
    """Why this QEMU cannot save a guest, as a sentence without a full stop; empty if it can."""
    if qemu.version < QEMU_SNAPSHOTS:
        version, oldest = (".".join(map(str, v)) for v in (qemu.version, QEMU_SNAPSHOTS))
        return f"QEMU {version} is older than {oldest} and cannot save a guest to a file"
    return ""


def save(
    machine: Machine, file: Path, let_go: Callable[[], None] | None = None, pause: float = 0.0
) -> None:
    """Stop the guest and save it to `file`. It stays stopped. Raises InfraError if that fails.

    let_go: for a guest that waits in QEMU's plugin: lets it go on. It stops at once if QEMU has
    taken the command to stop by then.
    pause: seconds that QEMU has for that. On a quiet host it takes some milliseconds.
    """
    if let_go:
        threading.Timer(pause, let_go).start()
    machine.qmp.execute("stop")
    _enable(machine)
    machine.qmp.execute("migrate", uri=_uri(file))
    _complete(machine, "saved")


def restore(machine: Machine, file: Path) -> None:
    """Restore the guest of a machine that was started with `incoming`. It stays stopped.

    Raises InfraError if `file` is not the snapshot of such a machine.
    """
    _enable(machine)
    # Otherwise QEMU announces the guest to its network five times, by a timer of the host's clock,
    # and with icount the CPUs run until the next timer of any clock.
    machine.qmp.execute("migrate-set-parameters", **{"announce-rounds": 0})
    machine.qmp.execute("migrate-incoming", uri=_uri(file))
    _complete(machine, "restored")


def _uri(file: Path) -> str:
    return f"file:{file.absolute()}"


def _enable(machine: Machine) -> None:
    capabilities = [{"capability": "mapped-ram", "state": True}]
    machine.qmp.execute("migrate-set-capabilities", capabilities=capabilities)


def _complete(machine: Machine, done: str) -> None:
    state: dict[str, object] = {}

    def over() -> bool:
        state.update(machine.qmp.execute("query-migrate"))
        return state.get("status") in ("completed", "failed", "cancelled")

    if not until(over, SECONDS, machine.check, FAST):
        raise InfraError(f"the guest was not {done} within {SECONDS:.0f} s")
    if state["status"] != "completed":
        reason = state.get("error-desc", state["status"])
        raise InfraError(f"the guest could not be {done}: {reason}")
