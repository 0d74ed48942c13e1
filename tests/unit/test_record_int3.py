# SPDX-License-Identifier: GPL-2.0-only
"""Where a CPU goes on that met int3: at a call, a return, and a static call's special cases."""

from __future__ import annotations

from dataclasses import replace

import pytest
from recorded import AROUND, JUMP, NOP, SITE, TASK, TEXT, Written

from orchestrator import guests
from orchestrator.text import semantics
from orchestrator.verdict.recorded.judge import judge
from orchestrator.verdict.recorded.record import (
    DIES,
    H_POKE,
    PASS,
    R_CHANGED,
    R_KEPT,
    RESUME,
    STOPPER,
    TRAP,
)

END, CALLED, RETURN_0, RETURN = SITE + 5, TEXT + 0x3000, TEXT + 0x4000, TEXT + 0x5000
NAMES = {
    CALLED: "called+0x0",
    RETURN_0: "__static_call_return0+0x0",
    RETURN: "__static_call_return+0x0",
    TEXT: "__static_call_transform+0x10",
}


def to(opcode: int, target: int) -> bytes:
    return bytes([opcode]) + (target - END).to_bytes(4, "little", signed=True)


CALL, RET0, RET = to(0xE8, CALLED), semantics.RETURN_0[0], b"\xc3\xcc\xcc\xcc\xcc"


@pytest.mark.parametrize(
    ("new", "ip", "stack", "pushed", "right"),
    [
        (CALL, CALLED, -8, END, True),
        (CALL, CALLED, 0, END, False),  # a jump
        (CALL, CALLED, -8, SITE, False),  # it would return to the site
        (CALL, CALLED, -8, SITE + 1, False),
        (CALL, END, 0, 0, True),  # the old NOP
        (CALL, END, -8, END, False),
        (to(0xE9, CALLED), CALLED, 0, 0, True),
        (to(0xE9, CALLED), CALLED, -8, END, False),
        (RET0, RETURN_0, -8, END, True),
        (RET0, RETURN_0, 0, 0, False),  # it would return from the caller
        (RET0, RETURN_0, -8, SITE, False),
        (RET0, CALLED, -8, END, False),
        (RET, RETURN, 0, 0, True),
        (RET, RETURN, -8, END, False),
        (CALL, RETURN, 0, 0, False),
        (CALL, RETURN_0, -8, END, False),
        (CALL, SITE, 0, 0, False),  # nobody took it
    ],
)
def test_a_cpu_goes_on_as_the_old_or_new_instruction_would(
    new: bytes, ip: int, stack: int, pushed: int, right: bool
) -> None:
    log = Written()
    log.write(SITE, 0, b"\xcc", TEXT)
    log.sync(0, 1, 2, 3)
    log.trap(SITE, ip, stack=stack, pushed=pushed)
    log.write(SITE, 1, new[1:], TEXT)
    log.sync(0, 1, 2, 3)
    log.write(SITE, 0, new[:1], TEXT)
    log.sync(0, 1, 2, 3)
    log.unlock()
    result = judge(log.records, replace(AROUND, name=NAMES.get))
    assert set(result.broken) == (set() if right else {"consumed"})
    assert result.judged == {"static calls": 1} and result.int3 == 1


@pytest.mark.parametrize("kept", [0, R_KEPT])
def test_a_handler_gives_its_reference_back(kept: int) -> None:
    log = Written()
    log.trap(SITE, SITE + 1, handlers=H_POKE | kept)  # of nobody that is known
    faults = judge(log.records, AROUND).violations
    assert [fault.claim for fault in faults] == (["consumed"] if kept else [])


def test_from_zero_back_to_a_function_either_is_right() -> None:
    for ip in (RETURN_0, CALLED):
        log = Written()
        log.memory[SITE] = bytearray(RET0.ljust(32, b"\x90"))
        log.write(SITE, 0, b"\xcc", TEXT)
        log.sync(0, 1, 2, 3)
        log.trap(SITE, ip, stack=-8, pushed=END)
        log.write(SITE, 1, CALL[1:], TEXT)
        log.sync(0, 1, 2, 3)
        log.write(SITE, 0, CALL[:1], TEXT)
        log.sync(0, 1, 2, 3)
        log.unlock()
        assert not judge(log.records, replace(AROUND, name=NAMES.get)).violations


