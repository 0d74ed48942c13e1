# SPDX-License-Identifier: GPL-2.0-only
"""The cache as a user sees it: the kernels in it, the space it takes, and how to shrink it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import InfraError
from orchestrator.host import debian, files, seal
from orchestrator.host.paths import CACHE_DEPTH, cache_dir
from orchestrator.kernel import debian_mirror, definition, record
from orchestrator.kernel.record import KernelRecord

ONE_ENTRY = ("ccache",)
"""Folders that are one entry as a whole. In all others, each file or directory is an entry."""
LEFTOVERS = "left by killed processes"
"""What takes the place of a kind for temporary files and directories without an owner."""
OTHERS = "being made, links and locks"
"""The same for what is neither an entry nor left by anybody."""
IN_USE = 3600.0
"""Seconds since its last use during which an entry is never removed: a run may depend on it."""


@dataclass(frozen=True, kw_only=True)
class CachedKernel:
    """One kernel in the cache."""

    name: str
    release: str
    source: str
    """Package and version, or the tree."""
    patches: tuple[str, ...]
    """File names."""
    directory: Path


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """One entry of the cache: a directory or a file."""

    kind: str
    """The folder of the cache that it is in, LEFTOVERS or OTHERS."""
    path: Path
    size: int
    """Bytes on disk."""
    used: float
    """Time of the last use, in seconds since the epoch."""


def kernels() -> list[CachedKernel]:
    """All kernels in the cache, built or fetched."""
    found = []
    for file in sorted(cache_dir().glob(f"*/*/{record.FILE}")):
        try:
            found.append(_described(file.parent))
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue  # damaged: it is made again when it is used
    return found


def _described(directory: Path) -> CachedKernel:
    kernel = KernelRecord.read(directory)
    origin = kernel.origin
    source = (origin.get("package") or origin.get("tree", ""), origin.get("version", ""))
    patches = origin.get("patches", "none").split(", ")
    return CachedKernel(
        name=kernel.name,
        release=kernel.release,
        source=" ".join(filter(None, source)),
        patches=tuple(name for name in patches if name != "none"),
        directory=directory,
    )


def offered() -> dict[str, tuple[str, bool]]:
    """Debian's images, oldest first: exact selector -> (suite, whether it has the headers)."""
    packages = debian.candidates(
        r"linux-(image|headers)-\d+\.\d+\.\d+\S*-amd64", debian_mirror.all_suites()
    )
    headers = {
        (package.name, package.version)
        for package in packages
        if package.name.startswith("linux-headers-")
    }
    offers: dict[str, tuple[str, bool]] = {}
    for image in sorted(packages, key=debian_mirror.version_key):
        if not debian_mirror.IMAGE.fullmatch(image.name):
            continue
        has_headers = (debian_mirror.headers_name(image), image.version) in headers
        selector = debian_mirror.exact_selector(image)
        if selector not in offers or (has_headers and not offers[selector][1]):
            offers[selector] = (image.suite, has_headers)
    return offers


def definitions() -> dict[str, str]:
    """The definitions in kernels/: name -> description."""
    return {name: definition.load(name).description for name in definition.names()}


def items() -> list[CacheEntry]:
    """Every entry that cleaning may remove, the least recently used first."""
    entries = []
    for folder in cache_dir().glob("[!.]*/"):
        paths = [folder] if folder.name in ONE_ENTRY else folder.glob("[!.]*")
        for path in paths:
            if path.is_symlink():
                continue
            with contextlib.suppress(OSError):  # it was removed just now
                entry = CacheEntry(kind=folder.name, path=path, size=_size(path), used=_used(path))
                entries.append(entry)
    return sorted(entries, key=lambda entry: entry.used)


