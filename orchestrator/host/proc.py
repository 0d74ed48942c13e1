# SPDX-License-Identifier: GPL-2.0-only
"""Child processes that die with this one, and commands whose output is captured."""

from __future__ import annotations

import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.errors import InfraError, shortened
from orchestrator.host import keeper

ANSWER_SECONDS = 30.0
"""A program that is asked for its version answers at once, even on a busy host."""
ANSWER_BYTES = 1 << 20
"""More than any such answer has: busybox lists its applets in 8 KB."""
REFUSED = re.compile(
    # strerror(3) of ENOSPC, EDQUOT, EFBIG, EIO, EROFS, ESTALE, ENOMEM, EMFILE, ENFILE, EAGAIN
    r"(^|\W)(No space left on device|Disk quota exceeded|File too large|Input/output error"
    r"|Read-only file system|Stale file handle|Cannot allocate memory|Too many open files"
    r"|Too many open files in system|Resource temporarily unavailable)['.\s]*$"
    # sh and the dynamic linker
    r"|\bCannot fork$|: error while loading shared libraries: "
    # dash, bash and make: a program is not installed
    r"|: \d+: [\w.+-]+: not found$|: [\w.+-]+: command not found$"
    r"|^make(\[\d+\])?: [\w.+-]+: No such file or directory$"
    # how make, gcc, collect2 and clang say that a signal from outside has ended a program
    r"|\*\*\* \[.*\] (Killed|Terminated|Hangup|(File size|CPU time) limit exceeded)( |$)"
    r"|: (Killed|Terminated|Hangup|(File size|CPU time) limit exceeded) signal terminated program "
    r"|: unable to execute command: (Killed|Terminated)$|\bterminated with signal (9|15|24|25)\b"
    # cc1 and LLVM
    r"|: out of memory allocating \d+ bytes|LLVM ERROR: out of memory"
)
"""A line by which a compiler, linker, git or make says that the host refused what it needed."""


def mortal(command: Sequence[str | Path]) -> list[str]:
    """`command`, wrapped so that it does not outlive the thread that starts it, nor this process.

    setpriv(1) sets PR_SET_PDEATHSIG after the fork, and then execs the command, which the kernel
    kills when that thread ends. It is part of util-linux, which every Debian has. A preexec_fn
    would be unsafe in a process with threads. What the command starts itself is the keeper's
    (host/keeper.py); its environment must contain ours.
    """
    keeper.start()
    return ["setpriv", "--pdeathsig", "KILL", "--", *map(str, command)]


def without_python(command: Sequence[str]) -> list[str]:
    """`command` without the settings of our Python: GDB has one of its own, of another version."""
    ours = sorted(name for name in os.environ if name.startswith("PYTHON"))
    return [need("env", "coreutils"), *(f"--unset={name}" for name in ours), *command]


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


def host_trouble(output: str) -> str:
    """The first line in a command's output that blames the host, stripped; empty if none does."""
    return next((line.strip() for line in output.splitlines() if REFUSED.search(line)), "")


def state(pid: int) -> str:
    """The state of a process as in proc(5): T if a signal has stopped it; "" if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]  # the name before it may have anything in it


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run `command` to its end. The result's stdout has the output of both streams.

    env: added to our own environment.
    check: raise subprocess.CalledProcessError if the status is not 0. Its `output` is the output;
        the caller turns it into a sentence for the user.

    On any exception, Ctrl-C included, the command's whole process group is killed.

    Raises InfraError if somebody else kills it, or if it fails for want of something that the host
    should give, whatever `check`.
    """
    full_env = {**os.environ, "LC_ALL": "C.UTF-8", **(env or {})}
    child = subprocess.Popen(
        mortal(command),
        cwd=cwd,
        env=full_env,
        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        raw, _ = child.communicate(stdin.encode() if stdin is not None else None)
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        raise
    text = raw.decode(errors="replace")
    check_not_killed(command, child.returncode)
    if child.returncode and (trouble := host_trouble(text)):
        raise InfraError(f"{Path(command[0]).name} failed: {shortened(trouble)}")
    if check and child.returncode:
        raise subprocess.CalledProcessError(child.returncode, list(map(str, command)), output=text)
    return subprocess.CompletedProcess(list(map(str, command)), child.returncode, text, "")


def ask(command: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> str:
    """What a program prints that has nothing to do but answer: its version, say.

    The program may be anything that the user names. So it gets ANSWER_SECONDS, and no more than
    ANSWER_BYTES of it are read. Raises InfraError when it does not run, does not end or fails.

    env: added to our own environment.
    """
    words = list(map(str, command))
    name = " ".join(words)
    deadline = time.monotonic() + ANSWER_SECONDS
    child = subprocess.Popen(
        mortal(command),
        env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        bufsize=0,
    )
    assert child.stdout
    output = b""
    try:
        while select.select([child.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            part = child.stdout.read(1 << 16)
            if not part:
                break
            output += part
            if len(output) > ANSWER_BYTES:
                raise InfraError(f"`{name}` prints more than {ANSWER_BYTES >> 20} MiB")
        child.wait(max(0.0, deadline - time.monotonic()))
    except BaseException as error:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        if isinstance(error, subprocess.TimeoutExpired):
            raise InfraError(f"`{name}` did not end within {ANSWER_SECONDS:.0f} s") from error
        raise
    finally:
        child.stdout.close()
    text = output.decode(errors="replace")
    if child.returncode:
        reason = shortened(text.strip().rpartition("\n")[2]) or "it prints nothing"
        raise InfraError(f"{words[0]} does not run: {reason} (status {child.returncode})")
    return text


def resident(pid: int) -> float:
    """Resident memory of a process in MiB, 0 when it cannot be read."""
    try:
        pages = int((Path("/proc") / str(pid) / "statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)
