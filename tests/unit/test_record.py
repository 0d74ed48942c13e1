# SPDX-License-Identifier: GPL-2.0-only
"""The judge of the recorder's log: a real run of a healthy kernel, broken in one thing at a time.

golden/recorder-smp2.log.gz was recorded by `orchestrator run --smp 2 --duration 0.5 --scenario nop5
--scenario key --scenario kprobe-beside` (6.1-int3, QEMU 10.0.2, TCG). recorder-smp2.json has the
names and places that the judge asks for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.verdict.recorded import record
from orchestrator.verdict.recorded.agreement import disagreements
from orchestrator.verdict.recorded.judge import judge
from orchestrator.verdict.recorded.judgement import KEPT, Judgement, Surroundings
from orchestrator.verdict.recorded.record import (
    CALLERS,
    CODE,
    RESUME,
    SERIALISE,
    STOPPER,
    SYNC,
    TRAP,
    UNLOCK,
    WRITE,
    WRITER,
    Records,
)
from orchestrator.verdict.recorded.traps import OTHER_INT3
from orchestrator.watch.recorder import RECORD, load

GOLDEN = Path(__file__).with_name("golden")
RUN = load(GOLDEN / "recorder-smp2.log.gz")
PLACES = json.loads((GOLDEN / "recorder-smp2.json").read_text())
NAMES = {int(address, 16): name for address, name in PLACES["names"].items()}
AROUND = Surroundings(
    name=NAMES.get,
    text=tuple(PLACES["text"]),
    module=tuple(PLACES["module"]),
    sites={int(site, 16): frozenset(targets) for site, targets in PLACES["sites"].items()},
)
Change = Callable[[Records], Records]


def words(log: Records, at: int) -> list[int]:
    return [int(word) for word in log[at]["word"]]


def pokes(log: Records, owner: str) -> list[list[int]]:
    """The WRITEs of each poke of three writes, in order, made by functions like `owner`."""
    found: list[list[int]] = []
    for at in np.flatnonzero(log["kind"] == WRITE).tolist():
        if log[at + 1]["kind"] != WRITER or not log[at]["flags"] & record.F_IRQS:
            continue
        names = [NAMES.get(word, "") for word in words(log, at + 2)]
        if not any(owner in name for name in names):
            continue
        address, new = words(log, at)[0], words(log, at)[1]
        if new == 0xCC and log[at]["number"] == 1:
            found.append([at])
        elif found and address - words(log, found[-1][0])[0] in (0, 1):
            found[-1].append(at)
    return [poke for poke in found if len(poke) == 3]


POKES = pokes(RUN, "[orch]")
KEYS = pokes(RUN, "jump_label")
KPROBES = [
    at
    for at in np.flatnonzero(RUN["kind"] == WRITE).tolist()
    if RUN[at + 2]["kind"] == CALLERS
    and any("arm_kprobe" in NAMES.get(word, "") for word in words(RUN, at + 2))
]
"""WRITEs that arm and disarm a kprobe."""


def without(log: Records, *numbers: int) -> Records:
    return np.delete(log, numbers)


def changed(log: Records, at: int, **fields: Any) -> Records:
    log = log.copy()
    for name, value in fields.items():
        if name.startswith("word"):
            log["word"][at, int(name[4:])] = value
        else:
            log[name][at] = value
    return log


def group(log: Records, at: int) -> range:
    """A WRITE with what belongs to it."""
    end = at + 1
    while log[end]["kind"] in (WRITER, CALLERS):
        end += 1
    return range(at, end)


def between(log: Records, start: int, end: int, kind: int, cpu: int | None = None) -> list[int]:
    return [
        at
        for at in range(start, end)
        if log[at]["kind"] == kind and (cpu is None or log[at]["cpu"] == cpu)
    ]


def unlock_after(log: Records, at: int) -> int:
    return int(np.flatnonzero((log["kind"] == UNLOCK) & (np.arange(len(log)) > at))[0])


def inserted(log: Records, at: int, like: int, **fields: Any) -> Records:
    """A copy of record `like` before record `at`."""
    return changed(np.insert(log, at, log[like]), at, **fields)


def claims(judgement: Judgement) -> set[str]:
    return set(judgement.broken)


def test_the_recorded_run_breaks_no_claim() -> None:
    result = judge(RUN, AROUND)
    assert not result.violations
    assert result.judged == {"test module": 392, "jump labels": 285, "kprobes": 3}
    assert (result.rounds, result.int3) == (2038, 779)


def test_each_kind_of_poke_is_in_the_recorded_run() -> None:
    assert POKES and KEYS and len(KPROBES) == 2


FIRST, SECOND, THIRD = range(3)


def _no_sync(poke: list[int], write: int, cpu: int | None = None) -> Change:
    def change(log: Records) -> Records:
        end = poke[write + 1] if write < THIRD else unlock_after(log, poke[THIRD])
        return without(log, *between(log, poke[write], end, SYNC, cpu))

    return change


def _kprobe_without_sync(number: int) -> Change:
    def change(log: Records) -> Records:
        at = KPROBES[number]
        return without(log, *between(log, at, unlock_after(log, at), SYNC))

    return change


def _at_once(poke: list[int]) -> Change:
    """The whole instruction is written in one piece, and int3 never."""

    def change(log: Records) -> Records:
        start, end = poke[FIRST], unlock_after(log, poke[THIRD])
        tail, first = words(log, poke[SECOND])[1], words(log, poke[THIRD])[1]
        log = changed(log, start, number=5, word1=tail << 8 | first)
        return without(log, *range(group(log, start).stop, end))

    return change


def _without_int3(poke: list[int]) -> Change:
    def change(log: Records) -> Records:
        return without(log, *range(poke[FIRST], poke[SECOND]))

    return change


def _without_write(poke: list[int], write: int) -> Change:
    return lambda log: without(log, *group(log, poke[write]))


def _with_a_first_byte_that_is_early(poke: list[int]) -> Change:
    def change(log: Records) -> Records:
        log = log.copy()
        second, third = poke[SECOND], poke[THIRD]
        log[[second, third]] = log[[third, second]]
        return log

    return change


def _last_write(poke: list[int], **fields: Any) -> Change:
    return lambda log: changed(log, poke[THIRD], **fields)


def _owner(poke: list[int], value: int) -> Change:
    return lambda log: changed(log, poke[SECOND] + 1, word0=value)


def _stopper(poke: list[int]) -> Change:
    def change(log: Records) -> Records:
        at = poke[SECOND]
        return inserted(log, at, at, kind=STOPPER, word0=words(log, at)[5] + 64)

    return change


def _code(log: Records) -> Records:
    at = len(log) - 1
    return inserted(log, at, at, kind=CODE, number=5, word0=PLACES["text"][0] + 0x100)


def _not_serialised(poke: list[int]) -> Change:
    def change(log: Records) -> Records:
        return without(log, *between(log, poke[FIRST], poke[SECOND], SERIALISE, 1))

    return change


def _resumed(**fields: Any) -> Change:
    """The first int3 of a key, of any poke that is judged by what its instructions do."""

    def change(log: Records) -> Records:
        sites = {words(log, poke[FIRST])[0] for poke in POKES}
        at = next(
            at
            for at in np.flatnonzero(log["kind"] == RESUME).tolist()
            if words(log, at)[0] in sites and log[at]["flags"] & record.H_POKE
        )
        return changed(log, at, **fields)

    return change


FAULTS: dict[str, tuple[Change, str]] = {
    "no round after int3": (_no_sync(POKES[50], FIRST), "sync"),
    "no round after the tail": (_no_sync(POKES[50], SECOND), "sync"),
    "no round after the first byte": (_no_sync(POKES[50], THIRD), "sync"),
    "a CPU left out of one round": (_no_sync(POKES[70], SECOND, 1), "sync"),
    "no round in one poke of a key": (_no_sync(KEYS[9], SECOND), "sync"),
    "the last round of a key": (_no_sync(KEYS[-1], THIRD), "sync"),
    "a kprobe armed without a round": (_kprobe_without_sync(0), "sync"),
    "a kprobe disarmed without a round": (_kprobe_without_sync(1), "sync"),
    "do_sync_core() that does not serialise": (_not_serialised(POKES[60]), "sync"),
    "one poke without int3": (_at_once(POKES[50]), "writes"),
    "a key's poke without int3": (_at_once(KEYS[9]), "writes"),
    "int3 left out": (_without_int3(POKES[50]), "writes"),
    "the first byte left out": (_without_write(POKES[50], THIRD), "writes"),
    "the first byte before the tail": (_with_a_first_byte_that_is_early(POKES[50]), "writes"),
    "the last write too wide": (_last_write(POKES[50], number=5, word1=0x11223344E9), "writes"),
    "other bytes in memory": (_last_write(POKES[50], word3=0x9090909090), "bytes"),
    "text that nobody has written": (_code, "bytes"),
    "nobody holds text_mutex": (_owner(POKES[50], 0), "lock"),
    "somebody else holds text_mutex": (_owner(KEYS[9], 0xFFFF888000123450), "lock"),
    "interrupts off": (_last_write(POKES[50], flags=0), "irqs"),
    "stop_machine()": (_stopper(POKES[50]), "stopper"),
    "resumed elsewhere": (_resumed(word1=0xFFFFFFFF81000000), "consumed"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_fault_among_all_pokes_breaks_its_claim(fault: str) -> None:
    change, claim = FAULTS[fault]
    result = judge(change(RUN), AROUND)
    assert claim in claims(result), [violation.text for violation in result.violations]


def test_a_kprobes_jump_does_not_go_without_int3() -> None:
    """Only its first byte is written, so what follows is still the rest of the jump."""
    arm, disarm = KPROBES
    before = words(RUN, disarm)[3] & ~0xFF
    log = changed(RUN, arm, word3=before | words(RUN, disarm)[1])
    state = judge(log[: unlock_after(log, arm) + 1], AROUND)
    site = state.sites[words(RUN, arm)[0]]
    assert site.is_armed
    site.memory[0] = 0xE9
    assert claims(judge(RUN[disarm : unlock_after(RUN, disarm) + 1], AROUND, state)) == {"writes"}


def test_a_poke_that_nobody_is_named_for_is_not_held_against_the_kernel() -> None:
    """While a single CPU boots, callers are not recorded, so a kprobe is not known by its name."""
    assert not judge(RUN[RUN["kind"] != CALLERS], AROUND).violations


def test_a_tail_may_be_written_byte_by_byte() -> None:
    """No CPU can execute a mixture, whatever the number of writes."""
    at = POKES[50][SECOND]
    address, tail, before = words(RUN, at)[0], words(RUN, at)[1], words(RUN, at)[3]
    pieces = RUN.copy()
    for offset in range(4):
        pieces = np.insert(pieces, at + offset, RUN[at])
        pieces[at + offset]["number"] = 1
        pieces["word"][at + offset, :4] = (
            address + offset,
            tail >> 8 * offset & 0xFF,
            0,
            before >> 8 * offset,
        )
    assert not judge(without(pieces, at + 4), AROUND).violations


def test_a_write_that_changes_nothing_is_fine() -> None:
    at = POKES[50][FIRST]
    rewritten = inserted(RUN, at, at, word1=words(RUN, at)[3] & 0xFF)
    assert not judge(rewritten, AROUND).violations


def test_a_log_may_be_cut_while_no_poke_is_under_way() -> None:
    whole, cut = judge(RUN, AROUND), unlock_after(RUN, KPROBES[0]) + 1
    parts = judge(RUN[cut:], AROUND, judge(RUN[:cut], AROUND))
    assert not parts.violations
    assert (parts.judged, parts.rounds, parts.int3) == (whole.judged, whole.rounds, whole.int3)


def test_the_end_of_a_log_breaks_nothing() -> None:
    for end in range(POKES[50][FIRST], unlock_after(RUN, POKES[50][THIRD])):
        assert not judge(RUN[:end], AROUND).violations


NO_SYNC_FUNCTION = Surroundings(AROUND.name, AROUND.text, AROUND.sites, AROUND.module, syncs=False)
"""A kernel whose sync is in a function of another name, or in none."""


def test_without_do_sync_core_it_counts_whether_each_cpu_serialised() -> None:
    result = judge(RUN[RUN["kind"] != SYNC], NO_SYNC_FUNCTION)
    assert not result.violations
    assert result.rounds == judge(RUN, AROUND).rounds


def test_without_do_sync_core_a_cpu_that_does_not_serialise_is_missed() -> None:
    log = RUN[RUN["kind"] != SYNC]
    poke = pokes(log, "[orch]")[60]
    log = without(log, *between(log, poke[FIRST], poke[SECOND], SERIALISE, 1))
    (fault,) = judge(log, NO_SYNC_FUNCTION).violations
    assert fault.claim == "sync"
    assert "and the next write CPU 1 did not serialise" in fault.text


def test_an_offline_cpu_need_not_sync() -> None:
    poke = POKES[50]
    log = _no_sync(poke, FIRST, 1)(RUN)
    for at in poke:
        log = changed(log, at if at == poke[FIRST] else at - 1, word6=1)
    assert "sync" not in claims(judge(log, AROUND))


def test_only_so_many_violations_are_kept() -> None:
    result = judge(RUN[RUN["kind"] != SYNC], AROUND)
    assert result.broken["sync"] > KEPT
    assert len(result.violations_of("sync")) == KEPT


def test_an_empty_log_shows_nothing() -> None:
    result = judge(np.zeros(0, RECORD), AROUND)
    assert not result.judged and not result.violations


def test_int3_of_the_run_are_all_judged() -> None:
    result = judge(RUN, AROUND)
    assert result.int3 + result.not_judged[OTHER_INT3] == int(np.sum(RUN["kind"] == TRAP))


def gdb_events(log: Records, first: int, last: int) -> list[dict[str, Any]]:
    """What GDB sees of the part of a log."""
    events: list[dict[str, Any]] = []
    for entry in log[first:last]:
        if entry["kind"] == WRITE:
            address, data = int(entry["word"][0]), entry["word"][1:3].tobytes()
            length = int(entry["number"])
            events.append(
                {"kind": "write", "addr": address, "len": length, "src": data[:length].hex()}
            )
        elif entry["kind"] == SYNC:
            events.append({"kind": "sync", "cpu": int(entry["cpu"])})
    return events


def test_gdb_and_the_log_agree_event_by_event() -> None:
    first, last = POKES[50][FIRST], POKES[60][THIRD] + 1
    events = gdb_events(RUN, first, last)
    assert disagreements(RUN, events) == []
    lacking = [event for event in events if event["kind"] == "write"]
    assert "GDB saw 0 syncs, the recorder 2" in disagreements(RUN, lacking)[0]
    others = [{**event, "src": "ee"} for event in lacking]
    assert "33 writes that GDB saw are not in" in disagreements(RUN, others)[0]
    assert disagreements(RUN, []) == []
