"""The phase model: what a healthy kernel does passes, and each departure from it is seen and named."""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
from good_run import KEY_OFF, KEY_ON, NOP5_OFF, NOP5_ON, ONE_OFF, ONE_ON, Event, Run, targets_of

from orchestrator.watch import model

ALL = (NOP5_ON, NOP5_OFF, ONE_ON, ONE_OFF, KEY_ON, KEY_OFF)


@pytest.mark.parametrize("seq", ALL)
def test_a_healthy_poke_has_no_violation(seq: int) -> None:
    (poke,) = Run().watched(seq).pokes
    phases = [1] if seq in (ONE_ON, ONE_OFF) else [1, 2]
    assert not poke.violations
    assert poke.complete
    assert poke.trap_phases == phases
    assert poke.held == set(phases)
    assert poke.hits == {(phase, cpu): 1 for phase in phases for cpu in (0, 1)}
    assert poke.returns == {0: len(phases), 1: len(phases)} == poke.traps()
    assert poke.rounds == {phase: {0, 1} for phase in [*phases, 3]}
    assert poke.looked == {0, *phases, 3}


def test_plan_of_five_bytes_and_of_one() -> None:
    run = Run()
    (five,), (one,) = run.watched(NOP5_ON).pokes, run.watched(ONE_ON).pokes
    assert five.plan == [(0, b"\xcc"), (1, five.new[1:]), (0, five.new[:1])]
    assert [five.bytes_in(phase).hex()[:6] for phase in range(4)] == ["0f1f44", "cc1f44", "cc0200", "e90200"]
    assert one.plan == [(0, b"\xcc"), (0, b"\xf9")]
    assert one.phases == [0, 1, 3]


# -- one defect each


def _drop_round(run: Run, seq: int, round_: int) -> None:
    run.drop(*(run.find(seq, "sync", cpu=cpu, number=round_) for cpu in (0, 1)))


def _swap_writes(run: Run) -> None:
    tail, first = run.find(NOP5_ON, "write", 1), run.find(NOP5_ON, "write", 2)
    for field in ("addr", "len", "src"):
        tail[field], first[field] = first[field], tail[field]


def _stopper(run: Run, own: bool) -> None:
    run.insert(run.find(NOP5_ON, "hold"), kind="stopper", cpu=1, own=own)


def _int3(run: Run, before: Event, **fields: object) -> None:
    run.insert(before, **{"kind": "int3", "cpu": 1, "ip": run.find(NOP5_ON, "window")["site"], **fields})


DEFECTS: dict[str, tuple[Callable[[Run], None], list[str]]] = {
    "the first sync round is missing": (lambda run: _drop_round(run, NOP5_ON, 0), ["sync"]),
    "the second sync round is missing": (lambda run: _drop_round(run, NOP5_ON, 1), ["sync"]),
    "the last sync round is missing": (lambda run: _drop_round(run, NOP5_ON, 2), ["sync"]),
    "one CPU is left out of a round": (lambda run: run.drop(run.find(NOP5_ON, "sync", 1, cpu=1)), ["sync"]),
    "the writes are swapped": (_swap_writes, ["writes"]),
    "a write is missing": (lambda run: run.drop(run.find(NOP5_ON, "write", 1)), ["bytes", "writes"]),
    "a write is done twice": (
        lambda run: run.insert(run.find(NOP5_ON, "end"), **{**run.find(NOP5_ON, "write", 2), "bytes": "e902000000"}),
        ["writes"],
    ),
    "the tail is written in two parts": (lambda run: run.find(NOP5_ON, "write", 1).update(src="0200"), ["writes"]),
    "memory holds other bytes": (lambda run: run.find(NOP5_ON, "sync", 2).update(bytes="cc1f440001"), ["bytes"]),
    "memory holds other bytes at the end": (lambda run: run.find(NOP5_ON, "end").update(bytes="cc02000000"), ["bytes"]),
    "the handler does not take the int3": (lambda run: run.find(NOP5_ON, "return").update(value=0), ["consumed"]),
    "a CPU goes on elsewhere": (lambda run: run.find(NOP5_ON, "return", 3).update(ip=0x1000), ["consumed"]),
    "a CPU traps before int3 is written": (
        lambda run: _int3(run, run.find(NOP5_ON, "write"), bytes="0f1f440000"), ["int3"]
    ),
    "a CPU traps inside the instruction": (
        lambda run: _int3(run, run.find(NOP5_ON, "hold"), bytes="cc1f440000", ip=targets_of(NOP5_ON)[0] - 8), ["int3"]
    ),
    "interrupts are off": (lambda run: run.find(NOP5_ON, "write", 0).update(irqs=False), ["irqs"]),
    "stop_machine() is used": (lambda run: _stopper(run, True), ["stopper"]),
    "the poke ends too early": (
        lambda run: run.drop(*(e for e in run.poke(NOP5_ON)[run.poke(NOP5_ON).index(run.find(NOP5_ON, "write", 2)):]
                               if e["kind"] != "end")),
        ["writes", "bytes"],
    ),
}  # fmt: skip


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
def test_a_round_that_nobody_waits_for(number: int) -> None:
    """With on_each_cpu(.., wait=0) the syncs come, but only while the gate already holds the poker."""
    run = Run()
    hold = run.find(NOP5_ON, "hold", number)
    sync = run.find(NOP5_ON, "sync", number, cpu=1)
    run.drop(sync)
    run.events.insert(run.index(hold) + 1, sync)
    assert run.violations(NOP5_ON) == ["sync"]


