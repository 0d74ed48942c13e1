# SPDX-License-Identifier: GPL-2.0-only
"""What each CPU must have done between two writes, if a kernel leaves some of them out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from recorded import AROUND, JUMP, NOP, SITE, Written

from orchestrator.verdict.recorded.judge import judge
from orchestrator.verdict.recorded.judgement import Judgement
from orchestrator.verdict.recorded.record import M_IDLE, M_KERNEL, M_USER, PASS

NO_FUNCTION = replace(AROUND, syncs=False)
"""A kernel whose sync has another name, or is inlined."""


def faults(result: Judgement) -> list[str]:
    return [f"{violation.claim}: {violation.text}" for violation in result.violations]


def test_a_poke_with_all_syncs() -> None:
    log = Written()
    log.poke()
    result = judge(log.records, AROUND)
    assert not result.violations and result.rounds == 3


def test_a_sync_may_be_in_any_function() -> None:
    """The poking CPU serialises inline, the others in a function that nobody knows."""
    for around, others in ((AROUND, "sync"), (NO_FUNCTION, "serialise")):
        log = Written()
        for offset, data in ((0, b"\xcc"), (1, JUMP[1:]), (0, JUMP[:1])):
            log.write(SITE, offset, data)
            log.serialise(0)
            for cpu in (1, 2, 3):
                getattr(log, others)(cpu)
        log.unlock()
        result = judge(log.records, around)
        assert not faults(result)
        assert result.inline_syncs == (3 if others == "sync" else 12)


def test_the_return_from_an_interrupt_is_no_sync_where_there_is_a_function_for_it() -> None:
    log = Written()
    log.write(SITE, 0, b"\xcc")
    log.sync(0, 1, 2)
    log.serialise(3, flags=1)
    log.write(SITE, 1, JUMP[1:])
    (fault,) = faults(judge(log.records, AROUND))
    assert "between the write of cc at +0 and the next write CPU 3 did not run do_sync_" in fault
    assert not faults(judge(log.records, NO_FUNCTION))


@pytest.mark.parametrize("mode", [M_USER, M_IDLE])
def test_a_kernel_may_defer_the_sync_of_a_cpu_that_is_elsewhere(mode: int) -> None:
    log = Written()
    log.mode(3, mode)
    log.poke(syncs=(0, 1, 2))
    log.mode(3, M_KERNEL)
    log.serialise(3)
    log.add(PASS, 3, SITE, 1, flags=1)
    log.poke(new=NOP)
    result = judge(log.records, AROUND)
    assert not faults(result)
    assert result.deferred.total() == 3


def test_a_cpu_that_was_about_to_sleep_is_as_good_as_asleep() -> None:
    log = Written()
    log.poke(syncs=(0, 1, 2))
    log.mode(3, M_IDLE)
    log.mode(3, M_KERNEL)
    log.serialise(3)
    result = judge(log.records, AROUND)
    assert not faults(result)
    assert result.deferred.total() == 3


@pytest.mark.parametrize("mode", [M_USER, M_IDLE])
def test_a_deferred_sync_must_not_be_forgotten(mode: int) -> None:
    log = Written()
    log.mode(3, mode)
    log.poke(syncs=(0, 1, 2))
    log.mode(3, M_KERNEL)
    log.mode(3, mode)
    found = faults(judge(log.records, AROUND))
    assert len(found) == 3
    assert "came back to the kernel" in found[0] and "and had not serialised" in found[0]


def test_a_site_is_not_executed_before_the_deferred_sync() -> None:
    log = Written()
    log.mode(3, M_USER)
    log.poke(syncs=(0, 1, 2))
    log.mode(3, M_KERNEL)
    log.add(PASS, 3, SITE, 1, flags=1)
    log.serialise(3)
    found = faults(judge(log.records, AROUND))
    assert "CPU 3, which was in user mode at its last sync round, executed the site" in found[0]


def test_a_kernel_that_wakes_idle_cpus_for_a_sync_must_always_do_so() -> None:
    log = Written()
    log.mode(3, M_IDLE)
    log.poke()
    log.poke(new=NOP)
    log.write(SITE, 0, b"\xcc")
    log.sync(0, 1, 2)
    log.write(SITE, 1, JUMP[1:])
    (fault,) = faults(judge(log.records, AROUND))
    assert "CPU 3 was idle and did not run do_sync_core" in fault


def test_a_cpu_in_the_kernel_is_never_left_out() -> None:
    log = Written()
    log.poke(syncs=(0, 1, 3))
    result = judge(log.records, AROUND)
    assert result.broken == {"sync": 3}


def test_a_piece_of_a_tail_that_changes_nothing_needs_no_round() -> None:
    """The tail is written backwards, and its last two bytes are there already."""
    log = Written()
    log.write(SITE, 0, b"\xcc")
    log.sync(0, 1, 2, 3)
    for offset in (4, 3, 2, 1):
        log.write(SITE, offset, JUMP[offset : offset + 1])
    log.sync(0, 1, 2, 3)
    log.write(SITE, 0, JUMP[:1])
    log.sync(0, 1, 2, 3)
    log.unlock()
    assert not faults(judge(log.records, AROUND))


def test_writes_while_a_cpu_is_offline_are_counted() -> None:
    log = Written()
    for online in (0b1, 0b11, 0b01, 0b01, 0b11):
        log.write(SITE, 0, NOP[:1], online=online)
    assert judge(log.records, AROUND).while_offline == 2
