# SPDX-License-Identifier: GPL-2.0-only
"""Soak runs: all scenarios are repeated in one guest until the time is up or something fails."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator import ui
from orchestrator.errors import InfraError
from orchestrator.machine.machine import Machine
from orchestrator.verdict.evidence import Evidence, Soak
from orchestrator.verdict.outcome import judge

REPORT_SECONDS = 60.0
"""Seconds between two progress lines."""


@dataclass
class Soaking:
    """Decides after each round whether there is another one, and keeps the totals in
    evidence.soak."""

    seconds: float
    """Duration of the whole soak run."""
    machine: Machine
    evidence: Evidence
    _start: float = field(default_factory=time.monotonic)
    _reported: float = field(default_factory=time.monotonic)

    def another_round(self) -> bool:
        """Add the finished round to the totals. Returns whether to run another one.

        In that case the evidence of the finished round is cleared.
        """
        evidence = self.evidence
        soak = evidence.soak = evidence.soak or Soak()
        soak.seconds = time.monotonic() - self._start
        soak.rounds += 1
        soak.pokes += sum(seen.guest.integer("pokes") for seen in evidence.steps if seen.guest)
        soak.int3 += (evidence.qemu_gated + evidence.qemu_free).total()
        for user, used in self._memory().items():
            soak.memory[user] = (soak.memory.get(user, (used, used))[0], used)
        evidence.take_console(self.machine.console)
        if soak.seconds > self.seconds or judge(evidence).outcome != "pass":
            return False
        if time.monotonic() - self._reported > REPORT_SECONDS:
            self._reported = time.monotonic()
            ui.say(f"soaked for {soak.seconds:.0f} s: {soak.summary()}")
        evidence.start_round()
        return True

    def _memory(self) -> dict[str, float]:
        """MiB in use by this process, by QEMU, and in the guest."""
        text = self.machine.ssh.get("/proc/meminfo").decode(errors="replace")
        free = re.search(r"^MemFree:\s+(\d{1,12}) kB", text, re.MULTILINE | re.ASCII)
        if not free:
            raise InfraError(f"the guest does not say how much memory it uses, but {text[:100]!r}")
        return {
            "orchestrator": _resident(os.getpid()),
            "QEMU": _resident(self.machine.process.pid),
            "guest": self.machine.spec.memory - int(free[1]) / 1024,
        }


def _resident(pid: int) -> float:
    """Resident memory of a process in MiB, 0 when it cannot be read."""
    try:
        pages = int((Path("/proc") / str(pid) / "statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