def test_the_missing_cpu_is_named() -> None:
    run = Run()
    run.drop(run.find(NOP5_ON, "sync", 0, cpu=1))
    (violation,) = run.watched(NOP5_ON).pokes[0].violations
    assert "CPU 1 had not run do_sync_core" in violation.text
    assert "between the int3 write and the next write" in violation.text


# -- what is legal


def test_a_late_int3_is_legal() -> None:
    """It trapped in time, and reached the handler when the last byte was written."""
    run = Run()
    _int3(run, run.find(NOP5_ON, "end"), bytes="e902000000")
    (poke,) = run.watched(NOP5_ON).pokes
    assert not poke.violations
    assert poke.late == {1: 1}
    assert poke.traps()[1] == 3


def test_an_int3_while_a_write_is_under_way_belongs_to_the_phase_before() -> None:
    run = Run()
    _int3(run, run.find(NOP5_ON, "sync", 2), bytes="cc1f440000")  # the tail is not in memory yet
    _int3(run, run.find(NOP5_ON, "sync", 4), bytes="cc02000000")  # nor is the first byte
    (poke,) = run.watched(NOP5_ON).pokes
    assert not poke.violations
    assert poke.hits[1, 1] == 2
    assert poke.hits[2, 1] == 2
    assert not poke.late


def test_old_bytes_after_a_round_are_not() -> None:
    run = Run()
    _int3(run, run.find(NOP5_ON, "hold", 1), bytes="cc1f440000")
    assert run.violations(NOP5_ON) == ["bytes"]


def test_what_others_do_is_not_blamed_on_the_poke() -> None:
    run = Run()
    _stopper(run, False)
    run.insert(run.find(NOP5_ON, "write"), kind="write", cpu=1, addr=0x1000, len=1, src="", own=False, irqs=False,
               bytes="0f1f440000")
    run.insert(run.find(NOP5_ON, "write"), kind="sync", cpu=1, bytes="0f1f440000")
    run.insert(run.find(NOP5_ON, "hold"), kind="int3", cpu=1, ip=0x1000, bytes="cc1f440000")
    watched = run.watched(NOP5_ON)
    assert not run.violations(NOP5_ON)
    assert len(watched.foreign_writes) == 1
    assert len(watched.foreign_int3) == 1


def test_syncs_of_a_foreign_poke_do_not_stand_in_for_the_last_round() -> None:
    run = Run()
    end = run.find(NOP5_ON, "end")
    syncs = [run.find(NOP5_ON, "sync", 2, cpu=cpu) for cpu in (0, 1)]
    run.drop(*syncs)
    run.insert(end, kind="write", cpu=1, addr=0x1000, len=1, src="", own=False, irqs=True, bytes="e902000000")
    for sync in syncs:
        run.insert(end, **{**sync, "n": 0})
    assert run.violations(NOP5_ON) == ["sync"]


