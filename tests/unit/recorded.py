# SPDX-License-Identifier: GPL-2.0-only
"""Logs of the recorder that are written down by hand, a record a call."""

from __future__ import annotations

from typing import Any

import numpy as np

from orchestrator.verdict.recorded import record
from orchestrator.verdict.recorded.judgement import Surroundings
from orchestrator.verdict.recorded.record import Records
from orchestrator.watch.recorder import RECORD

TEXT = 0xFFFFFFFF81000000
SITE = TEXT + 0x1000
TASK = 0xFFFF888000123400
NOP, JUMP = bytes.fromhex("0f1f440000"), bytes.fromhex("e9fb000000")
CPUS = 4
AROUND = Surroundings(name=lambda address: f"f_{address:x}", text=(TEXT, TEXT + 0x100000))


class Written:
    """A log that grows."""

    def __init__(self) -> None:
        self._rows: list[tuple[int, int, int, int, list[int]]] = []
        self.user = self.idle = 0
        """The CPUs in user mode, and those that are idle."""
        self.memory: dict[int, bytearray] = {}
        """16 bytes by site."""

    @property
    def records(self) -> Records:
        log = np.zeros(len(self._rows), RECORD)
        for number, (kind, cpu, flags, count, words) in enumerate(self._rows):
            log[number] = (kind, cpu, flags, count, [*words, *[0] * (7 - len(words))])
        return log

    def add(self, kind: int, cpu: int, *words: int, flags: int = 0, number: int = 0) -> int:
        self._rows.append((kind, cpu, flags, number, list(words)))
        return len(self._rows) - 1

    def write(self, site: int, offset: int, new: bytes, *callers: int, **fields: Any) -> int:
        """CPU 0 writes: WRITE, WRITER and CALLERS."""
        memory = self.memory.setdefault(site, bytearray(NOP.ljust(32, b"\x90")))
        before = int.from_bytes(memory[offset : offset + 16], "little")
        data = int.from_bytes(new.ljust(16, b"\0"), "little")
        low = (1 << 64) - 1
        at = self.add(
            record.WRITE,
            0,
            site + offset,
            data & low,
            data >> 64 & low,
            before & low,
            before >> 64 if len(new) <= record.INLINE else 0,
            TASK + 0x1000,
            fields.get("online", (1 << CPUS) - 1),
            flags=fields.get("flags", record.F_IRQS),
            number=len(new),
        )
        memory[offset : offset + len(new)] = new
        self.add(record.WRITER, 0, fields.get("owner", TASK), 0, 0, 0, TASK, self.user, self.idle)
        if callers:
            self.add(record.CALLERS, 0, *callers, number=len(callers))
        return at

    def sync(self, *cpus: int, how: int = 1) -> None:
        """Each of these runs do_sync_core(), and serialises in it."""
        for cpu in cpus:
            self.add(record.SYNC, cpu)
            self.serialise(cpu, flags=how | record.S_IN_SYNC | record.S_ON_PURPOSE)

    def serialise(self, cpu: int, flags: int = 1 | record.S_ON_PURPOSE) -> None:
        self.add(record.SERIALISE, cpu, TEXT, flags=flags)

    def mode(self, cpu: int, mode: int) -> int:
        bit = 1 << cpu
        self.user = self.user | bit if mode == record.M_USER else self.user & ~bit
        self.idle = self.idle | bit if mode == record.M_IDLE else self.idle & ~bit
        return self.add(record.MODE, cpu, number=mode)

    def unlock(self) -> int:
        return self.add(record.UNLOCK, 0, TASK, (1 << CPUS) - 1, self.user, self.idle)

    def trap(
        self,
        site: int,
        ip: int,
        *,
        stack: int = 0,
        pushed: int = 0,
        cpu: int = 1,
        handlers: int = record.H_POKE,
        flags: tuple[int, int] = (0x246, 0x246),
    ) -> None:
        """A CPU executes int3, and goes on at `ip` with `stack` added to rsp.

        flags: rflags before and after.
        """
        rsp = TASK + 0x8000
        self.add(record.TRAP, cpu, site, rsp)
        words = (site, ip, rsp + stack, flags[1], pushed, rsp, flags[0])
        self.add(record.RESUME, cpu, *words, flags=handlers)

    def poke(
        self, site: int = SITE, new: bytes = JUMP, syncs: tuple[int, ...] = (0, 1, 2, 3)
    ) -> None:
        """A whole poke, up to the unlock."""
        for offset, data in ((0, b"\xcc"), (1, new[1:]), (0, new[:1])):
            self.write(site, offset, data)
            self.sync(*syncs)
        self.unlock()
