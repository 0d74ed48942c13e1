"""The watch as the run sees it: attach, open a window, hold the poker in it, close it again."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import BootError, InfraError
from orchestrator.machine.machine import Machine
from orchestrator.text.functions import HANDLERS, LOCK, STOPPERS, SYNC, WRITERS
from orchestrator.watch.session import Gdb

AGENT = Path(__file__).with_name("agent.py")
KVM_BREAKPOINTS = 4
TCG_BREAKPOINTS = 16  # no limit of QEMU's under TCG; more than we have points

MODULE = (
    "orch_window",
    "orch_gate_stub",
    "orch_gate_resume",
    "orch_slots",
    "orch_returns",
    "orch_return_stubs",
)

SYMBOLS = (*HANDLERS, *WRITERS, SYNC, *STOPPERS, LOCK, *MODULE)
"""What the watch wants to know the addresses of, where they exist."""


def _first(symbols: Mapping[str, int], names: tuple[str, ...], what: str) -> str:
    for name in names:
        if name in symbols:
            return name
    raise BootError(
        f"this kernel has no {what} (none of {', '.join(names)} is in its symbol table)"
    )


class Watch:
    """GDB on one machine, with the agent loaded. Use it as a context manager.

    symbols: addresses by name (SYMBOLS, where they exist). directory: receives gdb.log, watch.json and events.jsonl.
    module: whether the test module is loaded, which announces pokes and has room for the agent's stubs.
    Raises BootError when the kernel lacks a function that the watch must see.
    """

    def __init__(
        self, machine: Machine, symbols: Mapping[str, int], directory: Path, *, module: bool = True
    ) -> None:
        self._machine = machine
        self.handler = _first(symbols, tuple(HANDLERS), "int3 handler for text pokes")
        self.writer = _first(symbols, WRITERS, "function that writes text")
        _first(symbols, (SYNC,), "function that syncs a core")
        roles = {"write": self.writer, "sync": SYNC, "int3": self.handler}
        stopper = next((name for name in STOPPERS if name in symbols), None)
        roles |= {"stopper": stopper} if stopper else {}
        addresses = {role: symbols[name] for role, name in roles.items()}
        addresses[LOCK] = symbols[_first(symbols, (LOCK,), "lock for text pokes")]
        if module:
            addresses |= {
                name: symbols[_first(symbols, (name,), "symbol of the test module")]
                for name in MODULE
            }
        self.events = directory / "events.jsonl"
        self.config = directory / "watch.json"
        self.points: list[str] = []
        self.config.write_text(
            json.dumps(
                {
                    "symbols": addresses,
                    "regs": HANDLERS[self.handler],
                    "events": str(self.events),
                    "limit": KVM_BREAKPOINTS
                    if machine.spec.accel.kind == "kvm"
                    else TCG_BREAKPOINTS,
                },
                indent=1,
            )
        )
        self._gdb = Gdb(directory / "gdb.log", machine.poll)

    def __enter__(self) -> Watch:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._gdb)
            self._gdb.attach(self._machine.gdb_path)
            self._machine.gdb_connected()
            self._gdb.console(f"source {AGENT}")
            self._gdb.console(f"python start({str(self.config)!r})")
            self._gdb.resume()
            self._machine.on_poll.append(self.on_poll)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        if self.on_poll in self._machine.on_poll:
            self._machine.on_poll.remove(self.on_poll)
        self._stack.close()

    @contextlib.contextmanager
    def window(self, step: int = 0) -> Iterator[None]:
        """While the block runs GDB stops at every write, sync and int3; outside the guest runs free.

        step: number of the one under way, as long as the test module does not say.
        """
        with self._stopped():
            self.points = json.loads(
                self._gdb.console(f"python print(json.dumps(AGENT.open({step})))")
            )
        yield
        with self._stopped():
            self._gdb.console("python AGENT.close()")

    @contextlib.contextmanager
    def memory(self) -> Iterator[tuple[Callable[[int, int], bytes], Callable[[int, bytes], None]]]:
        """With the guest stopped: functions that read bytes of its memory, and that write them, its code included."""

        def read(address: int, size: int) -> bytes:
            said = self._gdb.console(
                f"python print(bytes({inferior}.read_memory({address}, {size})).hex())"
            )
            return bytes.fromhex(said)

        def write(address: int, data: bytes) -> None:
            self._gdb.console(
                f"python {inferior}.write_memory({address}, bytes.fromhex('{data.hex()}'))"
            )

        inferior = "gdb.selected_inferior()"
        with self._stopped():
            yield read, write

    def on_poll(self) -> None:
        """Called while the run waits for the guest: have it go on when it stopped though nobody wanted that."""
        self._gdb.poll()
        if not self._gdb.stopped_by_itself:
            return
        # SIGINT: an earlier interrupt that came too late. SIGTRAP: a breakpoint's stop of a CPU that has gone on since.
        if self._gdb.signal not in (None, "SIGINT", "SIGTRAP"):
            raise InfraError(f"GDB stopped the guest with {self._gdb.signal}: see gdb.log")
        self._gdb.resume()

    def look(self) -> list[dict[str, Any]]:
        """Where each CPU is: cpu, rip, rsp, eflags, stack (words that may be return addresses, innermost first)."""
        with self._stopped():
            self._gdb.console(
                "python AGENT.see_returns()"
            )  # the last before a panic: no stop has come since
            return list(json.loads(self._gdb.console("python print(json.dumps(AGENT.cpus()))")))

    def survey(self, seconds: float) -> list[dict[str, int]]:
        """Who traps on int3 where during `seconds`: cpu, ip, traps, and int3: at how many of them memory held 0xcc."""
        with self._stopped():
            self._gdb.console("python AGENT.survey()")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._gdb.poll()
            time.sleep(0.05)
        with self._stopped():
            self._gdb.console("python AGENT.close()")
            return list(
                json.loads(
                    self._gdb.console("python print(json.dumps(list(AGENT.trapping.values())))")
                )
            )

    @contextlib.contextmanager
    def _stopped(self) -> Iterator[None]:
        self._gdb.interrupt()
        yield
        self._gdb.resume()