def others() -> list[CacheEntry]:
    """What is in the cache beside entries and leftovers. Cleaning leaves it."""
    left = {entry.path for entry in leftovers()}
    found = []
    for top in cache_dir().iterdir():
        folder = top.is_dir() and not top.is_symlink() and not top.name.startswith(".")
        inside = [] if top.name in ONE_ENTRY else [*top.iterdir()] if folder else [top]
        for path in inside:
            own = path == top or path.name.startswith(".") or path.is_symlink()
            if own and path not in left:
                with contextlib.suppress(OSError):  # it was removed just now
                    size = path.lstat().st_blocks * 512 if path.is_symlink() else _size(path)
                    found.append(CacheEntry(kind=OTHERS, path=path, size=size, used=0.0))
    return found


def leftovers() -> list[CacheEntry]:
    """What killed processes have left in the cache."""
    return [
        CacheEntry(kind=LEFTOVERS, path=path, size=_size(path), used=0.0)
        for path in files.leftovers(cache_dir(), CACHE_DEPTH)
    ]


def remove_leftovers() -> list[CacheEntry]:
    """Remove them, and return what was removed."""
    found = leftovers()
    for entry in found:
        files.remove(entry.path)
    return [entry for entry in found if not os.path.lexists(entry.path)]


def clean(
    *, older: float | None = None, keep: int | None = None, dry: bool = False
) -> Iterator[CacheEntry]:
    """Remove entries and yield them.

    First go the entries not used for `older` seconds, then the least recently used ones until
    `keep` bytes remain. Entries used within the last hour, and those being made, stay. With `dry`,
    nothing is removed.
    """
    entries, now = items(), time.time()
    total = sum(entry.size for entry in entries)
    for entry in entries:
        idle = now - entry.used
        excess = (older is not None and idle > older) or (keep is not None and total > keep)
        if excess and idle > IN_USE and (dry or _remove(entry.path)):
            total -= entry.size
            yield entry


def keep_newest(folder: Path, count: int) -> None:
    """Remove the least recently used entries of a folder of the cache until `count` remain.

    Those that somebody has locked stay.
    """
    entries = sorted(folder.glob("[!.]*"), key=_used)
    for path in entries[: max(0, len(entries) - count)]:
        with contextlib.suppress(InfraError, OSError):  # another process has removed it
            _remove(path)


def verify() -> Iterator[tuple[CacheEntry, list[str]]]:
    """Read all entries that have checksums, and yield each with the names of its damaged files.

    A damaged entry loses its checksums, so that it is made again when it is next used. It is not
    removed, as another process may use it.
    """
    for entry in items():
        if (entry.path / seal.FILE).is_file():
            damaged = seal.damage(entry.path, read_all=True)
            if damaged:
                (entry.path / seal.FILE).unlink(missing_ok=True)
            yield entry, damaged


def _remove(path: Path) -> bool:
    """Remove an entry, unless somebody holds its lock. Returns whether it was removed.

    A directory is renamed first, so that nobody finds half of it.
    """
    lock = path / "lock" if (path / "lock").is_file() else files.lock_of(path)
    with lock.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        try:
            if path.is_dir():
                gone = files.partial_dir(path)
                path.rename(gone / path.name)
                shutil.rmtree(gone)
            else:
                path.unlink()
        except OSError as error:
            raise InfraError(f"{path} cannot be removed: {error.strerror}") from error
    return True


def _size(path: Path) -> int:
    """Bytes on disk. A file with N hard links counts as 1/N, since the other links may stay."""
    if not path.is_dir():
        return path.lstat().st_blocks * 512
    total = 0
    for file in seal.listed(path):
        status = os.lstat(f"{path}/{file}")
        total += status.st_blocks * 512 // status.st_nlink
    return total


def _used(path: Path) -> float:
    """When the entry was last made, requested (paths.cached_dir() touches its lock) or built in."""
    signs = [path, files.lock_of(path), *(path / name for name in ("lock", "build.log", "answers"))]
    if path.name in ONE_ENTRY:
        signs += path.iterdir()
    return max(sign.lstat().st_mtime for sign in signs if os.path.lexists(sign))
