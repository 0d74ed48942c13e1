"""Why a wait for the guest ended without what was waited for (beside LostVM)."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.errors import EXIT_KERNEL_FAILED, LostVM, OrchestratorError
from orchestrator.guest.klog import Finding


class KernelFault(OrchestratorError):
    """The guest's kernel has reported on its console that it cannot go on. `findings` are all so far, fatal or not."""

    exit_status = EXIT_KERNEL_FAILED

    def __init__(self, what: str, fatal: Finding, findings: Sequence[Finding]) -> None:
        super().__init__(
            f"the kernel failed while waiting for {what}: {fatal.text} (console line {fatal.line})"
        )
        self.outcome = fatal.outcome
        self.findings = tuple(findings)


class GuestReset(LostVM):
    """The guest was up and has reset itself: a triple fault, which is a panic too early or too deep to be reported."""

    outcome = "panic"
    exit_status = EXIT_KERNEL_FAILED


class TimedOut(OrchestratorError):
    """The guest is there and its kernel reports no fault, but what was waited for did not happen in time."""

    outcome = "timeout"

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(f"{what} did not happen within {seconds:.0f} s")
