"""`orchestrator run` in a child process, for whoever runs many: mutants, bisect, sweep.

A run keeps much in its process (durations, caches of what apt said, signal handlers), and a crash of one must not take
the others along. So each has a process, a directory and a log of its own, and what it found is read back.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchestratorError
from orchestrator.host import proc

PROGRAM = (sys.executable, "-m", "orchestrator")
GRACE = 20.0
"""Seconds that a child which was asked to end may take for it: it ends its guest, or make."""


class Stopped(OrchestratorError):
    """The child was ended, or never started, because nobody wants its result any more."""


@dataclass(frozen=True)
class ChildResult:
    """How a child ended. status: as the shell has it, negative for a signal, None when its time was over. verdict: its
    verdict.json, None without one. said: the last line of its log. seconds: it took."""

    status: int | None
    verdict: dict[str, Any] | None
    said: str
    seconds: float

    @property
    def why(self) -> str:
        """In place of a verdict: one sentence."""
        if self.status is None:
            return f"it had not ended after {self.seconds:.0f} s"
        return self.said or f"it ended with status {self.status}"


@dataclass
class Children:
    """Children under way, started from several threads at once. None outlives the thread that waits for it."""

    _running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def run(
        self,
        arguments: Sequence[str],
        directory: Path,
        log: Path,
        *,
        program: Sequence[str] = PROGRAM,
        cwd: Path | None = None,
        longest: float | None = None,
        unwanted: Callable[[], bool] | None = None,
    ) -> ChildResult:
        """`orchestrator run` with `arguments`, its results in `directory`.

        cwd: where relative paths begin, and where Python looks for the program first; None for where we are.
        longest, unwanted, and Stopped: as in call().
        """
        command = [*program, "run", *arguments, "--output", str(directory)]
        start = time.monotonic()
        status = self.call(command, log, cwd=cwd, longest=longest, unwanted=unwanted)
        seconds = time.monotonic() - start
        verdict: dict[str, Any] | None
        try:
            verdict = json.loads((directory / "verdict.json").read_text())
        except (OSError, ValueError):
            verdict = None
        last = log.read_text(errors="replace").strip().splitlines()[-1:]
        return ChildResult(
            status, verdict, last[0].removeprefix("orchestrator: ") if last else "", seconds
        )

    def call(
        self,
        command: Sequence[str],
        log: Path,
        *,
        cwd: Path | None = None,
        longest: float | None = None,
        unwanted: Callable[[], bool] | None = None,
    ) -> int | None:
        """Run `command` to its end with all it says in the file `log`; its status, None when it was killed after
        `longest` seconds. unwanted: asked now and then whether to end it. Raises Stopped after that, and stop()."""
        with log.open("wb") as sink:
            with self._lock:
                if self._stopped:
                    raise Stopped("stopped")
                child = subprocess.Popen(
                    proc.mortal(command),
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    cwd=cwd,
                    start_new_session=True,
                )
                self._running.add(child)
            try:
                return self._wait(child, longest, unwanted)
            finally:
                with self._lock:
                    self._running.discard(child)

    def stop(self) -> None:
        """End all that is under way, as Ctrl-C does, and let nothing begin; run() returns or raises soon after."""
        with self._lock:
            self._stopped = True
            for child in self._running:
                _signal(child, signal.SIGINT)

    def _wait(
        self,
        child: subprocess.Popen[bytes],
        longest: float | None,
        unwanted: Callable[[], bool] | None,
    ) -> int | None:
        end = None if longest is None else time.monotonic() + longest
        asked: float | None = None  # when it was asked to end
        while True:
            try:
                status = child.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                now = time.monotonic()
                if end is not None and now > end:
                    _kill(child)
                    return None
                if asked is None and (self._stopped or (unwanted and unwanted())):
                    asked = now
                    _signal(child, signal.SIGINT)
                if asked is not None and now > asked + GRACE:
                    _kill(child)
                    raise Stopped("stopped") from None
                continue
            except BaseException:
                _kill(child)
                raise
            if asked is not None or self._stopped:
                raise Stopped("stopped")
            return status


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _kill(child: subprocess.Popen[bytes]) -> None:
    _signal(child, signal.SIGKILL)
    child.wait()
