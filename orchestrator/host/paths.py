"""Where things live on the host: caches, state and runs in the XDG directories, our own data beside the code."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs

from orchestrator.errors import InfraError

PROJECT = Path(__file__).resolve().parent.parent.parent
"""The checkout: kernels/ (definitions, patches, fragments) and guest/ (what runs inside) are read from here."""


def cache_dir() -> Path:
    """$XDG_CACHE_HOME/orchestrator: everything in it can be fetched or built again."""
    return _made(Path(platformdirs.user_cache_dir("orchestrator")))


def state_dir() -> Path:
    """$XDG_STATE_HOME/orchestrator: run directories and what was learnt about this host."""
    return _made(Path(platformdirs.user_state_dir("orchestrator")))


def _made(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an exclusive lock on the file `path` (made when missing), across processes.

    flock(2) ends with its holder, also after SIGKILL, so a dead run never blocks a living one. `waiting` is called
    once when somebody else has the lock, before blocking.
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
    """The directory `final`, made by `make(temporary)` when it is not there yet.

    `make` fills a temporary directory beside `final`, which is renamed into place only when it returned: an
    interrupted or failed `make` leaves nothing that could be taken for a result, and two processes that want the same
    directory make it once. What a killed process left behind is removed by the next one, under the lock.
    """
    lock = final.parent / f".{final.name}.lock"
    if final.is_dir():
        with contextlib.suppress(
            OSError
        ):  # a cache of another user's, or without room, is fine to read
            lock.touch()  # tells when it was last used
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
            if error.errno == 28:  # ENOSPC
                raise InfraError(
                    f"no space left for {final.name} in {final.parent}: free some and repeat"
                ) from error
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return final


def write_whole(path: Path, text: str) -> None:
    """Write `path` whole or not at all; of two processes that do so at once, one has written it in the end."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    fresh = Path(name)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        fresh.chmod(0o644)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def need_space(where: Path, mebibytes: int, what: str) -> None:
    """Raise InfraError when the filesystem of `where` has less than `mebibytes` MiB free."""
    where.mkdir(parents=True, exist_ok=True)
    stat = os.statvfs(where)
    free = stat.f_bavail * stat.f_frsize >> 20
    if free < mebibytes:
        raise InfraError(
            f"{what} needs {mebibytes} MiB in {where}, where {free} MiB are free: free some and repeat"
        )
