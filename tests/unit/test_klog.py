# SPDX-License-Identifier: GPL-2.0-only
"""The scan for faults, with logs of real guests and with lines that only look like trouble.

tests/vm/provoke/provoke.c provoked the logs in klog/. They are named by kernel version and fault;
`6.1-debug` has KASAN, lockdep, and the caller in every line. In `6.1-boot-*` GDB broke the kernel
while it booted: wrong bytes at a jump label, a wrong source for __text_poke(), an int3 in
smp_init(). Messages that could not be provoked are in WORDINGS, made from the kernel's format
strings.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestrator.guest.klog import (
    LONGEST,
    MANY,
    OUTCOMES,
    FaultScanner,
    excuse_programs,
    scan,
)

LOGS = Path(__file__).parent / "klog"

EXPECTED = {
    "3.13-no-clock": [],
    "5.10-bug": ["bug"],
    "5.10-int3": ["int3", "panic"],
    "5.10-lockup": ["rcu-stall", "soft-lockup"],
    "5.10-slub": ["corruption"],
    "5.10-warn": ["warn"],
    "6.1-allocation": [],
    # The warning: the module's init returns with a wrong preemption count.
    "6.1-atomic": ["atomic", "warn"],
    "6.1-boot-int3": ["int3", "panic"],
    "6.1-boot-jump-label": ["bug", "panic", "oops"],
    "6.1-boot-poke-oops": ["oops", "panic"],
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
    "6.1-oom": ["oom"],
    "6.1-panic": ["panic"],
    # Programs wrote to the console and to /dev/kmsg; the kernel itself warned of a refcount.
    "6.1-program": ["corruption"],
    # The same without console_msg_format=syslog: /dev/kmsg, and a line with a forged time, pass.
    "6.1-program-time": ["oops", "bug", "warn"],
    "6.1-reset": [],
    "6.1-stack-overflow": ["oops", "panic"],
    "6.1-sysrq-c": ["panic"],
    "6.1-warn": ["warn"],
    "6.12-bug": ["bug"],
    "6.12-int3": ["int3", "panic"],
    "6.12-lockup": ["rcu-stall", "soft-lockup"],
    # The warning: since 6.12 a report of SLUB ends with one.
    "6.12-slub": ["corruption", "warn"],
    "6.12-warn": ["warn"],
    "7.3-sysrq-c": ["panic"],
    "7.3-warn": ["warn"],
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
    assert scanner.boots == 1
    assert scanner.ready == (not scanner.blind) == ("-boot-" not in name)
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


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[    9.0] sysrq: Resetting", True),
        ("[    9.0] SysRq : Resetting", True),  # until 4.19
        ("[    9.0] reboot: Restarting system", True),
        ("[    9.0] reboot: Restarting system with command 'now'", True),
        ("[    9.0] Restarting system.", True),  # 3.10
        ("[    9.0] reboot: machine restart", True),
        ("[    9.0] usb 1-1: Resetting", False),
        ("sysrq: Resetting", False),  # printed by a program
        ("[    9.0] reboot: Power down", False),
    ],
)
def test_a_reset_that_a_program_asks_for_is_told_from_a_triple_fault(line: str, told: bool) -> None:
    scanner = scan([*lines("6.1-clean"), line])
    assert bool(scanner.restart) == told and not scanner.findings


def test_every_kind_has_an_outcome() -> None:
    assert {kind for expected in EXPECTED.values() for kind in expected} <= OUTCOMES.keys()


# Made from the format strings of the kernel versions in the comments.
WORDINGS = [
    # WARN(): 3.10, without CONFIG_BUGVERBOSE, 4.4, 4.14 to 6.18, and 7.3, again without.
    ("warn", "WARNING: at kernel/watchdog.c:245 watchdog_overflow_callback+0x9c/0xd0()"),
    ("warn", "WARNING: at ffffffff81012345 [verbose debug info unavailable]"),
    ("warn", "WARNING: CPU: 0 PID: 1 at kernel/jump_label.c:73 jump_label_init+0x9c/0xd0()"),
    ("warn", "WARNING: CPU: 12 PID: 34567 at ../src/kernel/smp.c:912 smp_call+0x1/0x2 [orch]"),
    ("warn", "WARNING: CPU: 0 PID: 1 at smp_call+0x1/0x2"),
    ("warn", "WARNING: kernel/fork.c:123 at copy_process+0x1/0x2, CPU#3: a b/4"),
    ("warn", "WARNING: [a > b && c] kernel/fork.c:123 at copy_process+0x1/0x2, CPU#0: init/1"),
    ("warn", "WARNING: at copy_process+0x1/0x2, CPU#0: init/1"),
    # Hard lockup: panic() text apart, 3.10 to 4.9, 4.14 to 6.9, 6.10 on; buddy detector.
    ("hard-lockup", "Watchdog detected hard LOCKUP on cpu 0"),
    ("hard-lockup", "NMI watchdog: Watchdog detected hard LOCKUP on cpu 0dModules linked in:"),
    ("hard-lockup", "watchdog: Watchdog detected hard LOCKUP on cpu 1"),
    ("hard-lockup", "watchdog: CPU0: Watchdog detected hard LOCKUP on cpu 1"),
    # Soft lockup: 3.10, 4.4, 4.14 on.
    ("soft-lockup", "BUG: soft lockup - CPU#1 stuck for 23s! [hammer/1:77]"),
    ("soft-lockup", "NMI watchdog: BUG: soft lockup - CPU#1 stuck for 23s! [hammer/1:77]"),
    ("soft-lockup", "watchdog: BUG: soft lockup - CPU#1 stuck for 23s! [hammer/1:77]"),
    ("soft-lockup", "BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 31s!"),
    # RCU: Tree 3.10 to 4.14, since 4.19, expedited, Tiny (to 4.4), Tasks; 6.12.
    ("rcu-stall", "INFO: rcu_sched self-detected stall on CPU { 1}  (t=2100 jiffies g=1 c=0 q=3)"),
    ("rcu-stall", "INFO: rcu_preempt detected stalls on CPUs/tasks:"),
    ("rcu-stall", "rcu: INFO: rcu_preempt self-detected stall on CPU"),
    ("rcu-stall", "rcu: INFO: rcu_sched detected stalls on CPUs/tasks:"),
    ("rcu-stall", "rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 1-...D } 9"),
    ("rcu-stall", "INFO: rcu_sched stall on CPU (21 ticks this GP) idle=1 (t=2100 jiffies q=3)"),
    ("rcu-stall", "INFO: rcu_tasks detected stalls on tasks:"),
    ("rcu-stall", "INFO: rcu_tasks_trace detected stalls? (Late IPI?)"),
    (
        "rcu-stall",
        "rcu: INFO: rcu_sched detected stall, but suppressed full report due to a stuck CSD-lock.",
    ),
    # Hung task: 3.10 to 6.18, 7.3; writeback in 7.3.
    ("hung-task", "INFO: task kworker/u16:0-events_unbound:77 blocked for more than 120 seconds."),
    ("hung-task", "INFO: task provoke:77 blocked in I/O wait for more than 245 seconds."),
    ("hung-task", "INFO: The task sync:77 has been waiting for writeback for more than 120 s."),
    # CSD lock: 5.10 on.
    (
        "csd-stall",
        "smp: csd: Detected non-responsive CSD lock (#1) on CPU#0, waiting 5000000042 ns for "
        "CPU#01 do_sync_core+0x0/0x20(0x0).",
    ),
    ("csd-stall", "smp: csd: Continued non-responsive CSD lock (#1) on CPU#0, waiting 9 ns for"),
    ("lock-stall", "BUG: spinlock lockup suspected on CPU#1, hammer/1/77"),
    ("lock-stall", "BUG: write-lock lockup on CPU#1, hammer/1/77, ffffffff81a00000"),
    # Sanitizers: 4.4, later; all versions.
    ("kasan", "BUG: KASAN: out of bounds on address ffff88000000"),
    ("kasan", "BUG: KASAN: slab-use-after-free in text_poke_bp+0x1/0x2"),
    ("kasan", "BUG: KMSAN: uninit-value in hammer+0x1/0x2"),
    ("kasan", "BUG: KCSAN: data-race in a+0x1/0x2 / b+0x3/0x4"),
    ("kasan", "BUG: KFENCE: memory corruption in hammer+0x1/0x2"),
    ("kasan", "WARNING: kmemcheck: Caught 32-bit read from uninitialized memory (ffff880000000)"),
    ("warn", "UBSAN: Undefined behaviour in ../kernel/x.c:1:2"),
    ("warn", "UBSAN: array-index-out-of-bounds in ../kernel/x.c:1:2"),
    # lockdep: 3.10 and 4.4, 4.14 on.
    ("lockdep", "[ INFO: possible circular locking dependency detected ]"),
    ("lockdep", "[ INFO: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected ]"),
    ("lockdep", "[ INFO: suspicious RCU usage. ]"),
    ("lockdep", "[ BUG: bad unlock balance detected! ]"),
    ("lockdep", "[ BUG: sh/77 still has locks held! ]"),
    ("lockdep", "[ BUG: lock held at task exit time! ]"),
    ("lockdep", "[ BUG: Invalid wait context ]"),
    ("lockdep", "WARNING: possible recursive locking detected"),
    ("lockdep", "WARNING: SOFTIRQ-safe -> SOFTIRQ-unsafe lock order detected"),
    ("lockdep", "WARNING: inconsistent lock state"),
    ("lockdep", "WARNING: bad contention detected!"),
    ("lockdep", "WARNING: lock held when returning to user space!"),
    ("lockdep", "WARNING: sh/77 still has locks held!"),
    ("lockdep", "WARNING: held lock freed!"),
    ("lockdep", "WARNING: chain_key collision"),
    ("lockdep", "INFO: trying to register non-static key."),
    ("lockdep", "BUG: MAX_LOCK_DEPTH too low!"),
    ("lockdep", "BUG: looking up invalid subclass: 9"),
    ("lockdep", "BUG: key ffffffff81a00000 has not been registered!"),
    # Contexts.
    ("atomic", "BUG: scheduling while atomic: insmod/77/0x00000002"),
    ("atomic", "BUG: sleeping function called from invalid context at mm/slab.h:1"),
    ("atomic", "BUG: using smp_processor_id() in preemptible [00000000] code: insmod/77"),
    ("atomic", "BUG: using __this_cpu_add() in preemptible [00000000] code: insmod/77"),
    ("atomic", "BUG: workqueue leaked lock or atomic: kworker/0:1/0x00000001/77"),
    ("atomic", "BUG: workqueue leaked atomic, lock or RCU: kworker/0:1[77]"),
    ("atomic", "BUG: assuming atomic context at kernel/x.c:1"),
    ("atomic", "bad: scheduling from the idle thread!"),
    ("atomic", "softirq: huh, entered softirq 1 TIMER ffffffff81 with preempt_count 00000100,"),
    # Damaged data; the kernel goes on.
    ("corruption", "BUG: Bad rss-counter state mm:ffff880000 idx:1 val:3"),
    ("corruption", "BUG: Bad rss-counter state mm:ffff880000 type:MM_ANONPAGES val:3 Comm:x Pid:7"),
    ("corruption", "BUG: Bad page state in process insmod  pfn:00001"),
    ("corruption", "BUG: Bad page map in process insmod  pte:00000001 pmd:00000002"),
    ("corruption", "BUG: non-zero pgtables_bytes on freeing mm: 4096"),
    ("corruption", "BUG: non-zero nr_ptes on freeing mm: 1"),
    ("corruption", "BUG: spinlock bad magic on CPU#0, insmod/77"),
    ("corruption", "BUG: rwlock wrong CPU on CPU#0, insmod/77, ffffffff81a00000"),
    ("corruption", "BUG: Dentry ffff880000{i=1,n=x}  still in use (1) [unmount of tmpfs tmpfs]"),
    ("corruption", "BUG: mempool element poison mismatch"),
    ("corruption", "BUG kmalloc-64 (Not tainted): Redzone overwritten"),
    ("corruption", "BUG kmalloc-64 (Tainted: G    B      OE ): Freepointer corrupt"),
    ("corruption", "slab error in cache_free_debugcheck(): cache `size-64': double free detected"),
    ("corruption", "list_add corruption. next->prev should be prev (ffff88), but was (ffff89)."),
    ("corruption", "list_del corruption, ffff88->next is LIST_POISON1 (dead000000000100)"),
    ("corruption", "refcount_t: underflow; use-after-free."),
    ("corruption", "../mm/pgtable-generic.c:50: bad pmd ffff88(8000000000000163)"),
    # The end.
    ("panic", "PANIC: early exception 0d rip 10:ffffffff81 error 0 cr2 0"),
    ("panic", "PANIC: early exception 0x0d IP 10:ffffffff81 error 0 cr2 0x0"),
    ("panic", "traps: PANIC: double fault, error_code: 0x0"),
    ("panic", "PANIC: invalid or fatal FRED event; event type 3 vector 14 error 0x0 aux 0x0"),
    ("bug", "BUG: failure at kernel/x.c:1/f()!"),
    ("bug", "Kernel BUG at f+0x1/0x2 [verbose debug info unavailable]"),
    ("bug", "Unexpected op at f+0x1/0x2 [ffffffff81] (0f 1f 44 00 00) arch/x86/jump_label.c:61"),
    ("bug", "jump_label: Fatal kernel bug, unexpected op at f+0x1/0x2 [ffffff] (eb 0d) 61"),
    ("bug", "unexpected static_call insn opcode 0xcc at f+0x1/0x2"),
    ("oops", "BUG: unable to handle kernel NULL pointer dereference at 0000000000000008"),
    ("oops", "BUG: unable to handle page fault for address: ffffffff81a00000"),
    ("oops", "BUG: kernel NULL pointer dereference, address: 0000000000000008"),
    ("oops", "BUG: stack guard page was hit at ffffc900 (stack is ffffc900..ffffc901)"),
    ("oops", "BUG: TASK stack guard page was hit at ffffc900 (stack is ffffc900..ffffc901)"),
    ("oops", "BUG: invalid or fatal FRED event; event type 3 vector 14 error 0x0 aux 0x0"),
    ("oops", "kernel tried to execute NX-protected page - exploit attempt? (uid: 0)"),
    ("oops", "invalid opcode: 0000 [#1] SMP "),
    ("oops", "Oops: general protection fault, probably for non-canonical address 0x1: 0000 [#1]"),
    ("int3", "int3: 0000 [#1] PREEMPT SMP"),
    ("int3", "Oops: int3: 0000 [#1] SMP NOPTI"),
    # Words that no pattern knows; kprobes' own tests to 5.14.
    ("warn", "BUG: something that is not known yet"),
    ("warn", "BUG:  12 unexpected failures (out of 252) - debugging disabled! |"),
    ("warn", "Kprobe smoke test: BUG: 1 out of 4 tests failed"),
    # Not the kernel's fault.
    ("oom", "dropbear invoked oom-killer: gfp_mask=0x201da, order=0, oom_score_adj=0"),
    ("oom-panic", "Kernel panic - not syncing: Out of memory and no killable processes..."),
    ("oom-panic", "Kernel panic - not syncing: System is deadlocked on memory"),
    ("lost", "BUG: recent printk recursion!"),
]
PREFIXES = [
    "",
    "[    1.000000] ",
    "[   12.345678][    C1] ",
    "<4>[    1.0] ",
    "<3>[    1.0][  T99] ",
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(("kind", "text"), WORDINGS)
def test_what_the_kernel_says_over_its_versions(kind: str, text: str, prefix: str) -> None:
    scanner = scan([prefix + text])
    assert kinds(scanner) == [kind] and not scanner.excused
    assert scanner.findings[0].text == text.rstrip()


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("BUG: MAX_LOCKDEP_ENTRIES too low!", "lockdep"),
        ("BUG: MAX_LOCKDEP_CHAIN_HLOCKS too low!", "lockdep"),
        ("BUG: MAX_STACK_TRACE_ENTRIES too low!", "lockdep"),
        ("BUG: arch topology borken", "topology"),
        ("unchecked MSR access error: RDMSR from 0x852 at rIP: 0xffffffff81 (f+0x1/0x2)", "MSR"),
        ("insmod: page allocation failure: order:10, mode:0x10cc0(GFP_KERNEL)", "memory"),
        ("insmod: vmalloc error: size 4096, failed to allocate pages", "memory"),
        ("SLUB: Unable to allocate memory on node -1, gfp=0xcc0(GFP_KERNEL)", "memory"),
    ],
)
def test_what_is_no_fault_of_the_kernel_is_excused(text: str, cause: str) -> None:
    scanner = scan([*lines("6.1-clean"), f"[    9.0] {text}"])
    assert not scanner.findings and not scanner.blind
    assert cause in scanner.excused[0].excuse


def test_no_kind_but_those_that_end_the_guest_is_fatal() -> None:
    fatal = {kind for kind, text in WORDINGS if scan([text]).fatal}
    assert fatal == {"panic", "oops", "int3", "bug", "hard-lockup", "oom-panic"}


@pytest.mark.parametrize(
    "report",
    [
        # The message follows the header of WARN() up to 4.11, and precedes it later.
        ["WARNING: at lib/list_debug.c:29 f+0x1/0x2()", "list_add corruption. prev->next should"],
        [
            "list_add corruption. prev->next should",
            "WARNING: CPU: 0 PID: 1 at lib/list_debug.c:29 f",
        ],
        [
            "list_del corruption, ffff88->next is NULL",
            "------------[ cut here ]------------",
            "kernel BUG at lib/list_debug.c:53!",
            "invalid opcode: 0000 [#1] SMP",
        ],
    ],
)
def test_a_message_and_its_header_are_one_finding(report: list[str]) -> None:
    scanner = scan(["------------[ cut here ]------------", *report, "---[ end trace 0 ]---"])
    assert len(scanner.findings) == 1
    assert bool(scanner.fatal) == ("kernel BUG" in report[-2])
    assert scanner.findings[0].last == len(report) + 2


def test_a_report_in_words_that_are_not_known_is_a_warning() -> None:
    log = [
        "[    9.0] ------------[ cut here ]------------",
        "[    9.0] CAUTION! 42 in f+0x1/0x2",
        "[    9.0] RIP: 0010:text_poke_bp_batch+0x1/0x2",
        "[    9.0] ---[ end trace 0000000000000000 ]---",
    ]
    scanner = scan([*lines("6.1-clean"), *log])
    assert [(finding.kind, finding.text) for finding in scanner.findings] == [
        ("warn", "CAUTION! 42 in f+0x1/0x2")
    ]
    assert scanner.findings[0].patching == "kernel text"
    assert not scan([*lines("6.1-clean"), *log[:3]]).findings


@pytest.mark.parametrize(
    "text",
    [
        "rcu: INFO: Stall ended before state dump start",
        "rcu: INFO: Expedited stall ended before state dump start",
        "INFO: NMI handler (perf_event_nmi_handler) took too long to run: 2.413 msecs",
        "INFO: lockdep is turned off.",
        "INFO: task a:1 is blocked on a mutex likely owned by task b:2.",
        "WARNING: CPU does not support IBPB.",
        "WARNING: kernel stack regs at ffffc900 in hammer:77 has bad 'bp' value 0000000000000000",
        "Uhhuh. NMI received for unknown reason 20 on CPU 1.",
        "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
        "smp: csd: CSD lock (#1) got unstuck on CPU#01, CPU#00 released the lock.",
        "workqueue: f hogged CPU for >10000us 4 times, consider switching to WQ_UNBOUND",
    ],
)
def test_a_notice_of_the_kernel_is_no_finding(text: str) -> None:
    scanner = scan([*lines("6.1-clean"), f"[    9.0] {text}"])
    assert not scanner.findings and not scanner.excused


# -- whose line it is

FAULTS = [
    "Kernel panic - not syncing: not really",
    "BUG: kernel NULL pointer dereference, address: 0",
    "Oops: 0002 [#1] SMP",
    "WARNING: CPU: 0 PID: 1 at x.c:1 f+0x1/0x2",
    "INFO: task sh:1 blocked for more than 120 seconds.",
    "Linux version 9.9 of my dreams",
]


def with_priority(log: list[str]) -> list[str]:
    return [f"<6>{line}" if line.startswith("[") else line for line in log]


@pytest.mark.parametrize("text", FAULTS)
def test_a_line_without_the_prefix_of_printk_is_a_programs(text: str) -> None:
    scanner = scan([*lines("6.1-clean"), text, f"<0>{text}"])
    assert not scanner.findings and not scanner.blind and scanner.boots == 1


@pytest.mark.parametrize("text", FAULTS)
@pytest.mark.parametrize(
    "prefix", ["", "<12>[    9.000000] ", "<8>[    9.000000] ", "[    9.000000] "]
)
def test_so_is_one_with_another_facility(text: str, prefix: str) -> None:
    scanner = scan([*with_priority(lines("6.1-clean")), prefix + text])
    assert not scanner.findings and not scanner.blind and scanner.boots == 1


@pytest.mark.parametrize("text", FAULTS[:5])
def test_a_fault_of_the_kernel_in_the_middle_of_a_programs_line_is_seen(text: str) -> None:
    log = lines("6.1-clean")
    assert len(scan([*log, f"half a line[    9.000000] {text}"]).findings) == 1
    assert len(scan([*with_priority(log), f"half a line<4>[    9.000000] {text}"]).findings) == 1


def test_before_there_are_programs_a_line_without_prefix_is_the_kernels() -> None:
    """Early exceptions are printed before printk can be used, and by the decompressor."""
    log = lines("6.1-clean")
    for text in (
        "PANIC: early exception 0x0d IP 10:ffffffff81 error 0 cr2 0x0",
        " -- System halted",
    ):
        assert kinds(scan([*log[:50], text])) == ["panic"]
        assert kinds(scan([text])) == ["panic"]


def test_a_kernel_that_prints_no_prefix_is_scanned_all_the_same() -> None:
    log = [line.partition("] ")[2] for line in lines("6.1-clean")]
    scanner = scan([*log, "Kernel panic - not syncing: Fatal exception"])
    assert kinds(scanner) == ["panic"] and scanner.boots == 1 and not scanner.blind


def test_a_program_cannot_hide_the_kernel_by_its_own_prefix() -> None:
    """What the prefix has is learned before there are programs."""
    log = [*lines("6.1-clean"), "<6>[    9.000000] I imitate another format"]
    assert kinds(scan([*log, "[    9.1] Kernel panic - not syncing: x"])) == ["panic"]


def test_messages_dropped_are_told_without_a_prefix_and_before_the_next_message() -> None:
    log = [
        *lines("6.1-clean"),
        "** 12 printk messages dropped ** [    9.000000] kernel BUG at x.c:1!",
    ]
    assert kinds(scan(log)) == ["lost", "bug"]


def test_what_the_kernels_log_does_not_have_was_printed_by_a_program() -> None:
    console = lines("6.1-program-time")
    log = [f"<6>{line}" for line in lines("6.1-clean")]
    log += ["<8>[    9.0] BUG: kernel NULL pointer dereference"]  # as written to /dev/kmsg
    log += [f"<4>{line}" for line in console if "WARNING" in line]
    scanner = scan(console)
    excuse_programs(scanner, list(scanner.findings), log)
    assert kinds(scanner) == ["warn"]
    assert {finding.excuse for finding in scanner.excused} == {"printed by a program of the guest"}


def test_a_log_that_is_not_whole_excuses_nothing() -> None:
    scanner = scan(lines("6.1-program-time"))
    before = kinds(scanner)
    for log in ([], ["<6>[    5.0] something"], ["dmesg: klogctl: Operation not permitted"]):
        excuse_programs(scanner, list(scanner.findings), log)
    assert kinds(scanner) == before


def test_a_fault_after_the_log_was_read_is_not_excused_by_it() -> None:
    scanner = scan(lines("6.1-clean"))
    known = list(scanner.findings)
    log = [f"<6>{line}" for line in lines("6.1-clean")]
    scanner.feed("[    9.0] kernel BUG at x.c:1!")
    excuse_programs(scanner, known, log)
    assert kinds(scanner) == ["bug"]


# -- text patching

PATCHING = [
    "jump_label: Fatal kernel bug, unexpected op at f+0x1/0x2 [ffffffff81] (eb 0d 48 8b 05 != eb)",
    "Unexpected op at f+0x1/0x2 [ffffffff81] (0f 1f 44 00 00) arch/x86/kernel/jump_label.c:61",
    "unexpected static_call insn opcode 0xcc at f+0x1/0x2",
    "int3: 0000 [#1] SMP",
    "Oops: int3: 0000 [#1] SMP",
    "kernel BUG at ../src/arch/x86/kernel/alternative.c:1234!",
    "kernel BUG at arch/x86/kernel/kprobes/opt.c:12!",
    "WARNING: CPU: 0 PID: 1 at arch/x86/kernel/ftrace.c:100 f+0x1/0x2",
    "WARNING: kernel/jump_label.c:12 at f+0x1/0x2, CPU#0: swapper/0/1",
    "BUG: KASAN: use-after-free in text_poke_bp_batch+0x1/0x2",
    "Kprobe smoke test: BUG: 1 out of 4 tests failed",
]


@pytest.mark.parametrize("text", PATCHING)
def test_a_message_about_text_patching(text: str) -> None:
    assert scan([text]).findings[0].patching


@pytest.mark.parametrize(
    "line",
    [
        "IP: [<ffffffff810351e4>] text_poke+0x44/0x2b0",
        "RIP: 0010:[<ffffffff810351e4>]  [<ffffffff810351e4>] text_poke+0x44/0x2b0",
        "RIP  [<ffffffff810351e4>] text_poke+0x44/0x2b0",
        "RIP: text_poke+0x44/0x2b0 RSP: ffffc90000013d48",
        "RIP: 0010:__text_poke+0x33/0x480",
        "RIP: 0010:smp_text_poke_int3_handler+0x33/0x480",
        " [<ffffffff810351e4>] arch_jump_label_transform+0x44/0x2b0",
        "  do_sync_core.llvm.8808958708760710351+0x1/0x30",
        "  __static_call_update+0x1/0x30 [orch]",
        "  apply_alternatives.constprop.0+0x1/0x30",
        "  arch_optimize_kprobes+0x1/0x30",
        "  ftrace_replace_code+0x1/0x30",
        "  exc_int3+0x1/0x30",
        "  bpf_arch_text_poke+0x1/0x30",
    ],
)
def test_a_report_whose_ip_or_trace_lies_in_text_patching(line: str) -> None:
    log = ["BUG: kernel NULL pointer dereference, address: 0", "Oops: 0002 [#1] SMP", line]
    (finding,) = scan(f"[    1.000000] {text}" for text in log).findings
    assert finding.patching


@pytest.mark.parametrize(
    "line",
    [
        "  ? text_poke_bp+0x1/0x30",  # left over on the stack
        " [<ffffffff810351e4>] ? text_poke+0x44/0x2b0",
        "  static_key_count+0x1/0x30",
        "  multi_cpu_stop+0x1/0x30",
        "  ftrace_regs_call+0x1/0x30",
        "hardirqs last  enabled at (1234): text_poke+0x1/0x30",
        " #0: ffffffff81 (text_mutex){+.+.}-{3:3}, at: static_key_slow_inc+0x1/0x30",
        "Code: text_poke+0x1/0x30 90 90",
    ],
)
def test_a_report_about_something_else(line: str) -> None:
    log = ["BUG: kernel NULL pointer dereference, address: 0", "Oops: 0002 [#1] SMP", line]
    (finding,) = scan(f"[    1.000000] {text}" for text in log).findings
    assert not finding.patching


@pytest.mark.parametrize("name", [name for name in EXPECTED if "-boot-" in name])
def test_crashes_of_text_patching_while_booting(name: str) -> None:
    assert scan(lines(name)).findings[0].patching


# -- bounds


@pytest.mark.parametrize(
    "pattern",
    [
        "a",
        " ",
        "a ",
        "x: 0000",
        "WARNING: at ",
        "WARNING: CPU: 0 PID: 1 at x at ",
        "WARNING: x at ",
        "INFO: task a:1 blocked ",
        "INFO: task ",
        "[ BUG: ",
        "[<ffffffff81>] ",
        " at in a+0x1",
        "[    1.000000]",
        "<6>[    1.000000]",
        "a/1",
        "BUG: ",
        ": page allocation ",
    ],
)
def test_a_line_of_a_megabyte_takes_no_time(pattern: str) -> None:
    line = pattern * (1_000_000 // len(pattern))
    scanner = scan(lines("6.1-clean"))
    start = time.process_time()
    scanner.feed("[    9.000000] kernel BUG at x.c:1!")
    for text in (line, f"[    9.000000] {line}", f"<4>[    9.000000] {line}"):
        scanner.feed(text)
    assert time.process_time() - start < 0.5
    assert all(len(finding.text) <= LONGEST for finding in scanner.findings)


def test_a_guest_that_warns_for_ever_fills_no_memory() -> None:
    scanner = scan(lines("6.1-clean"))
    for number in range(50 * MANY):
        scanner.feed(f"[    9.0][ T{number}] WARNING: CPU: 0 PID: 1 at x.c:1 f+0x1/0x2")
        scanner.feed("Kernel panic - not syncing: a program says it")
    scanner.feed("[    9.0] kernel BUG at x.c:1!")
    assert kinds(scanner) == ["warn"] * MANY + ["bug"]
    assert len(scanner.excused) == MANY