def test_a_long_write_to_live_text_is_never_right() -> None:
    log = Written()
    log.write(SITE, 0, NOP * 4)
    assert set(judge(log.records, AROUND).broken) == {"writes"}
    log = Written()
    log.write(SITE, 0, NOP * 4, online=1)
    log.write(TEXT + 0x200000, 0, NOP * 4)
    assert not judge(log.records, AROUND).violations


def test_text_is_not_written_while_the_machine_is_stopped() -> None:
    around = replace(AROUND, name={TEXT: "multi_cpu_stop+0x10"}.get)
    log = Written()
    log.write(SITE, 0, CALL, TEXT)
    assert set(judge(log.records, around).broken) == {"stopper"}
    assert not judge(log.records, replace(around, kprobe_syncs=False)).violations


@pytest.mark.parametrize("modern", [True, False])
def test_the_machine_is_not_stopped_in_place_of_the_last_sync_either(modern: bool) -> None:
    """Before 5.5 a task may go on with something else while it has text_mutex."""
    log = Written()
    log.write(SITE, 0, b"\xcc")
    log.sync(0, 1, 2, 3)
    log.write(SITE, 0, NOP[:1])
    log.add(STOPPER, 0, TASK + 0x1000 - 0x100)
    log.sync(0, 1, 2, 3)
    log.unlock()
    log.add(STOPPER, 0, TASK + 0x1000 - 0x100)  # the poke is over
    result = judge(log.records, replace(AROUND, kprobe_syncs=modern))
    assert result.broken == ({"stopper": 1} if modern else {})


def test_a_byte_of_the_test_module_that_nobody_wrote_is_seen_at_the_next_write() -> None:
    module = (0xFFFFFFFFA0000000, 0xFFFFFFFFA0010000)
    site = module[0] + 0x1000
    around = replace(AROUND, module=module, sites={site: frozenset()})
    for one_more in (False, True):
        log = Written()
        log.add(PASS, 1, site, 1, flags=1)
        log.poke(site)
        if one_more:
            log.memory[site][5] = 0x55
        log.poke(site, NOP)
        assert set(judge(log.records, around).broken) == ({"bytes"} if one_more else set())


def test_the_phases_in_which_int3_was_met_and_handled_are_counted() -> None:
    log = Written()
    log.poke()
    log.write(SITE, 0, b"\xcc")
    log.trap(SITE, END, cpu=2)
    log.sync(0, 1, 2, 3)
    log.write(SITE, 1, NOP[1:])
    log.sync(0, 1, 2, 3)
    log.add(TRAP, 3, SITE, 0)
    log.trap(SITE, END, cpu=2)
    log.trap(SITE, END, cpu=2)
    log.write(SITE, 0, NOP[:1])
    log.add(RESUME, 3, SITE, END, 0, 0x246, 0, 0, 0x246, flags=2)
    log.sync(0, 1, 2, 3)
    log.unlock()
    result = judge(log.records, AROUND)
    assert not result.violations
    assert result.met == {(2, 1, 1): 1, (2, 2, 2): 2, (3, 2, 3): 1}
    assert result.batches == {1: 2}


@pytest.mark.parametrize(("inside", "counts"), [(True, False), (True, True), (False, False)])
def test_no_cpu_syncs_while_it_handles_an_int3(inside: bool, counts: bool) -> None:
    """Unless the poke waits for the handler, too."""
    log = Written()
    log.write(SITE, 0, b"\xcc")
    log.add(TRAP, 2, SITE, 0)
    for part in (lambda: log.sync(0, 1, 2, 3), lambda: resumes(log))[:: 1 if inside else -1]:
        part()
    log.write(SITE, 1, JUMP[1:])
    log.sync(0, 1, 2, 3)
    log.write(SITE, 0, JUMP[:1])
    log.sync(0, 1, 2, 3)
    log.unlock()
    found = judge(log.records, replace(AROUND, counts_handlers=counts)).violations
    wrong = [f"CPU 2 synced while it handled an int3 (site f_{SITE:x})"]
    assert [fault.text for fault in found] == (wrong if inside and not counts else [])


def resumes(log: Written) -> None:
    log.add(RESUME, 2, SITE, END, 0, 0x246, 0, 0, 0x246, flags=H_POKE)


