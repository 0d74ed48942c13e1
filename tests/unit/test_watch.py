# SPDX-License-Identifier: GPL-2.0-only
"""The watch, with a real GDB on a stub that stands in for QEMU."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_stub import FakeStub

from orchestrator.errors import InfraError
from orchestrator.host.logs import Log
from orchestrator.machine.waiting import Silence
from orchestrator.text.functions import LOCK, STOPPERS, SYNC
from orchestrator.watch.watch import KVM_BREAKPOINTS, Watch

pytestmark = [
    pytest.mark.skipif(not shutil.which("gdb"), reason="GDB is not installed"),
    pytest.mark.timeout(60),
]

SYMBOLS = {
    name: 0xFFFFFFFF81000000 + 4096 * number
    for number, name in enumerate(
        ("poke_int3_handler", "__text_poke", SYNC, STOPPERS[0], "stop_machine", LOCK)
    )
}


class Machine:
    """As much of a Machine as the watch uses."""

    def __init__(self, directory: Path, kind: str = "tcg") -> None:
        self.spec = SimpleNamespace(accel=SimpleNamespace(kind=kind))
        self.gdb_path = directory / "stub"
        self.logs: list[Log] = []
        self.on_poll: list[Any] = []
        self.silence = Silence()
        self._directory = directory
        self.stub = FakeStub(self.gdb_path)

    def log(self, name: str) -> Log:
        self.logs.append(Log(self._directory / name))
        return self.logs[-1]

    def check(self) -> None:
        for on_poll in self.on_poll:
            on_poll()

    def gdb_connected(self) -> None:
        pass


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.stub.close()


def watch(machine: Machine, directory: Path, without: tuple[str, ...] = ()) -> Watch:
    symbols = {name: address for name, address in SYMBOLS.items() if name not in without}
    return Watch(machine, symbols, directory, module=False)  # type: ignore[arg-type]


def test_the_events_are_read_whatever_becomes_of_their_file(
    machine: Machine, tmp_path: Path
) -> None:
    with watch(machine, tmp_path) as watching:
        for number in (1, 2):
            with watching.window():
                assert watching.points == ["write", "sync", "int3", "stopper"]
                watching._gdb.console(f"python AGENT.emit('sync', {number})")
                machine.check()
                lines = (tmp_path / "events.jsonl").read_text().splitlines()
                assert [json.loads(line)["cpu"] for line in lines] == [number]
            recording = watching.recording()
            assert [event["n"] for event in recording.events] == [1]
            assert recording.lost == ""
        (tmp_path / "events.jsonl").unlink()
        assert watching.recording() == recording
    assert "events.jsonl was removed" in next(log.lost for log in machine.logs if log.lost)


def test_a_gdb_that_died_may_have_seen_more_than_can_be_read(
    machine: Machine, tmp_path: Path
) -> None:
    with (
        pytest.raises(InfraError, match="GDB ended with status -9"),
        watch(machine, tmp_path) as watching,
        watching.window(),
    ):
        watching._gdb.console("python AGENT.emit('sync', 0)")
        with pytest.raises(InfraError):
            watching._gdb.console("python os.kill(os.getpid(), 9)")
        recording = watching.recording()
        assert len(recording.events) == 1
        assert recording.lost.startswith("GDB cannot be asked what it saw: GDB ended with")


def test_a_kernel_for_one_cpu_has_no_breakpoint_on_stop_machine(
    machine: Machine, tmp_path: Path
) -> None:
    with watch(machine, tmp_path, without=(*STOPPERS, "stop_machine")) as watching:
        assert watching.impossible == {"stopper": "this kernel has no stop_machine()"}
        with watching.window():
            assert watching.points == ["write", "sync", "int3"]


def test_a_kernel_may_have_its_sync_in_a_function_of_any_name(
    machine: Machine, tmp_path: Path
) -> None:
    with watch(machine, tmp_path, without=("do_sync_core",)) as watching:
        assert watching.impossible == {"sync": "this kernel has no do_sync_core()"}
        with watching.window():
            assert watching.points == ["write", "int3", "stopper"]


def test_a_stopper_under_another_name_is_not_taken_for_none(
    machine: Machine, tmp_path: Path
) -> None:
    """The function is static, and a compiler may have renamed it."""
    with watch(machine, tmp_path, without=STOPPERS) as watching:
        assert watching.impossible == {}
        with watching.window():
            assert watching.points == ["write", "sync", "int3"]


def test_under_kvm_there_is_none_left_for_the_stopper(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "kvm")
    with watch(machine, tmp_path) as watching, watching.window():
        assert watching.points == ["write", "sync", "int3"]
        assert len(watching.points) < KVM_BREAKPOINTS  # the handler's return needs one
        assert watching.impossible == {}
    machine.stub.close()
