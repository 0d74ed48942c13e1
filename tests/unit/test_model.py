# SPDX-License-Identifier: GPL-2.0-only
"""The phase model: a healthy kernel passes, and each departure from the protocol is named."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
from good_run import KEY_OFF, KEY_ON, NOP5_OFF, NOP5_ON, ONE_OFF, ONE_ON, Event, Run, targets_of

from orchestrator.verdict import model

ALL = (NOP5_ON, NOP5_OFF, ONE_ON, ONE_OFF, KEY_ON, KEY_OFF)


@pytest.mark.parametrize("seq", ALL)
def test_a_healthy_poke_has_no_violation(seq: int) -> None:
    (poke,) = Run().watched(seq).announced
    phases = [1] if seq in (ONE_ON, ONE_OFF) else [1, 2]
    assert not poke.violations
    assert poke.complete
    assert poke.trap_phases == phases
    assert poke.held_phases == set(phases)
    assert poke.hits == {(phase, cpu): 1 for phase in phases for cpu in (0, 1)}
    assert poke.returns == {0: len(phases), 1: len(phases)} == poke.traps()
    assert poke.rounds == {phase: {0, 1} for phase in [*phases, 3]}
    assert poke.read_phases == {0, *phases, 3}


def test_planned_writes_for_five_bytes_and_for_one() -> None:
    run = Run()
    (five,), (one,) = run.watched(NOP5_ON).announced, run.watched(ONE_ON).announced
    assert five.planned_writes == [(0, b"\xcc"), (1, five.new[1:]), (0, five.new[:1])]
    assert [five.bytes_in(phase).hex()[:6] for phase in range(4)] == [
        "0f1f44",
        "cc1f44",
        "cc0200",
        "e90200",
    ]
    assert one.planned_writes == [(0, b"\xcc"), (0, b"\xf9")]
    assert one.phases == [0, 1, 3]


# -- single defects


def _drop_round(run: Run, seq: int, round_: int) -> None:
    run.drop(*(run.find(seq, "sync", cpu=cpu, number=round_) for cpu in (0, 1)))


def _swap_writes(run: Run) -> None:
    tail, first = run.find(NOP5_ON, "write", 1), run.find(NOP5_ON, "write", 2)
    for field in ("addr", "len", "src"):
        tail[field], first[field] = first[field], tail[field]


def _stopper(run: Run, own: bool) -> None:
    run.insert(run.find(NOP5_ON, "hold"), kind="stopper", cpu=1, own=own)


def _int3(run: Run, before: Event, **fields: object) -> None:
    run.insert(
        before, **{"kind": "int3", "cpu": 1, "ip": run.find(NOP5_ON, "window")["site"], **fields}
    )


DEFECTS: dict[str, tuple[Callable[[Run], None], list[str]]] = {
    "the first sync round is missing": (lambda run: _drop_round(run, NOP5_ON, 0), ["sync"]),
    "the second sync round is missing": (lambda run: _drop_round(run, NOP5_ON, 1), ["sync"]),
    "the last sync round is missing": (lambda run: _drop_round(run, NOP5_ON, 2), ["sync"]),
    "one CPU is left out of a round": (
        lambda run: run.drop(run.find(NOP5_ON, "sync", 1, cpu=1)),
        ["sync"],
    ),
    "the writes are swapped": (_swap_writes, ["writes"]),
    "a write is missing": (
        lambda run: run.drop(run.find(NOP5_ON, "write", 1)),
        ["bytes", "writes"],
    ),
    "a write is done twice": (
        lambda run: run.insert(
            run.find(NOP5_ON, "end"), **{**run.find(NOP5_ON, "write", 2), "bytes": "e902000000"}
        ),
        ["writes"],
    ),
    "the tail is written in two parts": (
        lambda run: run.find(NOP5_ON, "write", 1).update(src="0200"),
        ["writes"],
    ),
    "memory holds other bytes": (
        lambda run: run.find(NOP5_ON, "sync", 2).update(bytes="cc1f440001"),
        ["bytes"],
    ),
    "memory holds other bytes at the end": (
        lambda run: run.find(NOP5_ON, "end").update(bytes="cc02000000"),
        ["bytes"],
    ),
    "the handler does not consume the int3": (
        lambda run: run.find(NOP5_ON, "return").update(value=0),
        ["consumed"],
    ),
    "a CPU resumes elsewhere": (
        lambda run: run.find(NOP5_ON, "return", 3).update(ip=0x1000),
        ["consumed"],
    ),
    "a CPU traps before int3 is written": (
        lambda run: _int3(run, run.find(NOP5_ON, "write"), bytes="0f1f440000"),
        ["int3"],
    ),
    "a CPU traps inside the instruction": (
        lambda run: _int3(
            run, run.find(NOP5_ON, "hold"), bytes="cc1f440000", ip=targets_of(NOP5_ON)[0] - 8
        ),
        ["int3"],
    ),
    "interrupts are off": (lambda run: run.find(NOP5_ON, "write", 0).update(irqs=False), ["irqs"]),
    "nobody holds text_mutex": (
        lambda run: run.find(NOP5_ON, "write", 1).update(owner=0),
        ["lock"],
    ),
    "somebody holds text_mutex": (
        lambda run: run.find(NOP5_ON, "write", 1).update(owner=1 << 63),
        [],
    ),
    "stop_machine() is used": (lambda run: _stopper(run, True), ["stopper"]),
    "the poke ends too early": (
        lambda run: run.drop(
            *(
                e
                for e in run.poke(NOP5_ON)[run.poke(NOP5_ON).index(run.find(NOP5_ON, "write", 2)) :]
                if e["kind"] != "end"
            )
        ),
        ["writes", "bytes"],
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_each_defect_is_named(name: str) -> None:
    run = Run()
    damage, claims = DEFECTS[name]
    damage(run)
    assert run.violations(NOP5_ON) == claims
    assert not run.violations(NOP5_OFF)


def test_every_claim_has_a_defect() -> None:
    assert {claim for _, claims in DEFECTS.values() for claim in claims} == set(model.CLAIMS)


@pytest.mark.parametrize("round_", [0, 1])
def test_a_site_of_one_byte_needs_its_two_rounds(round_: int) -> None:
    run = Run()
    _drop_round(run, ONE_ON, round_)
    assert run.violations(ONE_ON) == ["sync"]


@pytest.mark.parametrize("number", [0, 1])
def test_a_round_that_the_poker_does_not_wait_for_is_missing(number: int) -> None:
    """With on_each_cpu(.., wait=0) the syncs come too late: the gate already holds the poker."""
    run = Run()
    hold = run.find(NOP5_ON, "hold", number)
    sync = run.find(NOP5_ON, "sync", number, cpu=1)
    run.drop(sync)
    run.events.insert(run.index(hold) + 1, sync)
    assert run.violations(NOP5_ON) == ["sync"]


def test_the_missing_cpu_is_named() -> None:
    run = Run()
    run.drop(run.find(NOP5_ON, "sync", 0, cpu=1))
    (violation,) = run.watched(NOP5_ON).announced[0].violations
    assert "CPU 1 did not run do_sync_core" in violation.text
    assert "between the int3 write and the next write" in violation.text


# -- legal behaviour


def test_a_late_int3_is_legal() -> None:
    """It trapped in time and reached the handler after the last write."""
    run = Run()
    _int3(run, run.find(NOP5_ON, "end"), bytes="e902000000")
    (poke,) = run.watched(NOP5_ON).announced
    assert not poke.violations
    assert poke.late_hits == {1: 1}
    assert poke.traps()[1] == 3


def test_an_int3_during_a_write_belongs_to_the_previous_phase() -> None:
    run = Run()
    _int3(run, run.find(NOP5_ON, "sync", 2), bytes="cc1f440000")  # the tail is not in memory yet
    _int3(run, run.find(NOP5_ON, "sync", 4), bytes="cc02000000")  # nor is the first byte
    (poke,) = run.watched(NOP5_ON).announced
    assert not poke.violations
    assert poke.hits[1, 1] == 2
    assert poke.hits[2, 1] == 2
    assert not poke.late_hits


def test_old_bytes_after_a_round_are_not_legal() -> None:
    run = Run()
    _int3(run, run.find(NOP5_ON, "hold", 1), bytes="cc1f440000")
    assert run.violations(NOP5_ON) == ["bytes"]


def test_foreign_activity_is_not_blamed_on_the_poke() -> None:
    run = Run()
    _stopper(run, False)
    run.insert(
        run.find(NOP5_ON, "write"),
        kind="write",
        cpu=1,
        addr=0x1000,
        len=1,
        src="",
        own=False,
        irqs=False,
        bytes="0f1f440000",
    )
    run.insert(run.find(NOP5_ON, "write"), kind="sync", cpu=1, bytes="0f1f440000")
    run.insert(run.find(NOP5_ON, "hold"), kind="int3", cpu=1, ip=0x1000, bytes="cc1f440000")
    watched = run.watched(NOP5_ON)
    assert not run.violations(NOP5_ON)
    assert len(watched.foreign_writes) == 1
    assert len(watched.foreign_int3) == 1


def test_syncs_of_a_foreign_poke_do_not_count_for_the_last_round() -> None:
    run = Run()
    end = run.find(NOP5_ON, "end")
    syncs = [run.find(NOP5_ON, "sync", 2, cpu=cpu) for cpu in (0, 1)]
    run.drop(*syncs)
    run.insert(
        end,
        kind="write",
        cpu=1,
        addr=0x1000,
        len=1,
        src="",
        own=False,
        irqs=True,
        bytes="e902000000",
    )
    for sync in syncs:
        run.insert(end, **{**sync, "n": 0})
    assert run.violations(NOP5_ON) == ["sync"]


def test_unknown_targets_and_bytes_are_no_violation() -> None:
    run = Run()
    for event in run.poke(NOP5_ON):
        if event["kind"] != "window":
            event.pop("bytes", None)
    run.find(NOP5_ON, "window")["targets"] = []
    (poke,) = run.watched(NOP5_ON).announced
    assert not poke.violations
    assert not poke.read_phases


def test_a_cpu_snapshot_is_kept() -> None:
    run = Run()
    run.insert(
        run.find(NOP5_ON, "end"), kind="cpus", cpu=-1, cpus=[{"cpu": 0, "rip": 0x1000, "stack": []}]
    )
    (look,) = run.watched(NOP5_ON).cpu_snapshots
    assert look["cpus"][0]["rip"] == 0x1000


def test_a_return_from_inside_the_instruction_is_not_the_sites() -> None:
    run = Run()
    site = run.find(NOP5_ON, "window")["site"]
    run.insert(run.find(NOP5_ON, "end"), kind="return", cpu=1, trap=site + 1, value=0, ip=site + 2)
    (poke,) = run.watched(NOP5_ON).announced
    assert not poke.violations
    assert poke.returns == {0: 2, 1: 2}


def test_an_int3_after_the_end_is_foreign() -> None:
    run = Run()
    end = run.find(NOP5_ON, "end")
    run.events.insert(
        run.index(end) + 1, {**_trap(run.find(NOP5_ON, "window")["site"], 0, 0)[0], "step": 1}
    )
    watched = run.watched(NOP5_ON)
    assert watched.announced[0].traps() == {0: 2, 1: 2}
    assert len(watched.foreign_int3) == 1


def test_without_its_end_a_poke_is_not_complete() -> None:
    run = Run()
    run.drop(run.find(KEY_OFF, "end"))
    assert not run.watched(KEY_OFF).announced[0].complete


def test_by_step_groups_events_by_their_number() -> None:
    run = Run()
    run.events.insert(0, {"n": 0, "t": 0, "step": 0, "kind": "sync", "cpu": 0})
    parts = model.by_step(run.events)
    assert list(parts) == [0, *ALL]
    assert len(parts[0]) == 1
    assert sum(map(len, parts.values())) == len(run.events)


# -- unannounced pokes

SITES = (0x1000, 0x2000)
OLD, NEW = bytes.fromhex("0f1f440000"), bytes.fromhex("e910000000")


def _batch(*, cpus: tuple[int, ...] = (0, 1), rounds: tuple[int, ...] = (1, 2, 3)) -> list[Event]:
    """A batch over SITES as the agent sees it: no window, foreign writes, shared rounds."""
    events: list[Event] = []

    def see(kind: str, cpu: int = 0, **fields: object) -> None:
        events.append(
            {"n": len(events) + 1, "t": 0.0, "step": 1, "kind": kind, "cpu": cpu, **fields}
        )

    def write(address: int, data: bytes, before: bytes) -> None:
        see(
            "write",
            addr=address,
            len=len(data),
            src=data.hex(),
            own=False,
            irqs=True,
            callers=[],
            before=(before + b"\x90" * 8)[:8].hex(),
        )

    held = {site: OLD for site in SITES}
    for phase, (offset, part) in enumerate([(0, b"\xcc"), (1, NEW[1:]), (0, NEW[:1])], 1):
        for site in SITES:
            write(site + offset, part, held[site][offset:])
            held[site] = held[site][:offset] + part + held[site][offset + len(part) :]
        if phase in rounds:
            for cpu in cpus:
                see("sync", cpu)
    return events


def _violations(events: list[Event]) -> list[list[str]]:
    return [[v.claim for v in poke.violations] for poke in model.follow(events, (0, 1)).unannounced]


def test_an_unannounced_batch_is_judged_site_by_site() -> None:
    watched = model.follow(_batch(), (0, 1))
    assert [poke.site for poke in watched.unannounced] == list(SITES)
    assert [(poke.old, poke.new) for poke in watched.unannounced] == [(OLD, NEW)] * 2
    assert not any(poke.violations for poke in watched.unannounced)
    assert not watched.announced and not watched.foreign_writes


@pytest.mark.parametrize("missing", [1, 2])
def test_a_round_missing_from_a_batch_is_missing_at_each_site(missing: int) -> None:
    assert _violations(_batch(rounds=tuple({1, 2, 3} - {missing}))) == [["sync"], ["sync"]]


def test_the_last_round_of_a_batch_must_be_over_when_the_next_poke_begins() -> None:
    lacking, whole = _batch(rounds=(1, 2)), _batch()
    assert _violations([*whole, *whole]) == [[], [], [], []]
    assert _violations([*lacking, *whole]) == [["sync"], ["sync"], [], []]
    announced = Run()
    _insert_batch(announced, lacking, kind="write")
    assert [[v.claim for v in p.violations] for p in announced.watched(NOP5_ON).all_pokes] == [
        [],
        ["sync"],
        ["sync"],
    ]


def test_a_cpu_left_out_by_a_batch_is_a_violation() -> None:
    assert _violations(_batch(cpus=(0,))) == [["sync", "sync"]] * 2


def test_a_site_written_after_the_round_has_no_round() -> None:
    events = _batch()
    late = next(event for event in events if event.get("addr") == SITES[1])
    events.remove(late)
    events.insert(
        next(at for at, event in enumerate(events) if event.get("addr") == SITES[0] + 1), late
    )
    assert _violations(events) == [[], ["sync"]]


def test_a_last_write_that_is_too_wide_is_a_violation() -> None:
    events = _batch()
    last = [event for event in events if event.get("addr") == SITES[0]][-1]
    last.update(src=NEW.hex(), len=5)
    assert _violations(events) == [["writes"], []]


def _trap(site: int, value: int, ip: int) -> list[Event]:
    common = {"n": 0, "t": 0.0, "step": 1, "cpu": 1}
    back = {"kind": "return", "trap": site, "value": value, "ip": ip}
    return [{**common, "kind": "int3", "ip": site}, {**common, **back}]


@pytest.mark.parametrize(
    ("value", "ip", "claims"),
    [(1, 0x1005, []), (1, 0x1015, []), (1, 0x1006, ["consumed"]), (0, 0x1001, ["consumed"])],
)
def test_int3_of_an_unannounced_poke_resumes_behind_it_or_at_its_target(
    value: int, ip: int, claims: list[str]
) -> None:
    events = _batch()
    at = next(n for n, event in enumerate(events) if event.get("addr") == SITES[1] + 1) + 1
    events[at:at] = _trap(SITES[0], value, ip)
    assert _violations(events) == [claims, []]
    assert not model.follow(events, (0, 1)).foreign_int3


def test_an_int3_before_the_tail_belongs_to_the_poke_once_there_is_a_tail() -> None:
    events = _batch()
    at = next(n for n, event in enumerate(events) if event["kind"] == "sync")
    events[at:at] = _trap(SITES[0], 1, 0x1005)
    watched = model.follow(events, (0, 1))
    assert not watched.foreign_int3
    assert watched.unannounced[0].traps() == {1: 1}
    assert watched.int3 == {(SITES[0], 1): 1}


@pytest.mark.parametrize(
    ("value", "ip", "claims"), [(1, 0x1006, ["consumed"]), (0, 0x1001, ["consumed"])]
)
def test_an_int3_before_the_tail_is_judged_at_the_last_write(
    value: int, ip: int, claims: list[str]
) -> None:
    events = _batch()
    at = next(n for n, event in enumerate(events) if event["kind"] == "sync")
    events[at:at] = _trap(SITES[0], value, ip)
    assert _violations(events) == [claims, []]


def test_a_kprobe_jump_that_is_taken_back_leaves_int3_to_the_kprobe() -> None:
    events = _batch()
    last = next(
        n
        for n, event in enumerate(events)
        if event.get("addr") == SITES[0] and event["src"] != "cc"
    )
    events[last:] = _trap(SITES[0], 0, 0x1001)
    assert _violations(events) == [[], []]


def test_a_return_from_an_int3_before_the_poke_is_not_the_pokes() -> None:
    trap, back = _trap(SITES[0], 0, 0x1001)
    events = _batch()
    assert _violations([trap, events[0], back, *events[1:]]) == [[], []]


def test_a_lone_int3_and_its_removal_belong_to_a_kprobe() -> None:
    events = _batch()[:1]
    gone = {**events[0], "src": OLD[:1].hex(), "before": (b"\xcc" + OLD[1:] + b"\x90" * 3).hex()}
    watched = model.follow([*events, *_trap(SITES[0], 0, 0x1001), gone], (0, 1))
    assert not watched.unannounced
    assert len(watched.foreign_writes) == 2
    assert len(watched.foreign_int3) == 1


def _insert_batch(run: Run, batch: list[Event], *, kind: str, number: int = 0) -> None:
    """Insert a whole foreign batch before an event of the announced poke NOP5_ON."""
    before = run.find(NOP5_ON, kind, number)
    at = run.index(before)
    run.events[at:at] = [{**event, "bytes": before["bytes"]} for event in batch]


@pytest.mark.parametrize(
    "kind", ["write", "end"], ids=["before its first write", "after its last round"]
)
def test_announced_and_unannounced_pokes_do_not_disturb_each_other(kind: str) -> None:
    """text_mutex keeps them apart, but the window is open for longer than the poke lasts."""
    run = Run()
    batch = _batch()
    batch[2:2] = _trap(SITES[0], 1, SITES[0] + 5)
    _insert_batch(run, batch, kind=kind)
    watched = run.watched(NOP5_ON)
    assert [poke.seq for poke in watched.announced] == [NOP5_ON]
    assert [(poke.site, poke.announced) for poke in watched.unannounced] == [
        (site, False) for site in SITES
    ]
    assert watched.all_pokes == [*watched.announced, *watched.unannounced]
    assert not any(poke.violations for poke in watched.all_pokes)
    assert watched.announced[0].traps() == {0: 2, 1: 2}
    assert [poke.traps() for poke in watched.unannounced] == [{1: 1}, {}]
    assert not watched.foreign_writes and not watched.foreign_int3


def test_a_missing_round_is_only_blamed_on_its_own_poke() -> None:
    run = Run()
    _insert_batch(run, _batch(rounds=(2, 3)), kind="write")
    watched = run.watched(NOP5_ON)
    assert [[v.claim for v in poke.violations] for poke in watched.all_pokes] == [
        [],
        ["sync"],
        ["sync"],
    ]
    assert all(
        "a poke of the kernel's own" in poke.violations[0].text for poke in watched.unannounced
    )

    run = Run()
    _drop_round(run, NOP5_ON, 2)
    _insert_batch(
        run, _batch(), kind="end"
    )  # its syncs do not stand in for those of the poke before
    watched = run.watched(NOP5_ON)
    assert [[v.claim for v in poke.violations] for poke in watched.all_pokes] == [["sync"], [], []]
    assert f"poke {NOP5_ON})" in watched.announced[0].violations[0].text


def test_an_unannounced_poke_is_neither_held_nor_ended() -> None:
    """Holds and ends belong to the announced poke."""
    run = Run()
    batch = _batch()
    _insert_batch(run, batch[: len(batch) - 4], kind="hold")  # without the last writes
    for poke in run.watched(NOP5_ON).unannounced:
        assert not poke.violations
        assert not poke.held_phases
        assert not poke.complete


def test_each_poke_of_the_same_site_is_recognised() -> None:
    there = _batch()
    again = [{**event, "n": event["n"] + len(there)} for event in there]
    watched = model.follow([*there, *again], (0, 1))
    assert [poke.site for poke in watched.unannounced] == [*SITES, *SITES]
    assert not any(poke.violations for poke in watched.unannounced)


def test_an_unannounced_poke_must_write_with_interrupts_enabled_too() -> None:
    events = _batch()
    events[1].update(irqs=False)
    assert _violations(events) == [[], ["irqs"]]


def test_an_unannounced_poke_whose_int3_stays_is_no_fault() -> None:
    """A kprobe's jump that is taken back leaves int3: arch_unoptimize_kprobe() in kprobes/opt.c."""
    events = [event for event in _batch() if event.get("src") != NEW[:1].hex()]
    assert _violations(events) == [[], []]


