"""The QEMU command line: one machine on which every kernel from 3.10 on boots.

It has serial lines, a PIC, IO-APIC and timers, and nothing else: no disk, no network, no display. Everything that the
guest needs is on the ISA bus, so that a kernel built without ACPI, PCI and virtio works too (it finds its CPUs by the
MP table of SeaBIOS).
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import UsageError
from orchestrator.host.tools import Qemu
from orchestrator.machine.accel import Accel

MAX_SMP = 64

# Seconds without a sign of life after which the guest's own watchdogs speak up. The kernel's defaults (10, doubled for
# the soft lockup, and 21) are reached by a healthy guest of 16 CPUs on a busy host under TCG: a stall of 61 s was seen
# with every CPU idle, because QEMU's main loop had not come to run the timer.
WATCHDOG_SECONDS = 60
RCU_STALL_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class MachineSpec:
    """What machine to run which kernel on.

    cpu: QEMU's -cpu, None for the one that fits the accelerator. smp: number of CPUs. memory: in MiB.
    append: parameters after ours on the kernel command line, so that they win. options: further QEMU arguments (a
    plugin, for example). log: items for QEMU's -d, written to qemu.log. seed: of what QEMU itself draws at random.
    """

    qemu: Qemu
    accel: Accel
    bzimage: Path
    initrd: Path
    cpu: str | None = None
    smp: int = 8
    memory: int = 1024
    append: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    log: tuple[str, ...] = (
        "cpu_reset",
    )  # tells a triple fault, with all registers, from other resets
    seed: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.smp <= MAX_SMP:
            raise UsageError(f"a machine has 1 to {MAX_SMP} CPUs, not {self.smp}")
        if self.memory < 128:
            raise UsageError(f"a machine needs at least 128 MiB of memory, not {self.memory}")


@dataclass(frozen=True, kw_only=True)
class Channels:
    """QEMU's ends of what connects us: inherited socket descriptors, and the path on which it awaits GDB.

    The console is QEMU's standard output.
    """

    qmp: int
    ssh: int
    gdb: Path


def kernel_command_line(spec: MachineSpec) -> str:
    parameters = [
        "rdinit=/init",
        "console=ttyS0,115200",
        # Shows a kernel that fails before it has set up its console. Where not built in, it is ignored.
        "earlyprintk=serial,ttyS0,115200",
        "loglevel=8",
        "log_buf_len=4M",  # dmesg keeps the whole boot
        "8250.nr_uarts=4",  # ttyS1 is the ssh line; some kernels are built to use a single UART
        "nokaslr",  # addresses in the symbol table are those in memory
        "nopti",  # else GDB cannot read kernel memory through a CPU that is in user mode
        "ibt=off",  # kprobes place their int3 behind an ENDBR otherwise, and modules of other compilers would trap
        # A panicked or oopsed guest stays as it is, for backtraces.
        "panic=0",
        # The self-tests of interrupts and TSC fail at random when the host does not schedule a virtual CPU in time.
        "no_timer_check",
        "tsc=reliable",
        "random.trust_cpu=on",  # 4.19 to 6.1: getrandom() need not wait for entropy that no device delivers
        f"watchdog_thresh={WATCHDOG_SECONDS}",
        f"rcupdate.rcu_cpu_stall_timeout={RCU_STALL_SECONDS}",
        *spec.append,
    ]
    return " ".join(parameters)


def command_line(spec: MachineSpec, channels: Channels, directory: Path) -> list[str]:
    """The argument vector of QEMU; logs go to `directory`."""
    return [
        str(spec.qemu.binary),
        *(argument for path in spec.qemu.firmware for argument in ("-L", str(path))),
        *("-name", "orchestrator,debug-threads=on"),
        "-nodefaults",
        "-no-user-config",
        *("-display", "none"),
        # No further system calls for the process that runs foreign kernels: no new programs, no new privileges.
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        # The oldest machine type: kernels of 2013 know all of it. No system management mode: SeaBIOS gets by without.
        *("-M", "pc,usb=off,vmport=off,smm=off"),
        *("-accel", spec.accel.option),
        *("-cpu", spec.cpu or spec.accel.cpu),
        # One CPU a socket: the MP table of SeaBIOS lists sockets only, and QEMU's default is cores (since 6.2).
        *("-smp", f"{spec.smp},sockets={spec.smp},cores=1,threads=1"),
        *("-m", str(spec.memory)),
        # The clock stands still with the guest, and starts at the same moment in every run (the day of the v3 patch).
        *("-rtc", "base=2013-07-12T00:00:00,clock=vm"),
        *("-seed", str(spec.seed)),
        # A reset (a triple fault, above all) ends the run, but QEMU stays so that the registers can be looked at.
        *("-action", "reboot=shutdown,shutdown=pause"),
        *("-d", ",".join(spec.log), "-D", str(directory / "qemu.log")),
        *("-msg", "timestamp=on"),
        "-S",  # the guest starts with QMP's `cont`, when every observer is in place
        *("-chardev", f"socket,id=qmp,fd={channels.qmp}", "-mon", "chardev=qmp,mode=control"),
        *(
            "-chardev",
            f"socket,id=gdb,path={channels.gdb},server=on,wait=off",
            "-gdb",
            "chardev:gdb",
        ),
        # A pipe, not a socket: QEMU writes byte by byte, and a socket is full after 280 such writes. A full one makes
        # the guest wait, and QEMU's logfile, which is complete whatever becomes of us, have such bytes twice.
        *("-chardev", f"stdio,id=console,signal=off,logfile={_escaped(directory / 'console.log')}"),
        *("-device", "isa-serial,chardev=console,index=0"),
        *(
            "-chardev",
            f"socket,id=ssh,fd={channels.ssh}",
            "-device",
            "isa-serial,chardev=ssh,index=1",
        ),
        *("-kernel", str(spec.bzimage)),
        *("-initrd", str(spec.initrd)),
        *("-append", kernel_command_line(spec)),
        *spec.options,
    ]


def written(command: list[str], spec: MachineSpec) -> str:
    """`command` as a line for a shell, with the environment it needs."""
    return shlex.join(
        [*(f"{name}={value}" for name, value in sorted(spec.qemu.env.items())), *command]
    )


def _escaped(path: Path) -> str:
    """In the value of a QEMU option a comma is doubled."""
    return str(path).replace(",", ",,")
