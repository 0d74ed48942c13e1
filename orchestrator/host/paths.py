# SPDX-License-Identifier: GPL-2.0-only
"""The host's file system: XDG directories, locks, and writes that are all or nothing."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs

from orchestrator.errors import InfraError

PROJECT = Path(__file__).resolve().parent.parent.parent
"""The checkout. kernels/ (definitions, patches, fragments) and guest/ are read from here."""


def cache_dir() -> Path:
    """$XDG_CACHE_HOME/orchestrator. All of its content can be downloaded or built again."""
    return _made(Path(platformdirs.user_cache_dir("orchestrator")))


def state_dir() -> Path:
    """$XDG_STATE_HOME/orchestrator: run directories, and what was found out about this host."""
    return _made(Path(platformdirs.user_state_dir("orchestrator")))


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, across processes. Creates the file if necessary.

    A flock(2) ends with its holder, even after SIGKILL, so a dead run never blocks a running one.
    waiting: called once, before this blocks, if another process has the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def cached_dir(
    final: Path, make: Callable[[Path], None], waiting: Callable[[], None] | None = None
) -> Path:
    """The directory `final`. If it does not exist yet, `make` creates its content.

    make: called with a temporary directory next to `final`, which is renamed to `final` only if
        `make` returns. If it fails or is interrupted, no incomplete result is left. What a killed
        process left behind is removed by the next one, under the lock.
    waiting: as for locked(). Of two processes that want the same directory, one makes it.

    Raises InfraError if the disk is full.
    """
    lock = final.parent / f".{final.name}.lock"
    if final.is_dir():
        # The lock's time is when the directory was last used. It does no harm if this fails: a
        # cache that belongs to another user, or is full, can still be read.
        with contextlib.suppress(OSError):
            lock.touch()
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock, waiting):
        if final.is_dir():
            return final
        for stale in final.parent.glob(f".{final.name}.partial-*"):
            shutil.rmtree(stale, ignore_errors=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{final.name}.partial-", dir=final.parent))
        partial.chmod(0o755)
        try:
            make(partial)
            partial.rename(final)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise InfraError(
                    f"no space left for {final.name} in {final.parent}: "
                    "free some space and try again"
                ) from error
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return final


def write_whole(path: Path, text: str) -> None:
    """Write `path` completely or not at all. If two processes do so at once, the last one wins."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def need_space(where: Path, mebibytes: int, what: str) -> None:
    """Raise InfraError if the file system of `where` has less than `mebibytes` MiB free.

    what: what needs the space, for the message: "building 6.1-plain".
    """
    where.mkdir(parents=True, exist_ok=True)
    stat = os.statvfs(where)
    free = stat.f_bavail * stat.f_frsize >> 20
    if free < mebibytes:
        raise InfraError(
            f"{what} needs {mebibytes} MiB in {where}, but only {free} MiB are free: "
            "free some space and try again"
        )
