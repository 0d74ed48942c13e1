# SPDX-License-Identifier: GPL-2.0-only
"""The QMP session against a fake server that answers, does not answer, or dies."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import InfraError, LostVM
from orchestrator.machine.qmp import Qmp

GREETING = {
    "QMP": {
        "version": {"qemu": {"major": 10, "minor": 0, "micro": 0}, "package": ""},
        "capabilities": [],
    }
}


class Server:
    def __init__(self) -> None:
        self.ours, self.end = socket.socketpair()
        self.silent = False
        threading.Thread(target=self._run, daemon=True).start()

    def send(self, message: dict[str, Any]) -> None:
        self.end.sendall(json.dumps(message).encode() + b"\r\n")

    def event(self, name: str, **data: object) -> None:
        self.send(
            {"event": name, "data": data, "timestamp": {"seconds": 1000, "microseconds": 500000}}
        )

    def _run(self) -> None:
        self.send(GREETING)
        while raw := self.end.recv(65536):  # one request: the client waits for each answer
            request = json.loads(raw)
            if self.silent:
                continue
            number = {"id": request["id"]} if "id" in request else {}
            if request["execute"] == "fail":
                self.send({"error": {"class": "GenericError", "desc": "no such thing"}, **number})
            else:
                self.send({"return": {"status": "paused"}, **number})


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def qmp(server: Server, tmp_path: Path) -> Iterator[Qmp]:
    session = Qmp(server.ours, tmp_path / "qmp.jsonl")
    session.connect()
    yield session
    session.close()


def test_commands_are_answered(qmp: Qmp) -> None:
    assert qmp.execute("query-status") == {"status": "paused"}


def test_events_are_kept_and_logged_as_they_arrive(
    qmp: Qmp, server: Server, tmp_path: Path
) -> None:
    server.event("SHUTDOWN", guest=True, reason="guest-reset")
    deadline = time.monotonic() + 5
    while not qmp.find("SHUTDOWN") and time.monotonic() < deadline:
        time.sleep(0.01)
    event = qmp.find("SHUTDOWN")
    assert event and event.time == 1000.5 and event.data["reason"] == "guest-reset"
    assert json.loads((tmp_path / "qmp.jsonl").read_text())["event"] == "SHUTDOWN"


def wait_for(predicate: Callable[[], object]) -> None:
    deadline = time.monotonic() + 5
    while not predicate() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert predicate()


def test_an_event_that_makes_no_sense_is_a_loss(qmp: Qmp, server: Server) -> None:
    server.send({"event": "STOP", "timestamp": {"seconds": "yesterday", "microseconds": 0}})
    wait_for(lambda: qmp.lost)
    assert qmp.lost.startswith("QEMU's events are no longer read: TypeError")


def test_a_full_disk_does_not_end_the_events(server: Server, tmp_path: Path) -> None:
    (tmp_path / "qmp.jsonl").symlink_to("/dev/full")
    session = Qmp(server.ours, tmp_path / "qmp.jsonl")
    session.connect()
    for name in ("RESUME", "SHUTDOWN"):
        server.event(name)
    wait_for(lambda: session.find("SHUTDOWN"))
    assert session.lost == "" and "No space left" in session.log.lost
    session.close()


def test_how_long_the_guest_has_been_stopped_is_known(qmp: Qmp, server: Server) -> None:
    assert qmp.stopped_since is None
    server.event("STOP")
    wait_for(lambda: qmp.stopped_since)
    server.event("RESUME")
    wait_for(lambda: qmp.stopped_since is None)


def test_a_connection_that_ends_between_commands_is_noticed(qmp: Qmp, server: Server) -> None:
    server.end.shutdown(socket.SHUT_RDWR)
    wait_for(lambda: qmp.gone)


def test_an_observer_ends_the_wait_for_an_answer(server: Server, tmp_path: Path) -> None:
    dead: list[bool] = []

    def check() -> None:
        if dead:
            raise LostVM("QEMU was killed")

    session = Qmp(server.ours, tmp_path / "qmp.jsonl", check)
    session.connect()
    server.silent = True
    dead.append(True)
    start = time.monotonic()
    with pytest.raises(LostVM, match="was killed"):
        session.execute("query-status")
    assert time.monotonic() - start < 2
    session.close()


def test_a_refusal_is_explained(qmp: Qmp) -> None:
    with pytest.raises(InfraError, match="QEMU refuses fail: no such thing"):
        qmp.execute("fail")


def test_a_silent_qemu_does_not_block(qmp: Qmp, server: Server) -> None:
    server.silent = True
    with pytest.raises(InfraError, match="did not answer within"):
        qmp.execute("query-status", timeout=0.2)


def test_a_qemu_that_dies_during_a_command_is_lost(qmp: Qmp, server: Server) -> None:
    server.silent = True
    threading.Timer(0.2, lambda: server.end.shutdown(socket.SHUT_RDWR)).start()
    start = time.monotonic()
    with pytest.raises(LostVM):
        qmp.execute("query-status")
    with pytest.raises(LostVM):
        qmp.execute("query-status")
    assert time.monotonic() - start < 2


def test_a_qemu_that_does_not_start_is_lost(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    session = Qmp(ours, tmp_path / "qmp.jsonl")
    with pytest.raises(LostVM):
        session.connect()
    session.close()
