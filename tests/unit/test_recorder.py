# SPDX-License-Identifier: GPL-2.0-only
"""The recorder's files: what it is to watch, and what it has written."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from orchestrator.host.logs import Log
from orchestrator.host.tools import Qemu
from orchestrator.machine.accel import Accel
from orchestrator.text.functions import LOCKS
from orchestrator.watch import recorder
from orchestrator.watch.recorder import (
    CONTROL,
    CPUS,
    RECORD,
    SLOT,
    SLOTS,
    Recorder,
    Records,
    configuration,
)

KERNEL = """\
000000000001ac00 A current_task
ffffffff81000000 T _stext
ffffffff81000000 T _text
ffffffff810181d0 t __text_poke
ffffffff81018a30 T text_poke
ffffffff81017f70 t do_sync_core.constprop.0
ffffffff81017f90 t do_sync_core.llvm.8808958708760710351
ffffffff81017fa0 t do_sync_core.cold
ffffffff81017fb0 t do_sync_core.cfi_jt
ffffffff81017fe0 t int3_notify
ffffffff81261c30 T mutex_unlock
ffffffff81a1ec60 D text_mutex
ffffffff81600108 T _etext
ffffffffa0000000 t __text_poke	[other]
""".splitlines()


def test_each_function_is_watched_by_the_names_it_has() -> None:
    assert configuration(KERNEL, {0xFFFFFFFFA0001000: 8}) == [
        "write ffffffff810181d0",
        "sync ffffffff81017f70",
        "sync ffffffff81017f90",
        "poke ffffffff81017fe0 1",
        "unlock ffffffff81261c30",
        "mutex ffffffff81a1ec60 1",
        "text_mutex ffffffff81a1ec60",
        "current_task 1ac00",
        "text_start ffffffff81000000",
        "text_end ffffffff81600108",
        "site ffffffffa0001000 8",
    ]


def test_all_locks_of_text_patching_are_watched() -> None:
    lines = [f"{0xFFFFFFFF81A00000 + 64 * at:x} d {name}" for at, name in enumerate(LOCKS)]
    watched = [line.split() for line in configuration(lines, {})]
    assert [int(line[2], 16) for line in watched if line[0] == "mutex"] == list(range(len(LOCKS)))


@pytest.mark.parametrize("modern", [False, True])
def test_callers_are_to_have_locks_since_kprobes_sync(modern: bool) -> None:
    lines = [
        "ffffffff81100000 t __jump_label_update",
        "ffffffff81100100 T arch_arm_kprobe",
        "ffffffff81100200 T arch_static_call_transform",
        "ffffffff81100280 t takedown_cpu",
        *(["ffffffff81100300 T text_poke_sync"] if modern else []),
    ]
    assert configuration(lines, {}) == [
        f"key ffffffff81100000{' 5' if modern else ''}",
        f"transform ffffffff81100200{' 9' if modern else ''}",
        f"guarded ffffffff81100100{' 10' if modern else ''}",
        f"guarded ffffffff81100280{' 20000' if modern else ''}",
    ]


@pytest.mark.parametrize(("size", "known"), [(8, False), (16, True), (64, True)])
def test_the_descriptor_of_a_poke_is_no_pointer_to_it(size: int, known: bool) -> None:
    here = 0xFFFFFFFF81B00000
    lines = [f"{here:x} b bp_desc", f"{here + size:x} b tp_vec_nr", f"{here - 8:x} b other"]
    assert (f"patching_refs {here:x}" in configuration(lines, {})) == known


@pytest.mark.parametrize(("size", "lists"), [(512, 64), (576, 64), (2048, 256), (1 << 20, 1024)])
def test_the_table_of_probes_is_as_large_as_the_kernel_has_it(size: int, lists: int) -> None:
    here = 0xFFFFFFFF81B00000
    lines = [f"{here:x} b kprobe_table", f"{here + size:x} b kprobe_instances"]
    assert f"kprobe_table {here:x} {lists:x}" in configuration(lines, {})
    assert f"kprobe_table {here:x} 40" in configuration(lines[:1], {})  # the last symbol
    lines[0] += ".llvm.123"  # as ThinLTO calls what was static
    assert f"kprobe_table {here:x} {lists:x}" in configuration(lines, {})


def test_text_poke_writes_where_there_is_nothing_below_it() -> None:
    assert "write ffffffff81018a30" in configuration(KERNEL[4:5], {})


QEMU = Qemu(binary=Path("/usr/bin/qemu"), version=(10, 0, 2))


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """A recorder whose plugin is not compiled; `write` is in its place."""
    monkeypatch.setattr(recorder, "plugin_for", lambda qemu: Path("/cache/a,b/recorder.so"))
    return Recorder(QEMU, Accel("tcg", "single", "for a test"))


def write(made: Recorder, name: str, content: bytes) -> None:
    """Write like the plugin, which opens its files by the names on QEMU's command line."""
    arguments = dict(part.split("=") for part in made.options[1].split(",") if "=" in part)
    Path(arguments[name]).write_bytes(content)


def log_of(kinds: list[int], cpu: int = 0) -> bytes:
    records = np.zeros(len(kinds), RECORD)
    records["kind"], records["cpu"] = kinds, cpu
    return records.tobytes()


