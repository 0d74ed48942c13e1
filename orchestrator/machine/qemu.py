# SPDX-License-Identifier: GPL-2.0-only
"""The QEMU command line: one machine that boots every kernel since 3.10.

It has serial lines, a PIC, IO-APIC and timers, and nothing else: no disk, no network, no display.
All devices that the guest needs are on the ISA bus, so that a kernel built without ACPI, PCI and
virtio works too. Such a kernel finds its CPUs through the MP table of SeaBIOS.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import UsageError
from orchestrator.host.tools import Qemu
from orchestrator.machine.accel import Accel
from orchestrator.machine.limits import MAX_SMP, MIN_MEMORY
from orchestrator.machine.parameters import WORD, combined

# Thresholds of the guest's own watchdogs, in seconds. The kernel's defaults (watchdog_thresh=10,
# doubled for soft lockups, and 21 for RCU stalls) are too short for a healthy guest of 16 CPUs
# under TCG on a busy host: a stall of 61 s was reported while every CPU was idle, because QEMU's
# main loop had not got round to running the timer.
WATCHDOG_SECONDS = 60
RCU_STALL_SECONDS = 120
TRANSLATED = 512
"""MiB for translated code. A guest of 8 CPUs fills less than a tenth of it in a run."""
NO_PLAN = "-"
"""What guest/module/plan.c finds as long as there is no plan."""


@dataclass(frozen=True, kw_only=True)
class MachineSpec:
    """A machine, and the kernel to boot on it."""

    qemu: Qemu
    accel: Accel
    bzimage: Path
    initrd: Path
    cpu: str | None = None
    """QEMU's -cpu; None for the accelerator's default."""
    smp: int = 8
    """Number of CPUs."""
    memory: int = 1024
    """Memory in MiB."""
    append: tuple[str, ...] = ()
    """Kernel parameters of the scenarios."""
    requested: tuple[str, ...] = ()
    """Kernel parameters that the user asks for, as --append takes them."""
    options: tuple[str, ...] = ()
    """Further QEMU arguments, for example a plugin."""
    log: tuple[str, ...] = ("cpu_reset",)
    """Items of QEMU's -d, written to qemu.log. cpu_reset has all registers, which shows whether a
    reset was a triple fault."""
    seed: int = 1
    """Seed of QEMU's own random numbers (-seed)."""
    icount: int | None = None
    """Guest time that one instruction takes: 2**icount ns, whatever the host does meanwhile. Then
    the guest also finds a plan, see `plan`. None: guest time follows the host's clock."""
    plan: Path | None = None
    """The file with the plan for the guest (guest/module/plan.c). None: it has to wait for one."""
    one_instruction: bool = False
    """Whether TCG's translated blocks have one instruction each, which is slow, and changes nothing
    in the guest."""
    incoming: bool = False
    """Whether the machine is to be restored from a snapshot instead of booting."""

    def __post_init__(self) -> None:
        if not 1 <= self.smp <= MAX_SMP:
            raise UsageError(f"a machine has 1 to {MAX_SMP} CPUs, not {self.smp}")
        if self.memory < MIN_MEMORY:
            raise UsageError(
                f"a machine needs at least {MIN_MEMORY} MiB of memory, not {self.memory}"
            )


@dataclass(frozen=True, kw_only=True)
class Channels:
    """QEMU's ends of the channels to it. The console is not among them: it is QEMU's stdout."""

    qmp: int
    """An inherited socket, as a file descriptor; `ssh` too."""
    ssh: int
    gdb: Path
    """The unix socket on which QEMU waits for GDB."""


PARAMETERS = (
    "rdinit=/init",
    "console=ttyS0,115200",
    # Shows a kernel that fails before it has set up its console. Ignored if it is not built in.
    "earlyprintk=serial,ttyS0,115200",
    "loglevel=8",
    # Each line of the console begins with its time and, since 4.16, its facility, which tells
    # the kernel's text from that of programs in the guest (guest/klog.py).
    "printk.time=1",
    "console_msg_format=syslog",
    "log_buf_len=4M",  # dmesg keeps the whole boot
    "8250.nr_uarts=4",  # ttyS1 carries ssh; some kernels are configured to use one UART only
    "nokaslr",  # so that the addresses in the symbol table are those in memory
    # With PTI, GDB cannot read kernel memory through a CPU that is in user mode.
    "nopti",
    # With IBT, kprobes place their int3 after the ENDBR, and a module whose compiler emitted no
    # ENDBR would trap.
    "ibt=off",
    # Keep a panicked guest as it is, for backtraces: no reboot.
    "panic=0",
    # The kernel's self-tests of the timer interrupt and the TSC fail at random if the host does
    # not schedule a virtual CPU in time.
    "no_timer_check",
    "tsc=reliable",
    # PREEMPT_RT takes the interrupts of a serial line for nobody's while its thread sends, and
    # after 100,000 of them turns the line off: one table of symbols has more characters.
    "noirqdebug",
    # 4.19 to 6.1: getrandom() does not wait for entropy, which no device here delivers.
    "random.trust_cpu=on",
    f"watchdog_thresh={WATCHDOG_SECONDS}",
    f"rcupdate.rcu_cpu_stall_timeout={RCU_STALL_SECONDS}",
)
"""What every kernel gets. guest/init/init sets what can also be set later."""

