# SPDX-License-Identifier: GPL-2.0-only
"""QMP: commands to QEMU from any thread; QEMU's events in a list and a file as they arrive."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import socket
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError

from orchestrator.errors import InfraError, LostVM

T = TypeVar("T")

COMMAND_SECONDS = 20.0
"""Timeout of a command. QEMU's main loop may have to wait for a virtual CPU, but never for long."""


@dataclass(frozen=True)
class QmpEvent:
    time: float
    """Seconds since the epoch, by the host's clock as QEMU read it."""
    name: str
    """As in QEMU's QAPI documentation, like `data`."""
    data: dict[str, Any]


class Qmp:
    """A QMP session over a connected socket.

    The library (qemu.qmp) is asynchronous. Its loop runs in a thread of its own, so that events are
    recorded even while no command is in progress. No method blocks for longer than its timeout.
    They raise LostVM when QEMU has gone, InfraError when it does not answer or refuses the command.
    """

    def __init__(self, connection: socket.socket, log: Path) -> None:
        self.events: list[QmpEvent] = []
        self.lost = False
        """Whether a command failed because QEMU is gone. Its exit status may come a bit later."""
        self._log = log.open("a", buffering=1)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
        self._thread.start()
        self._client = QMPClient("orchestrator")
        self._client.logger.disabled = True  # our caller reports a dying QEMU, not the library
        self._connection = connection

    def connect(self, timeout: float = COMMAND_SECONDS) -> None:
        """Do the handshake, and record events from here on."""
        self._complete(self._client.connect(self._connection), timeout, "its greeting")
        self._reader = asyncio.run_coroutine_threadsafe(self._read_events(), self._loop)

    def execute(self, command: str, timeout: float = COMMAND_SECONDS, **arguments: object) -> Any:
        """Run a QMP command and return its result.

        For argument names with a dash: `execute("x", **{"command-line": "y"})`.
        """
        return self._complete(self._client.execute(command, arguments), timeout, command)

    def cont(self) -> None:
        self.execute("cont")

    def inject_nmi(self) -> None:
        """Send an NMI to every CPU."""
        self.execute("inject-nmi")

    def find(self, name: str) -> QmpEvent | None:
        """The first event called `name`, if there was one."""
        return next((event for event in list(self.events) if event.name == name), None)

    def close(self) -> None:
        """End the session, whatever state it is in."""
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        self._thread.join(5)
        self._connection.close()
        self._log.close()

    async def _read_events(self) -> None:
        listener = EventListener()
        with self._client.listen(listener):
            async for message in listener:
                raw: dict[str, Any] = dict(message)
                stamp = raw["timestamp"]
                event = QmpEvent(
                    stamp["seconds"] + stamp["microseconds"] / 1e6,
                    raw["event"],
                    raw.get("data", {}),
                )
                self._log.write(
                    json.dumps({"time": event.time, "event": event.name, "data": event.data}) + "\n"
                )
                self.events.append(event)

    async def _end(self) -> None:
        # These errors mean that the connection was gone already.
        with contextlib.suppress(QMPError, OSError, EOFError, TimeoutError):
            await asyncio.wait_for(self._client.disconnect(), 2)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        self._loop.call_soon(self._loop.stop)

    def _complete(self, work: Coroutine[Any, Any, T], timeout: float, what: str) -> T:
        """Run `work` in the library's thread and wait for its result."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            future.cancel()
            raise InfraError(
                f"QEMU did not answer within {timeout:.0f} s on QMP ({what})"
            ) from None
        except ExecuteError as error:
            raise InfraError(f"QEMU refuses {what}: {error}") from error
        except (QMPError, OSError, EOFError) as error:
            self.lost = True
            raise LostVM(f"QEMU ended before it could do {what}") from error
