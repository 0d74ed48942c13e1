"""A person's GDB: on a guest booted for it, on one that a run has kept, or on the symbols of a run that is over.

The guest always belongs to the process that booted it, and ends with it. That process writes two files into the run's
directory: symbols.json when the test module is loaded, and live.json for as long as GDB can attach. GDB, whoever starts
it, loads gdbguest.py, which opens the run by these files. For the whole of its session it holds a connection to a unix
socket, over which it has commands run in the guest, and whose end tells that it has quit.
"""

from __future__ import annotations

import contextlib
import difflib
import gzip
import json
import os
import select
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator import ui
from orchestrator.errors import InfraError, OrchestratorError, UsageError
from orchestrator.guest import module
from orchestrator.host import proc
from orchestrator.host.paths import cache_dir, cached_dir, state_dir
from orchestrator.kernel.model import Kernel
from orchestrator.machine.machine import Machine
from orchestrator.text import symbolfile

SCRIPT = Path(__file__).with_name("in_gdb.py")
SYMBOLS = "symbols.json"
LIVE = "live.json"
POLL = 0.2
"""Seconds between two looks at whether the guest and GDB are still there."""
A_DAY = 86400.0
"""Seconds for a command in the guest: it may be stopped at a breakpoint for as long as a person thinks."""


# -- what is written down for GDB


def note_symbols(machine: Machine, kernel: Kernel, directory: Path, *, fetch: bool) -> None:
    """Write symbols.json: which files have symbols, of the guest and of its test module, and for which addresses.

    fetch: where there is no vmlinux, read the guest's symbol table, which takes seconds, unless the cache has it.
    """
    status, text = machine.ssh.run("grep -r . /sys/module/orch/sections")
    pairs = (
        line.rpartition("/")[2].split(":") for line in (text.splitlines() if status == 0 else ())
    )
    # What is needed for loading only is gone, and other things may be there now.
    sections = {name: address for name, address in pairs if not name.startswith((".init", ".exit"))}
    content = {
        "kernel": str(kernel.vmlinux or _from_guest(machine, kernel, fetch=fetch)),
        "code": kernel.vmlinux is not None,
        "module": str(module.build(kernel)) if sections else None,
        "sections": sections,
    }
    (directory / SYMBOLS).write_text(json.dumps(content, indent=1) + "\n")


def kernel_symbols(directory: Path) -> Path:
    """The file with the kernel's symbols that the symbols.json in `directory` names."""
    return Path(json.loads((directory / SYMBOLS).read_text())["kernel"])


def _from_guest(machine: Machine, kernel: Kernel, *, fetch: bool) -> Path:
    """A file with the kernel's own symbols. They are the same at each boot (nokaslr), so it is made once a kernel."""
    directory = cache_dir() / "symbols" / kernel.digest

    def make(partial: Path) -> None:
        with ui.step("reading the guest's symbol table"):
            status, said = machine.ssh.run("gzip -c /proc/kallsyms > /tmp/kallsyms.gz", 300)
            if status:
                raise InfraError(f"the guest's symbol table cannot be read: {said.strip()}")
            lines = gzip.decompress(machine.ssh.get("/tmp/kallsyms.gz")).decode().splitlines()
            machine.ssh.run("rm /tmp/kallsyms.gz")
        (partial / "kernel.elf").write_bytes(symbolfile.from_kallsyms(lines))

    return (cached_dir(directory, make) if fetch else directory) / "kernel.elf"


# -- the process that has the guest


class _Quit(Exception):
    """GDB has ended while a command was under way in the guest."""


