# SPDX-License-Identifier: GPL-2.0-only
"""Commands and files in the guest, by ssh over a serial line: the guest has no network."""

from __future__ import annotations

import io
import logging
import shlex
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from orchestrator.errors import InfraError
from orchestrator.machine.faults import TimedOut
from orchestrator.machine.link import Link
from orchestrator.machine.waiting import POLL, settle, until

# paramiko's thread logs what we raise as an error anyway.
logging.getLogger("paramiko").setLevel(logging.CRITICAL + 1)

CONNECT_SECONDS = 120.0
"""Timeout of connecting: the cryptography runs on a translated CPU that may be busy with a test."""
OPEN_SECONDS = 86400.0
"""More than any command may take; paramiko wants a limit."""
CHUNK = 32768
MAX_OUTPUT = 64 << 20
"""Most bytes that a command may print. The largest legitimate output is a symbol table."""
BROKEN = (paramiko.SSHException, OSError, EOFError)
"""What paramiko raises when the connection breaks, or the guest's server does not speak ssh."""


@dataclass(frozen=True)
class Keys:
    """The key pairs of one run."""

    host: Ed25519PrivateKey
    """The guest's, by which we recognise it."""
    client: Ed25519PrivateKey
    """Ours, by which the guest recognises us."""

    @classmethod
    def fresh(cls) -> Keys:
        return cls(Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate())

    def guest_files(self) -> dict[str, bytes]:
        """The files of the initramfs, by path: dropbear's host key, and our public key."""
        return {
            "/etc/dropbear/host_key": _dropbear_format(self.host),
            "/root/.ssh/authorized_keys": self.client.public_key().public_bytes(
                serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
            ),
        }


class Shell:
    """One ssh connection to the guest.

    Every wait calls `check` several times a second. It raises when the machine has gone or its
    kernel has failed. No call of paramiko that waits for the guest is made in the caller's thread.
    """

    def __init__(self, link: Link, keys: Keys, check: Callable[[str], None]) -> None:
        self._link = link
        self._keys = keys
        self._check = check
        self._transport: paramiko.Transport | None = None

    def connect(self, timeout: float = CONNECT_SECONDS) -> None:
        """Connect, or reconnect after the connection was lost.

        Raises TimedOut after `timeout` seconds, InfraError if the guest's server refuses.
        """
        self.close()
        deadline = time.monotonic() + timeout
        what = "an ssh connection to the guest"
        self._until(self._link.ready.is_set, deadline, timeout, what)
        transport = paramiko.Transport(self._link.connect())
        # paramiko's own limits (15 and 30 s) are meant for real machines. Ours comes first.
        longest = timeout + 60
        transport.banner_timeout = transport.auth_timeout = transport.handshake_timeout = longest
        self._transport = transport
        try:
            done = threading.Event()
            transport.start_client(event=done)
            self._until(lambda: done.is_set() or not transport.is_alive(), deadline, timeout, what)
            self._check_host_key(transport)
            done.clear()
            transport.auth_publickey("root", _paramiko_key(self._keys.client), event=done)
            self._until(lambda: done.is_set() or not transport.is_alive(), deadline, timeout, what)
            if not transport.is_authenticated():
                raise _failure(transport, "the guest refuses our key")
        except BROKEN as error:
            self.close()
            raise self._explained("connecting", what, error) from error
        except BaseException:
            self.close()
            raise

    def run(
        self, command: str, timeout: float = 60, stdin: bytes = b"", most: int | None = None
    ) -> tuple[int, str]:
        """Run `command` with the guest's shell. Returns its exit status and its output.

        The status is 128 + N if signal N killed the command; the output is stdout and stderr.
        Raises TimedOut after `timeout` seconds, and leaves the command running; InfraError if it
        prints more than `most` bytes (MAX_OUTPUT).
        """
        status, output = self._exchange(
            command, stdin, timeout, most or MAX_OUTPUT, with_stderr=True
        )
        return status, output.decode(errors="replace")

    def get(self, path: str, timeout: float = 300) -> bytes:
        """The content of the file `path` in the guest. Raises InfraError if it cannot be read."""
        command = f"cat {shlex.quote(path)}"
        status, output = self._exchange(command, b"", timeout, MAX_OUTPUT, with_stderr=False)
        if status:
            raise InfraError(f"{path} cannot be read in the guest (cat ended with status {status})")
        return output

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def _exchange(
        self, command: str, stdin: bytes, timeout: float, most: int, *, with_stderr: bool
    ) -> tuple[int, bytes]:
        if self._transport is None or not self._transport.is_active():
            self.connect(min(timeout, CONNECT_SECONDS))
        assert self._transport is not None
        what = f"the end of `{command}` in the guest"
        exchange = _Exchange(self._transport, command, stdin, most, with_stderr)
        exchange.start()
        try:
            if not until(
                lambda: exchange.done.wait(POLL), timeout, lambda: self._check(what), pause=0
            ):
                raise TimedOut(what, timeout)
        finally:
            exchange.abandoned = True
        if exchange.error is not None:
            raise self._explained(f"`{command}`", what, exchange.error) from exchange.error
        return exchange.status, bytes(exchange.output)

    def _explained(self, action: str, what: str, error: Exception) -> InfraError:
        """The error for a broken connection. Raises what explains it better, if anything does."""
        settle(lambda: self._check(what))
        return InfraError(f"{action}: ssh to the guest failed: {error}")

    def _check_host_key(self, transport: paramiko.Transport) -> None:
        if not transport.is_active():
            raise _failure(transport, "no ssh handshake with the guest")
        expected = self._keys.host.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        key = transport.get_remote_server_key()
        if f"{key.get_name()} {key.get_base64()}".encode() != expected:
            raise InfraError("the guest's ssh server does not have the host key that we gave it")

    def _until(
        self, predicate: Callable[[], bool], deadline: float, timeout: float, what: str
    ) -> None:
        if not until(predicate, deadline - time.monotonic(), lambda: self._check(what)):
            raise TimedOut(what, timeout)


