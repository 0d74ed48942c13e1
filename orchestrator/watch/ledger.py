# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's own count of int3: a ledger that depends on neither the guest nor GDB.

A TCG plugin (ledger.c) counts the int3 instructions that the kernel executes, by address and
virtual CPU. Under KVM QEMU does not see instructions, so there is no such ledger, and the run
reports that.
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
from orchestrator.text.keys import SiteCpu

SOURCE = Path(__file__).with_name("ledger.c")
CFLAGS = ("-shared", "-fPIC", "-O2", "-Wall", "-fvisibility=hidden")
CPUS = 64
RECORD = struct.Struct(f"<Q{CPUS}Q")  # struct slot in ledger.c


Counts = Counter[SiteCpu]
"""Number of executed int3."""


class Ledger:
    """The ledger of one machine, in the file int3.ledger of `directory`."""

    def __init__(self, qemu: Qemu, accel: Accel, directory: Path) -> None:
        self.path = directory / "int3.ledger"
        self.plugin: Path | None = None
        self.why_not: str | None = None
        """Why there is no ledger; None if there is one."""
        self.by_cpu = accel.thread == "multi"
        """Whether the CPUs are right. If not, only the sum over all CPUs is.

        With one TCG thread QEMU attributes an execution to the CPU for which the block was
        translated, because it believes that there is only one CPU: gen_cpu_index() in
        accel/tcg/plugin-gen.c, up to 10.0 at least.
        """
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
        """The counts so far. They are exact while the guest is stopped."""
        counts: Counts = Counter()
        if self.plugin and self.path.exists():
            for site, *by_cpu in RECORD.iter_unpack(self.path.read_bytes()):
                if not site:
                    break
                counts.update(
                    {SiteCpu(site, cpu): count for cpu, count in enumerate(by_cpu) if count}
                )
        return counts


def _plugin(qemu: Qemu) -> Path:
    """The compiled plugin, which this QEMU has loaded once. Cached by its source and the QEMU.

    Raises InfraError if it does not compile, or if this QEMU does not load it.
    """
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
        trial = [
            str(qemu.binary),
            *(argument for path in qemu.firmware for argument in ("-L", str(path))),
            *("-M", "none"),
            "-nodefaults",
            *("-display", "none"),
            *("-monitor", "stdio"),
            *("-plugin", f"file={plugin},ledger={directory}/trial"),
        ]
        try:
            proc.run([gcc, *CFLAGS, "-o", plugin, SOURCE])
            proc.run(trial, env=dict(qemu.env), stdin="quit\n")
        except subprocess.CalledProcessError as error:
            lines = error.output.strip().splitlines()
            reason = lines[-1] if lines else "no reason given"
            raise InfraError(f"this QEMU does not load our plugin: {reason}") from error

    return cached_dir(cache_dir() / "ledger" / digest, make) / "ledger.so"
