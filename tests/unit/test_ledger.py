# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's count of int3, with a test in place of the plugin."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.host.logs import Log
from orchestrator.host.tools import Qemu
from orchestrator.machine.accel import Accel
from orchestrator.watch import ledger
from orchestrator.watch.ledger import CPUS, RECORD, SLOTS, Ledger

QEMU = Qemu(binary=Path("/bin/false"), version=(10, 0, 2))
TCG = Accel("tcg", "single", "")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Ledger:
    monkeypatch.setattr(ledger, "plugin_for", lambda qemu: Path("/cache/a,b/ledger.so"))
    return Ledger(QEMU, TCG)


def plugin(counted: Ledger, sites: int) -> None:
    """Write like the plugin, which opens the file by the name on QEMU's command line."""
    path = counted.options[1].partition("ledger=")[2]
    with Path(path).open("r+b") as file:
        os.ftruncate(file.fileno(), SLOTS * RECORD.size)
        for site in range(sites):
            file.write(RECORD.pack(0xFFFFFFFF81000000 + site, 3, *[0] * (CPUS - 1)))


def test_the_counts_are_read_from_a_file_that_nobody_can_remove(counted: Ledger) -> None:
    plugin(counted, 2)
    assert dict(counted.read()) == {(0xFFFFFFFF81000000, 0): 3, (0xFFFFFFFF81000001, 0): 3}
    assert counted.lost == ""


def test_a_comma_in_the_cache_directory_is_escaped(counted: Ledger) -> None:
    assert counted.options[1].startswith("file=/cache/a,,b/ledger.so,ledger=/proc/")


def test_a_plugin_that_did_not_begin_has_counted_nothing(counted: Ledger) -> None:
    assert counted.lost == "QEMU's plugin did not begin to count int3"
    assert not counted.read()


def test_a_ledger_that_is_full_may_have_missed_some(counted: Ledger) -> None:
    plugin(counted, SLOTS - 1)
    assert counted.lost == ""
    plugin(counted, SLOTS)
    assert counted.lost == (
        "QEMU's plugin counts int3 at 1024 addresses only, and there may be more"
    )


def test_a_copy_is_kept_for_people(counted: Ledger, tmp_path: Path) -> None:
    plugin(counted, 1)
    counted.save(Log(tmp_path / "int3.ledger"))
    assert (tmp_path / "int3.ledger").stat().st_size == SLOTS * RECORD.size


def test_what_does_not_count_cannot_miss_anything() -> None:
    without = Ledger(QEMU, Accel("kvm", None, ""))
    assert without.why_not and not without.lost and not without.read() and not without.options
