# SPDX-License-Identifier: GPL-2.0-only
"""The judge of the recorder's log: the handler's state, locks, kprobes, and text of modules."""

from __future__ import annotations

from dataclasses import replace

import pytest
from recorded import AROUND, CPUS, JUMP, NOP, SITE, TEXT, Written

from orchestrator.text.disasm import executes
from orchestrator.text.functions import FOR_CPUS, LOCKS
from orchestrator.verdict.recorded import record
from orchestrator.verdict.recorded.judge import judge
from orchestrator.verdict.recorded.judgement import Judgement, Surroundings
from orchestrator.verdict.recorded.record import H_KPROBE, STEP
from orchestrator.verdict.recorded.sites import NEW_TEXT

MODULE = 0xFFFFFFFFA0400000
STATE = record.F_STATE
NAMES = {TEXT + 0x10: "__jump_label_update+0x1", TEXT + 0x20: "arch_arm_kprobe+0x1"} | {
    TEXT + 0x30: "__bpf_arch_text_poke+0x1",
    TEXT + 0x40: "bpf_arch_text_copy+0x1",
}
KERNEL = Surroundings(name=NAMES.get, text=AROUND.text)
CPUMASK = (1 << CPUS) - 1


def poke(published: bool, until_cpu: int) -> Judgement:
    """A poke; published: before int3 is written. CPUs from `until_cpu` on sync without state."""
    log = Written()
    for number, (offset, data) in enumerate(((0, b"\xcc"), (1, JUMP[1:]), (0, JUMP[:1]))):
        state = STATE if number or published else 0
        log.write(SITE, offset, data, flags=record.F_IRQS | state)
        for cpu in range(CPUS):
            log.add(record.SYNC, cpu, flags=STATE if number < 2 or cpu < until_cpu else 0)
            log.serialise(cpu, flags=1 | record.S_IN_SYNC | record.S_ON_PURPOSE)
    log.unlock()
    return judge(log.records, AROUND)


def test_the_handler_looks_for_int3_from_before_it_is_there_until_the_last_sync() -> None:
    assert not poke(True, CPUS).violations
    (late,) = poke(False, CPUS).violations
    assert late.claim == "consumed" and "before the handler was to look for it" in late.text
    (early,) = poke(True, 3).violations
    assert early.claim == "consumed" and "when CPU 3 came to the last sync" in early.text


def test_a_kernel_whose_state_is_not_known_is_not_judged_by_it() -> None:
    log = Written()
    log.poke()
    assert not judge(log.records, AROUND).violations


@pytest.mark.parametrize(("modern", "module"), [(True, False), (False, False), (True, True)])
def test_no_poke_does_without_the_handler_since_there_is_only_one(
    modern: bool, module: bool
) -> None:
    """The test module pokes int3 of its own, which it takes itself."""
    log = Written()
    log.add(record.SYNC, 1, flags=STATE)  # of another poke
    log.poke()
    around = replace(AROUND, kprobe_syncs=modern, module=(SITE, SITE + 1) if module else (0, 0))
    faults = judge(log.records, around).violations
    assert {fault.claim for fault in faults} == ({"consumed"} if modern and not module else set())


def locks(*orders: tuple[str, str]) -> list[str]:
    log = Written()
    for held, wanted in orders:
        log.add(record.ORDER, 0, LOCKS.index(wanted), TEXT, number=LOCKS.index(held))
    return [fault.text for fault in judge(log.records, AROUND).violations_of("lock")]


def test_locks_are_not_taken_in_both_orders() -> None:
    usual = ("jump_label_mutex", "text_mutex")
    assert not locks(usual, ("kprobe_mutex", "text_mutex"), ("kprobe_mutex", "jump_label_mutex"))
    (text,) = locks(usual, usual[::-1])
    assert text.startswith("jump_label_mutex was taken while text_mutex was held by f_")
    assert "text_mutex while jump_label_mutex was held" in text


