# SPDX-License-Identifier: GPL-2.0-only
"""The sites of static keys and static calls, and what is left behind by a write."""

from __future__ import annotations

from dataclasses import replace

import pytest
from recorded import AROUND, JUMP, NOP, SITE, TASK, TEXT, Written

from orchestrator.text import semantics
from orchestrator.text.functions import FOR_CPUS, FOR_EACH_CPU, FOR_TASKS, TASKS_LATER
from orchestrator.verdict.recorded import record
from orchestrator.verdict.recorded.judge import judge
from orchestrator.verdict.recorded.judgement import Judgement
from orchestrator.verdict.recorded.record import (
    BRANCH,
    CALL,
    F_MAPPED,
    FREED,
    GRACE,
    TRACED,
    TRACER,
)
from orchestrator.verdict.recorded.switched import TRACED_BEFORE

KEY, TARGET = TEXT + 0x200000, SITE + 5 + 0xFB
CALLED, RETURN_0, ASSIST = TEXT + 0x3000, TEXT + 0x4000, TEXT + 0x5000


def number(code: bytes) -> int:
    return int.from_bytes(code.ljust(8, b"\x90"), "little")


def jump(opcode: int, target: int) -> bytes:
    return bytes([opcode]) + (target - SITE - 5).to_bytes(4, "little", signed=True)


def judged(log: Written) -> Judgement:
    names = {
        CALLED: "called+0x0",
        RETURN_0: "__static_call_return0+0x0",
        ASSIST: "ftrace_ops_assist_func+0x0",
    }
    return judge(log.records, replace(AROUND, name=names.get))


def broken(log: Written) -> set[str]:
    return set(judged(log).broken)


@pytest.mark.parametrize(
    ("count", "flags", "code", "right"),
    [
        (0, 0, NOP, True),
        (0, 0, b"\x66\x90", True),
        (0, 0, JUMP, False),
        (1, 0, JUMP, True),
        (0xFFFFFFFF, 0, JUMP, True),  # its first user is switching it on
        (1, 0, NOP, False),
        (1, 1, NOP, True),
        (1, 1, JUMP, False),
        (0, 1, JUMP, True),
        (1, 0, b"\xe9\0\0\0\0", False),
        (1, 0, b"\xcc" + JUMP[1:], False),
        (0, 0, b"\xcc" + NOP[1:], False),
        (1, 2, NOP, True),  # in init text
        (1, 4, JUMP, False),  # a module's that is gone
        (1, 8, JUMP, False),  # it is about to be switched
        (0, 0, bytes.fromhex("0f1f006690"), False),  # two NOPs
    ],
)
def test_a_branch_is_what_its_key_is_set_to(
    count: int, flags: int, code: bytes, right: bool
) -> None:
    log = Written()
    log.add(BRANCH, 255, KEY, count, SITE, TARGET, flags, number(code))
    assert broken(log) == (set() if right else {"sites"})


def test_one_branch_of_many_that_was_forgotten_is_named() -> None:
    log = Written()
    for at in range(100):
        code = NOP if at == 99 else JUMP
        log.add(BRANCH, 255, KEY, 1, SITE + 16 * at, TARGET + 16 * at, 0, number(code))
    (fault,) = judged(log).violations
    assert fault.text.startswith("0f1f440000 is left at a branch of a key (ffffffff81200000) that")
    assert f"site {SITE + 16 * 99:x}" in fault.text


