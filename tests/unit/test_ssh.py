# SPDX-License-Identifier: GPL-2.0-only
"""Commands by ssh against a server that answers, is stuck at any point, or talks nonsense."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import paramiko
import pytest
from cryptography.hazmat.primitives import serialization

from orchestrator.errors import InfraError, LostVM
from orchestrator.machine import ssh, waiting
from orchestrator.machine.faults import TimedOut
from orchestrator.machine.ssh import Keys, Shell


class Server(paramiko.ServerInterface):
    """The guest's ssh server, which stops answering at `stuck_at`."""

    def __init__(self, keys: Keys, stuck_at: str = "") -> None:
        self.stuck_at = stuck_at
        self.over = threading.Event()
        self._keys = keys

    def reach(self, point: str) -> None:
        if point == self.stuck_at:
            self.over.wait(60)

    def serve(self, connection: socket.socket) -> None:
        self.reach("banner")
        transport = paramiko.Transport(connection)
        pem = self._keys.host.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
        transport.add_server_key(paramiko.Ed25519Key.from_private_key(io.StringIO(pem.decode())))
        with contextlib.suppress(EOFError, OSError, paramiko.SSHException):
            transport.start_server(server=self)

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: Any) -> int:
        self.reach("key")
        return paramiko.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        self.reach("session")
        return paramiko.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: Any, command: bytes) -> bool:
        self.reach("exec")
        threading.Timer(0.05, self._run, (channel, command)).start()  # after the answer to this
        return True

    def _run(self, channel: Any, command: bytes) -> None:
        with contextlib.suppress(OSError, EOFError):  # the client has gone
            while b"flood" in command and not self.over.is_set():
                channel.sendall(b"x" * 65536)
            channel.sendall(b"hello\n")
            self.reach("status")
            channel.send_exit_status(3)
            channel.close()


class Link:
    """In place of the serial line: each connection goes straight to a server."""

    def __init__(self, serve: Callable[[socket.socket], object]) -> None:
        self.ready = threading.Event()
        self.ready.set()
        self._serve = serve

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        threading.Thread(target=self._serve, args=(theirs,), daemon=True).start()
        return ours


class World:
    """A shell, its server, and the observer that its waits ask."""

    def __init__(self) -> None:
        self.server = Server(Keys.fresh())
        self.died: float | None = None

        def check(what: str) -> None:
            if self.died is not None:
                raise LostVM("QEMU was killed")

        self.shell = Shell(Link(self.server.serve), self.server._keys, check)  # type: ignore[arg-type]

    def die(self) -> None:
        self.died = time.monotonic()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(waiting, "SETTLE_SECONDS", 0.1)
    world = World()
    yield world
    world.server.over.set()
    world.shell.close()


def test_status_and_output_of_a_command(world: World) -> None:
    assert world.shell.run("anything") == (3, "hello\n")
    assert world.shell.run("again") == (3, "hello\n")


@pytest.mark.parametrize("point", ["banner", "key", "session", "exec", "status"])
def test_a_guest_that_is_stuck_anywhere_is_known_to_be_dead_at_once(
    world: World, point: str
) -> None:
    world.server.stuck_at = point
    threading.Timer(0.3, world.die).start()
    with pytest.raises(LostVM):
        world.shell.run("anything", timeout=600)
    assert world.died and time.monotonic() - world.died < 2


@pytest.mark.parametrize("point", ["banner", "key", "session", "exec", "status"])
def test_no_command_takes_longer_than_its_timeout(world: World, point: str) -> None:
    world.server.stuck_at = point
    start = time.monotonic()
    with pytest.raises(TimedOut):
        world.shell.run("anything", timeout=0.5)
    assert time.monotonic() - start < 3


def test_a_command_that_was_given_up_is_not_run_later(world: World) -> None:
    world.server.stuck_at = "session"
    with pytest.raises(TimedOut):
        world.shell.run("one", timeout=0.5)
    ran: list[bytes] = []
    world.server.check_channel_exec_request = (  # type: ignore[method-assign]
        lambda channel, command: ran.append(command) or False  # type: ignore[func-returns-value]
    )
    world.server.over.set()
    time.sleep(0.5)
    assert not ran


def test_output_without_end_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "MAX_OUTPUT", 1 << 20)
    with pytest.raises(InfraError, match="`flood`: ssh to the guest failed: it prints more than 1"):
        world.shell.run("flood")
    with pytest.raises(InfraError, match="it prints more than 9 KiB"):
        world.shell.run("flood", most=9 << 10)


NONSENSE = {
    "no ssh": b"login: ",
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a line without end": b"x" * 1_000_000,
    "NULs": bytes(100_000),
    "a huge packet": b"SSH-2.0-x\r\n\xff\xff\xff\xff" + bytes(1000),
    "a packet that is all wrong": b"SSH-2.0-x\r\n\x00\x00\x00\x0c\x0a\x14" + b"\xff" * 10,
    "nothing": b"",
}


@pytest.mark.parametrize("name", NONSENSE)
def test_a_server_that_talks_nonsense_is_an_error_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(waiting, "SETTLE_SECONDS", 0.1)

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                connection.sendall(NONSENSE[name])
            except OSError:
                return

    shell = Shell(Link(serve), Keys.fresh(), lambda what: None)  # type: ignore[arg-type]
    with pytest.raises((InfraError, TimedOut), match="ssh"):
        shell.run("true", timeout=5)


def test_another_host_key_is_refused(world: World) -> None:
    world.shell._keys = Keys.fresh()
    with pytest.raises(InfraError, match="does not have the host key that we gave it"):
        world.shell.run("true")