def test_nor_in_a_circle_of_three() -> None:
    (text,) = locks(
        ("kprobe_mutex", "cpu_hotplug_lock"),
        ("cpu_hotplug_lock", "jump_label_mutex"),
        ("jump_label_mutex", "kprobe_mutex"),
    )
    assert "kprobe_mutex was taken while jump_label_mutex was held" in text


@pytest.mark.parametrize(("to", "wrong"), [(1, True), (4, True), (5, False), (-0x1000, False)])
def test_a_kprobe_does_not_go_on_inside_its_instruction(to: int, wrong: bool) -> None:
    log = Written()
    log.write(SITE, 0, b"\xcc", TEXT + 0x20)
    log.sync(0, 1, 2, 3)
    log.unlock()
    log.trap(SITE, SITE + to, handlers=record.H_KPROBE)
    faults = judge(log.records, KERNEL).violations
    assert [fault.claim for fault in faults] == ["consumed"] * wrong
    if wrong:
        assert f"inside the probed instruction, at +{to} of {len(NOP)} bytes" in faults[0].text


@pytest.mark.parametrize("restored", [True, False])
def test_the_jump_of_a_kprobe_is_taken_back_whole(restored: bool) -> None:
    log = Written()
    writes = [(b"\xcc",), (b"\xcc", JUMP[1:], JUMP[:1])]
    writes += [(b"\xcc", NOP[1:]) if restored else (b"\xcc",), (NOP[:1],)]
    for one in writes:
        for data in one:
            log.write(SITE, int(len(data) > 1), data, TEXT + 0x20)
            log.sync(0, 1, 2, 3)
        log.unlock()
    faults = judge(log.records, KERNEL).violations
    assert [fault.claim for fault in faults] == ["writes"] * (not restored)


@pytest.mark.parametrize(
    ("flags", "caller", "wrong"),
    [
        (record.F_EXECUTED, TEXT + 0x10, True),
        (0, TEXT + 0x10, False),
        (record.F_EXECUTED, TEXT + 0x20, False),
        (record.F_EXECUTED, TEXT + 0x30, True),
        (record.F_EXECUTED, TEXT + 0x40, False),  # of a program that is new
    ],
)
def test_text_of_a_module_that_was_executed_changes_under_int3_only(
    flags: int, caller: int, wrong: bool
) -> None:
    log = Written()
    log.write(MODULE, 0, JUMP, caller, flags=record.F_IRQS | flags, online=CPUMASK)
    result = judge(log.records, KERNEL)
    assert [fault.claim for fault in result.violations] == ["writes"] * wrong
    assert bool(result.not_judged[NEW_TEXT]) != wrong


# -- the mapping through which text is written

START = 0x5555_0000_0000


def flushed(site: int, *pages: int | None, mapped: bool = False) -> list[str]:
    """A poke at `site` with so many pages flushed after each write; None for no flush at all.

    mapped: whether they are still mapped by the second flush.
    """
    log = Written()
    for (offset, data), size in zip(
        ((0, b"\xcc"), (1, JUMP[1:]), (0, JUMP[:1])), pages, strict=True
    ):
        log.write(site, offset, data)
        log.add(record.STOPPER, 1, 0)
        if size is not None:
            flags = record.F_MAPPED if mapped and offset else 0
            log.add(record.FLUSH, 0, START, START + size * 4096, flags=flags)
        log.sync(0, 1, 2, 3)
    log.unlock()
    return [fault.text for fault in judge(log.records, AROUND).violations_of("writes")]


def test_the_mapping_of_each_write_is_flushed_all_of_it() -> None:
    assert not flushed(SITE, 1, 1, 1) and not flushed(SITE, 1, 1 << 40, 1)
    (text,) = flushed(SITE, 1, None, 1)
    assert "is to be flushed, and it was not" in text
    crossing = TEXT + 0x1FFD
    assert not flushed(crossing, 1, 2, 1)
    (text,) = flushed(crossing, 1, 1, 1)
    assert "only a part of it was" in text
    (text,) = flushed(SITE, 1, 1, 1, mapped=True)
    assert "it was while it was still there" in text