@pytest.mark.parametrize(
    ("function", "flags", "code", "right"),
    [
        (CALLED, 0, jump(0xE8, CALLED), True),
        (CALLED, 0, jump(0xE8, CALLED + 8), False),
        (CALLED, 0, jump(0xE9, CALLED), False),
        (CALLED, 1, jump(0xE9, CALLED), True),
        (CALLED, 1, jump(0xE8, CALLED), False),
        (CALLED, 4, jump(0xE8, CALLED), False),  # a module's that is gone
        (0, 0, NOP, True),
        (0, 0, jump(0xE8, CALLED), False),
        (0, 1, b"\xc3\xcc\xcc\xcc\xcc", True),
        (0, 1, NOP, False),
        (RETURN_0, 0, semantics.RETURN_0[0], True),
        (RETURN_0, 0, jump(0xE8, RETURN_0), True),
        (RETURN_0, 0, NOP, False),
        (RETURN_0, 1, jump(0xE9, RETURN_0), True),
        (CALLED, 0, semantics.RETURN_0[0], False),
        (CALLED, 2, NOP, True),  # in init text
        (CALLED, 0, bytes.fromhex("3e3ec60700"), True),  # movb $0, (%rdi): the function itself
        (CALLED, 0, b"\xcc" + NOP[1:], False),
    ],
)
def test_a_static_call_calls_what_it_is_set_to(
    function: int, flags: int, code: bytes, right: bool
) -> None:
    log = Written()
    log.add(CALL, 255, KEY, function, SITE, flags, number(code))
    assert broken(log) == (set() if right else {"sites"})


@pytest.mark.parametrize("kind", ["write", "unlock"])
def test_a_temporary_mapping_does_not_stay(kind: str) -> None:
    log = Written()
    log.poke()
    if kind == "write":
        log.write(SITE, 0, b"\xcc", flags=record.F_IRQS | F_MAPPED)
    else:
        log.add(record.UNLOCK, 0, TASK, 15, flags=F_MAPPED)
    (fault,) = judged(log).violations
    assert fault.claim == "writes" and "was still there afterwards" in fault.text


@pytest.mark.parametrize("waited", [FOR_TASKS, FOR_CPUS, TASKS_LATER, None])
def test_a_kprobe_becomes_a_jump_when_no_task_is_inside_any_more(waited: int | None) -> None:
    around = replace(AROUND, name={TEXT: "arm_kprobe+0x10"}.get, rcu_tasks=True)
    log = Written()
    log.write(SITE, 0, b"\xcc", TEXT)
    log.sync(0, 1, 2, 3)
    log.unlock()
    if waited is not None:
        log.add(GRACE, 0, number=waited)
    for offset, data in ((0, b"\xcc"), (1, JUMP[1:]), (0, JUMP[:1])):
        log.write(SITE, offset, data, TEXT)
        log.sync(0, 1, 2, 3)
    log.unlock()
    assert set(judge(log.records, around).broken) == (set() if waited == FOR_TASKS else {"sync"})


ENABLED, TRAMP, REGS = 1 << 31, 3 << 27, 3 << 29
IN_CALLER, IN_REGS_CALLER, IN_TRAMPOLINE = 1, 2, 4


@pytest.mark.parametrize(
    ("flags", "what", "code", "on", "right"),
    [
        (0, 0, NOP, 1, True),
        (0, 0, b"\x66\x66\x66\x66\x90", 1, True),
        (0, IN_CALLER, jump(0xE8, CALLED), 1, False),
        (0, 0, JUMP, 1, False),
        (0, 0, b"\xcc" + NOP[1:], 1, False),
        (1 << 25, IN_CALLER, jump(0xE8, CALLED), 1, True),  # of a module that is not ready
        (3 << 19, 0, NOP, 1, True),  # it was traced, and modified
        (1, 0, NOP, 1, False),  # forgotten altogether
        (1, 0, NOP, 0, True),  # while the tracer is off
        (ENABLED, IN_CALLER, jump(0xE8, CALLED), 1, False),  # nobody wants it any more
        (ENABLED | 1, IN_CALLER, jump(0xE8, CALLED), 0, False),
        (ENABLED | 1, IN_CALLER, jump(0xE8, CALLED), 1, True),
        (ENABLED | 1, 0, NOP, 1, False),
        (ENABLED | 1, 0, jump(0xE8, CALLED + 1), 1, False),
        (ENABLED | 1, IN_REGS_CALLER, jump(0xE8, CALLED), 1, False),
        (ENABLED | REGS | 1, IN_REGS_CALLER, jump(0xE8, CALLED), 1, True),
        (ENABLED | REGS | 1, IN_CALLER, jump(0xE8, CALLED), 1, False),
        (ENABLED | TRAMP | 1, IN_TRAMPOLINE, jump(0xE8, CALLED), 1, True),
        (ENABLED | TRAMP | REGS | 1, IN_TRAMPOLINE, jump(0xE8, CALLED), 1, True),
        (ENABLED | TRAMP | 1, 0, jump(0xE8, CALLED), 1, False),  # one that is gone
        (ENABLED | 1 << 27 | 2, IN_TRAMPOLINE, jump(0xE8, CALLED), 1, False),  # as before
        (ENABLED | 3 << 23 | 1, 0, jump(0xE8, CALLED), 1, True),  # direct
        (ENABLED | 3 << 23 | 1, 0, jump(0xE9, CALLED), 1, True),
        (ENABLED | 3 << 23 | 1, 0, NOP, 1, False),
    ],
)
def test_a_function_calls_the_tracer_if_it_is_traced(
    flags: int, what: int, code: bytes, on: int, right: bool
) -> None:
    log = Written()
    called = CALLED if code[0] == 0xE8 else 0
    log.add(TRACED, 255, called, what, SITE, flags, number(code), on, number=3)
    assert broken(log) == (set() if right else {"sites"})
    assert judged(log).sites_looked_at == 3


