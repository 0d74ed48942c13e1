"""Child processes that die with us, and commands whose failure is explained."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.errors import InfraError


def mortal(command: Sequence[str | Path]) -> list[str]:
    """`command`, wrapped so that the kernel kills it when the thread that starts it ends, however that ends.

    setpriv(1) (util-linux, on every Debian) sets PR_SET_PDEATHSIG after the fork and then execs: no preexec_fn, which
    is unsafe in a process with threads. Start such a process from a thread that lives as long as the process should.
    """
    return ["setpriv", "--pdeathsig", "KILL", "--", *map(str, command)]


def need(program: str, package: str) -> str:
    """The path of `program`, or an InfraError that names the Debian package to install."""
    found = shutil.which(program)
    if not found:
        raise InfraError(f"{program} is not installed: apt-get install {package}")
    return found


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    log: Path | None = None,
    stdin: str | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run `command` to its end with its output captured (both streams, as one text), or appended to the file `log`.

    `env` is added to our own environment. With `check`, a non-zero status raises subprocess.CalledProcessError, whose
    `output` has the text; the caller turns it into the sentence that fits. On Ctrl-C the whole process group of the
    command is ended before KeyboardInterrupt goes on.
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
    if check and child.returncode:
        raise subprocess.CalledProcessError(child.returncode, list(map(str, command)), output=text)
    return subprocess.CompletedProcess(list(map(str, command)), child.returncode, text, "")
