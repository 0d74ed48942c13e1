# SPDX-License-Identifier: GPL-2.0-only
"""Every check can fail, and only for its own defect. Nothing passes without evidence."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from good_run import GOLDEN, NOP5_OFF, NOP5_ON, ONE_ON, Run

from orchestrator.errors import InfraError
from orchestrator.guest import ktap
from orchestrator.guest.klog import Finding, scan
from orchestrator.report.terminal import _code_result
from orchestrator.scenarios.scenario import select
from orchestrator.scenarios.steps import plan_steps
from orchestrator.verdict.cases import scenario_case
from orchestrator.verdict.checks import BREAKPOINTS, CHECKS, CheckResult, run_checks
from orchestrator.verdict.evidence import (
    BROKEN,
    OBSERVERS,
    SKIP,
    Companion,
    Evidence,
    StepEvidence,
)
from orchestrator.verdict.model import CLAIMS, follow
from orchestrator.verdict.outcome import judge
from orchestrator.verdict.recorded.judgement import Judgement, RecordViolation

NAMES = [*CLAIMS, *(check.name for check in CHECKS)]


def statuses(evidence: Evidence) -> dict[str, str]:
    return {result.check: result.status for result in run_checks(evidence)}


def not_passed(run: Run) -> dict[str, str]:
    return {check: status for check, status in statuses(run.evidence()).items() if status != "pass"}


def test_the_recorded_run_passes() -> None:
    results = run_checks(Run().evidence())
    assert [result.check for result in results] == NAMES
    assert {result.status for result in results} == {"pass"}
    assert all(result.text for result in results)


def test_a_kernel_that_does_not_record_the_lock_owner_is_not_judged_by_the_lock() -> None:
    run = Run()
    for event in run.events:
        event.pop("owner", None)
    assert [result.check for result in run_checks(run.evidence())] == [
        name for name in NAMES if name != "lock"
    ]


# -- faults of the kernel, each with the only checks that fail


def _int3(run: Run, seq: int, kind: str, number: int, **fields: object) -> None:
    run.insert(
        run.find(seq, kind, number),
        kind="int3",
        cpu=1,
        ip=run.find(seq, "window")["site"],
        **fields,
    )


def _swap_writes(run: Run) -> None:
    tail, first = run.find(NOP5_ON, "write", 1), run.find(NOP5_ON, "write", 2)
    for field in ("addr", "len", "src"):
        tail[field], first[field] = first[field], tail[field]


def _number(run: Run, step: int, name: str) -> str:
    """The first `name=123` of a step in the report that is not 0."""
    start = next(at for at, line in enumerate(run.report) if line.startswith(f"# step={step} "))
    return next(
        match[0] for line in run.report[start:] if (match := re.search(rf"\b{name}=[1-9]\d*", line))
    )


def _one_more(run: Run, step: int, name: str) -> None:
    there = _number(run, step, name)
    run.say(step, there, f"{name}={int(there.partition('=')[2]) + 1}")


def _find(*kinds: str) -> list[Finding]:
    return [Finding(kind=kind, line=1, text=f"a line about {kind}", last=1) for kind in kinds]


FAULTS: dict[str, tuple[Callable[[Run], object], set[str]]] = {
    "writes out of order": (_swap_writes, {"writes"}),
    "other bytes in memory": (
        lambda run: run.find(NOP5_OFF, "sync", 3).update(bytes="cc1f440001"),
        {"bytes"},
    ),
    "no first round": (
        lambda run: run.drop(*(run.find(ONE_ON, "sync", 0, cpu=cpu) for cpu in (0, 1))),
        {"sync"},
    ),
    "a CPU left out of the last round": (
        lambda run: run.drop(run.find(NOP5_ON, "sync", 2, cpu=1)),
        {"sync"},
    ),
    "int3 before it is written": (
        lambda run: [
            _int3(run, NOP5_ON, "write", 0, bytes="0f1f440000"),
            run.qemu.update({(run.find(NOP5_ON, "window")["site"], 1): 1}),
        ],
        {"int3"},
    ),
    "int3 not taken": (lambda run: run.find(NOP5_ON, "return").update(value=0), {"consumed"}),
    "resumed elsewhere": (lambda run: run.find(ONE_ON, "return").update(ip=0x1000), {"consumed"}),
    "no lock": (lambda run: run.find(NOP5_ON, "write").update(owner=0), {"lock"}),
    "interrupts off": (lambda run: run.find(NOP5_ON, "write").update(irqs=False), {"irqs"}),
    "stop_machine()": (
        lambda run: run.insert(
            run.find(NOP5_ON, "hold"), kind="stopper", cpu=0, own=True, bytes="cc1f440000"
        ),
        {"stopper"},
    ),
    "a warning": (lambda run: setattr(run, "findings", _find("warn")), {"console"}),
    "an assertion of the guest": (lambda run: run.say(1, "ok 1 ", "not ok 1 "), {"guest"}),
    "a torn pass": (lambda run: run.say(9, "torn=0", "torn=1"), {"guest"}),
    "a stale pass": (lambda run: run.report.insert(-12, "# cpu=1 stale=2"), {"guest"}),
    "an extra int3 in the guest": (lambda run: run.say(1, "int3=1", "int3=2"), {"ledgers"}),
    "an extra int3 in QEMU, gated": (
        lambda run: run.qemu.update({(run.find(NOP5_ON, "window")["site"], 0): 1}),
        {"ledgers"},
    ),
    "an int3 that only QEMU saw": (lambda run: run.qemu.update({(0x3000, 0): 1}), {"ledgers"}),
    "an extra free-running int3": (lambda run: _one_more(run, 8, "int3"), {"ledgers"}),
    "a companion that fails": (
        lambda run: run.companions.update(nop5=Companion(1, "CPU 1 does not come online")),
        {"guest"},
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_kernel_fault_fails_only_its_own_check(name: str) -> None:
    run = Run()
    damage, checks = FAULTS[name]
    damage(run)
    assert not_passed(run) == dict.fromkeys(checks, "fail")
    assert judge(run.evidence()).exit_status == 1


# -- gaps in the evidence, each with the only checks that are blind


def _events(run: Run, seq: int, *kinds: str) -> None:
    run.drop(*(event for event in run.poke(seq) if event["kind"] in kinds))


def _unread(run: Run) -> None:
    for event in run.poke(NOP5_ON):
        if event.get("bytes") == "cc02000000":
            del event["bytes"]


RESTS = {
    observer: [
        *(CLAIMS if observer in ("gdb", "record") else ()),
        *(check.name for check in CHECKS if observer in check.rests_on),
    ]
    for observer in OBSERVERS
}
"""The checks that rest on each observer."""

UNSEEN: dict[str, tuple[Callable[[Run], object], Iterable[str]]] = {
    "the site was never read in a phase": (_unread, ["bytes"]),
    "the return of a handler": (lambda run: run.drop(run.find(NOP5_ON, "return", 2)), ["consumed"]),
    "where to resume after int3": (
        lambda run: run.find(NOP5_ON, "window").update(targets=[]),
        ["consumed"],
    ),
    "the end of a poke": (lambda run: _events(run, NOP5_ON, "end"), CLAIMS),
    "a poke": (lambda run: run.drop(*run.poke(NOP5_ON)), [*CLAIMS, "coverage"]),
    "a CPU before the poke": (lambda run: run.say(1, "cpu=1 phase=0", None), ["coverage"]),
    "a CPU after the poke": (lambda run: run.say(4, "cpu=0 phase=3", None), ["coverage"]),
    "a log that overflowed": (lambda run: setattr(run, "findings", _find("lost")), ["console"]),
    "the console": (lambda run: run.lost.update(console="no first line"), ["console", "watch"]),
    "a step that could not be done": (
        lambda run: run.say(
            9,
            "ok 9 key.owner.free",
            "not ok 9 key.owner.free # ERROR the hammers cannot be started",
        ),
        ["guest"],
    ),
    "the last step": (
        lambda run: run.report.__setitem__(run.report.index("1..9"), "1..10"),
        RESTS["guest"],
    ),
    "the plan": (lambda run: run.report.remove("1..9"), RESTS["guest"]),
    "an event that the agent failed at": (
        lambda run: run.lost.update(gdb="the agent in GDB failed at event 9: MemoryError"),
        RESTS["gdb"],
    ),
    "an event of QEMU": (lambda run: run.lost.update(qmp="no longer read"), ["watch"]),
    "a count of QEMU": (
        lambda run: run.lost.update(ledger="the plugin did not begin"),
        ["ledgers", "watch"],
    ),
    "a CPU of the machine": (lambda run: setattr(run, "requested_cpus", 3), ["cpus"]),
    "the counters of a step": (
        lambda run: [run.say(7, f"cpu={cpu} phase=free", None) for cpu in (0, 1)],
        ["guest", "ledgers"],
    ),
    "the record": (lambda run: setattr(run, "record", None), ["record", "sites"]),
    "the rest of a run": (lambda run: setattr(run, "error", InfraError("GDB died")), ["ledgers"]),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_missing_evidence_is_neither_a_pass_nor_a_fault(name: str) -> None:
    run = Run()
    damage, checks = UNSEEN[name]
    damage(run)
    if name == "a poke":  # its int3 are missing in GDB's ledger, so the observers do disagree
        run.no_qemu_ledger = "none"
        assert not_passed(run) == {**dict.fromkeys(checks, "blind"), "ledgers": "fail"}
        return
    assert not_passed(run) == dict.fromkeys(checks, "blind")
    assert judge(run.evidence()).outcome == "infra"


def test_a_free_running_part_without_pokes_does_not_pass() -> None:
    run = Run()
    run.say(8, _number(run, 8, "pokes"), "pokes=0")
    assert not_passed(run) in ({"progress": "blind"}, {"progress": "fail"})
    assert judge(run.evidence()).outcome != "pass"


def test_every_check_can_fail_or_be_blind() -> None:
    """Checks of the observation cannot fail through the kernel; all others can."""
    failing = {check for _, checks in FAULTS.values() for check in checks}
    blind = {check for _, checks in UNSEEN.values() for check in checks}
    assert failing >= {*CLAIMS, "console", "guest", "ledgers"}
    assert failing | blind | {"progress"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_no_check_passes_without_evidence(name: str) -> None:
    empty = statuses(Evidence(requested_cpus=2))
    assert empty[name] == "blind"
    assert judge(Evidence(requested_cpus=2)).outcome == "infra"


def test_unreadable_counters_blame_nobody() -> None:
    """ssh is lost at the end: the console has the results, but no counters and no addresses."""
    run = Run()
    run.report = (GOLDEN / "pass-smp2.console.log").read_text().splitlines()
    assert "fail" not in statuses(run.evidence()).values()
    assert judge(run.evidence()).outcome == "infra"


def test_a_companion_that_lacks_something_skips_its_scenario() -> None:
    run = Run()
    run.companions["nop5"] = Companion(SKIP, "no CPU of this guest can be taken offline")
    evidence = run.evidence()
    assert [evidence.skipped(seen) for seen in evidence.steps if seen.scenario.name == "nop5"] == [
        None, None, "no CPU of this guest can be taken offline"
    ]  # fmt: skip
    assert judge(evidence).outcome == "pass"


# -- an observer that may not have seen everything


@pytest.mark.parametrize("observer", OBSERVERS)
def test_what_a_lost_observer_would_have_shown_is_not_known(observer: str) -> None:
    """Nothing that rests on it passes, and all else does."""
    run = Run()
    run.lost[observer] = "it was struck by lightning"
    results = {result.check: result for result in run_checks(run.evidence())}
    blind = {name for name, result in results.items() if result.status == "blind"}
    assert blind == set(RESTS[observer])
    assert {results[name].text for name in blind} == {"it was struck by lightning"}
    verdict = judge(run.evidence())
    assert (verdict.outcome, verdict.exit_status) == ("infra", 125)
    assert verdict.reason == "no verdict: it was struck by lightning"


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.parametrize("observer", OBSERVERS)
def test_a_fault_that_was_seen_stands_and_a_difference_does_not(observer: str, name: str) -> None:
    """A difference between the counts may be what the lost observer did not count."""
    run = Run()
    damage, checks = FAULTS[name]
    damage(run)
    run.lost[observer] = "it was struck by lightning"
    stands = "ledgers" not in checks or observer in ("console", "qmp")
    assert judge(run.evidence()).exit_status == (1 if stands else 125)


FIELDS = {
    "findings": "console",
    "excused": "console",
    "companions": "guest",
    "report": "guest",
    "guest": "guest",
    "watched": "gdb",
    "breakpoints": "gdb",
    "qemu_gated": "ledger",
    "qemu_free": "ledger",
    "record": "record",
}
"""Which observer each field of Evidence and StepEvidence is from."""


def test_a_check_looks_at_no_observer_but_those_that_it_declares() -> None:
    """Apart from what the guest could not run, which makes a step say nothing at all."""
    for check in CHECKS:
        looked_at: set[str] = set()
        evidence = Run().evidence()

        def spied(base: type, seen: set[str]) -> type:
            def get(self: object, name: str) -> object:
                caller = inspect.currentframe()
                assert caller and caller.f_back
                if name in FIELDS and caller.f_back.f_code.co_name != "skipped":
                    seen.add(FIELDS[name])
                return base.__getattribute__(self, name)

            return type(f"Spied{base.__name__}", (base,), {"__getattribute__": get})

        step, whole = spied(StepEvidence, looked_at), spied(Evidence, looked_at)
        steps = [step(**vars(seen)) for seen in evidence.steps]
        check.judge(whole(**{**vars(evidence), "steps": steps}))
        assert looked_at <= set(check.rests_on), check.name


@pytest.mark.parametrize("name", ["write", "sync", "int3", "stopper"])
def test_a_claim_is_not_shown_without_its_breakpoint(name: str) -> None:
    run = Run()
    run.breakpoints = tuple(point for point in run.breakpoints if point != name)
    blind = [claim for claim, points in BREAKPOINTS.items() if name in points]
    assert blind and not_passed(run) == dict.fromkeys(blind, "blind")
    texts = {result.check: result.text for result in run_checks(run.evidence())}
    assert all(texts[claim].endswith("GDB had no breakpoint for it") for claim in blind)
    assert judge(run.evidence()).outcome == "infra"


def test_without_its_breakpoint_a_claim_is_not_refuted_either() -> None:
    run = Run()
    run.breakpoints = ("write", "int3", "stopper")
    for event in [event for event in run.events if event["kind"] == "sync"]:
        run.drop(event)
    assert statuses(run.evidence())["sync"] == "blind"


def test_a_kernel_that_has_no_stop_machine_cannot_use_it() -> None:
    run = Run()
    run.breakpoints = ("write", "sync", "int3")
    evidence = run.evidence()
    evidence.impossible_breakpoints = {"stopper": "this kernel has no stop_machine()"}
    assert statuses(evidence)["stopper"] == "skip"
    assert judge(evidence).outcome == "pass"


def test_a_damaged_file_for_people_is_mentioned_and_costs_nothing() -> None:
    evidence = Run().evidence()
    evidence.damaged_logs = ("console.jsonl was removed during the run",)
    (result,) = [result for result in run_checks(evidence) if result.check == "watch"]
    assert result.status == "pass" and result.details == evidence.damaged_logs
    assert result.text.endswith("of the files for people, console.jsonl was removed during the run")
    assert judge(evidence).outcome == "pass"


def test_another_round_begins_with_observers_that_saw_nothing() -> None:
    evidence = Run().evidence()
    evidence.start_round()
    assert all(evidence.lost.values()) and not evidence.breakpoints
    assert {result.status for result in run_checks(evidence)} <= {"blind", "pass"}
    assert judge(evidence).outcome == "infra"


def guest(run: Run) -> CheckResult:
    return next(result for result in run_checks(run.evidence()) if result.check == "guest")


SENTENCE = "in phase 2 a die notifier was called for 16 of 16 int3 on CPU 0, last at site nop5"


def test_a_code_scenario_that_holds_is_counted() -> None:
    run = Run()
    run.code("int3-consumed")
    assert not not_passed(run)
    assert guest(run).text.endswith(
        "every one on a legal path; all assertions of 1 code scenario hold"
    )


def test_a_code_scenario_that_fails_is_reported_with_its_messages() -> None:
    run = Run()
    run.code("int3-consumed", SENTENCE, "and another one")
    assert not_passed(run) == {"guest": "fail"}
    verdict = judge(run.evidence())
    assert (verdict.outcome, verdict.exit_status) == ("fail", 1)
    assert verdict.reason == (
        f"guest: an assertion in the guest failed: int3-consumed.free: {SENTENCE}; and another one"
    )


def test_a_skipped_code_scenario_proves_nothing() -> None:
    run = Run()
    run.code("int3-consumed", skip="this kernel has no kprobes")
    evidence = run.evidence()
    assert evidence.skipped(evidence.steps[9]) == "this kernel has no kprobes"
    assert [step for step in evidence.steps_of("free") if step.scenario.code] == []
    assert judge(evidence).outcome == "pass"
    assert "code scenario" not in guest(run).text


@pytest.mark.parametrize(
    ("message", "reported"),
    [("the tracer is nop", "the tracer is nop"), ("", "what ran alongside failed")],
)
def test_a_failed_companion_is_reported_with_its_last_line(message: str, reported: str) -> None:
    run = Run()
    run.companions["nop5"] = Companion(BROKEN, message)
    assert not any(map(run.evidence().skipped, run.evidence().steps))
    assert guest(run).status == "fail"
    assert guest(run).text == f"an assertion in the guest failed: nop5: {reported}"


@pytest.mark.parametrize("status", [2, 3, 126, 127, 137, 139, 255])
def test_a_companion_that_could_not_do_its_work_blames_nobody_and_proves_nothing(
    status: int,
) -> None:
    """3 is what our scripts say; the others are a shell's, and signals such as the OOM killer's."""
    run = Run()
    run.companions["nop5"] = Companion(status, "sh: trapper: not found")
    assert guest(run).status == "blind"
    assert "sh: trapper: not found" in guest(run).text
    assert judge(run.evidence()).outcome == "infra"


def test_what_could_not_be_done_this_time_is_no_pass() -> None:
    run = Run()
    run.code("contexts", missed="no NMI came to CPU 1")
    evidence = run.evidence()
    assert evidence.skipped(evidence.steps[9]) is None
    assert not_passed(run) == {"guest": "blind"}
    verdict = judge(evidence)
    assert (verdict.outcome, verdict.exit_status) == ("infra", 125)
    assert verdict.reason.endswith("contexts.free: no NMI came to CPU 1")


def test_a_failure_counts_although_the_companion_lacks_something() -> None:
    run = Run()
    run.code("together", SENTENCE)
    run.companions["together"] = Companion(SKIP, "this kernel has no function tracer")
    assert guest(run).status == "fail"


@pytest.mark.parametrize(
    ("line", "word", "status", "case"),
    [
        ("ok 10 contexts.free", "holds", "pass", "pass"),
        # Its sentence was lost. The table once said `holds` beside that failure.
        ("not ok 10 contexts.free", "not ok", "fail", "fail"),
        ("ok 10 contexts.free # SKIP one CPU", "skipped: one CPU", "pass", "skip"),
        ("not ok 10 contexts.free # ERROR no NMI", "not done: no NMI", "blind", "error"),
    ],
)
def test_the_table_says_what_the_check_says(line: str, word: str, status: str, case: str) -> None:
    run = Run()
    run.code("contexts")
    run.report[-1] = line
    evidence = run.evidence()
    steps = evidence.steps[9:]
    assert str(_code_result(evidence, steps)) == word
    assert guest(run).status == status
    assert scenario_case(evidence, "contexts", steps).status == case


def test_a_companion_that_succeeds_is_no_fault() -> None:
    run = Run()
    run.companions["nop5"] = Companion(0, "all CPUs were taken offline and back")
    assert not not_passed(run)


def test_a_skip_without_a_message_gets_a_reason() -> None:
    run = Run()
    run.companions["nop5"] = Companion(SKIP, "")
    evidence = run.evidence()
    assert [evidence.skipped(seen) for seen in evidence.steps if seen.step.part == "free"] == [
        "the guest lacks something", None, None
    ]  # fmt: skip


def _with_watched_code(run: Run) -> Evidence:
    """The run with a watched code scenario added, in which GDB saw the first poke once more."""
    evidence = run.evidence()
    step = next(
        step for step in plan_steps(select(["keys-many"]), (0, 1), 0.5, 1) if step.part == "watched"
    )
    watched = run.watched(NOP5_ON)
    account = ktap.StepReport(number=10, name="keys-many.watched", ok=True)
    evidence.steps.append(
        StepEvidence(step=replace(step, number=10), guest=account, watched=watched)
    )
    return evidence


def test_pokes_of_a_watched_code_scenario_are_judged_too() -> None:
    run = Run()
    assert not list(_with_watched_code(run).violations())
    run.drop(*(run.find(NOP5_ON, "sync", 0, cpu=cpu) for cpu in (0, 1)))
    blamed = [
        (seen.scenario.name, violation.claim)
        for seen, _, violation in _with_watched_code(run).violations()
    ]
    assert blamed == [("nop5", "sync"), ("keys-many", "sync")]


def test_int3_of_a_watched_code_scenario_are_in_gdbs_ledger() -> None:
    run = Run()
    assert statuses(_with_watched_code(run))["ledgers"] == "fail"
    run.qemu.update(run.watched(NOP5_ON).int3)
    results = {result.check: result for result in run_checks(_with_watched_code(run))}
    assert results["ledgers"].status == "pass"
    assert (
        "the same 20 gated int3 (GDB and QEMU also count the same 4 others)"
        in results["ledgers"].text
    )


def test_exclusive_scenarios_are_not_in_the_free_running_ledger() -> None:
    evidence = Run().evidence()
    at = next(at for at, seen in enumerate(evidence.steps) if seen.step.part == "free")
    seen = evidence.steps[at]
    assert seen in evidence.free_steps
    with_company = seen.scenario.model_copy(update={"companion": "true"})
    evidence.steps[at] = replace(seen, step=replace(seen.step, scenario=with_company))
    assert evidence.steps[at] in evidence.steps_of("free")
    assert evidence.steps[at] not in evidence.free_steps


def test_without_qemus_ledger_the_other_two_must_agree() -> None:
    run = Run()
    run.no_qemu_ledger = "under KVM"
    assert not not_passed(run)
    run.say(1, "int3=1", "int3=0")
    assert not_passed(run) == {"ledgers": "fail"}


@pytest.mark.parametrize("cpu", [0, 1])
@pytest.mark.parametrize("seq", range(1, 7))
def test_a_cpu_that_never_hits_int3_is_not_covered(seq: int, cpu: int) -> None:
    """Neither GDB nor the guest saw it, so the ledgers agree, and only the coverage shows it."""
    run = Run()
    trap, back = run.find(seq, "int3", cpu=cpu), run.find(seq, "return", cpu=cpu)
    run.qemu[trap["ip"], cpu] -= 1
    run.drop(trap, back)
    run.say(seq, f"cpu={cpu} phase=1", None)
    assert not_passed(run) == {"coverage": "blind"}
    assert judge(run.evidence()).outcome == "infra"


def test_no_line_that_a_check_needs_may_be_missing_from_the_report() -> None:
    """No check needs the times, nor the free-running counters of a key.

    A free-running key has no ledger: its passes through int3 look like those without.
    """
    report = Run().report
    key = next(at for at, line in enumerate(report) if line.startswith("# step=9 "))
    for at, line in enumerate(report):
        harmless = ["KTAP version", "# elapsed_ns", "# step"]
        if at >= key:
            harmless += ["# addr", "# cpu"]
        run = Run()
        del run.report[at]
        assert judge(run.evidence()).outcome != "pass" or line.startswith(tuple(harmless)), line


def test_no_event_may_be_missing_except_repeated_ones() -> None:
    for at in range(len(Run().events)):
        run = Run()
        event = run.events.pop(at)
        if event["kind"] != "hold":  # without a hold the round is judged at the write
            assert judge(run.evidence()).outcome != "pass", event


def test_a_stale_int3_of_a_real_run_is_a_panic() -> None:
    """A healthy kernel on QEMU 10.0.2 with several TCG threads: an int3 that nobody handled."""
    run = Run()
    text = (GOLDEN / "oops-int3-not-taken.console.log").read_text().splitlines()
    run.report, run.findings = text, scan(text).findings
    assert {finding.kind for finding in run.findings} == {"int3", "panic"}
    assert statuses(run.evidence())["console"] == "fail"
    assert judge(run.evidence()).outcome == "panic"


def test_a_report_that_the_host_caused_is_mentioned_but_does_not_count() -> None:
    evidence = Run().evidence()
    evidence.excused = [Finding("warn", 113, "WARNING: x", 130, excuse="caused by a missing clock")]
    (text,) = [result.text for result in run_checks(evidence) if result.check == "console"]
    assert text.endswith("except line 113, caused by a missing clock")
    assert judge(evidence).outcome == "pass"


# -- a kernel without the test module


def without_module(
    *, cpus: tuple[int, ...] = (0, 1), drop: str = "", ledger: str | None = None
) -> Evidence:
    """Two switches of a sysctl with one site, where every CPU traps in both phases.

    drop: a kind of event that is not observed.
    """
    site, old, new = 0xFFFFFFFF81000000, "0f1f440000", "e910000000"
    seen: list[dict[str, object]] = []

    def see(kind: str, cpu: int = 0, **fields: object) -> None:
        if kind != drop:
            seen.append(
                {"n": len(seen) + 1, "t": 0.0, "step": 1, "kind": kind, "cpu": cpu, **fields}
            )

    def write(at: int, src: str, before: str) -> None:
        before = (before + "90" * 8)[:16]
        see(
            "write",
            addr=site + at,
            len=len(src) // 2,
            src=src,
            own=False,
            irqs=True,
            callers=[],
            before=before,
        )

    for was, becomes in ((old, new), (new, old)):
        for at, src, before in (
            (0, "cc", was),
            (1, becomes[2:], was[2:]),
            (0, becomes[:2], "cc" + becomes[2:]),
        ):
            write(at, src, before)
            for cpu in cpus:
                see("sync", cpu)
            if (at, src) != (0, becomes[:2]):
                for cpu in cpus:
                    see("int3", cpu, ip=site)
                    see("return", cpu, value=1, ip=site + 5, trap=site)
    (sysctls,) = select(["sysctl"])
    evidence = two_cpus(no_qemu_ledger=ledger, record=recorded(kprobes=3))
    lines = ["KTAP version 1", "1..2", "# pokes=2 elapsed_ns=1000", "ok 1 sysctl.watched"]
    evidence.report = ktap.parse([*lines, "# pokes=9 elapsed_ns=1000", "ok 2 sysctl.free"])
    evidence.steps = [
        StepEvidence(
            step=step,
            guest=evidence.report.step(step.number),
            watched=follow(seen, (0, 1)) if step.is_watched else None,
        )
        for step in plan_steps([sysctls], (0, 1), 1.0, 1)
    ]
    watched = evidence.steps[0].watched
    evidence.qemu_gated = Counter(watched.int3 if watched else {})
    return evidence


def test_without_the_module_the_kernels_own_pokes_count() -> None:
    verdict = judge(without_module())
    assert verdict.outcome == "pass"
    assert "without the test module" in verdict.reason
    assert {result.status for result in verdict.results} == {"pass"}
    assert "lock" not in {result.check for result in verdict.results}


def test_without_the_module_and_qemus_ledger_there_is_nothing_to_compare() -> None:
    assert statuses(without_module(ledger="KVM"))["ledgers"] == "skip"
    assert judge(without_module(ledger="KVM")).outcome == "pass"


@pytest.mark.parametrize(
    ("drop", "what"),
    [
        ("write", {claim: "blind" for claim in CLAIMS if claim != "lock"} | {"coverage": "blind"}),
        ("int3", {"int3": "blind", "consumed": "blind", "coverage": "blind"}),
        ("return", {"consumed": "blind"}),
        ("sync", {"sync": "fail"}),
    ],
)
def test_without_the_module_missing_evidence_is_no_pass_either(
    drop: str, what: dict[str, str]
) -> None:
    found = {
        check: status
        for check, status in statuses(without_module(drop=drop)).items()
        if status != "pass"
    }
    assert found.items() >= what.items()
    assert judge(without_module(drop=drop)).outcome in ("infra", "fail")


def test_without_the_module_a_cpu_that_hit_no_int3_is_not_covered() -> None:
    assert statuses(without_module(cpus=(0,)))["coverage"] == "blind"


def test_without_the_module_gdb_and_qemu_must_agree_too() -> None:
    evidence = without_module()
    evidence.qemu_gated[0xFFFFFFFF81000000, 0] -= 1
    assert statuses(evidence)["ledgers"] == "fail"


def two_cpus(**more: Any) -> Evidence:
    """The evidence of a run that went well, as far as nothing else is given."""
    return Evidence(
        requested_cpus=2,
        cpus=(0, 1),
        breakpoints=("write", "sync", "int3", "stopper"),
        lost=dict.fromkeys(OBSERVERS, ""),
        **more,
    )


def recorded(**counts: int) -> Judgement:
    return Judgement(judged=Counter(counts), rounds=30, int3=40, sites_looked_at=20)


@pytest.mark.parametrize("judged", [True, False])
def test_scenarios_that_hold_no_site_are_judged_by_the_recorder(judged: bool) -> None:
    (scenario,) = select(["held-off"])
    evidence = two_cpus(
        record=recorded(kprobes=3) if judged else None, no_record=None if judged else "KVM"
    )
    evidence.report = ktap.parse(["KTAP version 1", "1..1", "# x=1", "ok 1 held-off.free"])
    evidence.steps = [
        StepEvidence(step=step, guest=evidence.report.step(step.number))
        for step in plan_steps([scenario], (0, 1), 1.0, 1)
    ]
    found = statuses(evidence)
    assert {found[claim] for claim in CLAIMS} == {"pass" if judged else "blind"}
    assert {found[check] for check in ("progress", "coverage", "ledgers")} == {"skip"}
    assert judge(evidence).outcome == ("pass" if judged else "infra")


def test_the_record_says_how_many_pokes_of_whom_were_judged() -> None:
    run = Run()
    run.record = recorded(kprobes=3, ftrace=2000)
    result = next(one for one in run_checks(run.evidence()) if one.check == "record")
    assert (result.status, result.text) == (
        "pass",
        "2,003 pokes of the whole run were judged (ftrace 2,000, kprobes 3), "
        "with 30 sync rounds and 40 int3",
    )


def test_a_violation_that_only_the_record_shows_fails_its_claim() -> None:
    run = Run()
    run.record = recorded(kprobes=3)
    for number in range(2):
        run.record.blame(
            RecordViolation("sync", "CPU 1 had not run do_sync_core", 77 + number, 0x1000)
        )
    assert not_passed(run) == {"sync": "fail"}
    result = next(one for one in run_checks(run.evidence()) if one.check == "sync")
    assert result.text == "CPU 1 had not run do_sync_core (2 times in the whole run)"
    assert result.details[0].endswith("[record 77]")


def test_a_sync_that_a_kernel_defers_or_does_elsewhere_is_no_violation() -> None:
    run = Run()
    run.drop(next(event for event in run.events if event["kind"] == "sync"))
    run.record = recorded(kprobes=3)
    assert not_passed(run) == {"sync": "fail"}
    run.record.inline_syncs = 3  # by chance, not in every round
    assert not_passed(run) == {"sync": "fail"}
    run.record.inline_syncs = 30
    assert not_passed(run) == {}
    run.record.inline_syncs = 0
    run.record.deferred["idle"] = 100
    assert not_passed(run) == {}
    run.record.blame(
        RecordViolation("sync", "CPU 1 executed the site and had not serialised", 77, 0x1000)
    )
    assert not_passed(run) == {"sync": "fail"}


def test_a_kernel_without_do_sync_core_is_judged_by_the_record_alone() -> None:
    run = Run()
    run.breakpoints = ("write", "int3", "stopper")
    run.record = recorded(kprobes=3)
    for event in [event for event in run.events if event["kind"] == "sync"]:
        run.drop(event)
    evidence = run.evidence()
    evidence.impossible_breakpoints = {"sync": "this kernel has no do_sync_core()"}
    assert statuses(evidence)["sync"] == "pass"
    evidence.record = None
    assert statuses(evidence)["sync"] == "blind"


def test_a_site_that_is_not_as_it_is_set_fails_the_check_of_that_name() -> None:
    run = Run()
    run.record = recorded(kprobes=3)
    run.record.sites_looked_at = 10
    run.record.blame(RecordViolation("sites", "0f1f440000 is left at a branch", 77, 0x1000))
    assert not_passed(run) == {"sites": "fail"}


def test_a_log_that_is_not_what_gdb_saw_blames_nobody() -> None:
    run = Run()
    run.record = recorded(kprobes=3)
    run.record.disagreements = ["between two writes GDB saw 2 syncs, the recorder 1 [record 7]"]
    assert not_passed(run) == {"record": "blind"}


def test_a_recorder_that_saw_no_poke_is_no_pass() -> None:
    run = Run()
    run.record = recorded()
    assert not_passed(run) == {"record": "blind"}


def test_without_a_recorder_it_is_said_what_is_not_judged() -> None:
    run = Run()
    run.record, run.no_record = None, "under KVM QEMU does not see the guest's instructions"
    assert not_passed(run) == {"record": "skip", "sites": "skip"}
    result = next(one for one in run_checks(run.evidence()) if one.check == "record")
    assert result.text.startswith("only what GDB watched is judged: under KVM")
