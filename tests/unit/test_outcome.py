# SPDX-License-Identifier: GPL-2.0-only
"""From evidence to a verdict and an exit status, which is 1 only when the kernel is at fault."""

from __future__ import annotations

from pathlib import Path

import pytest
from good_run import NOP5_ON, Run

from orchestrator.errors import BootError, BuildError, InfraError, LostVM, OrchestratorError
from orchestrator.guest.klog import OUTCOMES, Finding, scan
from orchestrator.machine.faults import GuestReset, KernelFault, TimedOut
from orchestrator.verdict.outcome import KERNEL_FAILED, Verdict, judge
from orchestrator.verdict.recorded.judgement import Judgement, RecordViolation

STATUS = {
    "pass": 0,
    "fail": 1,
    "panic": 1,
    "oops": 1,
    "warn": 1,
    "hang": 1,
    "timeout": 1,
    "lost-vm": 125,
    "build-error": 125,
    "boot-error": 125,
    "infra": 125,
}
"""Every outcome."""
KLOG = Path(__file__).with_name("klog")


def finding(kind: str, line: int = 1) -> Finding:
    return Finding(kind=kind, line=line, text=f"line {line} says {kind}", last=line)


@pytest.mark.parametrize("outcome", STATUS)
def test_exit_status(outcome: str) -> None:
    assert Verdict(outcome, "").exit_status == STATUS[outcome]


def test_an_unknown_outcome_is_not_the_kernels_fault() -> None:
    assert Verdict("something new", "").exit_status == 125


def test_a_healthy_run_passes() -> None:
    verdict = judge(Run().evidence())
    assert verdict.outcome == "pass"
    assert verdict.exit_status == 0
    assert len(verdict.results) > 10


STALLS = ("soft-lockup", "rcu-stall", "hung-task", "csd-stall", "lock-stall")


@pytest.mark.parametrize("kind", OUTCOMES)
def test_no_kind_of_console_report_passes(kind: str) -> None:
    run = Run()
    run.findings = [finding(kind)]
    verdict = judge(run.evidence())
    assert verdict.outcome != "pass"
    assert verdict.outcome in STATUS
    passed = kind in STALLS  # a stall that passed may be the host's doing
    assert (verdict.exit_status == 1) == (OUTCOMES[kind] in KERNEL_FAILED and not passed)


@pytest.mark.parametrize("kind", STALLS)
def test_a_stall_that_ended_the_run_is_a_hang(kind: str) -> None:
    run = Run()
    run.findings, run.error = [finding(kind)], TimedOut("a sign of life from the guest", 60)
    assert (judge(run.evidence()).outcome, judge(run.evidence()).exit_status) == ("hang", 1)


def test_the_gravest_report_decides_the_outcome() -> None:
    run = Run()
    run.findings = [
        finding("warn", 1),
        finding("int3", 2),
        finding("panic", 3),
        finding("soft-lockup", 4),
    ]
    assert judge(run.evidence()).outcome == "panic"
    assert "line 3" in judge(run.evidence()).reason
    del run.findings[2]
    assert judge(run.evidence()).outcome == "oops"


@pytest.mark.parametrize(
    "error",
    [
        InfraError("the disk is full"),
        LostVM("QEMU was killed"),
        BootError("no init"),
        BuildError("gcc failed"),
    ],
    ids=lambda error: str(error.outcome),
)
def test_an_error_that_ended_the_run_is_not_the_kernels_fault(error: OrchestratorError) -> None:
    """Even though it leaves everything half done."""
    run = Run()
    run.error = error
    del run.events[20:], run.report[30:]
    verdict = judge(run.evidence())
    assert (verdict.outcome, verdict.exit_status) == (error.outcome, 125)
    assert verdict.reason == str(error)


def test_an_expired_wait_is_a_timeout() -> None:
    run = Run()
    run.error = TimedOut("the end of a step", 180)
    assert (judge(run.evidence()).outcome, judge(run.evidence()).exit_status) == ("timeout", 1)
    run.error.outcome = "hang"
    assert (judge(run.evidence()).outcome, judge(run.evidence()).exit_status) == ("hang", 1)


