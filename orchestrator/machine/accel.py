# SPDX-License-Identifier: GPL-2.0-only
"""Which accelerator the guest runs on, and why.

A /dev/kvm that can be opened does not prove that KVM works. Under some nested hypervisors a virtual
machine can be created, but QEMU dies of an assertion, or the guest hangs as soon as it is in 64-bit
mode. So KVM is used only if it has run guest/probe/probe.S to its end: int3, timers and a hardware
breakpoint on each of two CPUs. The result is remembered.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.errors import SIGNALS, InfraError, UsageError, nearest
from orchestrator.host import proc
from orchestrator.host.files import lock_of
from orchestrator.host.paths import DATA, cache_dir, cached_dir, locked, remembered, write_whole
from orchestrator.host.tools import Qemu
from orchestrator.machine.gdbstub import Stop, Stub, StubError
from orchestrator.machine.limits import CHOICES

PROBE = DATA / "guest" / "probe" / "probe.S"
PROBE_STATUS = 85
"""QEMU's exit status when the probe has run to its end: see probe.S."""
PROBE_SECONDS = 10.0
"""A KVM that works needs a quarter of a second."""
PROBE_CPUS = 2
PROBE_INT3 = 1000
"""Number of int3 that each CPU takes, at one address of its own."""
PROBE_STEPS = {
    "L": "reach 64-bit mode",
    "B": "go past a hardware breakpoint",
    "I": f"take {PROBE_INT3} int3",
    "T": "take the interrupts of a timer",
}
"""The letters by which the probe reports its steps, in order."""
PROBE_FLAGS = (f"-DROUNDS={PROBE_INT3}",)


@dataclass(frozen=True)
class Accel:
    kind: Literal["kvm", "tcg"]
    """Hardware virtualisation or QEMU's translator."""
    thread: Literal["multi", "single"] | None
    """TCG's threads: one per virtual CPU, or one for all of them. None for KVM."""
    why: str
    """Why this one was chosen, for the user."""

    @property
    def option(self) -> str:
        """The value of QEMU's -accel."""
        return f"tcg,thread={self.thread}" if self.kind == "tcg" else "kvm"

    @property
    def untrusted(self) -> str | None:
        """Why the accelerator itself may cause a failure; None if that is unlikely."""
        return UNSOUND if self.thread == "multi" else None

    @property
    def cpu(self) -> str:
        """The default CPU model.

        TCG gets max, not qemu64: that is a K8 of 2003, for which kernels choose other NOPs than on
        the CPUs people use today. It gets no la57, because a fifth level of page tables makes every
        page walk of TCG longer and proves nothing.
        """
        return "host" if self.kind == "kvm" else "max,la57=off"


def choose(accel: str, qemu: Qemu) -> Accel:
    """The accelerator for the user's choice `accel`, one of CHOICES.

    `auto` is KVM, or TCG with the reason if KVM does not work. Raises InfraError if `kvm` was asked
    for and does not work, UsageError for anything that is not in CHOICES.
    """
    if accel not in CHOICES:
        raise UsageError(
            f"unknown accelerator {accel}{nearest(accel, CHOICES)}: use one of {', '.join(CHOICES)}"
        )
    if accel in ("auto", "kvm"):
        trouble = kvm_trouble(qemu)
        if not trouble:
            return Accel("kvm", None, "KVM runs int3, timers and hardware breakpoints on this host")
        if accel == "kvm":
            raise InfraError(f"KVM cannot be used: {trouble}; --accel tcg works everywhere")
        tcg = _tcg("tcg")
        return Accel("tcg", tcg.thread, f"no KVM: {trouble}; {tcg.why}")
    return _tcg(accel)