def test_a_module_may_be_loaded_while_another_cpu_has_the_mapping() -> None:
    log = Written()
    log.write(SITE, 0, b"\xcc")
    log.write(MODULE, 0, JUMP, flags=record.F_IRQS | record.F_EARLY | record.F_MAPPED)
    log.add(record.FLUSH, 0, START, START + 4096)
    log.sync(0, 1, 2, 3)
    log.write(SITE, 0, NOP[:1])
    log.add(record.FLUSH, 0, START, START + 4096)
    log.sync(0, 1, 2, 3)
    log.unlock()
    assert not judge(log.records, AROUND).violations


def test_a_kernel_that_flushes_in_another_way_is_not_judged_by_it() -> None:
    assert not flushed(SITE, None, None, None)


def test_a_log_that_ends_within_a_write_lacks_no_flush() -> None:
    log = Written()
    log.write(SITE, 0, b"\xcc")
    log.add(record.FLUSH, 0, START, START + 4096)
    log.sync(0, 1, 2, 3)
    log.write(SITE, 1, JUMP[1:])
    assert not judge(log.records, AROUND).violations


def loaded(flags: int, entry: int) -> set[str]:
    log = Written()
    log.write(SITE, 0, b"\xcc")
    log.add(record.LOADED, 0, entry, flags=flags)
    log.sync(0, 1, 2, 3)
    return set(judge(log.records, AROUND).broken)


def test_the_mapping_is_loaded_without_interrupts_and_is_not_global() -> None:
    assert not loaded(0, 0x8000000000000063)
    assert loaded(record.F_IRQS, 0x63) == {"irqs"}
    assert loaded(0, 0x163) == {"writes"}
    assert loaded(0, 0x73) == {"writes"}  # not cached


def test_who_switches_something_has_its_lock() -> None:
    log = Written()
    log.add(record.UNGUARDED, 2, TEXT + 0x10, TEXT + 0x20, number=LOCKS.index("jump_label_mutex"))
    (fault,) = judge(log.records, KERNEL).violations
    assert fault.claim == "lock" and fault.text == (
        "__jump_label_update() was called by arch_arm_kprobe(), which did not hold jump_label_mutex"
    )


PUSH, COPY = bytes.fromhex("554889e5"), TEXT + 0x700000
"""push %rbp; mov %rsp, %rbp."""


@pytest.mark.parametrize(
    ("to", "copy", "wrong"),
    [
        (COPY, "55cc", False),
        (COPY, "55e900000000", False),  # it jumps back by itself
        (COPY + 1, "cc", True),  # behind the copy
        (COPY, "53cc", True),  # the copy of another one's
        (COPY, "4889e5cc", True),
    ],
)
def test_a_kprobe_goes_on_in_a_copy_of_its_instruction(to: int, copy: str, wrong: bool) -> None:
    log = probed()
    code = bytes.fromhex(copy).ljust(16, b"\xcc")
    log.add(STEP, 1, SITE, to, *(int.from_bytes(code[i : i + 8], "little") for i in (0, 8)))
    log.trap(SITE, to, handlers=H_KPROBE)
    found = judge(log.records, KERNEL)
    assert set(found.broken) == ({"consumed"} if wrong else set())


@pytest.mark.parametrize(("to", "wrong"), [(SITE + 1, False), (SITE + 2, True), (COPY, True)])
def test_a_cpu_goes_on_behind_the_probed_instruction_after_its_copy(to: int, wrong: bool) -> None:
    log = probed()
    log.add(STEP, 1, SITE, COPY, int.from_bytes(b"\x55" + b"\xcc" * 7, "little"), 0)
    log.trap(SITE, COPY, handlers=H_KPROBE, flags=(0x246, 0x46))
    log.trap(COPY + 1, to, handlers=H_KPROBE, flags=(0x46, 0x246))
    assert set(judge(log.records, KERNEL).broken) == ({"consumed"} if wrong else set())