def _write(address: int, data: str, before: str) -> Event:
    common = {
        "n": 0,
        "t": 0.0,
        "step": 1,
        "kind": "write",
        "cpu": 0,
        "own": False,
        "irqs": True,
        "callers": [],
    }
    return {**common, "addr": address, "len": len(data) // 2, "src": data, "before": before}


def test_later_writes_over_a_site_are_not_part_of_its_poke() -> None:
    """Alternatives and a module's relocations are written without int3."""
    watched = model.follow([*_batch(), _write(SITES[0], OLD.hex(), NEW.hex() + "909090")], (0, 1))
    assert [poke.violations for poke in watched.unannounced] == [[], []]
    assert len(watched.foreign_writes) == 1


def test_a_poke_of_a_site_whose_int3_stayed_is_a_new_poke() -> None:
    stayed = [event for event in _batch() if event.get("src") != NEW[:1].hex()]
    over = _batch()
    for event in over:  # int3 is already there, followed by the tail of the previous poke
        if event.get("src") == "cc":
            event["before"] = "cc" + NEW[1:].hex() + "909090"
        elif event.get("src") == NEW[1:].hex():
            event["before"] = NEW[1:].hex() + "90909090"
    watched = model.follow([*stayed, *over], (0, 1))
    assert [(poke.site, poke.written) for poke in watched.unannounced] == [
        (site, n) for n in (2, 3) for site in SITES
    ]
    assert not any(poke.violations for poke in watched.unannounced)


def test_a_write_behind_a_removed_kprobe_is_no_tail() -> None:
    begun = _batch()[0]
    gone = _write(SITES[0], OLD[:1].hex(), "cc" + OLD[1:].hex() + "909090")
    watched = model.follow(
        [begun, gone, _write(SITES[0] + 1, "10", OLD[1:].hex() + "90909090")], (0, 1)
    )
    assert not watched.unannounced
    assert len(watched.foreign_writes) == 3


@pytest.mark.parametrize("tail", ["", "10" * 8], ids=["nothing", "eight bytes"])
def test_a_write_of_an_impossible_length_behind_a_kprobe_is_no_tail(tail: str) -> None:
    events = _batch()[:1]
    behind = {**events[0], "addr": SITES[0] + 1, "src": tail, "len": len(tail) // 2}
    watched = model.follow([*events, behind], (0, 1))
    assert not watched.unannounced
    assert len(watched.foreign_writes) == 2


@pytest.mark.parametrize("order", [1, -1], ids=["forwards", "backwards"])
def test_a_tail_may_be_written_in_pieces(order: int) -> None:
    """No CPU gets past int3, so what counts are the rounds before the first and after the last."""
    events: list[Event] = []
    for event in _batch():
        if event.get("src") != NEW[1:].hex():
            events.append(event)
            continue
        tail, before = bytes.fromhex(event["src"]), bytearray.fromhex(event["before"])
        for at in list(range(len(tail)))[::order]:
            piece = {"addr": event["addr"] + at, "len": 1, "src": tail[at : at + 1].hex()}
            events.append({**event, **piece, "before": before[at:].hex().ljust(16, "9")})
            before[at] = tail[at]
    watched = model.follow(events, (0, 1))
    assert [(poke.old, poke.new) for poke in watched.unannounced] == [(OLD, NEW)] * 2
    assert [poke.violations for poke in watched.unannounced] == [[], []]
    first = next(number for number, event in enumerate(events) if event["kind"] == "sync")
    events = [e for n, e in enumerate(events) if n > first + 1 or e["kind"] != "sync"]
    assert {
        v.claim for poke in model.follow(events, (0, 1)).all_pokes for v in poke.violations
    } == {"sync"}


def test_a_tail_of_an_announced_poke_may_be_written_in_pieces() -> None:
    run = Run()
    tail = [event for event in run.poke(NOP5_ON) if event["kind"] == "write"][1]
    piece = {**tail, "kind": "piece", "addr": tail["addr"] + 3, "len": 1, "src": tail["src"][-2:]}
    tail["bytes"] = tail["bytes"][:-2] + tail["src"][-2:]
    run.events.insert(run.events.index(tail), piece)
    (poke,) = run.watched(NOP5_ON).announced
    assert not poke.violations and poke.written == 3


def test_a_piece_behind_a_tail_that_is_complete_already_needs_no_round() -> None:
    run = Run()
    tail = [event for event in run.poke(NOP5_ON) if event["kind"] == "write"][1]
    piece = {**tail, "kind": "piece", "unchanged": True, "addr": tail["addr"] + 3, "len": 1}
    run.events.insert(run.events.index(tail) + 1, piece)
    (poke,) = run.watched(NOP5_ON).announced
    assert not poke.violations and poke.written == 3


def test_bytes_of_the_announced_site_do_not_count_for_an_unannounced_poke() -> None:
    events = _batch()
    for event in events:
        if event["kind"] == "sync":
            event["bytes"] = "00"
    assert _violations(events) == [[], []]


def test_an_unannounced_write_over_unexpected_bytes_is_a_violation() -> None:
    events = _batch()
    tail = next(event for event in events if event.get("addr") == SITES[0] + 1)
    tail["before"] = "2f" + tail["before"][2:]  # not what the int3 write has seen there
    last = [event for event in events if event.get("addr") == SITES[1]][-1]
    last["before"] = OLD.hex() + last["before"][10:]  # the int3 is gone
    assert _violations(events) == [["bytes"], ["bytes"]]


def test_every_int3_is_counted_whoever_caused_it() -> None:
    """GDB's ledger has int3 of announced and unannounced pokes, early ones and foreign ones."""
    run = Run()
    batch = _batch()
    met = next(n for n, event in enumerate(batch) if event.get("addr") == SITES[1] + 1) + 1
    batch[met:met] = _trap(SITES[1], 1, SITES[1] + 5)
    batch[2:2] = _trap(SITES[0], 1, SITES[0] + 5) + _trap(0x3000, 0, 0x3001)
    _insert_batch(run, batch, kind="write")
    site = run.find(NOP5_ON, "window")["site"]
    watched = run.watched(NOP5_ON)
    assert watched.int3 == {
        (site, 0): 2,
        (site, 1): 2,
        (SITES[0], 1): 1,
        (SITES[1], 1): 1,
        (0x3000, 1): 1,
    }
    assert [event["ip"] for event in watched.foreign_int3] == [0x3000]
    assert watched.int3.total() == sum(e["kind"] == "int3" for e in run.poke(NOP5_ON))


@pytest.mark.parametrize(
    ("code", "targets"),
    [
        ("e910000000", {0x1005, 0x1015}),
        ("e8fbffffff", {0x1005, 0x1000}),
        ("ebfe", {0x1002, 0x1000}),
        ("e9fbffffff", {0x1005, 0x1000}),
        ("eb7f", {0x1002, 0x1081}),
        ("0f8000010000", {0x1006, 0x1106}),
        ("0f8400010000", {0x1006, 0x1106}),
        ("0f8ffaffffff", {0x1006, 0x1000}),
        ("0f9000010000", {0x1006}),
        ("0f1f440000", {0x1005}),
        ("6690", {0x1002}),
        ("90", {0x1001}),
        ("c3", set()),
        ("48c7c000000000", set()),
    ],
)
def test_resume_targets_after_an_int3(code: str, targets: set[int]) -> None:
    assert model.resume_targets(0x1000, bytes.fromhex(code)) == targets


# -- random mutations


def _meaning(events: list[Event]) -> list[object]:
    """What a mutation must not change: the order of writes and holds, and the CPUs synced before.

    So these mutations are harmless: reordering syncs within a round; repeating a sync while memory
    stays the same, also while the poker is held; and moving a write or a sync past an int3 or a
    return, because an int3 may reach the handler during a write.
    """
    meaning: list[object] = []
    synced: set[object] = set()
    hold: Event = {}
    for event in events:
        if event["kind"] == "sync" and event["bytes"] != hold.get("bytes"):
            synced.add((event["cpu"], event["bytes"]))
        elif event["kind"] in ("write", "hold", "end"):
            meaning.append((event["kind"], event.get("addr"), event.get("src"), frozenset(synced)))
            synced = set()
            hold = event if event["kind"] == "hold" else {}
    return meaning


def test_any_mutation_of_a_good_poke_is_seen() -> None:
    seed = int(os.environ.get("ORCHESTRATOR_TEST_SEED") or random.randrange(2**32))
    rng = random.Random(seed)
    good = {seq: Run().poke(seq) for seq in ALL}
    bad = 0
    for _ in range(3000):
        seq = rng.choice(ALL)
        events = list(good[seq])
        meaning = _meaning(events)
        at = rng.choice([n for n, event in enumerate(events) if event["kind"] in ("write", "sync")])
        how = rng.choice(("drop", "duplicate", "move"))
        event = events[at]
        if how != "duplicate":
            del events[at]
        if how != "drop":
            events.insert(rng.randrange(1, len(events)), event)
        watched = model.follow(events, (0, 1))
        harmless = _meaning(events) == meaning
        seen = bool(watched.announced[0].violations)
        assert seen or harmless, (
            f"seed {seed}: poke {seq}: {how} of {event} was not seen in {events}"
        )
        bad += not harmless
    assert bad > 1000, f"seed {seed}"