@pytest.mark.parametrize("gone", [True, False])
def test_a_cpu_may_try_again_when_the_int3_is_gone(gone: bool) -> None:
    log = Written()
    for offset, data in ((0, b"\xcc"), (1, JUMP[1:]), (0, JUMP[:1])):
        if offset == 0 and data != b"\xcc":
            log.add(TRAP, 2, SITE, 0)
            if not gone:
                log.add(RESUME, 2, SITE, SITE, 0, 0x246, 0, 0, 0x246, flags=H_POKE)
        log.write(SITE, offset, data)
        if gone and data == JUMP[:1]:
            log.add(RESUME, 2, SITE, SITE, 0, 0x246, 0, 0, 0x246, flags=H_POKE)
        log.sync(0, 1, 2, 3)
    log.unlock()
    result = judge(log.records, AROUND)
    assert set(result.broken) == (set() if gone else {"consumed"})
    assert result.went_back == ({(SITE, 2): 1} if gone else {})


@pytest.mark.parametrize("changed", [0, R_CHANGED])
def test_the_poke_handler_leaves_the_other_registers_alone(changed: int) -> None:
    log = Written()
    log.write(SITE, 0, b"\xcc")
    log.trap(SITE, END, handlers=H_POKE | changed)
    log.sync(0, 1, 2, 3)
    found = judge(log.records, AROUND)
    assert set(found.broken) == ({"consumed"} if changed else set())


def test_a_kernel_that_dies_of_an_int3_took_it_by_no_handler() -> None:
    """With the poke under way, and with one that is over; but not of an int3 that is no poke's."""
    for site, finished, broken in ((SITE, False, {"consumed"}), (SITE, True, {"consumed"})):
        log = Written()
        log.write(site, 0, b"\xcc")
        log.add(TRAP, 2, site, 0)
        log.sync(0, 1, 3)
        if finished:
            log.sync(2)
            log.write(site, 0, NOP[:1])
            log.sync(0, 1, 2, 3)
            log.unlock()
        log.add(DIES, 2, site)
        log.add(DIES, 2, site)  # oops_begin(), and then panic()
        result = judge(log.records, AROUND)
        assert result.broken == {claim: 1 for claim in broken}
        (violation,) = result.violations
        assert violation.cpus == (2,) and "CPU 2 met int3, no handler took it" in violation.text
    log = Written()
    log.poke()
    log.add(TRAP, 2, SITE + 0x100, 0)
    log.add(DIES, 2, SITE + 0x100)
    assert not judge(log.records, AROUND).violations


@pytest.mark.parametrize(
    ("ip", "stack", "by", "right"),
    [
        (END, 0, "jump_label_update", True),
        (CALLED, 0, "jump_label_update", True),  # a jump to there, perhaps
        (END, 8, "jump_label_update", False),
        (CALLED, -8, "__static_call_transform", True),
        (SITE, 0, "__static_call_transform", False),
        (CALLED, 16, "orch_poke", False),  # a RET that pops twice
    ],
)
def test_where_a_cpu_may_go_on_is_judged_though_the_log_ends_within_the_poke(
    ip: int, stack: int, by: str, right: bool
) -> None:
    log = Written()
    log.write(SITE, 0, b"\xcc", TEXT)
    log.trap(SITE, ip, stack=stack, pushed=END)
    result = judge(log.records, replace(AROUND, name={TEXT: f"{by}+0x10"}.get))
    assert set(result.broken) == (set() if right else {"consumed"})


@pytest.mark.parametrize(("pushed", "right"), [(END, True), (SITE, False)])
def test_the_kernels_self_test_of_its_handler_is_judged(pushed: int, right: bool) -> None:
    """A call that returns to the int3 meets it for ever, before anything is poked."""
    log = Written()
    for _ in range(1 if right else 3):
        log.trap(SITE, CALLED, stack=-8, pushed=pushed)
    result = judge(log.records, replace(AROUND, self_test={SITE: CALL}))
    assert set(result.broken) == (set() if right else {"consumed"})


def test_the_self_test_is_known_by_its_label() -> None:
    lines = ["ffffffff81b1a21e t int3_magic", "ffffffff81b1a2c6 t int3_selftest_ip"]
    assert guests._self_test(lines) == {0xFFFFFFFF81B1A2C6: bytes.fromhex("e853ffffff")}
    assert not guests._self_test([lines[0], lines[1].replace(" t ", " d ")])
    assert not guests._self_test(lines[:1])
