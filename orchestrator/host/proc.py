# SPDX-License-Identifier: GPL-2.0-only
"""Child processes that die with this one, and commands whose output is captured."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.errors import InfraError, shortened
from orchestrator.host import keeper


def mortal(command: Sequence[str | Path]) -> list[str]:
    """`command`, wrapped so that it does not outlive the thread that starts it, nor this process.

    setpriv(1) sets PR_SET_PDEATHSIG after the fork, and then execs the command, which the kernel
    kills when that thread ends. It is part of util-linux, which every Debian has. A preexec_fn
    would be unsafe in a process with threads. What the command starts itself is the keeper's
    (host/keeper.py); its environment must contain ours.
    """
    keeper.start()
    return ["setpriv", "--pdeathsig", "KILL", "--", *map(str, command)]


def need(program: str, package: str) -> str:
    """The path of `program`. Raises InfraError, naming the Debian package that has it."""
    path = shutil.which(program)
    if not path:
        raise InfraError(f"{program} is not installed: apt-get install {package}")
    return path


def how_it_ended(status: int) -> str:
    """The wait status of a child as words that follow its name."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal has no name
        return f"was killed by signal {-status}"


def check_not_killed(command: Sequence[str | Path], status: int) -> None:
    """Raise InfraError if a signal ended `command`, whose status then answers no question."""
    if status < 0:
        text = shortened(shlex.join(map(str, command)), 100)
        raise InfraError(f"`{text}` {how_it_ended(status)}: try again")


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    stdin: str | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run `command` to its end. The result's stdout has the output of both streams.

    env: added to our own environment.
    log: a file to which the output is appended. The result then has the content of this file.
    check: raise subprocess.CalledProcessError if the status is not 0. Its `output` is the output;
        the caller turns it into a sentence for the user.

    On any exception, Ctrl-C included, the command's whole process group is killed.

    Raises InfraError if somebody else kills it, whatever `check`.
    """
    full_env = {**os.environ, "LC_ALL": "C.UTF-8", **(env or {})}
    sink = log.open("a+b") if log else subprocess.PIPE
    try:
        child = subprocess.Popen(
            mortal(command),
            cwd=cwd,
            env=full_env,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            raw, _ = child.communicate(stdin.encode() if stdin is not None else None)
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise
    finally:
        if not isinstance(sink, int):
            sink.close()
    text = raw.decode(errors="replace") if raw else (log.read_text(errors="replace") if log else "")
    check_not_killed(command, child.returncode)
    if check and child.returncode:
        raise subprocess.CalledProcessError(child.returncode, list(map(str, command)), output=text)
    return subprocess.CompletedProcess(list(map(str, command)), child.returncode, text, "")