def test_a_panic_counts_even_if_the_machine_was_lost() -> None:
    run = Run()
    run.findings = [finding("panic")]
    run.error = LostVM("the guest is no longer running")
    assert judge(run.evidence()).outcome == "panic"


def test_the_scenario_in_which_the_guest_went_down_is_named() -> None:
    run = Run()
    run.findings, run.error = (
        [finding("panic")],
        KernelFault("a step", finding("panic"), [finding("panic")]),
    )
    del run.report[
        run.report.index(next(line for line in run.report if line.startswith("ok 3 "))) :
    ]
    assert judge(run.evidence()).reason.startswith(
        "the kernel reports: line 1 says panic, in scenario one"
    )


def test_a_wrong_resume_address_is_named_even_if_the_guest_is_gone() -> None:
    run = Run()
    run.findings, run.error = (
        [finding("panic")],
        KernelFault("a step", finding("panic"), [finding("panic")]),
    )
    run.report = run.report[:2]
    run.find(NOP5_ON, "return").update(ip=0x1000)
    assert "; consumed: CPU " in judge(run.evidence()).reason


def test_a_broken_promise_is_named() -> None:
    run = Run()
    run.drop(run.find(NOP5_ON, "sync", 0, cpu=1))
    verdict = judge(run.evidence())
    assert verdict.outcome == "fail"
    assert verdict.reason.startswith("sync: between the int3 write and the next write CPU 1")
    assert verdict.reason.endswith("in scenario nop5")


def test_a_fault_outweighs_missing_evidence() -> None:
    run = Run()
    run.say(1, "cpu=1 phase=0", None)
    assert judge(run.evidence()).outcome == "infra"
    run.find(NOP5_ON, "return").update(value=0)
    assert judge(run.evidence()).outcome == "fail"


def test_a_panic_does_not_count_on_an_emulator_that_runs_stale_code() -> None:
    run = Run()
    run.findings = [finding("int3"), finding("panic")]
    evidence = run.evidence()
    evidence.untrusted = "QEMU 7.2 loses them"
    verdict = judge(evidence)
    assert (verdict.outcome, verdict.exit_status) == ("infra", 125)
    assert "QEMU 7.2" in verdict.reason
    assert "panic" in verdict.reason


def test_a_pass_counts_on_an_emulator_that_runs_stale_code() -> None:
    evidence = Run().evidence()
    evidence.untrusted = "QEMU 7.2 loses them"
    assert judge(evidence).outcome == "pass"


def test_a_guest_that_resets_itself_has_panicked() -> None:
    run = Run()
    run.error = GuestReset("the guest is no longer running (guest-reset)")
    assert (judge(run.evidence()).outcome, judge(run.evidence()).exit_status) == ("panic", 1)


def test_a_violation_stands_even_if_the_machine_was_lost() -> None:
    run = Run()
    run.error = LostVM("QEMU was killed")
    run.drop(run.find(NOP5_ON, "sync"))
    verdict = judge(run.evidence())
    assert (verdict.outcome, verdict.exit_status) == ("fail", 1)
    assert verdict.reason.startswith("sync: ") and verdict.reason.endswith("QEMU was killed")


def test_a_panic_before_the_first_poke_is_a_boot_error() -> None:
    run = Run()
    run.error, run.findings = BootError("the kernel failed"), [finding("panic")]
    assert (judge(run.evidence()).outcome, judge(run.evidence()).exit_status) == ("boot-error", 125)


def console_of(log: str) -> list[Finding]:
    return scan((KLOG / f"{log}.log").read_bytes().decode().split("\n")).findings


@pytest.mark.parametrize(
    ("log", "outcome", "patched"),
    [
        ("6.1-boot-jump-label", "oops", "jump labels"),
        ("6.1-boot-poke-oops", "oops", "kernel text"),
        ("6.1-boot-int3", "oops", "int3 of a patched instruction"),
    ],
)
def test_but_one_of_text_patching_is_a_verdict_at_any_time(
    log: str, outcome: str, patched: str
) -> None:
    run = Run()
    run.error, run.findings = BootError("the kernel failed"), console_of(log)
    verdict = judge(run.evidence())
    assert (verdict.outcome, verdict.exit_status) == (outcome, 1)
    assert patched in verdict.reason and "before anything was poked" in verdict.reason


