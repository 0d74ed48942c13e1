"""A run that goes on for hours: one round of all scenarios after the other, until the time is up or something fails."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator import ui
from orchestrator.machine.machine import Machine
from orchestrator.verdict.evidence import Evidence, Soak
from orchestrator.verdict.outcome import judge

EVERY = 60.0
"""Seconds between two lines on how far it is."""


@dataclass
class Soaking:
    """Asked after each round whether there is to be another one. seconds: in all. Keeps the sums in evidence.soak."""

    seconds: float
    machine: Machine
    evidence: Evidence
    _start: float = field(default_factory=time.monotonic)
    _told: float = field(default_factory=time.monotonic)

    def __call__(self) -> bool:
        evidence = self.evidence
        soak = evidence.soak = evidence.soak or Soak()
        soak.seconds = time.monotonic() - self._start
        soak.rounds += 1
        soak.pokes += sum(seen.guest.integer("pokes") for seen in evidence.steps if seen.guest)
        soak.int3 += (evidence.qemu_gated + evidence.qemu_free).total()
        for name, used in self._memory().items():
            soak.memory[name] = (soak.memory.get(name, (used, used))[0], used)
        evidence.look_at(self.machine.console.scanner)
        if soak.seconds > self.seconds or judge(evidence).outcome != "pass":
            return False
        if time.monotonic() - self._told > EVERY:
            self._told = time.monotonic()
            ui.say(f"soaking for {soak.seconds:.0f} s: {told(soak)}")
        evidence.renew()
        return True

    def _memory(self) -> dict[str, float]:
        """MiB in use: by us, by QEMU, and in the guest."""
        free = self.machine.ssh.get("/proc/meminfo").decode().split("MemFree:")[1].split()[0]
        return {
            "orchestrator": _resident(os.getpid()),
            "QEMU": _resident(self.machine.process.pid),
            "guest": self.machine.spec.memory - int(free) / 1024,
        }


def _resident(pid: int) -> float:
    try:
        pages = int((Path("/proc") / str(pid) / "statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def told(soak: Soak) -> str:
    """The sums in one line."""
    memory = ", ".join(
        f"{name} {first:.0f} -> {now:.0f}" for name, (first, now) in soak.memory.items()
    )
    return f"{soak.rounds} rounds, {soak.pokes:,} pokes running free, {soak.int3:,} int3; memory in MiB: {memory}"
