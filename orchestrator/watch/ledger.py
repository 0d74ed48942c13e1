# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's own count of int3: a ledger that depends on neither the guest nor GDB.

A TCG plugin (ledger.c) counts the int3 instructions that the kernel executes, by address and
virtual CPU. Under KVM QEMU does not see instructions, so there is no such ledger, and the run
reports that.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from orchestrator.errors import InfraError
from orchestrator.host.logs import Log, MemoryFile
from orchestrator.host.tools import QEMU_GOOD, Qemu
from orchestrator.machine.accel import PROBE_CPUS, PROBE_INT3, Accel
from orchestrator.machine.qemu import escaped
from orchestrator.text.keys import SiteCpu
from orchestrator.watch import plugin

SOURCE = Path(__file__).with_name("ledger.c")
CPUS = 64
SLOTS = 1024
RECORD = struct.Struct(f"<Q{CPUS}Q")  # struct slot in ledger.c


Counts = Counter[SiteCpu]
"""Number of executed int3."""


class Ledger:
    """The ledger of one machine.

    The plugin writes it to a file that is on no disk, so that nobody can remove or truncate it.
    """

    def __init__(self, qemu: Qemu, accel: Accel) -> None:
        self._file = MemoryFile("int3.ledger")
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
        if not self.plugin:
            return ()
        return ("-plugin", f"file={escaped(self.plugin)},ledger={self._file.path}")

    @property
    def lost(self) -> str:
        """Why int3 may be missing in the counts, as a sentence; empty if none are."""
        if not self.plugin:
            return ""
        if self._file.size() != SLOTS * RECORD.size:
            return "QEMU's plugin did not begin to count int3"
        if len({site for site, *_ in _records(self._file.read())}) == SLOTS:
            return f"QEMU's plugin counts int3 at {SLOTS} addresses only, and there may be more"
        return ""

    def read(self) -> Counts:
        """The counts so far. They are exact while the guest is stopped."""
        return _counts(self._file.read())

    def save(self, log: Log) -> None:
        """Write a copy for people; nothing if there is no ledger."""
        log.write(self._file.read())


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
    counted, executed = _counts(file.read_bytes()).total(), PROBE_CPUS * PROBE_INT3
    return (
        "" if counted == executed else f"it counted {counted} int3 where {executed} were executed"
    )


def _counts(content: bytes) -> Counts:
    counts: Counts = Counter()
    for site, *by_cpu in _records(content):
        counts.update({SiteCpu(site, cpu): count for cpu, count in enumerate(by_cpu) if count})
    return counts


def _records(content: bytes) -> Iterator[tuple[int, ...]]:
    """Address and count by CPU, of each address in the plugin's file so far."""
    for record in RECORD.iter_unpack(content[: len(content) // RECORD.size * RECORD.size]):
        if not record[0]:
            return
        yield record
