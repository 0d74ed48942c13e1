# SPDX-License-Identifier: GPL-2.0-only
"""Where CPUs are by QEMU's monitor, and what a machine says that resets itself."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.errors import BootError, LostVM, OrchestratorError
from orchestrator.machine import cpus
from orchestrator.machine.faults import GuestReset
from orchestrator.machine.machine import Machine
from orchestrator.machine.qmp import QmpEvent

LONG_MODE = """CPU#0
RAX=0000000000000165 RBX=00000000006c5f5c RCX=0000000000000156 RDX=0000000000000199
RSI=0000000000000086 RDI=000000000000019a RBP=ffffffff81a03ea8 RSP=ffffffff81a03ea0
R8 =80000000fffe0072 R9 =74206c6c696b206f R10=2d2d2d5d20216b73 R11=2d5d20216b736174
RIP=ffffffff8124aec0 RFL=00000206 [-----P-] CPL=0 II=0 A20=1 SMM=0 HLT=0
"""
REAL_MODE = """CPU#1
EAX=00000000 EBX=00000000 ECX=00000000 EDX=00000663
ESI=00000000 EDI=00000000 EBP=00000000 ESP=00006c5c
EIP=000fd0cf EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=1
"""
STACK = """ffffffff81a03ea0: 0xffffffff8124b000 0x0000000000000001
ffffffff81a03eb0: 0xffff888000014000 0xffffffff81400123
"""


class Monitor:
    """Answers like QEMU 10.0."""

    def __init__(self, running: bool) -> None:
        self.running = running
        self.calls: list[str] = []

    def cont(self) -> None:
        self.calls.append("cont")

    def execute(self, command: str, **arguments: Any) -> Any:
        self.calls.append(command)
        if command == "query-status":
            return {"running": self.running, "status": "running" if self.running else "shutdown"}
        if command != "human-monitor-command":
            return {}
        line, cpu = arguments["command-line"], arguments["cpu-index"]
        if line == "info registers":
            return (LONG_MODE, REAL_MODE)[cpu]
        return STACK if cpu == 0 else "000000000000fff0: Cannot access memory\r\n"


@pytest.mark.parametrize("running", [True, False])
def test_a_snapshot(running: bool) -> None:
    monitor = Monitor(running)
    first, second = cpus.snapshot(monitor, 2)  # type: ignore[arg-type]
    assert first == {
        "cpu": 0,
        "rip": 0xFFFFFFFF8124AEC0,
        "rsp": 0xFFFFFFFF81A03EA0,
        "eflags": 0x206,
        "stack": [0xFFFFFFFF8124B000, 0xFFFFFFFF81400123],
    }
    assert (second["cpu"], second["rip"], second["stack"]) == (1, 0xFD0CF, [])
    assert ("stop" in monitor.calls) == (monitor.calls[-1] == "cont") == running


def machine(ready: bool, reason: str, restart: str = "") -> Machine:
    event = QmpEvent(1.0, "SHUTDOWN", {"guest": reason.startswith("guest"), "reason": reason})
    one = Machine.__new__(Machine)
    one.process = SimpleNamespace(poll=lambda: None, pid=0)  # type: ignore[assignment]
    one.qmp = SimpleNamespace(find=lambda _: event, lost="", gone=False)  # type: ignore[assignment]
    lines = ["[    0.1] Linux version 6.1", "[    0.2] the last", ""]
    scanner = SimpleNamespace(restart=restart)
    one.console = SimpleNamespace(ready=ready, lines=lines, ended=False, scanner=scanner)  # type: ignore[assignment]
    one._ending = False
    return one


@pytest.mark.parametrize(
    ("ready", "reason", "kind", "text"),
    [
        (False, "guest-reset", BootError, "the guest reset itself while booting (triple fault); "),
        (False, "guest-shutdown", BootError, "the guest ended while booting; "),
        (False, "host-signal", LostVM, "the guest is no longer running (host-signal)"),
        (True, "guest-reset", GuestReset, "the guest is no longer running (guest-reset)"),
        (True, "guest-shutdown", LostVM, "the guest is no longer running (guest-shutdown)"),
    ],
)
def test_a_guest_that_ends_by_itself(
    ready: bool, reason: str, kind: type[OrchestratorError], text: str
) -> None:
    with pytest.raises(OrchestratorError) as caught:
        machine(ready, reason).poll()
    assert type(caught.value) is kind and str(caught.value).startswith(text)
    assert ("the last console line was: [    0.2] the last" in str(caught.value)) == (
        kind is BootError
    )


def test_a_guest_that_was_told_to_reset_is_no_fault_of_the_kernel() -> None:
    with pytest.raises(LostVM, match="a program of the guest has reset it: sysrq: Resetting") as it:
        machine(True, "guest-reset", "sysrq: Resetting").poll()
    assert type(it.value) is LostVM and it.value.exit_status == 125


def registers(flags: str = "00000206", mode: int = 0, halted: int = 0) -> str:
    return (
        LONG_MODE.replace("00000206", flags)
        .replace("CPL=0", f"CPL={mode}")
        .replace("HLT=0", f"HLT={halted}")
    )


def test_a_cpu_is_stuck_only_if_it_never_leaves_the_kernel() -> None:
    answers = {
        0: [registers()],
        1: [registers(), registers(mode=3)],
        2: [registers(), registers(), registers(halted=1)],
        3: [registers(flags="00000006", halted=1)],  # with interrupts off nothing wakes it
        4: ["the monitor has changed"],
    }

    def execute(command: str, **arguments: Any) -> str:
        left = answers[arguments["cpu-index"]]
        return left.pop(0) if len(left) > 1 else left[0]

    monitor: Any = SimpleNamespace(execute=execute)
    assert cpus.stuck(monitor, 5, 0.5, lambda: None) == [0, 3, 4]
    answers.update({0: answers[1], 3: answers[1], 4: answers[1]})
    assert cpus.stuck(monitor, 5, 60, lambda: None) == []