@pytest.mark.parametrize(
    ("code", "size", "stack", "wrong"),
    [
        (PUSH, 1, 0, True),
        (PUSH, 1, -8, False),  # emulated
        (bytes.fromhex("4883c001"), 4, 0, True),
        (bytes.fromhex("7410"), 2, 0, False),
        (bytes.fromhex("f30f1efa"), 4, 0, False),
        (b"\xfa", 1, 0, False),
        (NOP, 5, 0, False),
    ],
)
def test_a_kprobe_does_not_skip_its_instruction(
    code: bytes, size: int, stack: int, wrong: bool
) -> None:
    log = probed(code)
    log.trap(SITE, SITE + size, stack=stack, handlers=H_KPROBE)
    assert set(judge(log.records, KERNEL).broken) == ({"consumed"} if wrong else set())


@pytest.mark.parametrize("after", [0x246, 0x46])
def test_interrupts_are_enabled_after_a_step_if_they_were_before(after: int) -> None:
    log = probed()
    log.add(STEP, 1, SITE, COPY, int.from_bytes(b"\x55" + b"\xcc" * 7, "little"), 0)
    log.trap(SITE, COPY, handlers=H_KPROBE, flags=(0x246, 0x46))
    log.trap(COPY + 1, SITE + 1, handlers=H_KPROBE, flags=(0x46, after))
    found = judge(log.records, KERNEL).violations
    assert [fault.claim for fault in found] == ([] if after == 0x246 else ["consumed"])


def test_no_interrupt_comes_during_a_step() -> None:
    log = probed()
    log.add(STEP, 1, SITE, COPY, int.from_bytes(b"\x55" + b"\xcc" * 7, "little"), 0)
    log.trap(SITE, COPY, handlers=H_KPROBE)
    log.trap(COPY + 1, SITE + 1, handlers=H_KPROBE)
    (fault,) = judge(log.records, KERNEL).violations
    assert (
        fault.claim == "consumed" and "a probed instruction with interrupts enabled" in fault.text
    )


@pytest.mark.parametrize(("online", "wrong"), [(CPUMASK, True), (1, False)])
def test_the_handler_of_int3_is_not_poked_itself(online: int, wrong: bool) -> None:
    log = Written()
    log.write(SITE, 0, b"\xcc", online=online)
    names = NAMES | {SITE: "poke_int3_handler+0x10"}
    faults = judge(log.records, replace(KERNEL, name=names.get)).violations
    assert [fault.claim for fault in faults] == ["consumed"] * wrong


@pytest.mark.parametrize(
    ("before", "after", "wrong"),
    [(0x46, 0x246, False), (0x47, 0x247, False), (0x47, 0x246, True), (0x446, 0x246, True)],
)
def test_the_flags_of_a_step_are_there_behind_it(before: int, after: int, wrong: bool) -> None:
    log = probed()
    log.add(STEP, 1, SITE, COPY, int.from_bytes(b"\x55" + b"\xcc" * 7, "little"), 0)
    log.trap(SITE, COPY, handlers=H_KPROBE, flags=(0x246, 0x46))
    log.trap(COPY + 1, SITE + 1, handlers=H_KPROBE, flags=(before, after))
    faults = judge(log.records, KERNEL).violations
    assert [fault.claim for fault in faults] == ["consumed"] * wrong
    assert not wrong or "went on with other flags after a kprobe's step" in faults[0].text


