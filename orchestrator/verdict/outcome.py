"""From check results to one word."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.errors import (
    EXIT_KERNEL_FAILED,
    EXIT_PASS,
    EXIT_UNTESTABLE,
    BootError,
    GuestRefused,
    LostVM,
)
from orchestrator.verdict.checks import KERNEL_FAILED, CheckResult, kernel_faults, run_checks
from orchestrator.verdict.evidence import Evidence
from orchestrator.verdict.model import CLAIMS

__all__ = ["KERNEL_FAILED", "Verdict", "judge"]


@dataclass(frozen=True)
class Verdict:
    """outcome: the word (design.md). reason: one sentence. results: of every check."""

    outcome: str
    reason: str
    results: tuple[CheckResult, ...] = ()

    @property
    def exit_status(self) -> int:
        if self.outcome == "pass":
            return EXIT_PASS
        return EXIT_KERNEL_FAILED if self.outcome in KERNEL_FAILED else EXIT_UNTESTABLE


def judge(evidence: Evidence) -> Verdict:
    """The verdict on one run.

    What the kernel itself reported comes first, then what ended the run early, then failed checks. A run in which
    nothing failed but something was not looked at is `infra`: it is no pass, and no fault of the kernel's either. On an
    emulator that is known to lose what is tested here a failure does not count, whatever it looks like: stale
    translations have been seen as endless traps and as oopses.
    """
    verdict = _judge(evidence, tuple(run_checks(evidence)))
    if evidence.untrusted and verdict.outcome in KERNEL_FAILED:
        reason = f"{evidence.untrusted}; so this is not held against the kernel: {verdict.outcome}, {verdict.reason}"
        return Verdict("infra", reason, verdict.results)
    return verdict


def _judge(evidence: Evidence, results: tuple[CheckResult, ...]) -> Verdict:
    broken = evidence.broken
    if isinstance(broken, BootError):
        return Verdict(broken.outcome, str(broken), results)
    failed = [result for result in results if result.status == "fail" and result.check != "console"]
    claim = next(
        (f"{result.check}: {result.text}" for result in failed if result.check in CLAIMS), None
    )
    for kind in KERNEL_FAILED:
        for finding in kernel_faults(evidence):
            if finding.outcome == kind:
                # What the watch had seen to be wrong before is mostly the reason why.
                where = (
                    f", in scenario {evidence.running.scenario.name}"
                    if evidence.running and finding.fatal
                    else ""
                )
                reason = f"the kernel reports: {finding.text}{where}{f'; {claim}' if claim else ''}"
                return Verdict(kind, reason, results)
    # What was seen of a poke before the machine went away, or mad, stands, and may well be why.
    if isinstance(broken, LostVM | GuestRefused) and claim:
        return Verdict("fail", f"{claim}; and then {broken}", results)
    if broken is not None and broken.outcome not in KERNEL_FAILED:
        return Verdict(broken.outcome, str(broken), results)
    if failed:
        return Verdict("fail", f"{failed[0].check}: {failed[0].text}", results)
    if broken is not None:
        return Verdict(broken.outcome, str(broken), results)
    for result in results:
        if result.status == "blind":
            return Verdict("infra", f"no verdict: {result.text}", results)
    if evidence.without_module:
        reason = "what can be seen without the test module held, and every CPU was seen in both phases with int3"
        return Verdict("pass", reason, results)
    return Verdict("pass", "every promise held, and every CPU was seen in every phase", results)
