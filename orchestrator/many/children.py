# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator run` in a child process, for mutants, bisect and sweep.

A run keeps state in its process (durations, cached answers of apt, signal handlers), and a crash of
one run must not affect the others. So each run has its own process, directory and log file, and the
verdict is read back from the directory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.errors import EXIT_USAGE, INTERRUPTED, OrchestratorError
from orchestrator.host import proc
from orchestrator.spec import RunSpec
from orchestrator.verdict import result
from orchestrator.verdict.result import VerdictRecord

PROGRAM = (sys.executable, "-m", "orchestrator")
OWN_SUMMARY = {"GITHUB_STEP_SUMMARY": ""}
"""Whoever starts runs writes one table about all of them into the summary of a GitHub Actions step.
"""
LAST_BYTES = 65536
"""Bytes at the end of a log that its last line is taken from."""
GRACE = 20.0
"""Seconds that an interrupted child has to end its guest, or make, before it is killed."""


class Stopped(OrchestratorError):
    """The child was ended or never started, because its result is no longer needed."""


@dataclass(frozen=True)
class ChildResult:
    """How a child ended."""

    status: int | None
    """Exit status, the negative number of a signal, or None if the time limit ended the child."""
    verdict: VerdictRecord | None
    """The content of its verdict.json, None if there is none."""
    last_line: str
    """The last line of its log."""
    seconds: float

    @property
    def wrong_request(self) -> bool:
        """Whether it refused to run what was requested. SIGHUP has the same exit status."""
        return self.status == EXIT_USAGE and not self.last_line.startswith(INTERRUPTED)

    @property
    def why(self) -> str:
        """One sentence that takes the place of a missing verdict."""
        if self.status is None:
            return f"it had not ended after {self.seconds:.0f} s"
        return self.last_line or f"it ended with status {self.status}"


@dataclass
class Children:
    """Running children, started from several threads. A child never outlives its thread."""

    _running: set[subprocess.Popen[bytes]] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    def run(
        self,
        spec: RunSpec,
        directory: Path,
        log: Path,
        *,
        program: Sequence[str] = PROGRAM,
        cwd: Path | None = None,
        longest: float | None = None,
        unwanted: Callable[[], bool] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> ChildResult:
        """Run `orchestrator run` as `spec` says, with its results in `directory`.

        - cwd: where relative paths start, and where Python looks for the program first; None for
          the current directory.
        - longest, unwanted, env: as for call(), which also describes Stopped.
        """
        command = [*program, "run", *spec.argv(), "--output", str(directory)]
        start = time.monotonic()
        status = self.call(command, log, cwd=cwd, longest=longest, unwanted=unwanted, env=env)
        seconds = time.monotonic() - start
        verdict: VerdictRecord | None = None
        with contextlib.suppress(OSError, ValueError):
            verdict = result.read(directory)
        return ChildResult(status, verdict, _last_line(log), seconds)

    def call(
        self,
        command: Sequence[str],
        log: Path,
        *,
        cwd: Path | None = None,
        longest: float | None = None,
        unwanted: Callable[[], bool] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> int | None:
        """Run `command` to its end and return its status, None if it was killed at `longest`.

        - log: file for everything that it prints.
        - longest: time limit, in seconds.
        - unwanted: polled; once it is true, the child is interrupted.
        - env: environment variables in addition to ours.

        Raises Stopped after an interruption, and after stop().
        """
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
                    env={**os.environ, **OWN_SUMMARY, **(env or {})},
                    start_new_session=True,
                )
                self._running.add(child)
            try:
                return self._wait(child, longest, unwanted)
            finally:
                with self._lock:
                    self._running.discard(child)

    def stop(self) -> None:
        """Ask all children to end, and start no others.

        Calls of run() that are under way return, or raise, soon after.
        """
        with self._lock:
            self._stopped = True
            for child in self._running:
                _signal(child, signal.SIGTERM)

    def go_on(self) -> None:
        """Start children again, when all that stop() has asked to end have ended."""
        with self._lock:
            assert not self._running
            self._stopped = False

    def _wait(
        self,
        child: subprocess.Popen[bytes],
        longest: float | None,
        unwanted: Callable[[], bool] | None,
    ) -> int | None:
        end = None if longest is None else time.monotonic() + longest
        # When the child got SIGTERM. Not SIGINT, which a shell makes its background jobs ignore.
        interrupted: float | None = None
        while True:
            try:
                status = child.wait(timeout=0.5)
            except subprocess.TimeoutExpired:
                now = time.monotonic()
                if end is not None and now > end:
                    _kill(child)
                    return None
                if interrupted is None and (self._stopped or (unwanted and unwanted())):
                    interrupted = now
                    _signal(child, signal.SIGTERM)
                if interrupted is not None and now > interrupted + GRACE:
                    _kill(child)
                    raise Stopped("stopped") from None
                continue
            except BaseException:
                _kill(child)
                raise
            if interrupted is not None or self._stopped:
                raise Stopped("stopped")
            return status


def _last_line(log: Path) -> str:
    """The last line of a log, without our name in front of it."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
        if lines := file.read().decode(errors="replace").strip().splitlines():
            return lines[-1].removeprefix("orchestrator: ")
    return ""


def _signal(child: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def _kill(child: subprocess.Popen[bytes]) -> None:
    _signal(child, signal.SIGKILL)
    child.wait()
