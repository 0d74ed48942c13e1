# SPDX-License-Identifier: GPL-2.0-only
"""The scan for faults, with logs of real guests and with lines that only look like trouble.

tests/vm/provoke/provoke.c provoked the logs in klog/. They are named by kernel version and fault;
`6.1-debug` has KASAN, lockdep, and the caller in every line.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.guest.klog import OUTCOMES, FaultScanner, scan

LOGS = Path(__file__).parent / "klog"

EXPECTED = {
    "3.13-no-clock": [],
    "5.10-bug": ["bug"],
    "5.10-int3": ["int3", "panic"],
    "5.10-lockup": ["rcu-stall", "soft-lockup"],
    "5.10-warn": ["warn"],
    # The warning: the module's init returns with a wrong preemption count.
    "6.1-atomic": ["atomic", "warn"],
    "6.1-bug": ["bug"],
    "6.1-clean": [],
    "6.1-debug-atomic": ["atomic", "warn"],
    "6.1-debug-kasan": ["kasan"],
    "6.1-debug-lockdep": ["lockdep"],
    "6.1-debug-oops-on-every-cpu": ["kasan", "oops", "oops", "oops", "oops", "oops"],
    "6.1-divide-error": ["oops"],
    "6.1-general-protection": ["oops"],
    "6.1-hung-task": ["hung-task", "hung-task"],
    "6.1-int3": ["int3", "panic"],
    "6.1-invalid-opcode": ["oops"],
    "6.1-lockup": ["rcu-stall", "soft-lockup"],
    "6.1-nmi": [],
    "6.1-oops": ["oops"],
    "6.1-oops-on-every-cpu": ["oops", "oops"],
    "6.1-panic": ["panic"],
    "6.1-reset": [],
    "6.1-stack-overflow": ["oops", "panic"],
    "6.1-sysrq-c": ["panic"],
    "6.1-warn": ["warn"],
    "6.12-bug": ["bug"],
    "6.12-int3": ["int3", "panic"],
    "6.12-lockup": ["rcu-stall", "soft-lockup"],
    "6.12-warn": ["warn"],
    "7.3-sysrq-c": ["panic"],
}


def lines(name: str) -> list[str]:
    return (LOGS / f"{name}.log").read_bytes().decode().split("\n")


def kinds(scanner: FaultScanner) -> list[str]:
    return [finding.kind for finding in scanner.findings]


def test_every_log_has_its_expectation() -> None:
    assert {path.stem for path in LOGS.glob("*.log")} == EXPECTED.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_the_findings_in_a_real_log(name: str) -> None:
    scanner = scan(lines(name))
    assert kinds(scanner) == EXPECTED[name]
    assert scanner.boots == 1 and scanner.ready and not scanner.blind
    for finding in scanner.findings:
        assert finding.text in lines(name)[finding.line - 1]
        assert finding.line <= finding.last


@pytest.mark.parametrize(
    "name", ["5.10-bug", "6.1-oops", "6.1-stack-overflow", "6.1-warn", "6.12-int3", "6.12-warn"]
)
def test_a_report_extends_to_its_end_mark(name: str) -> None:
    finding = scan(lines(name)).findings[0]
    assert "---[ end trace" in lines(name)[finding.last - 1]
    assert finding.last - finding.line > 20


@pytest.mark.parametrize("name", ["6.1-lockup", "6.1-hung-task"])
def test_stalls_are_reported_but_not_fatal(name: str) -> None:
    scanner = scan(lines(name))
    assert not scanner.fatal
    assert [finding.outcome for finding in scanner.stalls] == ["hang", "hang"]


def test_warnings_of_a_kernel_without_a_clock_are_excused() -> None:
    log = lines("3.13-no-clock")
    assert [finding.kind for finding in scan(log).excused] == ["warn", "warn", "warn"]
    with_a_clock = scan(line for line in log if "could not calculate" not in line)
    assert kinds(with_a_clock) == ["warn", "warn", "warn"] and not with_a_clock.excused
    where = "../src/kernel/smp.c:1 smp_call_function_many+0x1/0x2()"
    log.insert(200, f"[    3.000000] WARNING: CPU: 1 PID: 0 at {where}")
    assert kinds(scan(log)) == ["warn"]


def test_interleaved_reports_are_told_apart_by_their_callers() -> None:
    scanner = scan(
        [
            "[    8.0][    C0] BUG: kernel NULL pointer dereference, address: 0000000000000000",
            "[    8.0][   T63] WARNING: CPU: 1 PID: 63 at x.c:1 f+0x1/0x2",
            "[    8.0][    C0] Oops: 0002 [#1] PREEMPT SMP",
            "[    8.0][   T63] ---[ end trace 0000000000000000 ]---",
            "[    8.0][    C0] ---[ end trace 0000000000000000 ]---",
        ]
    )
    assert [(finding.kind, finding.line, finding.last) for finding in scanner.findings] == [
        ("oops", 1, 5),
        ("warn", 2, 4),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "[    1.0] ---[ end Kernel panic - not syncing: Fatal exception ]---",
        "[    1.0] traps: sh[50] general protection fault ip:401000 sp:7ffc error:0 in sh",
        "[    1.0] traps: a.out[51] trap int3 ip:401001 sp:7ffc error:0 in a.out[401000+1000]",
        "[    1.0] Command line: panic=0 watchdog_thresh=30 rcupdate.rcu_cpu_stall_timeout=60",
        "[    1.0] NMI watchdog: Perf NMI watchdog permanently disabled",
        "[    1.0] rcu: \tRCU CPU stall warnings timeout set to 60 (rcu_cpu_stall_timeout).",
        "[    1.0] Spectre V2 : WARNING: Unprivileged eBPF is enabled with eIBRS on",
        "I said BUG: once",
        "",
    ],
)
def test_a_line_that_only_looks_like_trouble_is_no_finding(line: str) -> None:
    assert kinds(scan([line])) == []


@pytest.mark.parametrize(
    ("kept", "reason"),
    [
        (slice(10, None), "does not show the kernel's first line"),
        (slice(0, 100), "does not show that the guest's init was reached"),
        (slice(0, 0), "does not show the kernel's first line"),
    ],
)
def test_half_a_log_is_not_a_clean_log(kept: slice, reason: str) -> None:
    scanner = scan(lines("6.1-clean")[kept])
    assert not scanner.findings
    assert reason in scanner.blind


def test_lost_messages_are_not_a_clean_log() -> None:
    scanner = scan([*lines("6.1-clean"), "[    9.0] ** 212 printk messages dropped **"])
    assert kinds(scanner) == ["lost"] and not scanner.fatal
    assert "has dropped messages" in scanner.blind


def test_a_second_boot_is_fatal() -> None:
    scanner = scan(lines("6.1-clean") * 2)
    assert [finding.kind for finding in scanner.fatal] == ["reboot"]


def test_every_kind_has_an_outcome() -> None:
    assert {kind for expected in EXPECTED.values() for kind in expected} <= OUTCOMES.keys()