@pytest.mark.parametrize(
    ("code", "flags", "wrong"),
    [
        (PUSH, 0x46, False),  # interrupts are off during the step
        (PUSH, 0x247, True),
        (b"\x9d", 0x247, False),  # popf, emulated
    ],
)
def test_the_handler_of_kprobes_leaves_the_flags_alone(
    code: bytes, flags: int, wrong: bool
) -> None:
    log = probed(code)
    log.trap(SITE, COPY, handlers=H_KPROBE, flags=(0x246, flags))
    assert set(judge(log.records, KERNEL).broken) == ({"consumed"} if wrong else set())


@pytest.mark.parametrize("synced", [True, False])
def test_a_kprobe_becomes_a_jump_with_the_int3_that_it_has(synced: bool) -> None:
    log = Written()
    log.memory[SITE] = bytearray(PUSH.ljust(32, b"\x90"))
    log.write(SITE, 0, b"\xcc", TEXT + 0x20)
    log.sync(0, 1, 2, 3)
    log.unlock()
    log.write(SITE, 1, JUMP[1:], TEXT + 0x20)
    log.sync(*((0, 1, 2, 3) if synced else (0, 1, 2)))
    log.write(SITE, 0, JUMP[:1], TEXT + 0x20)
    log.sync(0, 1, 2, 3)
    log.unlock()
    found = judge(log.records, KERNEL)
    assert set(found.broken) == (set() if synced else {"sync"})
    assert found.judged == {"kprobes": 2}


def test_nobody_but_kprobes_may_do_so() -> None:
    log = probed()
    log.write(SITE, 1, JUMP[1:], TEXT + 0x10)
    assert set(judge(log.records, KERNEL).broken) == {"writes"}


@pytest.mark.parametrize(
    ("before", "new", "online", "wrong"),
    [
        (b"\xf0", b"\x3e", CPUMASK, True),
        (b"\xf0", b"\x3e", 1, False),
        (b"\x3e", b"\xf0", CPUMASK, False),
        (b"\xf0", b"\x90", CPUMASK, False),  # of text that is not known to be live
    ],
)
def test_what_is_atomic_stays_so_with_several_cpus(
    before: bytes, new: bytes, online: int, wrong: bool
) -> None:
    log = Written()
    log.memory[MODULE] = bytearray(before.ljust(32, b"\x90"))
    log.write(MODULE, 0, new, online=online)
    faults = judge(log.records, KERNEL).violations
    assert [fault.claim for fault in faults] == ["writes"] * wrong


@pytest.mark.parametrize(("code", "wrong"), [(PUSH, True), (bytes.fromhex("e2fe"), False)])
def test_the_handler_of_kprobes_leaves_registers_alone(code: bytes, wrong: bool) -> None:
    log = probed(code)
    log.trap(SITE, COPY, handlers=H_KPROBE | record.R_CHANGED)
    assert set(judge(log.records, KERNEL).broken) == ({"consumed"} if wrong else set())


PROBED = record.F_PROBED | record.F_IRQS


@pytest.mark.parametrize(
    ("armed", "disarmed", "wrong"),
    [
        (PROBED, PROBED, ""),
        (record.F_IRQS, PROBED, "was written before its handler knew it"),
        (PROBED, record.F_IRQS, "went when its handler did not know it any more"),
        (record.F_IRQS, record.F_IRQS, ""),  # nobody knows where the handler looks
    ],
)
def test_the_handler_of_kprobes_finds_a_probe_while_its_int3_can_be_met(
    armed: int, disarmed: int, wrong: str
) -> None:
    log = probed(flags=armed)
    log.write(SITE, 0, PUSH[:1], TEXT + 0x20, flags=disarmed)
    log.sync(0, 1, 2, 3)
    log.unlock()
    found = judge(log.records, KERNEL).violations
    assert [fault.claim for fault in found] == ["consumed"] * bool(wrong)
    assert not wrong or wrong in found[0].text


