# SPDX-License-Identifier: GPL-2.0-only
"""Which accelerator the guest runs on, and why.

A /dev/kvm that can be opened does not prove that KVM works. Under some nested hypervisors a virtual
machine can be created, but QEMU dies of an assertion, or the guest hangs as soon as it is in 64-bit
mode. So KVM is used only if it has run guest/probe/probe.S to its end. The result is remembered.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.errors import InfraError, UsageError, nearest
from orchestrator.host import proc
from orchestrator.host.paths import PROJECT, cache_dir, cached_dir, locked, state_dir, write_whole
from orchestrator.host.tools import Qemu
from orchestrator.machine.limits import CHOICES

PROBE = PROJECT / "guest" / "probe" / "probe.S"
PROBE_STATUS = 85
"""QEMU's exit status when the probe has run to its end: see probe.S."""
PROBE_SECONDS = 10.0
"""A KVM that works needs a quarter of a second."""


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
            return Accel("kvm", None, "KVM runs 64-bit code and takes int3 on this host")
        if accel == "kvm":
            raise InfraError(f"KVM cannot be used: {trouble}; --accel tcg works everywhere")
        tcg = _tcg("tcg")
        return Accel("tcg", tcg.thread, f"no KVM: {trouble}; {tcg.why}")
    return _tcg(accel)


def kvm_trouble(qemu: Qemu, *, device: Path = Path("/dev/kvm"), memory: Path | None = None) -> str:
    """What is wrong with KVM on this host, as a sentence without a full stop; empty if it works.

    memory: a JSON file with earlier results of the probe, by host, kernel and QEMU version. The
    default is hosts.json in the state directory. They are kept because a probe that hangs costs
    PROBE_SECONDS. Delete the file to probe again.
    """
    if not device.exists():
        return f"there is no {device}"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"you may not open {device} (are you in the group kvm?)"
    memory = memory or state_dir() / "hosts.json"
    key = " ".join((_host(), platform.release(), "qemu", ".".join(map(str, qemu.version))))
    with locked(memory.with_name(f".{memory.name}.lock")):
        try:
            known = dict(json.loads(memory.read_text()))
        except (OSError, ValueError):  # no such file, or a damaged one, which is overwritten below
            known = {}
        if not isinstance(known.get(key), str):
            known[key] = probe(qemu, "kvm", "host")
            write_whole(memory, json.dumps(known, indent=1, sort_keys=True) + "\n")
        return str(known[key])


def probe(qemu: Qemu, accel: str, cpu: str, seconds: float = PROBE_SECONDS) -> str:
    """Run the probe, for at most `seconds`. Returns what went wrong, or an empty string."""
    command = [
        *qemu.command,
        "-nodefaults",
        "-no-user-config",
        *("-display", "none"),
        *("-M", "pc"),
        *("-accel", accel),
        *("-cpu", cpu),
        "-no-reboot",
        *("-bios", str(_probe_image())),
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"),
    ]
    try:
        done = subprocess.run(
            proc.mortal(command),
            env={**os.environ, **qemu.env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return f"a guest of a few instructions did not finish within {seconds:.0f} s"
    if done.returncode == PROBE_STATUS:
        return ""
    errors = done.stderr.decode(errors="replace").strip().splitlines()
    how = (
        f"ended with status {done.returncode}"
        if done.returncode >= 0
        else f"died of signal {-done.returncode}"
    )
    return f"QEMU {how}{': ' + errors[-1].rstrip('.') if errors else ''}"


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


def _probe_image() -> Path:
    """The assembled probe: a firmware image of 64 KiB."""
    digest = hashlib.sha256(PROBE.read_bytes()).hexdigest()[:16]

    def make(directory: Path) -> None:
        obj, elf, image = (directory / f"probe.{suffix}" for suffix in ("o", "elf", "bin"))
        objcopy = proc.need("objcopy", "binutils")
        try:
            proc.run([proc.need("gcc", "gcc"), "-c", "-o", obj, PROBE])
            proc.run([proc.need("ld", "binutils"), "-Ttext=0", "-o", elf, obj])
            proc.run([objcopy, "-O", "binary", "-j", ".text", elf, image])
        except subprocess.CalledProcessError as error:
            raise InfraError(
                f"cannot assemble the probe for KVM: {error.output.strip()}"
            ) from error

    return cached_dir(cache_dir() / "helpers" / f"probe-{digest}", make) / "probe.bin"
