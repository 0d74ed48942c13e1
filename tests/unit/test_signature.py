# SPDX-License-Identifier: GPL-2.0-only
"""What failed in a run, compared with what failed in another one."""

from __future__ import annotations

from orchestrator.verdict.checks import CheckResult
from orchestrator.verdict.result import VerdictRecord
from orchestrator.verdict.signature import failed_checks, signatures


def verdict(*checks: CheckResult, outcome: str = "fail", reason: str = "") -> VerdictRecord:
    return VerdictRecord(outcome=outcome, reason=reason, exit_status=1, checks=checks)


def test_a_signature_is_the_same_for_another_run_of_the_same_fault() -> None:
    def run(address: str, cpu: int) -> tuple[str, ...]:
        fault = f"general protection fault, non-canonical address 0x{address}: 0000 [#1]"
        return signatures(
            verdict(
                CheckResult("sync", "fail", f"CPU {cpu} had not run (site {address})"),
                CheckResult("console", "fail", "", (f"line {cpu}7: oops: {fault}",)),
                outcome="oops",
            )
        )

    one, other = run("ffffffffa0000acb", 1), run("dead000000000122", 3)
    assert one == other
    assert one[0] == "sync" and one[1].startswith("console: oops: general protection fault")


def test_each_finding_on_the_console_has_a_signature_of_its_own() -> None:
    lines = ("line 7: oops: int3: 0000", "line 9: panic: Fatal exception", "line 12: oops: int3: 1")
    found = signatures(verdict(CheckResult("console", "fail", "", lines)))
    assert found == ("console: oops: int3: #", "console: panic: Fatal exception")


def test_only_failed_checks_have_signatures() -> None:
    checks = CheckResult("writes", "pass", "in order"), CheckResult("guest", "fail", "17 torn")
    assert signatures(verdict(*checks)) == ("guest: # torn",)


def test_a_hang_without_a_failed_check_has_its_reason_as_the_signature() -> None:
    reason = "the guest made no progress for 60 s"
    found = signatures(verdict(outcome="hang", reason=reason))
    assert found == ("hang: the guest made no progress for # s",)


def test_a_run_that_says_nothing_about_the_kernel_has_no_signature() -> None:
    assert signatures(verdict(outcome="infra", reason="QEMU was killed")) == ()


def test_failed_checks_name_the_scenario_first_where_it_is_known() -> None:
    checks = (
        CheckResult("sync", "fail", "", ("nop5: between",)),
        CheckResult("writes", "pass", ""),
        CheckResult("guest", "fail", "", ("held-off.free: a", "nop5.direct.on: b", "hotplug: c")),
        CheckResult("coverage", "blind", ""),
    )
    guest = ("guest/held-off", "guest/nop5", "guest/hotplug", "guest")
    assert failed_checks(verdict(*checks)) == ("sync", *guest)
    oops = CheckResult("console", "fail", "the kernel reports: int3, in scenario jcc")
    assert failed_checks(verdict(oops)) == ("console/jcc", "console")