@pytest.mark.parametrize("begun", [True, False])
def test_a_module_that_runs_can_be_traced(begun: bool) -> None:
    """Its functions are disabled until it is ready. In a branch that was long ago."""
    log = Written()
    log.add(TRACED, 255, 0, 0, SITE, 1 << 25, number(NOP), 1, number=3)
    around = replace(AROUND, module=(SITE, SITE + 1))
    before = judge(Written().records, AROUND)
    before.judged["test module"] = 1
    faults = judge(log.records, around, before if begun else None).violations
    assert [fault.claim for fault in faults] == ["sites"] * begun


def test_functions_that_can_be_traced_in_an_old_kernel_are_not_judged() -> None:
    log = Written()
    log.add(TRACED, 255, 0, 0, SITE, 1 << 29 | 1, number(NOP), 1, number=3)
    result = judge(log.records, replace(AROUND, kprobe_syncs=False))
    assert not result.violations
    assert not result.sites_looked_at
    assert result.not_judged[TRACED_BEFORE] == 3


def test_a_trampoline_may_call_the_tracer_by_ftrace_ops_assist_func() -> None:
    log = Written()
    log.add(CALL, 255, 0, CALLED, SITE, 0, number(jump(0xE8, ASSIST)))
    assert not broken(log)
    log.add(CALL, 255, 0, CALLED, SITE, 0, number(jump(0xE8, RETURN_0)))
    assert broken(log) == {"sites"}


def test_a_trampoline_passes_the_ops_of_its_tracer() -> None:
    log = Written()
    log.add(CALL, 255, 0, CALLED, SITE, 8, number(jump(0xE8, CALLED)))
    (fault,) = judged(log).violations
    assert fault.claim == "sites" and "passes the ops of another one" in fault.text


@pytest.mark.parametrize(
    ("function", "passed", "right"),
    [
        (CALLED, CALLED, True),
        (CALLED, RETURN_0, False),
        (CALLED, ASSIST, False),
        (ASSIST, CALLED, True),
    ],
)
def test_ftrace_caller_passes_the_ops_of_the_tracer_that_it_calls(
    function: int, passed: int, right: bool
) -> None:
    log = Written()
    log.add(TRACER, 0, function, passed, SITE)
    assert broken(log) == (set() if right else {"sites"})


FUNCTIONS = {
    TEXT: "function_trace_call+0x0",
    TEXT + 16: "arch_ftrace_ops_list_func.llvm.7+0x0",
    TEXT + 32: "ftrace_stub+0x0",
    TEXT + 48: "ftrace_replace_code+0x40",
}