@pytest.mark.parametrize("waited", ["", "before", "after"])
def test_a_kprobe_is_freed_when_no_cpu_handles_its_int3_any_more(waited: str) -> None:
    log = probed()
    log.add(record.FREED, 0, SITE, number=record.A_PROBE)  # of another one, which was never armed
    if waited == "before":
        log.add(record.GRACE, 0, number=FOR_CPUS)
    log.write(SITE, 0, PUSH[:1], TEXT + 0x20)
    log.sync(0, 1, 2, 3)
    log.unlock()
    if waited == "after":
        log.add(record.GRACE, 0, number=FOR_CPUS)
    log.add(record.FREED, 0, SITE, number=record.A_PROBE)
    found = judge(log.records, KERNEL).violations
    assert [fault.claim for fault in found] == ([] if waited == "after" else ["sync"])


@pytest.mark.parametrize(("inside", "wrong"), [(1, True), (4, True), (5, False)])
def test_int3_is_not_written_into_an_instruction_that_was_poked(inside: int, wrong: bool) -> None:
    log = Written()
    log.poke(new=JUMP)
    log.memory[SITE + inside] = log.memory[SITE][inside:]
    log.write(SITE + inside, 0, b"\xcc", TEXT + 0x20)
    log.sync(0, 1, 2, 3)
    log.unlock()
    found = judge(log.records, KERNEL).violations
    assert [fault.claim for fault in found] == ["writes"] * wrong
    assert not wrong or f"at +{inside} of it" in found[0].text


@pytest.mark.parametrize(("at", "wrong"), [(4, True), (5, False)])
def test_a_jump_is_not_written_over_another_kprobe(at: int, wrong: bool) -> None:
    log = probed()
    log.write(SITE + at, 0, b"\xcc", TEXT + 0x20)
    log.sync(0, 1, 2, 3)
    log.unlock()
    log.memory[SITE][at] = 0xCC
    for offset, data in ((0, b"\xcc"), (1, JUMP[1:]), (0, JUMP[:1])):
        log.write(SITE, offset, data, TEXT + 0x20)
        log.sync(0, 1, 2, 3)
    log.unlock()
    found = judge(log.records, KERNEL).violations
    assert [fault.claim for fault in found] == ["writes"] * wrong
    assert not wrong or "the int3 of another kprobe was overwritten, at +4" in found[0].text


def test_a_batch_may_have_sites_side_by_side_whose_writer_serialises() -> None:
    """As each write does that goes through a mapping by vmap()."""
    log, first = Written(), SITE
    for number in range(3):
        log.memory[first + 2 * number] = bytearray(b"\x66\x90" * 16)
    for offset, data in ((0, b"\xcc"), (1, b"\x10"), (0, b"\xeb")):
        for number in range(3):
            log.write(first + 2 * number, offset, data, TEXT + 0x10)
            for near in range(number):  # what the writes so far have made of it
                log.memory[first + 2 * near][2 * (number - near) + offset] = data[0]
            log.serialise(0)
        log.sync(0, 1, 2, 3)
    log.unlock()
    found = judge(log.records, KERNEL)
    assert not found.violations and found.judged == {"jump labels": 3}


def test_an_int3_that_pads_a_return_is_no_kprobe() -> None:
    """Not even where a tail is written byte by byte: the last of them look like new int3."""
    log, ret = Written(), bytes.fromhex("c3cccccccc")
    for new in (ret, JUMP):
        log.write(MODULE, 0, b"\xcc")
        log.sync(0, 1, 2, 3)
        for offset in range(1, 5):
            log.write(MODULE, offset, new[offset : offset + 1])
        log.sync(0, 1, 2, 3)
        log.write(MODULE, 0, new[:1])
        log.sync(0, 1, 2, 3)
        log.unlock()
    around = replace(KERNEL, module=(MODULE, MODULE + 0x1000))
    assert not judge(log.records, around).violations


