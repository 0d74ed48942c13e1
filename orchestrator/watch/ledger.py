"""QEMU's own count of int3: the ledger that neither the guest nor GDB has a hand in.

A TCG plugin (ledger.c) counts executed int3 instructions of the kernel by address and virtual CPU. Under KVM QEMU sees
no instructions, so that there is no such ledger; the run says so.
"""

from __future__ import annotations

import hashlib
import struct
import subprocess
from collections import Counter
from pathlib import Path

from orchestrator.errors import InfraError
from orchestrator.host import proc
from orchestrator.host.paths import cache_dir, cached_dir
from orchestrator.host.tools import QEMU_GOOD, Qemu
from orchestrator.machine.accel import Accel

SOURCE = Path(__file__).with_name("ledger.c")
CFLAGS = ("-shared", "-fPIC", "-O2", "-Wall", "-fvisibility=hidden")
CPUS = 64
RECORD = struct.Struct(f"<Q{CPUS}Q")  # struct slot in ledger.c

Counts = Counter[tuple[int, int]]
"""Executed int3 by (address, cpu)."""


class Ledger:
    """The ledger of one machine. `why_not` says why there is none, None when there is one."""

    def __init__(self, qemu: Qemu, accel: Accel, directory: Path) -> None:
        self.path = directory / "int3.ledger"
        self.plugin: Path | None = None
        self.why_not: str | None = None
        # With one thread QEMU takes the CPU that a block was translated on for the one that executes it: it takes that
        # for a machine of one CPU (accel/tcg/plugin-gen.c, gen_cpu_index(), up to 10.0 at least). The sums are exact.
        self.by_cpu = accel.thread == "multi"
        if accel.kind == "kvm":
            self.why_not = "under KVM QEMU does not see the guest's instructions"
        elif not qemu.good:
            version, oldest = (".".join(map(str, v)) for v in (qemu.version, QEMU_GOOD))
            self.why_not = f"QEMU {version} is older than {oldest} and lacks the plugin interface"
        else:
            try:
                self.plugin = _plugin(qemu)
            except InfraError as error:
                self.why_not = str(error)

    @property
    def options(self) -> tuple[str, ...]:
        """Arguments for QEMU's command line."""
        return ("-plugin", f"file={self.plugin},ledger={self.path}") if self.plugin else ()

    def read(self) -> Counts:
        """What has been counted up to now. Exact while the guest is stopped."""
        counts: Counts = Counter()
        if self.plugin and self.path.exists():
            for address, *by_cpu in RECORD.iter_unpack(self.path.read_bytes()):
                if not address:
                    break
                counts.update({(address, cpu): count for cpu, count in enumerate(by_cpu) if count})
        return counts


def _plugin(qemu: Qemu) -> Path:
    """The plugin, compiled and once loaded by this very QEMU; cached by both."""
    source = SOURCE.read_bytes()
    gcc = proc.need("gcc", "gcc")
    identity = [
        source,
        str(qemu.version).encode(),
        str(qemu.binary).encode(),
        *map(str.encode, CFLAGS),
    ]
    digest = hashlib.sha256(b"\0".join(identity)).hexdigest()[:16]

    def make(directory: Path) -> None:
        plugin = directory / "ledger.so"
        firmware = [word for path in qemu.firmware for word in ("-L", str(path))]
        trial = [
            str(qemu.binary),
            *firmware,
            "-M",
            "none",
            "-nodefaults",
            "-display",
            "none",
            "-monitor",
            "stdio",
            "-plugin",
            f"file={plugin},ledger={directory}/trial",
        ]
        try:
            proc.run([gcc, *CFLAGS, "-o", plugin, SOURCE])
            proc.run(trial, env=dict(qemu.env), stdin="quit\n")
        except subprocess.CalledProcessError as error:
            said = error.output.strip().splitlines()
            why = said[-1] if said else "no reason given"
            raise InfraError(f"this QEMU does not load our plugin: {why}") from error

    return cached_dir(cache_dir() / "ledger" / digest, make) / "ledger.so"