class GdbConnection:
    """The end of GDB's connection at the process that has the guest; live.json is there for as long as this is open."""

    def __init__(self, machine: Machine, directory: Path) -> None:
        self._machine = machine
        self._live = directory / LIVE
        self._session: socket.socket | None = None
        self._inbox = b""

    def __enter__(self) -> GdbConnection:
        path = self._machine.gdb_path.with_name("line")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._machine.ignore_faults = True
        self._machine.on_poll.append(self._on_poll)
        self._live.write_text(
            json.dumps({"gdb": str(self._machine.gdb_path), "line": str(path)}) + "\n"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._live.unlink(missing_ok=True)
        self._machine.on_poll.remove(self._on_poll)
        self._listener.close()
        if self._session:
            self._session.close()

    def serve(self, wanted: Callable[[], bool] = lambda: True) -> bool:
        """Do what GDB asks until it quits, then return True; False when QEMU has ended, or not `wanted()` any more."""
        try:
            while wanted() and self._machine.process.poll() is None:
                ends = [self._listener, *([self._session] if self._session else [])]
                for end in select.select(ends, [], [], POLL)[0]:
                    if end is self._listener:
                        self._meet()
                    elif not self._hear():
                        return True
        except _Quit:
            return True
        return False

    def _meet(self) -> None:
        caller, _ = self._listener.accept()
        if self._session:
            with caller, contextlib.suppress(OSError):
                _tell(
                    caller,
                    error="another GDB is attached to this guest, and QEMU takes one: quit that one first",
                )
            return
        self._session = caller
        _tell(caller, cpus=self._machine.spec.smp)

    def _hear(self) -> bool:
        """Take in what GDB says and do it; False when it has quit."""
        assert self._session
        data = self._session.recv(65536)
        self._inbox += data
        *lines, self._inbox = self._inbox.split(b"\n")
        for line in lines:
            try:
                status, said = self._machine.ssh.run(json.loads(line)["run"], A_DAY)
                _tell(self._session, status=status, said=said)
            except OrchestratorError as error:
                _tell(self._session, error=str(error))
            except OSError:
                return False
        return bool(data)

    def _on_poll(self) -> None:
        """While a command is under way in the guest."""
        gdb = self._session
        if gdb and select.select([gdb], [], [], 0)[0] and not gdb.recv(1, socket.MSG_PEEK):
            raise _Quit


def _tell(end: socket.socket, **content: object) -> None:
    end.sendall(json.dumps(content).encode() + b"\n")


def keep(machine: Machine | None, directory: Path) -> None:
    """Keep the guest of a run that has been judged until a GDB has attached and quit, or until Ctrl-C."""
    if machine is None or machine.process.poll() is not None or not (directory / SYMBOLS).exists():
        ui.say("there is no guest to keep: it ended, or never had its test module loaded")
        return
    with GdbConnection(machine, directory) as line:
        ui.say(
            f"the guest is kept until Ctrl-C here, or until a GDB quits: orchestrator gdb {_shown(directory)}"
        )
        with contextlib.suppress(KeyboardInterrupt):
            ui.say("GDB has quit" if line.serve() else "QEMU has ended")


def session(machine: Machine, directory: Path) -> int:
    """Attach a GDB on our terminal to the guest, and return its exit status when it has quit."""
    with GdbConnection(machine, directory) as line, _interrupts_left_to_gdb():
        gdb = subprocess.Popen(proc.mortal(_gdb(directory)))
        try:
            line.serve(lambda: gdb.poll() is None)
            return gdb.wait(10)
        finally:
            if gdb.poll() is None:
                gdb.terminate()  # which leaves the terminal as it found it
                gdb.wait()


@contextlib.contextmanager
def _interrupts_left_to_gdb() -> Iterator[None]:
    """Ctrl-C goes to every process on the terminal. A handler, since what is ignored would be ignored by GDB too."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


# -- the process that looks at another one's guest


def attach(name: str | None) -> int:
    """Become a GDB on the run `name` (a directory, or the name of one), by default the last that is kept.

    Raises UsageError where there is none. Does not return otherwise.
    """
    directory = _find(name)
    if not (directory / SYMBOLS).exists():
        raise UsageError(
            f"{directory} has no {SYMBOLS}: that run ended before its test module was loaded"
        )
    command = _gdb(directory)
    os.execv(command[0], command)


def _gdb(directory: Path) -> list[str]:
    # The user's own .gdbinit is read: this is his GDB.
    return [
        *(
            proc.need("gdb", "gdb"),
            "-quiet",
            "-iex",
            "set auto-load off",
            "-iex",
            "set debuginfod enabled off",
        ),
        *("-ex", f"source {SCRIPT}", "-ex", f"python start({str(directory.resolve())!r})"),
    ]


def _find(name: str | None) -> Path:
    runs = state_dir() / "runs"
    known = sorted(path for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else []
    for path in known if name is None else [Path(name), runs / name]:
        _forget_the_dead(path)
    if name is None:
        kept = [path for path in known if (path / LIVE).exists()]
        if not kept:
            raise UsageError(
                "no run is kept: name one that is over, or use `run --keep` or `gdb --now`"
            )
        return kept[-1]
    for path in (Path(name), runs / name):
        if (path / "spec.json").is_file():
            return path
    near = difflib.get_close_matches(name, [path.name for path in known], n=3, cutoff=0.3)
    raise UsageError(
        f"{name} is no run: "
        + (f"did you mean {' or '.join(near)}?" if near else f"none is in {runs}")
    )


def _forget_the_dead(directory: Path) -> None:
    """Remove a live.json whose process was killed, so that it could not do so itself."""
    live = directory / LIVE
    with contextlib.suppress(OSError):
        if not Path(json.loads(live.read_text())["line"]).exists():
            live.unlink()


def _shown(directory: Path) -> str:
    return directory.name if directory.parent == state_dir() / "runs" else str(directory)
