# SPDX-License-Identifier: GPL-2.0-only
"""The keeper: a shell that removes what this process leaves behind, even after SIGKILL.

It reads from a pipe whose other end only we have, so it notices when we end, however that happens.
Then it kills all processes that descend from us, and removes our temporary directories. It finds
the processes by a variable in their environment: a make that is killed leaves compilers behind,
which the death signal of proc.mortal() does not reach, in sessions of their own. A compiler that is
killed in turn leaves temporary files behind, so $TMPDIR of all of them is one of our directories.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.host import interrupts

MARKER = "ORCHESTRATOR_KEEPER_"
"""What the name of the environment variable begins with; the rest is different in each process."""
PREFIX = "orchestrator-"
"""What the names of temporary directories begin with."""
DISMISSAL = 2.0
"""Seconds that the keeper may take to end. It takes some 30 ms."""
END = "end"
"""The line that announces an orderly end."""
SCRIPT = f"""
marker=$1
shift
quiet=5
while IFS= read -r line; do
    case $line in
    {END}) quiet=1 ;;
    *) set -- "$@" "$line" ;;
    esac
done
# Some may be about to start others, and one that cannot be killed must not keep us for ever.
rounds=50
while [ "$quiet" -gt 0 ] && [ "$rounds" -gt 0 ]; do
    found=$(grep -lszxF -e "$marker" /proc/[0-9]*/environ)
    for file in $found; do
        process=${{file#/proc/}}
        kill -KILL "${{process%/environ}}"
    done
    [ "$found" ] || quiet=$((quiet - 1))
    rounds=$((rounds - 1))
    [ "$quiet" -eq 0 ] || sleep 0.1
done
rm -rf -- "$@"
"""
"""The shell's program. Each line that it reads is a directory to remove. Processes are looked for
until there are none for half a second, as one that has just been forked has no environment yet."""

_lock = threading.Lock()
_keeper: subprocess.Popen[bytes] | None = None
_scratch: Path | None = None
"""For temporary files of our children."""


def start() -> None:
    """Start the keeper unless it runs. It finds only processes that are started after this.

    From then on $TMPDIR of our children is a directory that ends with us.
    """
    global _keeper, _scratch
    with interrupts.held(), _lock:
        if _keeper:
            return
        variable = f"{MARKER}{secrets.token_hex(8)}"
        _keeper = subprocess.Popen(
            ["/bin/sh", "-c", SCRIPT, "sh", f"{variable}=1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
            # The keeper of a process above us must not find ours.
            env={"PATH": os.environ.get("PATH", os.defpath)},
            cwd="/",
        )
        os.environ[variable] = "1"
        atexit.register(_dismiss)
        os.register_at_fork(after_in_child=_forget)
        with contextlib.suppress(OSError):  # without one, they have to do with what they find
            _scratch = _new_directory((Path(tempfile.gettempdir()),))
            _remove_later(_scratch)
            os.environ["TMPDIR"] = str(_scratch)


def watch(directory: Path) -> None:
    """Have `directory` removed once this process has ended, if it still exists then."""
    start()
    _remove_later(directory)


def _remove_later(directory: Path) -> None:
    path = str(directory.absolute())
    if "\n" not in path:
        _tell(path)


@contextlib.contextmanager
def temporary_directory(*bases: Path) -> Iterator[Path]:
    """A private directory that outlives neither the block nor this process.

    bases: where to make it, the first that works; by default the system's place for such files.

    Raises OSError if none works.
    """
    with interrupts.held():
        path = _new_directory(bases or (Path(tempfile.gettempdir()),))
        watch(path)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _new_directory(bases: Sequence[Path]) -> Path:
    for base in bases[:-1]:
        with contextlib.suppress(OSError):
            return Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
    return Path(tempfile.mkdtemp(prefix=PREFIX, dir=bases[-1]))


def _tell(line: str) -> None:
    # That somebody killed the keeper is no reason to fail.
    with contextlib.suppress(OSError):
        if _keeper and _keeper.stdin:
            _keeper.stdin.write(os.fsencode(line) + b"\n")


def _dismiss() -> None:
    """At the end of this process: let the keeper look once, and wait for it.

    Where nobody collects the children of dead processes, as in many containers, it would stay as a
    zombie.
    """
    _tell(END)
    if _keeper and _keeper.stdin:
        _keeper.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            _keeper.wait(DISMISSAL)
        if _scratch:  # somebody may have killed the keeper
            shutil.rmtree(_scratch, ignore_errors=True)


def _forget() -> None:
    """In a forked process, whose end must not concern the keeper."""
    global _keeper, _lock
    if _keeper and _keeper.stdin:
        _keeper.stdin.close()
    _keeper, _lock = None, threading.Lock()