def probed(code: bytes = PUSH, flags: int = record.F_IRQS) -> Written:
    """A log in which a kprobe was armed."""
    log = Written()
    log.memory[SITE] = bytearray(code.ljust(32, b"\x90"))
    log.write(SITE, 0, b"\xcc", TEXT + 0x20, flags=flags)
    log.sync(0, 1, 2, 3)
    log.unlock()
    return log


@pytest.mark.parametrize(
    ("code", "data", "place", "same"),
    [
        ("488b0510000000", "488b0510f0ffff", SITE + 0x1000, True),  # relative to rip
        ("488b0510000000", "488b0510000000", SITE + 0x1000, False),
        ("e810000000", "9090909090", SITE + 0x15, True),
        ("e810000000", "9090909090", SITE + 0x16, False),
        ("e810000000", "e810000000", SITE + 0x1000, True),  # mended after the step
        ("7410", "9090", SITE + 0x12, True),
        ("ffd0", "9090", SITE + 0x16, None),
        ("c3", "9090", SITE + 0x16, None),
        ("0f", "90", SITE + 0x16, None),
    ],
)
def test_where_an_instruction_is_executed(
    code: str, data: str, place: int, same: bool | None
) -> None:
    assert executes(bytes.fromhex(code), SITE, bytes.fromhex(data), place) is same


@pytest.mark.parametrize(
    ("made", "phase", "to", "wrong"),
    [
        (True, 1, COPY, False),
        (True, 2, COPY, True),
        (None, 1, COPY, True),  # it was enabled again: there is an int3 already
        (False, 1, COPY, True),
        (False, 1, SITE + 5 + 0xFB + 0x40, False),  # the detour
        (False, 2, COPY, False),
    ],
)
def test_a_cpu_takes_the_detour_while_the_tail_of_a_jump_is_in_the_way(
    made: bool | None, phase: int, to: int, wrong: bool
) -> None:
    """Behind the first of the instructions that a kprobe's jump covers there is a part of it."""
    log = Written()

    def write(offset: int, data: bytes) -> None:
        log.write(SITE, offset, data, TEXT + 0x20)
        log.sync(0, 1, 2, 3)

    def trap(now: bool) -> None:
        if now:
            log.trap(SITE, to, handlers=H_KPROBE)

    write(0, b"\xcc")
    log.unlock()
    for number, data in enumerate([b"\xcc", JUMP[1:], JUMP[:1]], 1):
        write(int(number == 2), data)
        trap(made and number == phase)
    log.unlock()
    if made is None:
        write(0, b"\xcc")
        log.unlock()
    for number, data in enumerate([b"\xcc", NOP[1:]], 1):
        write(number - 1, data)
        trap(not made and number == phase)
    log.unlock()
    faults = judge(log.records, replace(KERNEL, kprobe_syncs=True)).violations_of("consumed")
    assert ["a part of the jump" in fault.text for fault in faults] == [True] * wrong


@pytest.mark.parametrize("known", [True, False])
def test_a_kprobe_that_was_a_jump_is_known_until_its_int3_is_gone(known: bool) -> None:
    """Both are taken back in one go."""
    log = Written()
    probed = record.F_IRQS | record.F_PROBED
    for pokes in ([(0, b"\xcc")], [(0, b"\xcc"), (1, JUMP[1:]), (0, JUMP[:1])]):
        for offset, data in pokes:
            log.write(SITE, offset, data, TEXT + 0x20, flags=probed)
            log.sync(0, 1, 2, 3)
        log.unlock()
    for offset, data in [(0, b"\xcc"), (1, NOP[1:]), (0, NOP[:1])]:
        flags = probed if known or data != NOP[:1] else record.F_IRQS
        log.write(SITE, offset, data, TEXT + 0x20, flags=flags)
        log.sync(0, 1, 2, 3)
    log.unlock()
    faults = judge(log.records, KERNEL).violations
    assert [fault.claim for fault in faults] == ["consumed"] * (not known)
