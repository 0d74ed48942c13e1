# SPDX-License-Identifier: GPL-2.0-only
"""Soak runs: all scenarios are repeated until the time is up or something fails."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator import ui
from orchestrator.host import proc
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
    evidence: Evidence
    memory: Callable[[], dict[str, float]]
    """MiB in use, by user, of all but this process."""
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
        for user, used in {"orchestrator": proc.resident(os.getpid()), **self.memory()}.items():
            soak.memory[user] = (soak.memory.get(user, (used, used))[0], used)
        evidence.take_consoles()
        if soak.seconds > self.seconds or judge(evidence).outcome != "pass":
            return False
        if time.monotonic() - self._reported > REPORT_SECONDS:
            self._reported = time.monotonic()
            ui.say(f"soaked for {soak.seconds:.0f} s: {soak.summary()}")
        evidence.start_round()
        return True