def test_unknown_targets_and_bytes_are_no_violation() -> None:
    run = Run()
    for event in run.poke(NOP5_ON):
        if event["kind"] != "window":
            event.pop("bytes", None)
    run.find(NOP5_ON, "window")["targets"] = []
    (poke,) = run.watched(NOP5_ON).pokes
    assert not poke.violations
    assert not poke.looked


def test_an_agent_error_is_kept() -> None:
    run = Run()
    run.insert(run.find(NOP5_ON, "end"), kind="error", cpu=-1, what="MemoryError: no")
    assert run.watched(NOP5_ON).errors == ["MemoryError: no"]


def test_without_its_end_a_poke_is_not_complete() -> None:
    run = Run()
    run.drop(run.find(KEY_OFF, "end"))
    assert not run.watched(KEY_OFF).pokes[0].complete


def test_by_step_takes_the_number_that_each_event_has() -> None:
    run = Run()
    run.events.insert(0, {"n": 0, "t": 0, "step": 0, "kind": "sync", "cpu": 0})
    parts = model.by_step(run.events)
    assert list(parts) == [0, *ALL]
    assert len(parts[0]) == 1
    assert sum(map(len, parts.values())) == len(run.events)


# -- pokes that nobody announced

SITES = (0x1000, 0x2000)
OLD, NEW = bytes.fromhex("0f1f440000"), bytes.fromhex("e910000000")


def _batch(*, cpus: tuple[int, ...] = (0, 1), rounds: tuple[int, ...] = (1, 2, 3)) -> list[Event]:
    """A batch over SITES as the agent sees it: no window, writes of others, rounds that the sites share."""
    events: list[Event] = []

    def see(kind: str, cpu: int = 0, **fields: object) -> None:
        events.append({"n": len(events) + 1, "t": 0.0, "step": 1, "kind": kind, "cpu": cpu, **fields})

    def write(address: int, data: bytes, before: bytes) -> None:
        see("write", addr=address, len=len(data), src=data.hex(), own=False, irqs=True, callers=[],
            before=(before + b"\x90" * 8)[:8].hex())

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
    return [[v.claim for v in poke.violations] for poke in model.follow(events, (0, 1)).found]


def test_a_batch_of_others_is_found_and_judged_site_by_site() -> None:
    watched = model.follow(_batch(), (0, 1))
    assert [poke.site for poke in watched.found] == list(SITES)
    assert [(poke.old, poke.new) for poke in watched.found] == [(OLD, NEW)] * 2
    assert not any(poke.violations for poke in watched.found)
    assert not watched.pokes and not watched.foreign_writes


@pytest.mark.parametrize("missing", [1, 2])
def test_a_round_that_a_batch_lacks_is_lacking_at_each_site(missing: int) -> None:
    assert _violations(_batch(rounds=tuple({1, 2, 3} - {missing}))) == [["sync"], ["sync"]]


def test_a_cpu_that_a_batch_left_out() -> None:
    assert _violations(_batch(cpus=(0,))) == [["sync", "sync"]] * 2


def test_a_site_that_is_written_after_the_round_has_none() -> None:
    events = _batch()
    late = next(event for event in events if event.get("addr") == SITES[1])
    events.remove(late)
    events.insert(next(at for at, event in enumerate(events) if event.get("addr") == SITES[0] + 1), late)
    assert _violations(events) == [[], ["sync"]]


def test_a_last_write_that_is_too_wide() -> None:
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
def test_int3_of_a_found_poke_goes_behind_it_or_where_it_leads(value: int, ip: int, claims: list[str]) -> None:
    events = _batch()
    at = next(n for n, event in enumerate(events) if event.get("addr") == SITES[1] + 1) + 1
    events[at:at] = _trap(SITES[0], value, ip)
    assert _violations(events) == [claims, []]
    assert not model.follow(events, (0, 1)).foreign_int3