def state(
    made: Recorder, *, turned: int = 0, records: int = 0, lost: int = 0, previous: int = 0
) -> None:
    content = CONTROL.pack(0, turned, 0, 0, turned, 0, records, lost, previous, *[0] * 7)
    write(made, "control", content)


def test_the_log_is_read_as_far_as_it_is_written(made: Recorder) -> None:
    assert len(made.records()) == 0
    write(made, "log0", log_of([1, 2, 4, 0, 0]))
    state(made, records=3)
    assert made.records()["kind"].tolist() == [1, 2, 4]
    assert made.lost == ""


def test_what_found_no_room_is_lost(made: Recorder) -> None:
    state(made, lost=7)
    assert made.lost == "7 events found no room in the recorder's log"


def test_a_log_that_is_taken_is_that_of_the_turn_before(made: Recorder) -> None:
    write(made, "log0", log_of([1] * 4, cpu=1))
    write(made, "log1", log_of([1] * 2))
    state(made, records=4)

    def turn(done: Callable[[], bool]) -> bool:
        state(made, turned=1, records=2, previous=4)
        return done()

    assert made.take(turn)["cpu"].tolist() == [1, 1, 1, 1]
    assert made.records()["cpu"].tolist() == [0, 0]


def test_a_guest_that_executes_nothing_any_more_leaves_the_log_where_it_is(made: Recorder) -> None:
    write(made, "log0", log_of([1] * 4))
    state(made, records=4)
    assert not made.look(lambda done: done())
    assert len(made.take(lambda done: done())) == 4


def test_a_copy_of_the_log_is_kept_for_people(tmp_path: Path) -> None:
    records: Records = np.frombuffer(log_of([1, 2, 3] * 20_000, cpu=3), RECORD)
    recorder.save(records, Log(tmp_path / "recorder.log.gz"))
    assert np.array_equal(recorder.load(tmp_path / "recorder.log.gz"), records)


def test_a_log_that_ends_within_a_record_is_read_up_to_it(tmp_path: Path) -> None:
    path = tmp_path / "recorder.log.gz"
    with gzip.open(path, "wb") as file:
        file.write(bytes(RECORD.itemsize * 2 + 5))
    assert len(recorder.load(path)) == 2


def test_the_configuration_is_in_a_file_that_nobody_can_remove(made: Recorder) -> None:
    for sites in ({0xFFFFFFFFA0001000: 8}, {}):
        made.configure(KERNEL, sites)
        path = next(part[5:] for part in made.options[1].split(",") if part.startswith("conf="))
        assert Path(path).read_text().splitlines() == configuration(KERNEL, sites)
    assert made.address("text_end") == 0xFFFFFFFF81600108
    assert made.address("per_cpu_offset") == 0


def test_a_comma_in_the_cache_directory_is_escaped(made: Recorder) -> None:
    assert made.options[1].startswith("file=/cache/a,,b/recorder.so,ledger=/proc/")


# -- the count of int3


def ledger(made: Recorder, sites: int) -> None:
    slots = [
        SLOT.pack(0xFFFFFFFF81000000 + site, 5, 0, 7, *[0] * (CPUS - 3)) for site in range(sites)
    ]
    write(made, "ledger", b"".join(slots) + bytes(3 * SLOT.size))


def test_the_counts_of_int3_are_by_site_and_cpu(made: Recorder) -> None:
    ledger(made, 1)
    assert made.read() == {(0xFFFFFFFF81000000, 0): 5, (0xFFFFFFFF81000000, 2): 7}
    assert made.lost_int3 == ""


def test_a_plugin_that_did_not_begin_has_counted_nothing(made: Recorder) -> None:
    assert made.lost_int3 == "QEMU's plugin did not begin to count int3"
    assert not made.read()


def test_a_ledger_that_is_full_may_have_missed_some(made: Recorder) -> None:
    ledger(made, SLOTS - 1)
    assert made.lost_int3 == ""
    ledger(made, SLOTS)
    assert made.lost_int3 == (
        "QEMU's plugin counts int3 at 32,768 addresses only, and there may be more"
    )


def test_a_copy_of_the_counts_is_kept_for_people(made: Recorder, tmp_path: Path) -> None:
    ledger(made, 1)
    made.save_int3(Log(tmp_path / "int3.ledger"))
    assert (tmp_path / "int3.ledger").stat().st_size == 4 * SLOT.size


@pytest.mark.parametrize(
    ("kind", "version", "why"),
    [("kvm", (10, 0), "under KVM"), ("tcg", (9, 1), "9.1 is older than 9.2")],
)
def test_it_is_said_why_nothing_is_recorded(kind: str, version: tuple[int, ...], why: str) -> None:
    accel = Accel("kvm", None, "") if kind == "kvm" else Accel("tcg", "single", "")
    made = Recorder(Qemu(binary=Path("/qemu"), version=version), accel)
    assert made.why_not and why in made.why_not
    assert made.options == () and not made.lost_int3 and not made.lost and not made.read()
    with made.gdb():  # asks for nothing
        assert made.look(lambda done: False)
