"""Runs inside a person's GDB: the symbols of a run, its guest if it has one, and the command `guest`.

GDB loads this file with `source`; nothing else of the program is importable there, so it uses the standard library
only. interactive.py writes what is read here, and is at the other end of the socket.
"""

from __future__ import annotations

import json
import signal
import socket
import threading
from pathlib import Path

import gdb

HELP = """
The guest is stopped, with {cpus} CPUs as threads. `continue` lets it run, Ctrl-C stops it again; `quit` ends it.
  guest COMMAND        runs COMMAND with the guest's shell, over ssh; the guest goes on for that long. So a poke is
                       guest echo 'step site=nop5 how=direct ms=100 cpu=0' > /dev/orchestrator
                       and its results: guest cat /dev/orchestrator
  hbreak FUNCTION      breaks without writing to the text that is under test, as break would under KVM
  orch_window          tells the poke under way, if there is one: x/2gx &orch_window is its site, length and gate
  {directory}/console.log has what the guest says
"""


class Guest(gdb.Command):
    """guest COMMAND: run COMMAND with the guest's shell and show what it says.

    A guest that is stopped goes on for it and is stopped again when COMMAND has ended. When a breakpoint stops it before,
    COMMAND waits in the guest until you `continue`, and is shown when it has ended."""

    def __init__(self, line):
        super().__init__("guest", gdb.COMMAND_RUNNING)
        self._line = line
        self._answers = line.makefile("rb")
        self._answer = None
        self._busy = self._going = False

    def invoke(self, command, from_tty):
        self.dont_repeat()
        if not command:
            raise gdb.GdbError("guest COMMAND: which command is the guest's shell to run?")
        if self._busy:
            raise gdb.GdbError(
                "the command before is still under way in the guest: `continue` lets it go on"
            )
        try:
            self._line.sendall(json.dumps({"run": command}).encode() + b"\n")
        except OSError:
            raise gdb.GdbError("the orchestrator that has the guest has ended") from None
        self._busy = True
        # Signals are for GDB's own thread to take.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        threading.Thread(target=self._wait, daemon=True).start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if any(thread.is_running() for thread in gdb.selected_inferior().threads()):
            return  # by `continue &`: what the command says comes when it has ended
        self._going = True
        try:
            quietly("continue")  # the stop is shown all the same
        finally:
            self._going = False
        if self._busy:
            gdb.write("The command is still under way in the guest.\n")
        else:
            self._show()

    def _wait(self):
        """In a thread: GDB must go on handling the guest's stops meanwhile."""
        try:
            raw = self._answers.readline()
        except OSError:
            raw = b""
        self._answer = (
            json.loads(raw) if raw else {"error": "the orchestrator that has the guest has ended"}
        )
        gdb.post_event(self._ended)

    def _ended(self):
        self._busy = False
        if self._going:
            quietly("interrupt")  # so that `continue` returns, and shows it
        else:
            self._show()

    def _show(self):
        answer = self._answer
        text = answer.get("said", "")
        gdb.write(text if not text or text.endswith("\n") else text + "\n")
        if "error" in answer:
            gdb.write(f"guest: {answer['error']}\n")
        elif answer["status"]:
            gdb.write(f"guest: ended with status {answer['status']}\n")


def quietly(command):
    return gdb.execute(command, to_string=True)


def load(symbols):
    """The symbols of the kernel and of the test module."""
    kernel, module = symbols["kernel"], symbols["module"]
    if kernel and Path(kernel).exists():
        # A file made from kallsyms has no code: it is for its symbols alone.
        quietly(f'{"file" if symbols["code"] else "symbol-file"} "{kernel}"')
    else:
        gdb.write(
            "The kernel's own symbols are not there: it has no vmlinux, and was never kept.\n"
        )
    if module and Path(module).exists():
        sections = " ".join(f"-s {name} {address}" for name, address in symbols["sections"].items())
        quietly(f'add-symbol-file "{module}" {sections}')
    elif module:
        gdb.write(f"The test module's symbols are not there any more ({module}).\n")


def start(directory):
    """Open the run in `directory`, with its guest if that is still there."""
    directory = Path(directory)
    for setting in ("confirm off", "architecture i386:x86-64"):
        quietly(f"set {setting}")
    live = directory / "live.json"
    load(json.loads((directory / "symbols.json").read_text()))
    if not live.exists():
        gdb.write(
            f"{directory.name} is over: there is no guest, only its symbols, for looking at addresses.\n"
        )
        return
    channels = json.loads(live.read_text())
    line = socket.socket(socket.AF_UNIX)
    line.connect(channels["line"])
    greeting = json.loads(line.makefile("rb").readline() or "{}")
    if "cpus" not in greeting:
        gdb.write(f"{greeting.get('error', 'the guest has just ended')}\n", gdb.STDERR)
        gdb.execute("quit 125")
    quietly(f"target remote {channels['gdb']}")
    Guest(line)
    gdb.write(HELP.format(cpus=greeting["cpus"], directory=directory))