def test_an_int3_met_before_the_tail_is_the_pokes_once_there_is_one() -> None:
    events = _batch()
    at = next(n for n, event in enumerate(events) if event["kind"] == "sync")
    events[at:at] = _trap(SITES[0], 1, 0x1005)
    watched = model.follow(events, (0, 1))
    assert not watched.foreign_int3
    assert watched.found[0].traps() == {1: 1}
    assert watched.int3 == {(SITES[0], 1): 1}


def test_a_lone_int3_is_a_kprobes_and_so_is_its_end() -> None:
    events = _batch()[:1]
    gone = {**events[0], "src": OLD[:1].hex(), "before": (b"\xcc" + OLD[1:] + b"\x90" * 3).hex()}
    watched = model.follow([*events, *_trap(SITES[0], 0, 0x1001), gone], (0, 1))
    assert not watched.found
    assert len(watched.foreign_writes) == 2
    assert len(watched.foreign_int3) == 1


def test_found_and_announced_pokes_do_not_disturb_each_other() -> None:
    run = Run()
    run.events[run.index(run.find(NOP5_ON, "end")):0] = []
    at = run.index(run.find(NOP5_ON, "hold"))
    run.events[at:at] = [{**event, "bytes": "cc1f440000"} for event in _batch()[:2]]
    watched = run.watched(NOP5_ON)
    assert not run.violations(NOP5_ON)
    assert len(watched.foreign_writes) == 2


@pytest.mark.parametrize(
    ("code", "ways"),
    [
        ("e910000000", {0x1005, 0x1015}),
        ("e8fbffffff", {0x1005, 0x1000}),
        ("ebfe", {0x1002, 0x1000}),
        ("0f8400010000", {0x1006, 0x1106}),
        ("0f1f440000", {0x1005}),
        ("6690", {0x1002}),
        ("90", {0x1001}),
        ("c3", set()),
        ("48c7c000000000", set()),
    ],
)
def test_ways_on_from_an_int3(code: str, ways: set[int]) -> None:
    assert model.ways_on(0x1000, bytes.fromhex(code)) == ways


# -- at random


def _meaning(events: list[Event]) -> list[object]:
    """What may not change: the writes and holds in their order, and which CPUs have synced before each.

    Proven harmless is therefore: to change the order of syncs within a round; to repeat a sync, also while the poker is
    held, as long as memory holds the same; and to move a write or a sync past an int3 or a return only (an int3 that
    reaches the handler while a write is under way is legal).
    """
    meaning: list[object] = []
    before: set[object] = set()
    held: Event = {}
    for event in events:
        if event["kind"] == "sync" and event["bytes"] != held.get("bytes"):
            before.add((event["cpu"], event["bytes"]))
        elif event["kind"] in ("write", "hold", "end"):
            meaning.append((event["kind"], event.get("addr"), event.get("src"), frozenset(before)))
            before = set()
            held = event if event["kind"] == "hold" else {}
    return meaning


def test_any_mutation_of_a_good_poke_is_seen() -> None:
    seed = int(os.environ.get("ORCHESTRATOR_TEST_SEED") or random.randrange(2**32))
    dice = random.Random(seed)
    good = {seq: Run().poke(seq) for seq in ALL}
    bad = 0
    for _ in range(3000):
        seq = dice.choice(ALL)
        events = list(good[seq])
        meaning = _meaning(events)
        at = dice.choice([n for n, event in enumerate(events) if event["kind"] in ("write", "sync")])
        how = dice.choice(("drop", "duplicate", "move"))
        event = events[at]
        if how != "duplicate":
            del events[at]
        if how != "drop":
            events.insert(dice.randrange(1, len(events)), event)
        watched = model.follow(events, (0, 1))
        harmless = _meaning(events) == meaning
        seen = bool(watched.pokes[0].violations)
        assert seen or harmless, f"seed {seed}: poke {seq}: {how} of {event} was not seen in {events}"
        bad += not harmless
    assert bad > 1000, f"seed {seed}"