@pytest.mark.parametrize(
    ("functions", "early", "right"),
    [
        ((16, 0, 16, 32), False, True),
        ((0, 16, 0), False, True),
        ((32, 0), False, False),
        ((16, 0), True, False),
    ],
)
def test_while_calls_of_functions_are_switched_each_tracer_is_asked_for_its_filter(
    functions: tuple[int, ...], early: bool, right: bool
) -> None:
    log = Written()
    log.unlock()
    if early:
        log.write(SITE, 0, b"\xcc", TEXT + 48)
    for function in functions:
        log.add(TRACER, 0, TEXT + function, TEXT + function, SITE)
    around = replace(AROUND, name=FUNCTIONS.get, kprobe_syncs=True)
    assert ("sites" in judge(log.records, around).broken) == (not right)


def test_no_records_of_functions_stay_when_their_module_is_gone() -> None:
    log = Written()
    log.add(TRACED, 255, 0, 8, SITE, 0, 0, 1, number=1)
    (fault,) = judged(log).violations
    assert fault.claim == "sites" and "of a module that is gone" in fault.text


SLOT = SITE + 5 + 0xFB
NAMES = {
    TEXT: "arm_kprobe+0x10",
    TEXT + 16: "kprobe_optimizer+0x60",
    TEXT + 32: "rcu_tasks_invoke_cbs+0x60",
}


@pytest.mark.parametrize(
    ("trampoline", "waited", "preemption", "caller", "right"),
    [
        (0, "", True, TEXT + 16, False),
        (0, "before", True, TEXT + 16, False),
        (0, "after", True, TEXT + 16, True),
        (0, "", True, TEXT, True),  # it was disabled
        (1, "", True, TEXT, False),
        (1, "after", True, TEXT, True),
        (1, "", True, TEXT + 32, True),  # call_rcu_tasks() had it freed
        (1, "", False, TEXT, True),
    ],
)
def test_code_that_was_jumped_to_is_freed_when_no_task_is_in_it_any_more(
    trampoline: int, waited: str, preemption: bool, caller: int, right: bool
) -> None:
    around = replace(AROUND, name=NAMES.get, rcu_tasks=True, preemption=preemption)
    log = Written()
    log.poke(new=JUMP)
    if waited == "before":
        log.add(GRACE, 0)
    log.poke(new=NOP)
    if waited == "after":
        log.add(GRACE, 0)
    log.add(FREED, 0, SLOT, number=trampoline)
    log.add(record.CALLERS, 0, caller, number=1)
    log.add(FREED, 0, SLOT + 16, number=trampoline)
    log.add(record.CALLERS, 0, caller, number=1)
    found = judge(log.records, around)
    assert set(found.broken) == (set() if right else {"sync"})
    assert right or "was freed, and nobody" in found.violations[0].text


@pytest.mark.parametrize("waited", [FOR_TASKS, FOR_CPUS, FOR_EACH_CPU])
def test_a_trampoline_is_freed_when_no_idle_cpu_is_in_it_either(waited: int) -> None:
    around = replace(AROUND, waits_for_each_cpu=True)
    log = Written()
    log.poke(new=JUMP)
    log.poke(new=NOP)
    log.add(GRACE, 0, number=waited)
    log.add(FREED, 0, SLOT, number=record.A_SLOT)
    log.add(FREED, 0, SLOT, number=record.A_TRAMPOLINE)
    found = judge(log.records, around).violations
    assert [fault.claim for fault in found] == ["sync"] * (waited != FOR_EACH_CPU)
    assert not found or "called synchronize_rcu_tasks_rude()" in found[0].text


@pytest.mark.parametrize("size", [1, 16, 32])
@pytest.mark.parametrize("owned", [True, False])
def test_new_text_is_written_under_text_mutex_as_it_shares_a_mapping(
    owned: bool, size: int
) -> None:
    log = Written()
    log.poke()
    log.write(0xFFFFFFFFC0100000, 0, bytes([0x55]) * size, owner=TASK if owned else 0)
    found = judge(log.records, replace(AROUND, kprobe_syncs=True)).broken
    assert set(found) == (set() if owned else {"lock"})
