# SPDX-License-Identifier: GPL-2.0-only
"""The host's end of the serial line that carries ssh.

The guest's end is guest/init/ttylink.c, which describes the frames.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading

from orchestrator.machine.waiting import Reader

MAX_PAYLOAD = 4096
WINDOW = 16384
"""Most bytes in flight to the guest. The guest's tty layer can buffer 64 KiB."""
BACKLOG = 1 << 20
"""Bytes from the guest that may wait for our side to read them. Then the guest has to wait."""
LENGTHS = {b"H": range(4, 5), b"A": range(4, 5), b"D": range(MAX_PAYLOAD + 1), b"C": range(1)}
"""The kinds of frames that the guest may send, and how long their payload may be."""


class _NotAFrame(Exception):
    """The guest has sent something else than frames. The message is a sentence."""


class Link:
    """Carries one connection at a time over the serial line.

    `ready` is set when the guest's end has first been heard from. `connect()` begins a connection,
    which ends the previous one, and returns our end of it: an ordinary socket. That socket is at
    end of file when either side has ended the connection.
    """

    def __init__(self, line: socket.socket) -> None:
        self.ready = threading.Event()
        self.frames = 0
        """Number of frames that the guest has sent so far."""
        self._line = line
        self._line.setblocking(False)
        self._lock = threading.Lock()  # guards the next three
        self._next: socket.socket | None = None  # our half of what connect() returned last
        self._closing = False
        self._over = False
        self._number = 0  # of the present connection; frames of an earlier one may still arrive
        self._answered = False  # the guest has begun this connection, so its frames belong to it
        self._ended = False  # the guest has ended it, but _to_local may still hold data
        self._local: socket.socket | None = None
        self._to_line = bytearray()
        self._to_local = bytearray()
        self._from_line = bytearray()
        self._sent = 0  # bytes written to the line in all
        self._acknowledged = 0  # bytes of these that the guest has read
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_write.setblocking(False)
        self._reader = Reader("the serial line that carries ssh", self._run)
        self._reader.start()

    @property
    def lost(self) -> str:
        """Why the line cannot be used any more, as a sentence; empty unless that is our own doing
        or the guest's. The end of QEMU is neither."""
        return self._reader.lost

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        with self._lock:
            if self._next is not None:
                self._next.close()
            if self._over:
                theirs.close()
            else:
                self._next = theirs
                self._wake()
        return ours

    def close(self) -> None:
        """End the thread and the connection, and close the line."""
        with self._lock:
            self._closing = True
            if not self._over:
                self._wake()
        self._reader.join(5)
        for end in (self._line, self._wake_read, self._wake_write):
            end.close()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it has been woken often enough
            self._wake_write.send(b".")

    # Everything below runs in the thread, so no socket is closed while the selector waits on it.

    def _begin(self, local: socket.socket) -> None:
        self._drop()
        self._local = local
        self._number += 1
        self._answered = self._ended = False
        self._put(b"O", struct.pack("<I", self._number))

    def _drop(self) -> None:
        if self._local is not None:
            self._local.close()
            self._local = None
        self._to_local.clear()

    def _put(self, kind: bytes, payload: bytes) -> None:
        self._to_line += struct.pack("<cH", kind, len(payload)) + payload

    def _room(self) -> int:
        return WINDOW - (self._sent - self._acknowledged)

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except OSError:
            pass  # the line is broken: QEMU has gone, and Machine.poll() reports why
        except _NotAFrame as error:
            self._reader.lose(str(error))
        finally:
            with self._lock:
                self._over = True
                if self._next is not None:
                    self._next.close()
            self._drop()

    def _turn(self) -> bool:
        """Wait for something to do and do it; False at the end of the line."""
        with self._lock:
            begun, self._next = self._next, None
            if self._closing:
                return False
        if begun is not None:
            self._begin(begun)
        with selectors.DefaultSelector() as selector:
            for end, events in self._interest().items():
                if events:
                    selector.register(end, events)
            ready = {key.fileobj: events for key, events in selector.select()}
        if self._wake_read in ready:
            self._wake_read.recv(100)
        if ready.get(self._line, 0) & selectors.EVENT_READ and not self._receive():
            return False
        if ready.get(self._line, 0) & selectors.EVENT_WRITE:
            count = self._line.send(self._to_line[: self._room()])
            del self._to_line[:count]
            self._sent += count
        if self._local is not None:
            self._serve(self._local, ready.get(self._local, 0))
        return True

    def _interest(self) -> dict[socket.socket, int]:
        """The events to wait for, by socket."""
        interest = {self._wake_read: selectors.EVENT_READ, self._line: 0}
        if len(self._to_local) < BACKLOG:
            interest[self._line] |= selectors.EVENT_READ
        # Until the guest's end is ready, nobody reads what we write.
        if self._to_line and self._room() > 0 and self.ready.is_set():
            interest[self._line] |= selectors.EVENT_WRITE
        if self._local is not None:
            # Take data for the guest only once it has begun the connection, and no faster than the
            # line takes it.
            events = selectors.EVENT_READ if self._answered and not self._to_line else 0
            events |= selectors.EVENT_WRITE if self._to_local else 0
            interest[self._local] = events
        return interest

    def _serve(self, local: socket.socket, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                del self._to_local[: local.send(self._to_local)]
            if events & selectors.EVENT_READ:
                data = local.recv(MAX_PAYLOAD)
                if not data:
                    raise ConnectionResetError
                self._put(b"D", data)
        except BlockingIOError:
            pass
        except OSError:  # our side has ended the connection
            self._put(b"C", b"")
            self._drop()
        if self._ended and not self._to_local:
            self._drop()

    def _receive(self) -> bool:
        try:
            data = self._line.recv(65536)
        except BlockingIOError:
            return True
        self._from_line += data
        while len(self._from_line) >= 3:
            kind, length = struct.unpack_from("<cH", self._from_line)
            if length not in LENGTHS.get(kind, ()):
                raise _NotAFrame(
                    "the guest sent something else than ssh on its second serial line "
                    f"({bytes(self._from_line[:16])!r}...)"
                )
            if len(self._from_line) < 3 + length:
                break
            payload = bytes(self._from_line[3 : 3 + length])
            del self._from_line[: 3 + length]
            self.frames += 1
            self._handle(kind, payload)
        return bool(data)

    def _handle(self, kind: bytes, payload: bytes) -> None:
        if kind == b"H":
            self.ready.set()
            number = struct.unpack("<I", payload)[0]
            if number == 0:  # ttylink has (re)started: it has read nothing and has no connection
                self._restart()
            elif number == self._number:
                self._answered = True
        elif kind == b"A":
            behind = (self._sent - struct.unpack("<I", payload)[0]) % 2**32
            # A restarted ttylink may also have read bytes that were sent to the one before it.
            self._acknowledged = self._sent - (behind if behind <= WINDOW else 0)
        elif kind == b"D" and self._answered and self._local is not None:
            self._to_local += payload
        elif kind == b"C" and self._answered:
            self._ended = True
            if not self._to_local:
                self._drop()

    def _restart(self) -> None:
        self._sent = self._acknowledged = 0
        self._to_line.clear()
        if self._answered:
            self._drop()
        elif self._local is not None:
            self._put(b"O", struct.pack("<I", self._number))
