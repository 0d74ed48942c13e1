# SPDX-License-Identifier: GPL-2.0-only
"""What a fault is: data, apart from two functions that make it happen."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from faults.trial import Trial

TRUTH = "truth"
"""In `Fault.allowed`: the status of an undisturbed run, 0 for a healthy kernel, 1 for a broken."""
INFRA = 125
USAGE = 129

HEALTHY = "healthy"
BROKEN = "broken"
EITHER = "either"

SURVIVED: frozenset[int | str] = frozenset({TRUTH})
"""The fault must not change the verdict."""
NOTICED: frozenset[int | str] = frozenset({TRUTH, INFRA})
"""The fault may cost the verdict, but must not falsify it."""
BLAMED: frozenset[int | str] = frozenset({1})
"""The fault is one of the kernel, so the kernel must fail."""


def _nothing(trial: Trial) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One command and what goes wrong with it. Every random choice is drawn from `trial.rng`."""

    name: str
    """KIND/WHAT, unique: `signal/qemu-KILL`."""
    prepare: Callable[[Trial], None] = _nothing
    """Called before the command starts; it may change the trial's arguments and environment."""
    inject: Callable[[Trial], None] = _nothing
    """Called in a thread of its own while the command runs."""
    allowed: frozenset[int | str] = NOTICED
    """Exit statuses that are right."""
    kernel: str = EITHER
    """Whether the kernel that is run is HEALTHY, BROKEN, or drawn at random (EITHER)."""
    silence: float = 30.0
    """Seconds after the injection in which the command must have ended."""
    limit: float = 150.0
    """Seconds that the whole command may take; then it counts as hanging and is killed."""
    keeps_result: bool = True
    """Whether verdict.json must be there in the end, with a verdict that is that of the status."""
    prints_result: bool = True
    """Whether the verdict and the run's directory must be on stdout."""
    traces: str = ""
    """Why a traceback or a file left behind is not the program's doing; empty if it would be."""
    again: bool = False
    """Whether the same command, without the fault, must then do what it always does."""
    short: bool = False
    """Whether the fault belongs to the short part, which `make test` runs."""
    repeats: bool = True
    """Whether another try differs from the first, so that it is worth doing."""

    @property
    def kind(self) -> str:
        return self.name.partition("/")[0]

    @property
    def injects(self) -> bool:
        """Whether something goes wrong while the command runs, not only before."""
        return self.inject is not _nothing


def killed_by(number: signal.Signals) -> frozenset[int | str]:
    """Statuses of a process ended by a signal: as the shell reports it, or by the signal itself."""
    return frozenset({128 + number, -number})
