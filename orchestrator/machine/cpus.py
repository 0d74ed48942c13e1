# SPDX-License-Identifier: GPL-2.0-only
"""Where the CPUs of a guest are, from QEMU's monitor, which needs no GDB."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from orchestrator.machine.qmp import Qmp
from orchestrator.machine.waiting import until

STACK_WORDS = 256
"""Words of each CPU's stack that are read."""
KERNEL_TEXT = 0xFFFFFFFF80000000
"""Where the kernel and its modules are mapped."""

INTERRUPTS = 1 << 9
"""The flag of RFLAGS."""

_REGISTER = re.compile(r"\b[RE](IP|SP|FL)=([0-9a-f]+)")
_WORD = re.compile(r"0x([0-9a-f]{16})")


def snapshot(qmp: Qmp, cpus: int) -> list[dict[str, Any]]:
    """Where each CPU is, in the form of Watch.cpu_snapshot(): cpu, rip, rsp, eflags, stack.

    The guest is stopped meanwhile. `stack` may have words that only look like return addresses.
    """
    was_running = bool(qmp.execute("query-status")["running"])
    if was_running:
        qmp.execute("stop")
    try:
        return [_cpu(qmp, cpu) for cpu in range(cpus)]
    finally:
        if was_running:
            qmp.cont()


def stuck(qmp: Qmp, cpus: int, seconds: float, check: Callable[[], None]) -> list[int]:
    """The CPUs that are in the kernel and do not leave it for `seconds`.

    One that is seen in user mode, or that waits for interrupts with HLT, is not: its kernel has
    nothing else to do. The guest runs meanwhile.
    """
    waiting = [*range(cpus)]

    def all_leave() -> bool:
        waiting[:] = [cpu for cpu in waiting if _in_kernel(_monitor(qmp, cpu, "info registers"))]
        return not waiting

    until(all_leave, seconds, check)
    return waiting


def _in_kernel(registers: str) -> bool:
    mode = re.search(r"\b[RE]FL=([0-9a-f]+) .*\bCPL=(\d) .*\bHLT=(\d)", registers)
    if not mode:
        return True
    idle = mode[3] == "1" and int(mode[1], 16) & INTERRUPTS
    return mode[2] == "0" and not idle


def _cpu(qmp: Qmp, cpu: int) -> dict[str, Any]:
    registers = dict(_REGISTER.findall(_monitor(qmp, cpu, "info registers")))
    rip, rsp, flags = (int(registers.get(name, "0"), 16) for name in ("IP", "SP", "FL"))
    words = _WORD.findall(_monitor(qmp, cpu, f"x /{STACK_WORDS}gx {rsp:#x}")) if rsp else []
    stack = [word for word in (int(text, 16) for text in words) if word >= KERNEL_TEXT]
    return {"cpu": cpu, "rip": rip, "rsp": rsp, "eflags": flags, "stack": stack}


def _monitor(qmp: Qmp, cpu: int, line: str) -> str:
    arguments: dict[str, Any] = {"command-line": line, "cpu-index": cpu}
    return str(qmp.execute("human-monitor-command", **arguments))
