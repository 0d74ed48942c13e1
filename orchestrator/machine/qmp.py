"""The conversation with QEMU itself: commands from any thread, events into a list and a file as they come."""

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

PATIENCE = 20.0
"""Seconds in which QEMU answers a command. Its main loop may have to wait for a virtual CPU, but never for long."""


@dataclass(frozen=True)
class QmpEvent:
    """time: seconds since the epoch, by QEMU's clock of the host. name, data: as in QEMU's QAPI documentation."""

    time: float
    name: str
    data: dict[str, Any]


class Qmp:
    """A QMP session over a connected socket.

    The library (qemu.qmp) is asynchronous; its loop runs in a thread of its own, so that events arrive while nobody
    asks. No method blocks for longer than its timeout: LostVM when QEMU has gone, InfraError when it is silent or
    refuses the command.
    """

    def __init__(self, connection: socket.socket, log: Path) -> None:
        self.events: list[QmpEvent] = []
        self.lost = False  # a command has found QEMU gone; its exit status may take a moment longer
        self._log = log.open("a", buffering=1)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
        self._thread.start()
        self._client = QMPClient("orchestrator")
        self._client.logger.disabled = (
            True  # a QEMU that dies is our caller's to explain, not the library's
        )
        self._connection = connection

    def connect(self, timeout: float = PATIENCE) -> None:
        """Do the handshake. Events are recorded from here on."""
        self._within(self._client.connect(self._connection), timeout, "its greeting")
        self._reader = asyncio.run_coroutine_threadsafe(self._read_events(), self._loop)

    def execute(self, command: str, timeout: float = PATIENCE, **arguments: object) -> Any:
        """The result of a QMP command. For argument names with a dash: `execute("x", **{"command-line": "y"})`."""
        return self._within(self._client.execute(command, arguments), timeout, command)

    def human(self, line: str, timeout: float = PATIENCE) -> str:
        """The output of a command of the human monitor, such as `info registers -a`."""
        return str(self.execute("human-monitor-command", timeout, **{"command-line": line}))

    def cont(self) -> None:
        self.execute("cont")

    def stop(self) -> None:
        self.execute("stop")

    def quit(self) -> None:
        self.execute("quit")

    def status(self) -> str:
        """`running`, `paused`, `debug` (stopped by GDB), `shutdown`, `internal-error` ..."""
        return str(self.execute("query-status")["status"])

    def inject_nmi(self) -> None:
        """An NMI on every CPU."""
        self.execute("inject-nmi")

    def find(self, name: str) -> QmpEvent | None:
        """The first event of that name, if there was one."""
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
        with contextlib.suppress(QMPError, OSError, EOFError, TimeoutError):  # it was gone already
            await asyncio.wait_for(self._client.disconnect(), 2)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        self._loop.call_soon(self._loop.stop)

    def _within(self, work: Coroutine[Any, Any, T], timeout: float, what: str) -> T:
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
            raise LostVM(f"QEMU has ended, so it cannot do {what}") from error
