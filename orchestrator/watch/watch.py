# SPDX-License-Identifier: GPL-2.0-only
"""The watch as the run uses it: attach GDB, open a window in which the agent observes, close it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.errors import BootError, InfraError, OrchestratorError
from orchestrator.host.logs import MemoryFile
from orchestrator.machine.machine import Machine
from orchestrator.machine.waiting import until
from orchestrator.text.functions import HANDLERS, LOCK, STOPPERS, SYNC, WRITERS
from orchestrator.watch import events
from orchestrator.watch.session import Gdb

STEP_OFFSET = 24
"""Of `step` in struct orch_window (guest/module/orch.h)."""
AGENT = Path(__file__).with_name("agent.py")
KVM_BREAKPOINTS = 4
TCG_BREAKPOINTS = 16
"""More than the agent ever sets: under TCG, QEMU has no limit."""

MODULE = (
    "orch_window",
    "orch_gate_stub",
    "orch_gate_resume",
    "orch_slots",
    "orch_returns",
    "orch_return_stubs",
)
"""Symbols of the test module that the agent uses."""

STOP_MACHINE = "stop_machine"
"""The function that uses STOPPERS. A kernel for one CPU has neither."""

SYMBOLS = (*HANDLERS, *WRITERS, SYNC, *STOPPERS, STOP_MACHINE, LOCK, *MODULE)
"""All symbols whose addresses the watch takes, if they exist."""


def _first(symbols: Mapping[str, int], names: tuple[str, ...], what: str) -> str:
    for name in names:
        if name in symbols:
            return name
    raise BootError(
        f"this kernel has no {what} (none of {', '.join(names)} is in its symbol table)"
    )


class Watch:
    """GDB attached to one machine, with the agent loaded. Use it as a context manager.

    symbols: addresses by name, of those in SYMBOLS that exist.
    directory: gets gdb.log, watch.json and events.jsonl, which are copies for people.
    module: whether the test module is loaded, which announces pokes and has room for the agent's
        copies of instructions.
    at_once: whether GDB is to stop at every write, sync and int3 from the beginning, as in a
        window(). For a guest that does not run yet, and asks nobody before it pokes.

    Raises BootError if the kernel lacks a function that must be watched.
    """

    def __init__(
        self,
        machine: Machine,
        symbols: Mapping[str, int],
        directory: Path,
        *,
        module: bool = True,
        at_once: bool = False,
    ) -> None:
        self._machine = machine
        self._at_once = at_once
        self.handler = _first(symbols, tuple(HANDLERS), "int3 handler for text pokes")
        self.writer = _first(symbols, WRITERS, "function that writes text")
        roles = {"write": self.writer, "int3": self.handler}
        stopper = next((name for name in STOPPERS if name in symbols), None)
        roles |= {"stopper": stopper} if stopper else {}
        self.impossible: dict[str, str] = {}
        """Breakpoints that make no sense in this kernel, and why."""
        if SYNC in symbols:
            roles["sync"] = SYNC
        else:
            self.impossible["sync"] = f"this kernel has no {SYNC}()"
        if not stopper and STOP_MACHINE not in symbols:
            self.impossible["stopper"] = f"this kernel has no {STOP_MACHINE}()"
        addresses = {role: symbols[name] for role, name in roles.items()}
        addresses[LOCK] = symbols[_first(symbols, (LOCK,), "lock for text pokes")]
        if module:
            addresses |= {
                name: symbols[_first(symbols, (name,), "symbol of the test module")]
                for name in MODULE
            }
        self._window = addresses.get("orch_window")
        kvm = machine.spec.accel.kind == "kvm"
        self._events = MemoryFile("events.jsonl")
        self._copied = 0
        config = {
            "symbols": addresses,
            "regs": HANDLERS[self.handler],
            "events": str(self._events.path),
            "limit": KVM_BREAKPOINTS if kvm else TCG_BREAKPOINTS,
        }
        text = json.dumps(config, indent=1)
        self._config = MemoryFile("watch.json", text.encode())
        machine.log("watch.json").write(text)
        self.points: list[str] = []
        """Names of the breakpoints of the last window, as in the agent's open()."""
        self._copy = machine.log("events.jsonl")
        self._gdb = Gdb(directory / "gdb.log", machine.check)
        machine.logs.append(self._gdb.log)

    def __enter__(self) -> Watch:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._gdb)
            self._gdb.attach(self._machine.gdb_path)
            self._machine.gdb_connected()
            # Not with `source`, which has no way to quote a name.
            self._gdb.console(f"python exec(open({str(AGENT)!a}, encoding='utf-8').read())")
            self._gdb.call("start", str(self._config.path))
            if self._at_once:
                self.points = self._gdb.evaluate("AGENT.open(0)")
            self._gdb.resume()
            self._machine.on_poll.append(self.on_poll)
            self._machine.silence.signs.append(self._events.size)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        if self.on_poll in self._machine.on_poll:
            self._machine.on_poll.remove(self.on_poll)
        self._machine.silence.signs.remove(self._events.size)
        self._copy_events()
        self._stack.close()
        self._events.close()
        self._config.close()

    @contextlib.contextmanager
    def window(self, step: int = 0) -> Iterator[None]:
        """Have GDB stop at every write, sync and int3 during the block. Outside it never stops.

        step: number of the current step, until the test module reports its own.
        """
        with self._stopped():
            self._events.clear()
            self._copy.start_over()
            self._copied = 0
            self.points = self._gdb.evaluate(f"AGENT.open({step})")
        yield
        with self._stopped():
            self._gdb.console("python AGENT.close()")

    def end(self) -> None:
        """Note what happened since the last stop of a guest that has ended, with `at_once`."""
        self._gdb.interrupt()
        self._gdb.console("python AGENT.close()")

    def recording(self) -> events.Recording:
        """What GDB has seen since the beginning of the last window."""
        count, why = None, ""
        try:
            status = self._gdb.evaluate("AGENT.status()")
            count, why = status["count"], status["error"]
        except OrchestratorError as error:
            why = str(error)
        self._copy_events()
        recording = events.read(self._events.read(), count)
        if count is None and not recording.lost:
            recording = replace(recording, lost=f"GDB cannot be asked what it saw: {why}")
        elif recording.lost and why:
            recording = replace(recording, lost=f"{recording.lost} ({why})")
        return recording

    @contextlib.contextmanager
    def memory(self) -> Iterator[tuple[Callable[[int, int], bytes], Callable[[int, bytes], None]]]:
        """Stop the guest during the block, and access its memory, code included.

        Yields read(address, size) -> bytes and write(address, data).
        """
        inferior = "gdb.selected_inferior()"

        def read(address: int, size: int) -> bytes:
            code = f"bytes({inferior}.read_memory({address}, {size})).hex()"
            return bytes.fromhex(self._gdb.evaluate(code))

        def write(address: int, data: bytes) -> None:
            self._gdb.console(
                f"python {inferior}.write_memory({address}, bytes.fromhex('{data.hex()}'))"
            )

        with self._stopped():
            yield read, write

    def step(self) -> int:
        """Number of the step that the test module has begun last; 0 without the module."""
        if self._window is None:
            return 0
        with self.memory() as (read, _):
            return int.from_bytes(read(self._window + STEP_OFFSET, 8), "little")

    def on_poll(self) -> None:
        """Resume a guest that GDB stopped without being asked. Called while a run waits for it."""
        self._copy_events()
        if self._gdb.busy:  # the wait is one for GDB
            return
        self._gdb.poll()
        if not self._gdb.stopped_by_itself:
            return
        if (
            self._gdb.signal == "SIGQUIT"
        ):  # QEMU's word for the end of the guest, which others judge
            return
        # SIGINT is an earlier interrupt that arrived too late. SIGTRAP is the stop of a CPU at a
        # breakpoint that it has passed since.
        if self._gdb.signal not in (None, "SIGINT", "SIGTRAP"):
            raise InfraError(f"GDB stopped the guest with {self._gdb.signal}: see gdb.log")
        self._gdb.resume()

    def cpu_snapshot(self) -> list[dict[str, Any]]:
        """Where each CPU is: cpu, rip, rsp, eflags, and return addresses in stack, innermost first.

        `stack` may have words that only look like return addresses.
        """
        with self._stopped():
            # Handlers that returned since the last stop; after a panic no further stop may come.
            self._gdb.console("python AGENT.emit_returns()")
            return list(self._gdb.evaluate("AGENT.cpus()"))

    def survey(self, seconds: float) -> list[dict[str, int]]:
        """Count int3 by CPU and address for `seconds`.

        Each entry has cpu, ip, traps, and int3: at how many of the traps memory held 0xcc.
        """
        with self._stopped():
            self._gdb.console("python AGENT.survey()")
        until(lambda: False, seconds, self._machine.check)
        with self._stopped():
            self._gdb.console("python AGENT.close()")
            return list(self._gdb.evaluate("list(AGENT.surveyed.values())"))

    def _copy_events(self) -> None:
        """Append the new events to events.jsonl, so that even a killed run shows what it saw."""
        if new := self._events.read(self._copied):
            self._copied += len(new)
            self._copy.write(new)

    @contextlib.contextmanager
    def _stopped(self) -> Iterator[None]:
        with self._machine.silence.limit(None):  # a guest that GDB stops is silent
            self._gdb.interrupt()
            yield
            self._gdb.resume()