WITHOUT = {
    "nokaslr": "where the kernel is was read from the guest",
    "nopti": "GDB cannot read kernel memory through a CPU in user mode if PTI is on",
    "ibt=off": "the test module may trap if IBT is on",
    "no_timer_check": "booting may fail on a busy host",
}
"""What it means for a run that the kernel did not take a parameter, where it means anything."""


def parameters(spec: MachineSpec) -> tuple[str, ...]:
    """The kernel's parameters. Those of the scenarios come last, so that they win."""
    return (*combined(PARAMETERS, spec.requested), *spec.append)


def kernel_command_line(spec: MachineSpec) -> str:
    return " ".join(parameters(spec))


def not_taken(wanted: Iterable[str], command_line: str) -> tuple[str, ...]:
    """Those of the parameters that the kernel did not take.

    command_line: its /proc/cmdline. With CONFIG_CMDLINE_OVERRIDE it is another one; with
    CONFIG_CMDLINE it begins with another one, and is cut where it gets too long.
    """
    words = WORD.findall(command_line)
    if "--" in words:  # the rest is for init
        words = words[: words.index("--")]
    return tuple(parameter for parameter in wanted if parameter not in words)


def command_line(spec: MachineSpec, channels: Channels) -> list[str]:
    """QEMU's argument vector. It writes its logs to the current directory.

    So their names are ours, and have nothing in them that QEMU takes for syntax: not the comma of
    its options, nor the percent sign of -D.
    """
    return [
        *spec.qemu.command,
        *("-name", "orchestrator,debug-threads=on"),
        "-nodefaults",
        "-no-user-config",
        *("-display", "none"),
        # A seccomp filter for the process that runs foreign kernels: it cannot start programs or
        # gain privileges.
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        # pc, the oldest machine type: kernels of 2013 know all of it. The firmware needs no SMM.
        *("-M", "pc,usb=off,vmport=off,smm=off"),
        *("-accel", accelerator(spec)),
        *(("-bios", str(spec.qemu.qboot)) if spec.qemu.qboot else ()),
        *("-cpu", spec.cpu or spec.accel.cpu),
        # One CPU per socket, because SeaBIOS puts only sockets into its MP table. Since 6.2 QEMU's
        # default is one socket with many cores.
        *("-smp", f"{spec.smp},sockets={spec.smp},cores=1,threads=1"),
        *("-m", str(spec.memory)),
        # clock=vm stops the clock while the guest is stopped. Every run starts at the same time:
        # the day of the v3 patch.
        *("-rtc", "base=2013-07-12T00:00:00,clock=vm"),
        *("-seed", str(spec.seed)),
        # A reset (most likely a triple fault) ends the run, but QEMU stays, paused, so that the
        # registers can be read.
        *("-action", "reboot=shutdown,shutdown=pause"),
        *("-d", ",".join(spec.log), "-D", "qemu.log"),
        *("-msg", "timestamp=on"),
        "-S",  # QMP's `cont` starts the guest, once every observer is in place
        *("-chardev", f"socket,id=qmp,fd={channels.qmp}", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=gdb,path={escaped(channels.gdb)},server=on,wait=off"),
        *("-gdb", "chardev:gdb"),
        # A pipe, not a socket: QEMU writes byte by byte, and 280 such writes fill a socket. When it
        # is full the guest has to wait, and bytes appear twice in QEMU's logfile. We want that file
        # because it is complete even if this process dies.
        # Machine has put into it what the guest has written before it was saved.
        *("-chardev", "stdio,id=console,signal=off,logfile=console.log,logappend=on"),
        *("-device", "isa-serial,chardev=console,index=0"),
        *("-chardev", f"socket,id=ssh,fd={channels.ssh}"),
        *("-device", "isa-serial,chardev=ssh,index=1"),
        *("-kernel", str(spec.bzimage.absolute())),
        *("-initrd", str(spec.initrd.absolute())),
        *("-append", kernel_command_line(spec)),
        *(deterministic(spec) if spec.icount is not None else ()),
        *(("-incoming", "defer") if spec.incoming else ()),
        *spec.options,
    ]


def accelerator(spec: MachineSpec) -> str:
    """The value of -accel.

    With icount the size of the translation buffer is fixed, as it depends on the host's memory
    otherwise. When it is full, everything is translated anew, which the recorder could see.
    """
    size = f",tb-size={TRANSLATED}" if spec.icount is not None else ""
    single = ",one-insn-per-tb=on" if spec.one_instruction else ""
    return f"{spec.accel.option}{size}{single}"


def deterministic(spec: MachineSpec) -> Iterator[str]:
    """The arguments that make the guest a function of what it is given."""
    # sleep=off: while every CPU is idle, time leaps to the next timer.
    yield from ("-icount", f"shift={spec.icount},sleep=off")
    content = f"file={escaped(spec.plan.absolute())}" if spec.plan else f"string={NO_PLAN}"
    yield from ("-fw_cfg", f"name=opt/orchestrator/plan,{content}")


def shell_line(command: list[str], spec: MachineSpec, directory: Path) -> str:
    """`command` as one line for a shell, with its directory and the environment that it needs."""
    environment = [f"{name}={value}" for name, value in sorted(spec.qemu.env.items())]
    return (
        f"cd {shlex.quote(str(directory.absolute()))} && "
        f"{shlex.join([*(['env', *environment] if environment else []), *command])}"
    )


def escaped(value: Path | str) -> str:
    """`value` as it must be written within a QEMU option, where a comma is doubled."""
    return str(value).replace(",", ",,")