class _Exchange(threading.Thread):
    """One command in the guest. In a thread of its own, because most calls of paramiko wait for the
    guest, some of them for ever. Such a thread ends with the connection."""

    def __init__(
        self,
        transport: paramiko.Transport,
        command: str,
        stdin: bytes,
        most: int,
        with_stderr: bool,
    ) -> None:
        super().__init__(name="ssh", daemon=True)
        self.done = threading.Event()
        self.status = -1
        """The command's exit status."""
        self.output = bytearray()
        self.error: Exception | None = None
        """Why there is no status; None if there is one."""
        self.abandoned = False
        """Set when nobody waits for the result any more."""
        self._transport = transport
        self._command = command
        self._stdin = stdin
        self._most = most
        self._with_stderr = with_stderr

    def run(self) -> None:
        try:
            self._exchange()
        except Exception as error:  # the guest's bytes make paramiko raise all sorts of errors
            self.error = error
        finally:
            self.done.set()

    def _exchange(self) -> None:
        with self._transport.open_session(timeout=OPEN_SECONDS) as channel:
            if self.abandoned:  # a guest that was stuck may open the session late
                return
            channel.set_combine_stderr(self._with_stderr)
            # The outer shell reports the status of the inner one even if a signal kills that.
            channel.exec_command(f"sh -c {shlex.quote(self._command)}; exit $?")
            sent = 0
            while not self.abandoned:
                busy = False
                if sent < len(self._stdin) and channel.send_ready():
                    sent += channel.send(self._stdin[sent : sent + CHUNK])
                    busy = True
                if sent == len(self._stdin) and not channel.eof_sent:
                    channel.shutdown_write()
                if channel.recv_ready():
                    self.output += channel.recv(CHUNK)
                    busy = True
                    if len(self.output) > self._most:
                        raise EOFError(f"it prints more than {self._most >> 10} KiB")
                ended = channel.exit_status_ready() and channel.eof_received
                if (ended or channel.closed) and not channel.recv_ready():
                    break
                if not busy:
                    channel.status_event.wait(POLL)
            # -1 stands for "no status", which the outer shell would have reported.
            self.status = channel.exit_status
            if self.status == -1:
                raise EOFError("the connection was lost")


def _failure(transport: paramiko.Transport, otherwise: str) -> EOFError:
    """Why the connection has ended. paramiko's thread may have ended by any kind of exception."""
    return EOFError(str(transport.get_exception() or otherwise))


def _paramiko_key(key: Ed25519PrivateKey) -> paramiko.Ed25519Key:
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    ).decode()
    return paramiko.Ed25519Key.from_private_key(io.StringIO(text))


def _dropbear_format(key: Ed25519PrivateKey) -> bytes:
    """The key as dropbear stores it (its signkey.c).

    That is two strings, each after its length: the type, and the seed with the public key.
    """
    raw = serialization.Encoding.Raw
    seed = key.private_bytes(raw, serialization.PrivateFormat.Raw, serialization.NoEncryption())
    public = key.public_key().public_bytes(raw, serialization.PublicFormat.Raw)
    strings = (b"ssh-ed25519", seed + public)
    return b"".join(struct.pack(">I", len(string)) + string for string in strings)
