# SPDX-License-Identifier: GPL-2.0-only
"""A run as a list of test cases, for CI servers, dashboards and the history."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from orchestrator.verdict.checks import failed_assertions, missed_step
from orchestrator.verdict.evidence import Evidence, StepEvidence
from orchestrator.verdict.outcome import KERNEL_FAILED
from orchestrator.verdict.result import RunResult

Status = Literal["pass", "fail", "error", "skip"]
"""fail: the kernel is at fault. error: no verdict, so neither a fault of the kernel nor a pass."""


@dataclass(frozen=True)
class Case:
    """One test case."""

    group: str
    """`run` for the verdict, `claim` for a check, or `scenario`."""
    name: str
    status: Status
    text: str
    """One sentence."""
    details: tuple[str, ...] = ()
    """Further lines, if any."""
    seconds: float = 0.0
    """How long the guest took for it, where that is known."""

    @property
    def unseen(self) -> str | None:
        """Why a check has nothing to say, which several may share; None for everything else."""
        return self.text if self.group == "claim" and self.status in ("error", "skip") else None


def cases(result: RunResult) -> list[Case]:
    """The verdict first, then each check, then each scenario. No failure or error is left out.

    If the run ended before it had a verdict, the verdict has the one cause, and what could not be
    seen because of it is skipped.
    """
    verdict = result.verdict
    status: Status = (
        "pass"
        if verdict.outcome == "pass"
        else "fail"
        if verdict.outcome in KERNEL_FAILED
        else "error"
    )
    found = [Case("run", "verdict", status, f"{verdict.outcome}: {verdict.reason}")]
    cut_short = status == "error" and result.evidence.error is not None
    unseen: Status = "skip" if cut_short else "error"
    statuses: dict[str, Status] = {
        "pass": "pass",
        "fail": "fail",
        "skip": "skip",
        "blind": unseen,
    }
    found += [
        Case("claim", check.check, statuses[check.status], check.text, check.details)
        for check in verdict.results
    ]
    by_scenario: dict[str, list[StepEvidence]] = {}
    for step in result.evidence.steps:
        by_scenario.setdefault(step.scenario.name, []).append(step)
    for name, steps in by_scenario.items():
        case = scenario_case(result.evidence, name, steps)
        if case.status == "error":
            case = replace(case, status=unseen)
        taken = sum(step.guest.integer("elapsed_ns") for step in steps if step.guest) / 1e9
        found.append(replace(case, seconds=taken))
    return found


def scenario_case(evidence: Evidence, name: str, steps: list[StepEvidence]) -> Case:
    """The test case of one scenario. `steps` are all of its steps."""
    failures = failed_assertions(evidence, steps)
    failures += [
        f"{step.name}: {violation.text}"
        for step, _, violation in evidence.violations()
        if step in steps
    ]
    if failures:
        return Case("scenario", name, "fail", failures[0], tuple(failures))
    if reason := next((why for step in steps if (why := evidence.skipped(step))), None):
        return Case("scenario", name, "skip", reason)
    if reason := next((why for step in steps if (why := missed_step(evidence, step))), None):
        return Case("scenario", name, "error", reason)
    unfinished = evidence.unfinished_step
    if unfinished and unfinished in steps:
        if any(finding.fatal for finding in evidence.findings):
            return Case("scenario", name, "fail", "the kernel went down in this scenario")
        return Case("scenario", name, "error", f"the run ended in this scenario: {evidence.error}")
    if silent := [step.name for step in steps if not step.guest]:
        return Case("scenario", name, "error", f"no report for {', '.join(dict.fromkeys(silent))}")
    return Case("scenario", name, "pass", steps[0].scenario.title)