def kvm_trouble(qemu: Qemu, *, device: Path = Path("/dev/kvm"), memory: Path | None = None) -> str:
    """What is wrong with KVM on this host, as a sentence without a full stop; empty if it works.

    memory: a JSON file with earlier results, by host, kernel, QEMU and probe. The default is
    hosts.json in the state directory. They are kept because a probe that hangs costs
    PROBE_SECONDS. Delete the file to probe again.
    """
    if not device.exists():
        return f"there is no {device}"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"you may not open {device} (are you in the group kvm?)"
    memory = memory or remembered("hosts.json")
    key = " ".join((_host(), platform.release(), qemu.identity, _probe_digest()))
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # then several may probe at once
            stack.enter_context(locked(lock_of(memory)))
        try:
            known = dict(json.loads(memory.read_text()))
        except (OSError, ValueError, TypeError, RecursionError):  # none, or a damaged one
            known = {}
        if not isinstance(known.get(key), str):
            known[key] = probe(qemu, "kvm", "host")
            with contextlib.suppress(OSError):
                write_whole(memory, json.dumps(known, indent=1, sort_keys=True) + "\n")
        return str(known[key])


def probe(
    qemu: Qemu,
    accel: str,
    cpu: str,
    seconds: float = PROBE_SECONDS,
    options: Sequence[str] = (),
) -> str:
    """Run the probe, for at most `seconds`. Returns what went wrong, or an empty string.

    options: further arguments for QEMU.

    Raises InfraError if somebody killed QEMU.
    """
    image = _probe_image()
    deadline = time.monotonic() + seconds
    ours, theirs = socket.socketpair()
    command = [
        *qemu.command,
        "-nodefaults",
        "-no-user-config",
        *("-display", "none"),
        *("-M", "pc"),
        *("-accel", accel),
        *("-cpu", cpu),
        *("-smp", str(PROBE_CPUS)),
        "-no-reboot",
        "-S",  # until the breakpoint is set
        *("-bios", str(image)),
        *("-chardev", f"socket,id=gdb,fd={theirs.fileno()}", "-gdb", "chardev:gdb"),
        *("-chardev", "stdio,id=steps,signal=off", "-device", "isa-debugcon,chardev=steps"),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"),
        *options,
    ]
    with tempfile.TemporaryFile() as steps, tempfile.TemporaryFile() as errors, ours:
        with theirs:
            child = subprocess.Popen(
                proc.mortal(command),
                env={**os.environ, **qemu.env},
                stdin=subprocess.DEVNULL,
                stdout=steps,
                stderr=errors,
                pass_fds=[theirs.fileno()],
            )
        trouble = ""
        try:
            _drive(Stub(ours, deadline), _breakpoint(image))
            child.wait(max(0.001, deadline - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired):
            trouble = f"it took more than {seconds:.0f} s"
        except StubError as error:
            trouble = str(error)
        except (OSError, EOFError):  # QEMU has ended
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(1)
        finally:
            status = child.poll()
            child.kill()
            child.wait()
        if status == PROBE_STATUS and not trouble:
            return ""
        if status is not None and -status in SIGNALS_OF_OTHERS:
            proc.check_not_killed(command, status)
        steps.seek(0)
        errors.seek(0)
        return " ".join(
            (
                f"a small guest did not {_next_step(steps.read().decode(errors='replace'))}:",
                trouble or f"QEMU {_how_it_ended(status)}",
                _complaint(errors.read().decode(errors="replace")),
            )
        ).strip()


def _drive(stub: Stub, breakpoint: int) -> None:
    """Send each CPU past the breakpoint, and let the probe run to its end.

    A CPU is sent past it by changing its rip, as watch/agent.py does it. Raises StubError.
    """
    stub.set_breakpoint(breakpoint)
    for cpu in range(PROBE_CPUS):
        stop = stub.resume()
        if stop is None:
            raise StubError(f"no hardware breakpoint stopped CPU {cpu}")
        if stop != Stop(signal.SIGTRAP, f"{cpu + 1:02x}", breakpoint):
            raise StubError(_where(stop))
        stub.set_rip(breakpoint + 1)
    if stop := stub.resume():
        raise StubError(_where(stop))


def _where(stop: Stop) -> str:
    what = "with an internal error" if stop.signal == signal.SIGABRT else f"by signal {stop.signal}"
    return f"QEMU stopped CPU {int(stop.thread, 16) - 1} {what} at {stop.rip:#x}"


def _next_step(steps: str) -> str:
    """The first thing that the probe was to do and has not done, given the letters that it wrote.

    If it has done everything, its end is what is missing.
    """
    for cpu in range(PROBE_CPUS):
        for letter, step in PROBE_STEPS.items():
            if (letter.lower() if cpu else letter) not in steps:
                return f"{step} on CPU {cpu}"
    return "end as it should"


def _how_it_ended(status: int | None) -> str:
    if status is None:
        return "closed its gdbstub"
    if status == 0:
        return "ended because the guest reset, as after a triple fault"
    return f"ended with status {status}" if status > 0 else f"died of signal {-status}"


SIGNALS_OF_OTHERS = (signal.SIGKILL, *SIGNALS)
"""Signals that say nothing about QEMU, which does not end itself with them."""

NOISE = re.compile(r"[A-Z0-9]{2,5} ?=|Code=|extra data\[|.*: warning: ")
"""Lines of QEMU's that say less than the others: the registers after an internal error."""


def _complaint(errors: str) -> str:
    """What QEMU printed, in parentheses: the last 3 lines that are not NOISE."""
    lines = [line.strip().rstrip(".") for line in errors.splitlines()]
    lines = [line for line in lines if line and not NOISE.match(line)]
    return f"({' / '.join(lines[-3:])})" if lines else ""


UNSOUND = (
    "with several TCG threads QEMU can go on running code that was patched: it discards the "
    "translations of a page before it stores to the page, and another thread may translate the old "
    "bytes in between"
)
"""Why `auto` never chooses several threads.

In QEMU's accel/tcg/cputlb.c, notdirty_write() invalidates first; the store follows, and the page's
lock does not cover it. QEMU 7.2 showed this as endless traps and oopses within seconds. QEMU 10.0
locks the pages that it translates, and executed up to a tenth more int3 than the guest ever saw,
with one oops. A single thread has none of this. It is also faster here, because no sync
round has to wait for the host to schedule a thread for each CPU.
"""


def _tcg(choice: str) -> Accel:
    if choice == "tcg-multi":
        return Accel("tcg", "multi", f"asked for, although {UNSOUND}")
    return Accel(
        "tcg", "single", "one thread for all CPUs, because with several QEMU can run stale code"
    )


def _host() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip()
    except OSError:
        return platform.node()


def _probe_digest() -> str:
    return hashlib.sha256(PROBE.read_bytes() + repr(PROBE_FLAGS).encode()).hexdigest()[:16]


def _probe_image() -> Path:
    """The assembled probe: a firmware image of 64 KiB."""

    def make(directory: Path) -> None:
        obj, elf, image = (directory / f"probe.{suffix}" for suffix in ("o", "elf", "bin"))
        objcopy = proc.need("objcopy", "binutils")
        try:
            proc.run([proc.need("gcc", "gcc"), "-c", *PROBE_FLAGS, "-o", obj, PROBE])
            proc.run([proc.need("ld", "binutils"), "-Ttext=0", "-o", elf, obj])
            proc.run([objcopy, "-O", "binary", "-j", ".text", elf, image])
        except subprocess.CalledProcessError as error:
            raise InfraError(
                f"cannot assemble the probe for KVM: {error.output.strip()}"
            ) from error

    return cached_dir(cache_dir() / "helpers" / f"probe-{_probe_digest()}", make) / "probe.bin"


def _breakpoint(image: Path) -> int:
    """The address of the breakpoint, which is in the last bytes of the image."""
    return int.from_bytes(image.read_bytes()[-8:], "little")
