# SPDX-License-Identifier: GPL-2.0-only
"""Snapshots and branches, without a real guest: its plan, its letter and its output."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from orchestrator import branch
from orchestrator.errors import BootError, InfraError
from orchestrator.machine import snapshot
from orchestrator.machine.waiting import Silence
from orchestrator.scenarios.scenario import select
from orchestrator.text.functions import LOCK, POKE_ONE
from orchestrator.verdict.recorded import record
from orchestrator.watch.recorder import RECORD

AT = 0xFFFFFFFFA0001000
TEXT = 0xFFFFC90000000000
LETTER = f"""online 0-3
cmdline nokaslr console=ttyS0
symbol ffffffff81000000 T {POKE_ONE[-1]}
symbol ffffffff81000100 t do_sync_core.constprop.0
symbol ffffffff81900000 D {LOCK}
module ffffffffa0002000 b orch_report\t[orch]
module this is no symbol
section ./.text:0xffffffffa0000000
what is this
"""


def machine(letter: bytes, lines: list[str]) -> Any:
    memory = {AT: branch.TEXT.pack(TEXT, len(letter)), TEXT: letter}

    def read(address: int, size: int) -> bytes:
        if address not in memory:
            raise InfraError("there is no memory")
        return memory[address][:size]

    return SimpleNamespace(
        read_memory=read,
        console=SimpleNamespace(lines=lines),
        spec=SimpleNamespace(smp=4),
        qmp=SimpleNamespace(execute=lambda *_, **__: {"status": "completed"}),
        cont=lambda: None,
        check=lambda: None,
        wait=lambda until, *_: until(),
        silence=Silence(),
    )


RECORDER: Any = SimpleNamespace(
    hold=lambda: None,
    waits=True,
    steps=0,
    let_go=lambda: None,
    records=lambda: np.zeros(0, RECORD),
)
"""Of a guest that has been let go."""

SAYS = f"<12>[ 9.1] orchestrator: waiting for a plan, letter at {AT:x}"


def test_a_guest_is_told_which_symbols_are_needed(tmp_path: Path) -> None:
    files = branch.guest_files(select(["hotplug", "contexts"]))
    needed, wanted = (line.split("|") for line in files["/etc/branch"].decode().splitlines())
    assert {LOCK, "__smp_call_function_single"} <= set(needed) < set(wanted)
    assert "do_sync_core" in wanted and "do_sync_core" not in needed
    assert [*files] == ["/etc/branch"]


def test_what_a_guest_says_before_it_is_saved_is_kept(tmp_path: Path) -> None:
    one = machine(LETTER.encode(), ["<5>[ 0.0] Linux version", SAYS])
    saved = branch.save(one, tmp_path, RECORDER, 0.0)
    assert branch.load(tmp_path) == saved
    assert saved.cpus == [0, 1, 2, 3]
    assert saved.command_line == "nokaslr console=ttyS0"
    assert saved.addresses["do_sync_core"] == 0xFFFFFFFF81000100
    assert saved.addresses["orch_report"] == 0xFFFFFFFFA0002000
    assert saved.module_symbols == ["ffffffffa0002000 b orch_report\t[orch]"]
    assert saved.sections == "./.text:0xffffffffa0000000"
    assert saved.emulated is None
    assert saved.console[-1] == SAYS


@pytest.mark.parametrize(
    "letter", [b"", b"\xff" * 1000, b"online 0-99\n", b"online\nmodule\nsymbol\n\nsection"]
)
def test_a_letter_of_nonsense_is_an_error_with_a_sentence(tmp_path: Path, letter: bytes) -> None:
    with pytest.raises((BootError, InfraError)):
        branch.save(machine(letter, [SAYS]), tmp_path, RECORDER, 0.0)


def test_a_guest_that_cannot_load_the_module_is_a_boot_error(tmp_path: Path) -> None:
    says = "<12>[ 9.1] orchestrator: no plan can be carried out: insmod: Invalid argument"
    with pytest.raises(BootError, match="insmod: Invalid argument"):
        branch.save(machine(b"", [says]), tmp_path, RECORDER, 0.0)


def test_a_damaged_snapshot_is_named(tmp_path: Path) -> None:
    branch.save(machine(LETTER.encode(), [SAYS]), tmp_path, RECORDER, 0.0)
    (tmp_path / "snapshot.json").write_text("{}")
    with pytest.raises(InfraError, match=re.escape("snapshot.json is damaged")):
        branch.load(tmp_path)


def test_a_snapshot_that_qemu_cannot_make_says_why(tmp_path: Path) -> None:
    one = machine(LETTER.encode(), [SAYS])
    answer = {"status": "failed", "error-desc": "No space left on device"}
    one.qmp.execute = lambda *_, **__: answer
    with pytest.raises(InfraError, match="could not be saved: No space left on device"):
        snapshot.save(one, tmp_path / "state")


def test_a_qemu_without_mapped_ram_is_known_by_its_version() -> None:
    why = snapshot.why_not(SimpleNamespace(version=(7, 2)))  # type: ignore[arg-type]
    assert why == "QEMU 7.2 is older than 9.0 and cannot save a guest to a file"
    assert not snapshot.why_not(SimpleNamespace(version=(10, 0)))  # type: ignore[arg-type]


def test_a_fingerprint_is_that_of_every_byte_of_the_log() -> None:
    records = np.zeros(3, RECORD)
    records["kind"] = record.WRITE
    first = branch.fingerprint(records)
    assert first == branch.fingerprint(records.copy())
    records["word"][2, 6] = 1
    assert branch.fingerprint(records) != first
