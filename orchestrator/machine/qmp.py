# SPDX-License-Identifier: GPL-2.0-only
"""QMP: commands to QEMU from any thread; QEMU's events in a list and a file as they arrive."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError
from qemu.qmp.protocol import Runstate

from orchestrator.errors import InfraError, LostVM
from orchestrator.host.logs import Log
from orchestrator.machine.waiting import POLL, until

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

    log: gets the events, one JSON object per line.
    check: called while a command is in progress. An exception from it ends the wait.
    """

    def __init__(
        self, connection: socket.socket, log: Path, check: Callable[[], None] = lambda: None
    ) -> None:
        self.gone = False
        """Whether the connection has ended: QEMU is gone. Its exit status may come a bit later."""
        self.lost = ""
        """Why events may be missing, as a sentence without a full stop; empty if none are."""
        self.stopped_since: float | None = None
        """When QEMU stopped the guest's CPUs, by time.monotonic(); None while they run."""
        self.log = Log(log)
        self._events: dict[str, QmpEvent] = {}  # the first of each name
        self._check = check
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
        self._thread.start()
        self._client = QMPClient("orchestrator")
        self._client.logger.disabled = True  # our caller reports a dying QEMU, not the library
        self._connection = connection

    def connect(self, timeout: float = COMMAND_SECONDS) -> None:
        """Do the handshake, and record events from here on."""
        self._complete(self._client.connect(self._connection), timeout, "its greeting")
        for task in (self._read_events(), self._follow_connection()):
            future = asyncio.run_coroutine_threadsafe(task, self._loop)
            future.add_done_callback(self._on_task_end)

    def execute(self, command: str, timeout: float = COMMAND_SECONDS, **arguments: object) -> Any:
        """Run a QMP command and return its result.

        For argument names with a dash: `execute("x", **{"command-line": "y"})`.
        """
        return self._complete(self._client.execute(command, arguments), timeout, command)

    def cont(self) -> None:
        self.execute("cont")

    def find(self, name: str) -> QmpEvent | None:
        """The first event called `name`, if there was one."""
        return self._events.get(name)

    def close(self) -> None:
        """End the session, whatever state it is in."""
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        self._thread.join(5)
        self._connection.close()
        self.log.close()

    async def _read_events(self) -> None:
        listener = EventListener()
        with self._client.listen(listener):
            async for message in listener:
                self._take(dict(message))

    def _take(self, message: dict[str, Any]) -> None:
        stamp = message["timestamp"]
        event = QmpEvent(
            stamp["seconds"] + stamp["microseconds"] / 1e6,
            message["event"],
            message.get("data", {}),
        )
        self._events.setdefault(event.name, event)
        if event.name in ("STOP", "RESUME"):
            self.stopped_since = time.monotonic() if event.name == "STOP" else None
        self.log.write(
            json.dumps({"time": event.time, "event": event.name, "data": event.data}) + "\n"
        )

    async def _follow_connection(self) -> None:
        while self._client.runstate == Runstate.RUNNING:
            await self._client.runstate_changed()
        self.gone = True

    def _on_task_end(self, future: concurrent.futures.Future[None]) -> None:
        error = None if future.cancelled() else future.exception()
        if error is not None:
            self.lost = f"QEMU's events are no longer read: {type(error).__name__}: {error}"

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

        def done() -> bool:
            return bool(concurrent.futures.wait([future], POLL).done)

        try:
            if not until(done, timeout, self._check, pause=0):
                raise InfraError(f"QEMU did not answer within {timeout:.0f} s on QMP ({what})")
            return future.result()
        except ExecuteError as error:
            raise InfraError(f"QEMU refuses {what}: {error}") from error
        except (QMPError, OSError, EOFError) as error:
            self.gone = True
            self._check()  # may know how it ended
            raise LostVM(f"QEMU ended before it answered on QMP ({what})") from error
        finally:
            future.cancel()
