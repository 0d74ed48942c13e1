# SPDX-License-Identifier: GPL-2.0-only
"""Both ends of the ssh line together: ttylink on a pseudo terminal, and Link over a socket."""

from __future__ import annotations

import contextlib
import os
import pty
import random
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.guest.initramfs import CFLAGS, INIT
from orchestrator.host import proc
from orchestrator.machine.link import Link


@pytest.fixture(scope="module")
def ttylink(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("ttylink") / "ttylink"
    proc.run(["gcc", *CFLAGS, "-Wextra", "-Werror", "-o", program, INIT / "ttylink.c"])
    return program


class Wire:
    """Carries bytes between a terminal's master side and a socket.

    QEMU's UART does the same between the guest and a chardev.
    """

    def __init__(self, program: Path, *server: str) -> None:
        self.master, slave = pty.openpty()
        self.host, self._end = socket.socketpair()
        self.child = subprocess.Popen(
            proc.mortal([program, os.ttyname(slave), *server]), stderr=subprocess.PIPE
        )
        self._slave = slave  # kept open: a terminal without a user would be hung up
        for direction in (self._to_host, self._to_guest):
            threading.Thread(target=direction, daemon=True).start()

    def _to_host(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._end.sendall(os.read(self.master, 4096))

    def _to_guest(self) -> None:
        with contextlib.suppress(OSError):
            while data := self._end.recv(4096):
                while data:
                    data = data[os.write(self.master, data) :]

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self._slave)
        os.close(self.master)


@contextlib.contextmanager
def linked(program: Path, *server: str) -> Iterator[tuple[Link, Wire]]:
    wire = Wire(program, *server)
    link = Link(wire.host)
    try:
        assert link.ready.wait(5)
        yield link, wire
    finally:
        link.close()
        wire.close()


def read(connection: socket.socket, count: int) -> bytes:
    """`count` bytes, or fewer if the file ends before."""
    connection.settimeout(20)
    data = bytearray()
    while len(data) < count:
        chunk = connection.recv(65536)
        if not chunk:
            break
        data += chunk
    return bytes(data)


def test_bulk_data_arrives_whole_in_both_directions_at_once(ttylink: Path) -> None:
    content = random.Random(7).randbytes(4_000_000)
    with linked(ttylink, "/bin/cat") as (link, _):
        connection = link.connect()
        sender = threading.Thread(target=connection.sendall, args=(content,))
        sender.start()
        assert read(connection, len(content)) == content
        sender.join(5)


def test_a_server_that_does_not_read_is_not_overrun(ttylink: Path) -> None:
    content = random.Random(8).randbytes(1_000_000)
    with linked(ttylink, "/bin/sh", "-c", "sleep 1; exec cat") as (link, _):
        connection = link.connect()
        sender = threading.Thread(target=connection.sendall, args=(content,))
        sender.start()
        assert read(connection, len(content)) == content
        sender.join(5)


def test_when_the_server_ends_end_of_file_follows_its_last_byte(ttylink: Path) -> None:
    with linked(ttylink, "/bin/sh", "-c", "head -c 300000 /dev/zero") as (link, _):
        assert read(link.connect(), 1_000_000) == bytes(300_000)


def test_a_new_connection_replaces_the_old_one(ttylink: Path) -> None:
    with linked(ttylink, "/bin/cat") as (link, _):
        first = link.connect()
        first.sendall(b"one")
        assert read(first, 3) == b"one"
        second = link.connect()
        second.sendall(b"two")
        assert read(second, 3) == b"two"
        assert read(first, 1) == b""


def test_closing_our_end_kills_the_server_and_its_children(ttylink: Path) -> None:
    with linked(ttylink, "/bin/sh", "-c", "sleep 30 & echo $!; wait") as (link, _):
        connection = link.connect()
        sleeper = Path("/proc") / connection.recv(100).decode().strip()
        assert sleeper.exists()
        connection.close()
        deadline = time.monotonic() + 5
        while sleeper.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not sleeper.exists()


def test_a_broken_line_is_an_end_of_file(ttylink: Path) -> None:
    with linked(ttylink, "/bin/cat") as (link, wire):
        connection = link.connect()
        wire._end.shutdown(socket.SHUT_RDWR)
        assert read(connection, 1) == b""


@contextlib.contextmanager
def hostile() -> Iterator[tuple[Link, socket.socket]]:
    """A link whose other end says what the test says."""
    host, guest = socket.socketpair()
    link = Link(host)
    try:
        yield link, guest
    finally:
        link.close()
        guest.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"H\x00\x00" + bytes(8),  # too short for its number
        b"A\x03\x00abc",
        b"H\x05\x00abcde",
        b"D\x01\x10" + bytes(4097),  # longer than any frame
        b"C\x01\x00x",
        b"O\x04\x00abcd",  # only the host sends this
        bytes(100),
        b"login: \r\n",
    ],
)
def test_what_is_no_frame_ends_the_line_with_a_sentence(garbage: bytes) -> None:
    with hostile() as (link, guest):
        guest.sendall(b"H\x04\x00" + bytes(4))
        assert link.ready.wait(5)
        connection = link.connect()
        guest.sendall(garbage)
        assert read(connection, 1) == b""
        deadline = time.monotonic() + 5
        while not link.lost and time.monotonic() < deadline:
            time.sleep(0.01)
        assert link.lost.startswith("the guest sent something else than ssh on its second serial")
        assert read(link.connect(), 1) == b""  # at once, and not never


def test_a_guest_that_sends_faster_than_we_read_has_to_wait() -> None:
    with hostile() as (link, guest):
        guest.sendall(b"H\x04\x00" + bytes(4))
        connection = link.connect()
        guest.recv(100)
        guest.sendall(b"H\x04\x00\x01\x00\x00\x00")
        guest.settimeout(0.5)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 64 << 20:
                sent += guest.send(b"D\x00\x10" + bytes(4096))
        assert sent < 8 << 20
        connection.close()


def test_the_end_of_qemu_is_no_loss_of_the_line(ttylink: Path) -> None:
    with linked(ttylink, "/bin/cat") as (link, wire):
        wire._end.shutdown(socket.SHUT_RDWR)
        assert read(link.connect(), 1) == b""
        assert link.lost == ""
