# SPDX-License-Identifier: GPL-2.0-only
"""Reasons, besides LostVM, why a wait for the guest ended early."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.errors import EXIT_KERNEL_FAILED, InfraError, LostVM, OrchestratorError
from orchestrator.guest.klog import Finding


class KernelFault(OrchestratorError):
    """The guest's kernel reported on its console that it cannot go on."""

    exit_status = EXIT_KERNEL_FAILED

    def __init__(self, what: str, fatal: Finding, findings: Sequence[Finding]) -> None:
        super().__init__(
            f"the kernel failed during the wait for {what}: {fatal.text} "
            f"(console line {fatal.line})"
        )
        self.outcome = fatal.outcome
        self.fault = fatal
        """What ended the wait."""
        self.findings = tuple(findings)
        """All findings so far, fatal or not."""


class GuestReset(LostVM):
    """The guest was up and reset itself, and no program had asked for it: a triple fault.

    That counts as a panic, one that came too early or too deep for the kernel to report it.
    """

    outcome = "panic"
    exit_status = EXIT_KERNEL_FAILED


class TimedOut(OrchestratorError):
    """The guest runs and its kernel reports no fault, but the event did not happen in time."""

    outcome = "timeout"

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(f"timed out after {seconds:.0f} s waiting for {what}")


class Silent(TimedOut):
    """No observer has seen anything of the guest for a long time."""

    def __init__(self, seconds: float) -> None:
        super().__init__("a sign of life from the guest", seconds)


class NoAnswer(InfraError):
    """The guest's programs do not go on, but its kernel has done everything that it was asked to.

    A program that is stopped or killed, or a terminal in a wrong mode, is no fault of the kernel.
    """
