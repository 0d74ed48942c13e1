# SPDX-License-Identifier: GPL-2.0-only
"""A running guest: QEMU, the channels to it, and waits that end if the guest or QEMU does."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

from orchestrator.errors import BootError, InfraError, LostVM, OrchestratorError
from orchestrator.host import interrupts, keeper, proc
from orchestrator.host.logs import Log, MemoryFile
from orchestrator.machine import qemu
from orchestrator.machine.console import GuestConsole
from orchestrator.machine.faults import GuestReset, KernelFault, TimedOut
from orchestrator.machine.link import Link
from orchestrator.machine.qmp import Qmp
from orchestrator.machine.ssh import Keys, Shell
from orchestrator.machine.waiting import Silence, Stopwatch, until

QUIT_SECONDS = 2.0
"""Time for QEMU to end by itself."""
STOP_SECONDS = 1.0
"""After this time a guest whose CPUs are stopped is asked why. GDB stops it for milliseconds."""
RESTART_SECONDS = 0.5
"""Limit for the time until the console shows why the guest has reset."""
PAUSED_SECONDS = 10.0
"""After this time a QEMU whose process somebody has stopped (SIGSTOP) is given up."""
MIGRATION = ("inmigrate", "finish-migrate", "postmigrate")
RUN_STATES = ("running", "debug", "paused", "prelaunch", *MIGRATION)
"""QEMU's run states in which nothing is wrong; GDB's stops are `debug`, and MIGRATION is what it
does to save and restore a guest."""
LONGEST_DIRECTORY = 60
"""Longest name of a directory for sockets, in bytes."""


class Machine:
    """One guest, from the start of QEMU (paused) to its end. Use it as a context manager.

    directory: gets qemu.cmd (the command line), qemu.stderr, qemu.log, qmp.jsonl, console.log and
    console.jsonl. Nothing is read from there: these files are for people.
    keys: the ones whose guest_files() are in the initramfs.
    attachable: whether GDB may connect more than once, one at a time.
    history: lines that the console of a guest that is restored has shown before it was saved.

        with Machine(spec, directory, keys) as machine:
            ...  # attach GDB to machine.gdb_path, then call machine.gdb_connected()
            machine.cont()
            machine.wait_ready(60)
            machine.ssh.run("uname -r")

    Use it in one thread, and one that lives as long as the machine should: QEMU is killed when the
    thread that started it ends. Raises InfraError if QEMU does not start.
    """

    ends_by_itself = False
    """Whether the guest is to reset the machine when it has done its work. QEMU stops it then, and
    it stays as it is: see ended()."""

    def __init__(
        self,
        spec: qemu.MachineSpec,
        directory: Path,
        keys: Keys,
        *,
        attachable: bool = False,
        history: Sequence[str] = (),
    ) -> None:
        self.spec = spec
        self.directory = directory
        self._keys = keys
        self._attachable = attachable
        self._history = history
        self.ignore_faults = False
        """Whether waits go on after a fatal report of the kernel, for a user who debugs it."""
        self.restarts: Callable[[], bool] = lambda: bool(self.console.scanner.restart)
        """Whether the kernel is known to restart the machine, and has not just crashed it."""
        self.on_poll: list[Callable[[], None]] = []
        """Called several times a second in every wait. An exception from one ends the wait."""
        self.silence = Silence()
        """Limits how long the guest may be silent while somebody waits for it."""
        self.logs: list[Log] = []
        """The files for people that this process has written so far."""
        self._cleanup = contextlib.ExitStack()
        self._polling = False
        self._post_mortem = False
        self._ending = False
        self._asked = 0.0  # when QEMU was last asked why the guest is stopped
        self._paused: Stopwatch | None = None  # how long QEMU's process has been stopped

    def __enter__(self) -> Machine:
        with self._cleanup as stack:  # undoes a start that fails half-way
            self._start(stack)
            self._cleanup = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    def _start(self, stack: contextlib.ExitStack) -> None:
        stack.callback(self._close_logs)
        directory = stack.enter_context(keeper.temporary_directory(*_socket_directories()))
        self.gdb_path = directory / "gdb"
        (qmp, qemu_qmp), (line, qemu_line) = socket.socketpair(), socket.socketpair()
        channels = qemu.Channels(qmp=qemu_qmp.fileno(), ssh=qemu_line.fileno(), gdb=self.gdb_path)
        self.command_line = qemu.command_line(self.spec, channels)
        shell_line = qemu.shell_line(self.command_line, self.spec, self.directory)
        self.log("qemu.cmd").write(shell_line + "\n")
        self.qmp = Qmp(qmp, self.directory / "qmp.jsonl", self._check_qemu)
        stack.callback(self.qmp.close)
        self._link = Link(line)
        stack.callback(self._link.close)
        self.ssh = Shell(self._link, self._keys, self.check)
        stack.callback(self.ssh.close)
        self.log("console.log").write("".join(f"{line}\n" for line in self._history))
        self.console = GuestConsole(self.directory / "console.jsonl", self._history)
        self.logs += [self.qmp.log, self.console.log]
        self.silence.signs += [lambda: self.console.scanner.lines, lambda: self._link.frames]
        self._stderr = MemoryFile("qemu.stderr")
        stack.callback(self._stderr.close)
        # A signal in between would leave us with one of QEMU's ends.
        with interrupts.held():
            try:
                self.process = subprocess.Popen(
                    proc.mortal(self.command_line),
                    cwd=self.directory,
                    env={**os.environ, **self.spec.qemu.env},
                    stdin=subprocess.DEVNULL,
                    stdout=self.console.output,
                    stderr=self._stderr.fileno(),
                    pass_fds=[qemu_qmp.fileno(), qemu_line.fileno()],
                    # Keeps Ctrl-C from QEMU: the user should not read of a lost VM after it.
                    start_new_session=True,
                )
            except OSError as error:
                raise InfraError(f"QEMU did not start: {error}") from error
            stack.callback(self._end)
            # QEMU must have the only copies, so that we see an end of file when it dies.
            qemu_qmp.close()
            qemu_line.close()
            self.console.start()
            stack.callback(self.console.close)
        try:
            self.qmp.connect()
        except LostVM:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            raise InfraError(f"QEMU did not start: {self._last_errors()}") from None
        # A second time, to run before the others: their close() waits for the end of file.
        stack.callback(self._end)

    def log(self, name: str) -> Log:
        """A new file for people in the run's directory."""
        self.logs.append(Log(self.directory / name))
        return self.logs[-1]

    def cont(self) -> None:
        """Let the guest run."""
        self.qmp.cont()

    def read_memory(self, address: int, size: int) -> bytes:
        """Guest memory at a virtual address, without stopping the guest and without GDB.

        Raises InfraError where there is none.
        """
        # Not a file in the run's directory: its disk may be full, and its name is not QEMU's.
        with contextlib.closing(MemoryFile("memory")) as file:
            self.qmp.execute("memsave", val=address, size=size, filename=str(file.path))
            return file.read()

    def ended(self) -> bool:
        """Whether a guest that ends by itself has asked for the reset that ends it."""
        return self.ends_by_itself and self.restarts() and self.qmp.find("SHUTDOWN") is not None

    def gdb_connected(self) -> None:
        """Remove the path of GDB's socket, which is not needed any more; unless attachable."""
        if not self._attachable:
            shutil.rmtree(self.gdb_path.parent, ignore_errors=True)

    def wait_ready(self, timeout: float) -> None:
        """Wait until the guest has booted and ssh is connected.

        Raises BootError after `timeout` seconds, and otherwise like wait().
        """
        deadline = time.monotonic() + timeout
        try:
            self.wait(lambda: self.console.ready, timeout, "the guest's boot")
            self.ssh.connect(max(1.0, deadline - time.monotonic()))
        except TimedOut as error:
            raise BootError(f"{error}; {self._last_line()}") from error

    def wait(self, predicate: Callable[[], bool], timeout: float, what: str) -> None:
        """Wait until `predicate()`, for at most `timeout` seconds.

        Raises like check(), or TimedOut. A CPU or task that the kernel has reported as stuck is a
        KernelFault too, but only when the time is up: on a busy host it may recover.

        what: what is waited for, for the message: "the module's report".
        """
        if until(predicate, timeout, lambda: self.check(what)):
            return
        if stalls := self.console.scanner.stalls:
            raise KernelFault(what, stalls[0], self.console.scanner.findings)
        raise TimedOut(what, timeout)

    def check(self, what: str = "the guest") -> None:
        """Ask all observers whether it makes sense to go on waiting.

        Raises LostVM if the machine has gone, KernelFault if its kernel has failed, Silent if it
        has been silent for too long, InfraError if one of its channels is not read any more.
        """
        if self._post_mortem:
            self._check_qemu()
        else:
            self.poll()
        if not self._polling:  # a callback may itself have to wait
            self._polling = True
            try:
                for on_poll in [*self.on_poll]:
                    on_poll()
                if not self._post_mortem:
                    self._check_run_state()
                self.silence.listen()
            finally:
                self._polling = False
        if (fatal := self.console.scanner.fatal) and not self.ignore_faults:
            raise KernelFault(what, fatal[0], self.console.scanner.findings)
        if lost := self.console.lost or self.qmp.lost or self._link.lost:
            raise InfraError(lost)

    @contextlib.contextmanager
    def post_mortem(self) -> Iterator[None]:
        """Let waits in the block go on although the kernel has failed, as long as QEMU is there."""
        before = self.ignore_faults, self._post_mortem
        self.ignore_faults = self._post_mortem = True
        try:
            with self.silence.limit(None):
                yield
        finally:
            self.ignore_faults, self._post_mortem = before

    def poll(self) -> None:
        """Raise LostVM if QEMU has ended, or if the guest has reset or powered off.

        Raises BootError if the guest did that while it was booting.
        """
        self._check_qemu()
        if (shutdown := self.qmp.find("SHUTDOWN")) and not self._about_to_end():
            reason = shutdown.data.get("reason")
            reset = reason == "guest-reset"
            if not self.console.ready and shutdown.data.get("guest"):
                how = (
                    "reset itself while booting (triple fault)" if reset else "ended while booting"
                )
                raise BootError(f"the guest {how}; {self._last_line()}")
            # The console may be a moment behind.
            scanner = self.console.scanner
            if reset and until(lambda: bool(scanner.restart), RESTART_SECONDS, lambda: None):
                raise LostVM(f"a program of the guest has reset it: {scanner.restart}")
            lost = GuestReset if reset else LostVM
            raise lost(
                f"the guest is no longer running ({reason}): "
                "qemu.log has the registers if it was a triple fault"
            )

    def _about_to_end(self) -> bool:
        """Whether the guest ends as it should. The console may be a moment behind."""
        return self.ends_by_itself and until(self.ended, RESTART_SECONDS, lambda: None)

    def _check_qemu(self) -> None:
        """Raise LostVM if QEMU has ended. It may have reported why the guest has."""
        if self._ending:
            return
        channel_closed = self.qmp.gone or self.console.ended
        if channel_closed:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(QUIT_SECONDS)
        status = self.process.poll()
        if status is not None:
            shutdown = self.qmp.find("SHUTDOWN")
            reason = f" ({shutdown.data.get('reason')})" if shutdown else ""
            raise LostVM(f"QEMU {proc.how_it_ended(status)}{reason}: {self._last_errors()}")
        if channel_closed:
            raise LostVM(f"QEMU has closed its channels to us: {self._last_errors()}")
        if proc.state(self.process.pid) != "T":
            self._paused = None
            return
        self._paused = self._paused or Stopwatch()
        if self._paused.poll() > PAUSED_SECONDS:
            raise LostVM(
                "somebody has stopped the process of QEMU (SIGSTOP), and does not let it go on"
            )

    def _last_line(self) -> str:
        last = next((line for line in reversed(self.console.lines) if line.strip()), "(none)")
        return f"the last console line was: {last}"

    def _check_run_state(self) -> None:
        """Raise LostVM if QEMU itself has stopped the guest, as KVM does at an internal error."""
        since = self.qmp.stopped_since
        if (
            self.ended()
            or since is None
            or time.monotonic() - max(since, self._asked) < STOP_SECONDS
        ):
            return
        self._asked = time.monotonic()
        state = str(self.qmp.execute("query-status")["status"])
        if state not in RUN_STATES:
            raise LostVM(f"QEMU has stopped the guest ({state}): {self._last_errors()}")

    def _close_logs(self) -> None:
        for log in self.logs:
            log.close()

    def _last_errors(self) -> str:
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:]) or "it printed no error"

    def _end(self) -> None:
        """Ask QEMU to quit, so that it flushes its plugins and logs; kill it if it does not."""
        self._ending = True
        if self.process.poll() is None:
            with contextlib.suppress(OrchestratorError, subprocess.TimeoutExpired):
                self.qmp.execute("quit", QUIT_SECONDS)
                self.process.wait(QUIT_SECONDS)
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self._stderr.size():
            self.log("qemu.stderr").write(self._stderr.read())
            self._stderr.clear()


def _socket_directories() -> Iterator[Path]:
    """Where to put a socket, in order of preference.

    The path of a unix socket has at most 107 bytes, so a directory with a long name is left out.
    """
    for name in (os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp", "/var/tmp", "/dev/shm"):
        if name.startswith("/") and len(os.fsencode(name)) <= LONGEST_DIRECTORY:
            yield Path(name)
