"""A run as a list of test cases, for consumers that know tests: CI servers, dashboards, the history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orchestrator.verdict.evidence import Evidence, StepEvidence
from orchestrator.verdict.outcome import KERNEL_FAILED
from orchestrator.verdict.result import RunResult

Status = Literal["pass", "fail", "error", "skip"]
"""fail: the kernel's fault. error: no verdict, so no fault of the kernel's and no pass either."""


@dataclass(frozen=True)
class Case:
    """group: run (the verdict), claim (a check), or scenario. text: one sentence. details: more lines, if any."""

    group: str
    name: str
    status: Status
    text: str
    details: tuple[str, ...] = ()


def cases(result: RunResult) -> list[Case]:
    """The verdict first, then each check, then each scenario. What is not `pass` or `skip` is never left out."""
    verdict = result.verdict
    status: Status = (
        "pass"
        if verdict.outcome == "pass"
        else "fail"
        if verdict.outcome in KERNEL_FAILED
        else "error"
    )
    told = [Case("run", "verdict", status, f"{verdict.outcome}: {verdict.reason}")]
    words: dict[str, Status] = {"pass": "pass", "fail": "fail", "blind": "error"}
    told += [
        Case("claim", check.check, words[check.status], check.text, check.details)
        for check in verdict.results
    ]
    steps: dict[str, list[StepEvidence]] = {}
    for seen in result.evidence.steps:
        steps.setdefault(seen.scenario.name, []).append(seen)
    return told + [_scenario(result.evidence, name, own) for name, own in steps.items()]


def _scenario(evidence: Evidence, name: str, steps: list[StepEvidence]) -> Case:
    if skipped := next((why for seen in steps if (why := evidence.skipped(seen))), None):
        return Case("scenario", name, "skip", skipped)
    wrong = [
        f"{seen.name}: {words}"
        for seen in steps
        if seen.guest and not seen.guest.ok
        for words in seen.guest.complaints
    ]
    wrong += [
        f"{seen.name}: {violation.text}"
        for seen, _, violation in evidence.violations()
        if seen in steps
    ]
    if wrong:
        return Case("scenario", name, "fail", wrong[0], tuple(wrong))
    running = evidence.running
    if running and running in steps:
        if any(finding.fatal for finding in evidence.findings):
            return Case("scenario", name, "fail", "the kernel went down in it")
        return Case("scenario", name, "error", f"the run ended in it: {evidence.broken}")
    if silent := [seen.name for seen in steps if not seen.guest]:
        return Case("scenario", name, "error", f"not reported: {', '.join(dict.fromkeys(silent))}")
    if bad := [seen.name for seen in steps if seen.guest and not seen.guest.ok]:
        return Case("scenario", name, "fail", f"not ok: {', '.join(bad)}")
    return Case("scenario", name, "pass", steps[0].scenario.title)
