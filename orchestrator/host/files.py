# SPDX-License-Identifier: GPL-2.0-only
"""Locks, files that are written completely or not at all, and what a killed writer leaves behind.

Every temporary file and directory is next to what it becomes and is called .NAME.partial-XXXXXXXX:

- A file is locked by the process that writes it.
- A directory belongs to the process that holds the lock .NAME.lock beside it.

So whoever finds one can tell whether its owner is still there, and removes it if not.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any

from orchestrator.host import keeper

PARTIAL = ".partial-"
_LEFTOVER = re.compile(rf"\.(?P<name>.+){re.escape(PARTIAL)}\w+")


@contextlib.contextmanager
def locked(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`, across processes. Creates the file if necessary.

    A flock(2) ends with its holder, even after SIGKILL, so a dead run never blocks a running one.
    waiting: called once, before this blocks, if another process has the lock.
    """
    with contextlib.suppress(OSError):  # an empty directory in its place is nobody's
        path.rmdir()
    handle = _open_lock(path)
    try:
        if not _try_lock(handle):
            if waiting:
                waiting()
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _open_lock(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        # What belongs to somebody else, or is read-only, can be locked as well if it is there.
        with contextlib.suppress(OSError):
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        raise


def lock_of(path: Path) -> Path:
    """The lock file of the directory or file `path`: .NAME.lock beside it."""
    return path.with_name(f".{path.name}.lock")


_used: list[IO[str]] = []


def use(path: Path) -> None:
    """Keep others from removing an entry of a cache as long as this process lives."""
    # A cache that belongs to another user can be read, too, and is cleaned by nobody but them.
    with contextlib.suppress(OSError):
        _used.append(lock_of(path).open("a"))
        fcntl.flock(_used[-1], fcntl.LOCK_SH | fcntl.LOCK_NB)


def partial_dir(final: Path) -> Path:
    """Make a temporary directory that may become `final`. The caller holds lock_of(final)."""
    partial = Path(tempfile.mkdtemp(prefix=f".{final.name}{PARTIAL}", dir=final.parent))
    keeper.watch(partial)
    partial.chmod(0o755)
    return partial


def write_whole(path: Path, content: str | bytes) -> None:
    """Write `path` completely or not at all. If two processes do so at once, the last one wins."""
    handle, temporary = _partial_file(path)
    try:
        with os.fdopen(handle, "w" if isinstance(content, str) else "wb") as file:
            file.write(content)
            file.truncate()
            file.flush()
            # Otherwise the name may reach the disk before the content, and a loss of power leaves
            # an empty file.
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def reserve(path: Path, size: int) -> None:
    """Take `size` bytes of the disk, if possible, for a later write_whole() to `path`.

    It then works also on a disk that is full by then.
    """
    with contextlib.suppress(OSError):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        handle = os.open(_reserved(path), flags, 0o600)
        try:
            os.posix_fallocate(handle, 0, size)
        finally:
            os.close(handle)


def _reserved(path: Path) -> Path:
    return path.with_name(f".{path.name}.reserved")


def write_report(path: Path, text: str) -> None:
    """As write_whole(), for text that may have names of files in it."""
    write_whole(path, unicode(text))


def unicode(text: str) -> str:
    """`text` with an escape for each byte that is not UTF-8. Names of files may have any bytes."""
    return text.encode(errors="backslashreplace").decode()


def _partial_file(path: Path) -> tuple[int, Path]:
    """A new temporary file for `path`, open and locked; the reserved one if there is one."""
    with contextlib.suppress(OSError):
        return os.open(_reserved(path), os.O_WRONLY | os.O_CLOEXEC), _reserved(path)
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}{PARTIAL}", dir=path.parent)
        # Between these two lines another process may have taken it for a leftover.
        if _try_lock(handle) and os.fstat(handle).st_nlink:
            return handle, Path(name)
        os.close(handle)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# --- notes of this program that must not be believed when they are damaged -----------------------


def save(path: Path, content: Any) -> None:
    """Write `content` as JSON to `path`, after a line with its checksum, for load()."""
    text = json.dumps(content, separators=(",", ":"))
    write_whole(path, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")


def remember(path: Path, content: Any) -> None:
    """save(), if that is possible: for what can be found out again and only saves time."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path, content)


def load(path: Path) -> Any:
    """What save() wrote to `path`, or None if the file is missing or damaged."""
    try:
        checksum, _, text = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    text = text.removesuffix(b"\n")
    if hashlib.sha256(text).hexdigest().encode() != checksum:
        return None
    return json.loads(text)


# --- what killed processes leave behind ----------------------------------------------------------


def leftovers(root: Path, depth: int) -> Iterator[Path]:
    """Temporary files and directories up to `depth` levels below `root` whose owner is dead."""
    folders = [(str(root), 1)]
    while folders:
        folder, level = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError:  # it was removed meanwhile, or is not ours
            continue
        for entry in entries:
            if _LEFTOVER.fullmatch(entry.name):
                if not _has_owner(Path(entry.path)):
                    yield Path(entry.path)
            elif level < depth and entry.is_dir(follow_symlinks=False):
                folders.append((entry.path, level + 1))


def _has_owner(path: Path) -> bool:
    """Whether the process that made the temporary `path` still works on it."""
    match = _LEFTOVER.fullmatch(path.name)
    assert match
    lock = path.with_name(f".{match['name']}.lock") if path.is_dir() else path
    try:
        descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # a lock that does not exist is held by nobody
        return not os.path.lexists(path)
    except OSError:
        return True
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(root: Path, depth: int) -> None:
    """Remove what leftovers() finds, as far as this is allowed."""
    for path in leftovers(root, depth):
        remove(path)


def remove(path: Path) -> None:
    """Remove a file or directory, if it is still there and this is allowed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


# --- disk ----------------------------------------------------------------------------------------


def flush(directory: Path) -> None:
    """Write everything that is in memory of the file system of `directory` to the disk.

    One call for thousands of files: fsync(2) on each of them takes a hundred times as long.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc().syncfs(descriptor):
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(directory))
    finally:
        os.close(descriptor)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