def test_so_is_a_broken_claim_that_the_recorder_shows() -> None:
    run = Run()
    run.error, run.findings = BootError("the kernel failed"), console_of("6.1-oops")
    run.record = Judgement()
    run.record.blame(RecordViolation("consumed", "CPU 1 met int3", record=7, site=0x1000))
    verdict = judge(run.evidence())
    assert (verdict.outcome, verdict.exit_status) == ("fail", 1)
    assert verdict.reason.startswith("consumed: CPU 1 met int3")
    assert verdict.reason.endswith("after that the kernel failed")


@pytest.mark.parametrize("log", ["6.1-oops", "6.1-stack-overflow", "6.1-warn", "6.1-panic"])
def test_a_crash_of_something_else_while_booting_is_a_boot_error(log: str) -> None:
    run = Run()
    run.error, run.findings = BootError("the kernel failed"), console_of(log)
    assert (judge(run.evidence()).outcome, judge(run.evidence()).exit_status) == ("boot-error", 125)


@pytest.mark.parametrize("kind", [*STALLS, "hard-lockup"])
def test_a_hang_while_booting_is_a_boot_error_wherever_it_is(kind: str) -> None:
    run = Run()
    run.error, run.findings = BootError("the boot did not happen"), [finding(kind)]
    run.findings[0].places.append("text_poke_bp_batch")
    assert (judge(run.evidence()).outcome, judge(run.evidence()).exit_status) == ("boot-error", 125)


def test_on_an_unsound_emulator_a_crash_of_text_patching_while_booting_does_not_count() -> None:
    run = Run()
    run.error, run.findings = BootError("the kernel failed"), console_of("6.1-boot-jump-label")
    evidence = run.evidence()
    evidence.untrusted = "this emulator runs stale code"
    assert judge(evidence).outcome == "infra"


@pytest.mark.parametrize("kind", ["oom", "oom-panic"])
@pytest.mark.parametrize(
    "error", [None, TimedOut("a step", 9), KernelFault("x", finding("oom"), [])]
)
def test_what_fails_for_want_of_memory_is_not_the_kernels_fault(
    kind: str, error: OrchestratorError | None
) -> None:
    run = Run()
    run.findings, run.error = [finding(kind)], error
    run.say(1, "ok 1 ", "not ok 1 ")
    verdict = judge(run.evidence())
    assert (verdict.outcome, verdict.exit_status) == ("infra", 125)
    assert "ran out of memory" in verdict.reason


def test_but_what_gdb_saw_of_a_poke_is() -> None:
    run = Run()
    run.findings = [finding("oom")]
    run.drop(run.find(NOP5_ON, "sync"))
    assert (judge(run.evidence()).outcome, judge(run.evidence()).exit_status) == ("fail", 1)


def test_an_excused_finding_is_none() -> None:
    evidence = Run().evidence()
    evidence.excused = [finding("panic")]
    evidence.excused[0].excuse = "printed by a program of the guest"
    verdict = judge(evidence)
    assert verdict.outcome == "pass"
    console = next(result for result in verdict.results if result.check == "console")
    assert console.text.endswith("except line 1, printed by a program of the guest")


def test_a_failure_on_an_unsound_emulator_does_not_count() -> None:
    run = Run()
    run.findings = [finding("int3")]
    evidence = run.evidence()
    evidence.untrusted = "this emulator runs stale code"
    verdict = judge(evidence)
    assert (verdict.outcome, verdict.exit_status) == ("infra", 125)
    assert verdict.reason.startswith("this emulator runs stale code")


def test_a_pass_on_an_unsound_emulator_counts() -> None:
    evidence = Run().evidence()
    evidence.untrusted = "this emulator runs stale code"
    assert judge(evidence).outcome == "pass"
