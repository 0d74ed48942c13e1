# SPDX-License-Identifier: GPL-2.0-only
"""The verdict: one word and one sentence from all check results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.errors import (
    EXIT_KERNEL_FAILED,
    EXIT_PASS,
    EXIT_UNTESTABLE,
    BootError,
    GuestRefused,
    LostVM,
)
from orchestrator.guest.klog import Finding
from orchestrator.verdict.checks import KERNEL_FAILED, CheckResult, kernel_faults, run_checks
from orchestrator.verdict.evidence import Evidence
from orchestrator.verdict.model import NAMED

__all__ = ["KERNEL_FAILED", "Verdict", "judge"]


@dataclass(frozen=True)
class Verdict:
    """The verdict on one run."""

    outcome: str
    """The word; orchestrator/report/verdict.schema.json lists all of them."""
    reason: str
    """One sentence."""
    results: tuple[CheckResult, ...] = ()
    """The results of all checks."""

    @property
    def exit_status(self) -> int:
        if self.outcome == "pass":
            return EXIT_PASS
        return EXIT_KERNEL_FAILED if self.outcome in KERNEL_FAILED else EXIT_UNTESTABLE


def judge(evidence: Evidence) -> Verdict:
    """The verdict on one run.

    The kernel's own reports come first, then the error that ended the run early, then failed
    checks. A run in which nothing failed but something was not observed is `infra`: neither a pass
    nor a fault of the kernel. On an emulator that is known to run stale code no failure counts,
    whatever it looks like: stale translations have been seen as endless traps and as oopses.
    """
    verdict = _judge(evidence, tuple(run_checks(evidence)))
    if evidence.untrusted and verdict.outcome in KERNEL_FAILED:
        reason = (
            f"{evidence.untrusted}, so this does not count against the kernel: "
            f"{verdict.outcome}, {verdict.reason}"
        )
        return Verdict("infra", reason, verdict.results)
    return verdict


def _judge(evidence: Evidence, results: tuple[CheckResult, ...]) -> Verdict:
    error = evidence.error
    if isinstance(error, BootError):
        return _judge_boot(evidence, error, results)
    failed = [result for result in results if result.status == "fail" and result.check != "console"]
    claim = _broken_claim(results)
    if fault := _gravest(kernel_faults(evidence)):
        unfinished = evidence.unfinished_step if fault.fatal else None
        where = f", in scenario {unfinished.scenario.name}" if unfinished else ""
        # A broken claim that was seen before is usually the cause.
        cause = f"; {claim}" if claim else ""
        return Verdict(fault.outcome, f"the kernel reports: {fault.text}{where}{cause}", results)
    # A violation seen before the machine was lost or the guest went mad stands, and may be the
    # cause.
    if isinstance(error, LostVM | GuestRefused) and claim:
        return Verdict("fail", f"{claim}; after that {error}", results)
    if not claim and (shortage := _shortage(evidence)):
        return Verdict("infra", f"the guest ran out of memory: {shortage.text}", results)
    if error is not None and error.outcome not in KERNEL_FAILED:
        return Verdict(error.outcome, str(error), results)
    if failed:
        return Verdict("fail", f"{failed[0].check}: {failed[0].text}", results)
    if error is not None:
        return Verdict(error.outcome, str(error), results)
    if blind := next((result for result in results if result.status == "blind"), None):
        return Verdict("infra", f"no verdict: {blind.text}", results)
    return Verdict("pass", _pass_reason(evidence), results)


def _judge_boot(evidence: Evidence, error: BootError, results: tuple[CheckResult, ...]) -> Verdict:
    """The verdict on a kernel that cannot be tested.

    If what failed is the very thing that is tested here, that is a failure at any time: otherwise
    a bisection would skip the culprit. A hang is none: nobody saw why it does not go on.
    """
    faults = [one for one in kernel_faults(evidence) if one.patching and one.outcome != "hang"]
    if fault := _gravest(faults):
        reason = (
            "the kernel failed while patching its own text, before anything was poked "
            f"({fault.patching}): {fault.text}"
        )
        return Verdict(fault.outcome, reason, results)
    if claim := _broken_claim(results):
        return Verdict("fail", f"{claim}; after that {error}", results)
    return Verdict(error.outcome, str(error), results)


def _broken_claim(results: Sequence[CheckResult]) -> str | None:
    """The first check that failed and whose name says what is wrong, with its text."""
    broken = (one for one in results if one.status == "fail" and one.check in NAMED)
    return next((f"{one.check}: {one.text}" for one in broken), None)


def _gravest(faults: Sequence[Finding]) -> Finding | None:
    """The first of the gravest faults."""
    return min(faults, key=lambda fault: KERNEL_FAILED.index(fault.outcome), default=None)


def _shortage(evidence: Evidence) -> Finding | None:
    """The kernel's first report that the guest ran out of memory, if there is one.

    It has as much as we gave it, and what then fails is not the kernel's fault.
    """
    return next((one for one in evidence.findings if one.kind in ("oom", "oom-panic")), None)


def _pass_reason(evidence: Evidence) -> str:
    if evidence.without_module:
        return (
            "every promise that can be observed without the test module held, "
            "and every CPU was observed in both int3 phases"
        )
    return "every promise held and every CPU was observed in every phase"
