# SPDX-License-Identifier: GPL-2.0-only
"""Kernels that fail while they boot, and programs that talk like a failing kernel.

GDB breaks a healthy kernel at the start of kernel_init().
"""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import observer as observer_module
from orchestrator.errors import BootError
from orchestrator.kernel.model import Kernel
from orchestrator.machine.faults import KernelFault
from orchestrator.machine.machine import Machine
from orchestrator.observer import Observer
from orchestrator.verdict.evidence import Evidence
from orchestrator.verdict.outcome import Verdict, judge

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

BOOT_SECONDS = 120
Guest = Callable[..., Machine]


def gdb(machine: Machine, kernel: Kernel, *commands: str) -> None:
    """Run the commands once the guest, which has not been started, is at kernel_init()."""
    every = ["hbreak kernel_init", "continue", "delete", *commands, "delete", "detach"]
    options = [word for command in every for word in ("-ex", command)]
    target = ["-ex", "set confirm off", "-ex", f"target remote {machine.gdb_path}"]
    subprocess.run(
        ["gdb", "-nx", "-batch", *target, *options, str(kernel.vmlinux)], check=True, timeout=120
    )


def observe(machine: Machine, kernel: Kernel, directory: Path) -> Observer:
    recorder: Any = SimpleNamespace(why_not="there is none", read=Counter)
    return Observer(
        machine=machine,
        recorder=recorder,
        scenarios=(),
        duration=1,
        seed=1,
        directory=directory,
        evidence=Evidence(requested_cpus=machine.spec.smp),
        vmlinux=kernel.vmlinux,
    )


def boot(machine: Machine, kernel: Kernel, directory: Path) -> tuple[Evidence, Verdict]:
    """What becomes of a run whose kernel does not boot."""
    observer = observe(machine, kernel, directory)
    evidence = observer.evidence
    with pytest.raises(BootError) as caught:
        observer.prepare()
    evidence.error = caught.value
    evidence.take_consoles()
    return evidence, judge(evidence)


def test_a_triple_fault_while_booting(guest: Guest, kernel: Kernel, tmp_path: Path) -> None:
    code = 0x241C010F006A006A, 0x0B0F  # push 0; push 0; lidt (%rsp); ud2
    with guest() as machine:
        long, short = (f"{{unsigned {size}}}" for size in ("long", "short"))
        gdb(
            machine,
            kernel,
            f"set {long}smp_init={code[0]:#x}",
            f"set {short}((char*)smp_init+8)={code[1]:#x}",
        )
        evidence, verdict = boot(machine, kernel, tmp_path)
    assert (verdict.outcome, verdict.exit_status) == ("boot-error", 125)
    assert "the guest reset itself while booting (triple fault); " in verdict.reason
    assert "smp_init+" in evidence.hang_report[0]


def test_a_hang_while_booting(
    guest: Guest, kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observer_module, "SILENCE_SECONDS", 5)
    with guest() as machine:
        gdb(machine, kernel, "set {unsigned short}smp_init=0xfeeb")  # jmp .
        evidence, verdict = boot(machine, kernel, tmp_path)
    assert (verdict.outcome, verdict.exit_status) == ("boot-error", 125)
    assert evidence.hang_report[0].startswith("CPU 0: smp_init+0x0, interrupts on < kernel_init")
    assert (machine.directory / "cpus.json").exists()


def test_a_crash_of_jump_labels_while_booting(guest: Guest, kernel: Kernel, tmp_path: Path) -> None:
    with guest() as machine:
        gdb(
            machine,
            kernel,
            "hbreak arch_jump_label_transform_queue",
            "continue",
            "set {unsigned char}($rdi + *(int *)$rdi + 1) = 0x0d",
        )
        evidence, verdict = boot(machine, kernel, tmp_path)
    assert (verdict.outcome, verdict.exit_status) == ("oops", 1)
    assert "jump labels" in verdict.reason and "unexpected op" in verdict.reason
    assert len(evidence.hang_report) == 2


def test_what_programs_print_is_not_the_kernels(guest: Guest) -> None:
    with guest() as machine:
        machine.cont()
        machine.wait_ready(BOOT_SECONDS)
        panic = "Kernel panic - not syncing: not really"
        machine.ssh.run(f"echo '{panic}' >/dev/console; echo '<0>{panic}' >/dev/kmsg")
        machine.ssh.run(f"printf 'half a line' >/dev/console; echo '{panic}' >/dev/kmsg")
        scanner = machine.console.scanner
        machine.wait(lambda: len(scanner.excused) == 3, 20, "the lines")
        machine.check()
        assert not scanner.findings


def test_where_the_console_does_not_tell_the_kernels_log_does(
    guest: Guest, kernel: Kernel, provoke: Path, tmp_path: Path
) -> None:
    """As before 4.16: what was written to /dev/kmsg looks like the kernel's."""
    files = {"/provoke.ko": provoke}
    with guest(files=files, append=("console_msg_format=default",)) as machine:
        machine.cont()
        machine.wait_ready(BOOT_SECONDS)
        observer = observe(machine, kernel, tmp_path)
        scanner = machine.console.scanner
        machine.ssh.run("insmod /provoke.ko how=warn")
        with pytest.raises(KernelFault) as caught:
            machine.ssh.run("echo '<0>Kernel panic - not syncing: not really' >/dev/kmsg; sleep 9")
        observer._guest(None, {}, []).excuse_programs()
        assert [finding.kind for finding in scanner.findings] == ["warn"]
        assert caught.value.fault.excuse
        machine.check()
