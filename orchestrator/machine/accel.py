"""Which accelerator the guest runs on, and why.

A /dev/kvm that opens is no proof of a KVM that works: under some nested hypervisors a virtual machine can be created,
but QEMU dies of an assertion, or the guest stands still as soon as it is in 64-bit mode. So KVM is used only where it
has run guest/probe/probe.S to its end, which is found out once and remembered.
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

CHOICES = ("auto", "kvm", "tcg", "tcg-multi", "tcg-single")
"""`tcg` is tcg-single."""

PROBE = PROJECT / "guest" / "probe" / "probe.S"
PROBE_STATUS = 85
"""QEMU's exit status when the probe has come to its end: see probe.S."""
PROBE_SECONDS = 10.0
"""A KVM that works needs a quarter of a second."""


@dataclass(frozen=True)
class Accel:
    """kind: hardware virtualisation or QEMU's translator; thread: of TCG, one per CPU or one for all (None for KVM)."""

    kind: Literal["kvm", "tcg"]
    thread: Literal["multi", "single"] | None
    why: str

    @property
    def option(self) -> str:
        """The value of QEMU's -accel."""
        return f"tcg,thread={self.thread}" if self.kind == "tcg" else "kvm"

    @property
    def untrusted(self) -> str | None:
        """Why a failure may be the accelerator's own, None when there is no reason to think so."""
        return UNSOUND if self.thread == "multi" else None

    @property
    def cpu(self) -> str:
        """The CPU model to use where the user names none.

        max, not qemu64: that is a K8 of 2003 for which kernels choose other NOPs than on what people run today. Without
        la57: a fifth level of page tables makes every page walk of TCG longer and proves nothing.
        """
        return "host" if self.kind == "kvm" else "max,la57=off"


def choose(accel: str, qemu: Qemu) -> Accel:
    """The accelerator for the user's word `accel` (one of CHOICES).

    Raises InfraError when KVM is asked for by name and does not work; `auto` falls back on TCG and says why.
    """
    if accel not in CHOICES:
        raise UsageError(
            f"unknown accelerator {accel}{nearest(accel, CHOICES)}: one of {', '.join(CHOICES)}"
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
    """What is wrong with KVM here, in one sentence without a full stop; empty when it works.

    What the probe found is kept in the file `memory` (default: hosts.json in the state directory), by host, kernel and
    QEMU, because one that hangs costs PROBE_SECONDS. Delete the file to probe again.
    """
    if not device.exists():
        return f"there is no {device}"
    if not os.access(device, os.R_OK | os.W_OK):
        return f"{device} is not ours to open (is the user in the group kvm?)"
    memory = memory or state_dir() / "hosts.json"
    key = " ".join((_host(), platform.release(), "qemu", ".".join(map(str, qemu.version))))
    with locked(memory.with_name(f".{memory.name}.lock")):
        try:
            known = dict(json.loads(memory.read_text()))
        except (OSError, ValueError):  # none yet, or not one of ours: probing again repairs it
            known = {}
        if not isinstance(known.get(key), str):
            known[key] = probe(qemu, "kvm", "host")
            write_whole(memory, json.dumps(known, indent=1, sort_keys=True) + "\n")
        return str(known[key])


def probe(qemu: Qemu, accel: str, cpu: str, seconds: float = PROBE_SECONDS) -> str:
    """Run the probe; what went wrong, or an empty string."""
    command = [
        *(
            str(qemu.binary),
            *(argument for path in qemu.firmware for argument in ("-L", str(path))),
        ),
        *(
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-M",
            "pc",
            "-accel",
            accel,
            "-cpu",
            cpu,
            "-no-reboot",
        ),
        *("-bios", str(_probe_image()), "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"),
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
        return f"a guest of a few instructions did not come to its end within {seconds:.0f} s"
    if done.returncode == PROBE_STATUS:
        return ""
    said = done.stderr.decode(errors="replace").strip().splitlines()
    how = (
        f"ended with status {done.returncode}"
        if done.returncode >= 0
        else f"died of signal {-done.returncode}"
    )
    return f"QEMU {how}{': ' + said[-1].rstrip('.') if said else ''}"


UNSOUND = (
    "with several TCG threads QEMU can go on running code that was patched: a store to a page comes after its "
    "translations were thrown away, and another thread may translate the old bytes in between"
)
"""Why several threads are never chosen by ourselves. (accel/tcg/cputlb.c, notdirty_write(): the store follows the
invalidation, and is not under the page's lock.) QEMU 7.2 showed it as endless traps and oopses within seconds; 10.0,
which locks the pages that it translates, as up to a tenth more int3 executed than the guest was ever shown, and an oops
once. One thread has none of it, and serves this purpose faster too, since no sync round has to wait for the host to
schedule a thread for each CPU."""


def _tcg(word: str) -> Accel:
    if word == "tcg-multi":
        return Accel("tcg", "multi", f"asked for, although {UNSOUND}")
    return Accel(
        "tcg", "single", "one thread for all CPUs, since with several QEMU can run stale code"
    )


def _host() -> str:
    try:
        return Path("/etc/machine-id").read_text().strip()
    except OSError:
        return platform.node()


def _probe_image() -> Path:
    """The probe, assembled: a firmware image of 64 KiB."""
    digest = hashlib.sha256(PROBE.read_bytes()).hexdigest()[:16]

    def make(directory: Path) -> None:
        parts = {suffix: directory / f"probe.{suffix}" for suffix in ("o", "elf", "bin")}
        try:
            proc.run([proc.need("gcc", "gcc"), "-c", "-o", parts["o"], PROBE])
            proc.run([proc.need("ld", "binutils"), "-Ttext=0", "-o", parts["elf"], parts["o"]])
            proc.run(
                [
                    proc.need("objcopy", "binutils"),
                    "-O",
                    "binary",
                    "-j",
                    ".text",
                    parts["elf"],
                    parts["bin"],
                ]
            )
        except subprocess.CalledProcessError as error:
            raise InfraError(
                f"the probe for KVM does not assemble: {error.output.strip()}"
            ) from error

    return cached_dir(cache_dir() / "helpers" / f"probe-{digest}", make) / "probe.bin"
