# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's own count of int3: a ledger that depends on neither the guest nor GDB.

A TCG plugin (ledger.c) counts the int3 instructions that the kernel executes, by address and
virtual CPU. Under KVM QEMU does not see instructions, so there is no such ledger, and the run
reports that.
"""

from __future__ import annotations

import struct
from collections import Counter
from pathlib import Path

from orchestrator.errors import InfraError
from orchestrator.host.tools import QEMU_GOOD, Qemu
from orchestrator.machine.accel import PROBE_CPUS, PROBE_INT3, Accel
from orchestrator.text.keys import SiteCpu
from orchestrator.watch import plugin

SOURCE = Path(__file__).with_name("ledger.c")
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
        else:
            try:
                self.plugin = plugin_for(qemu)
            except InfraError as error:
                self.why_not = str(error)

    @property
    def options(self) -> tuple[str, ...]:
        """Arguments for QEMU's command line."""
        return ("-plugin", f"file={self.plugin},ledger={self.path}") if self.plugin else ()

    def read(self) -> Counts:
        """The counts so far. They are exact while the guest is stopped."""
        return _counts(self.path) if self.plugin and self.path.exists() else Counter()


def plugin_for(qemu: Qemu) -> Path:
    """The plugin, which `qemu` has loaded and which has counted the int3 of accel.probe().

    Raises InfraError if there is none.
    """
    if not qemu.good:
        version, oldest = (".".join(map(str, v)) for v in (qemu.version, QEMU_GOOD))
        raise InfraError(f"QEMU {version} is older than {oldest} and lacks the plugin interface")
    return plugin.compiled(SOURCE, qemu, "ledger", _miscount)


def _miscount(file: Path) -> str:
    """What is wrong with the ledger of a probe; empty if nothing is."""
    counted, executed = _counts(file).total(), PROBE_CPUS * PROBE_INT3
    return (
        "" if counted == executed else f"it counted {counted} int3 where {executed} were executed"
    )


def _counts(file: Path) -> Counts:
    counts: Counts = Counter()
    for site, *by_cpu in RECORD.iter_unpack(file.read_bytes()):
        if not site:
            break
        counts.update({SiteCpu(site, cpu): count for cpu, count in enumerate(by_cpu) if count})
    return counts
