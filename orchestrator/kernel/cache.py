"""The cache as a user sees it: which kernels it holds, what it takes, and how it is made smaller."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import InfraError
from orchestrator.host import debian
from orchestrator.host.paths import cache_dir
from orchestrator.kernel import debian_image, definition

KINDS = ("kernels", "stock", "sources", "work", "checkouts", "modules", "symbols", "debs", "bisect")
"""Folders of the cache whose entries can be fetched or built again, each entry by itself."""
IN_USE = 3600.0
"""Seconds for which an entry is safe from cleaning: a run may have just begun to use it."""


@dataclass(frozen=True, kw_only=True)
class CachedKernel:
    """One kernel in the cache. patches: their file names. where: its directory."""

    name: str
    release: str
    what: str
    patches: tuple[str, ...]
    where: Path


@dataclass(frozen=True, kw_only=True)
class CacheEntry:
    """One entry of the cache. size: bytes on the disk. used: seconds since the epoch, when it last was."""

    kind: str
    path: Path
    size: int
    used: float


def kernels() -> list[CachedKernel]:
    """Those in the cache, built or fetched."""
    found = []
    for note in sorted(cache_dir().glob("*/*/kernel.json")):
        told = json.loads(note.read_text())
        origin = told["origin"]
        patches = tuple(
            name for name in origin.get("patches", "none").split(", ") if name != "none"
        )
        words = (origin.get("package") or origin.get("tree", ""), origin.get("version", ""))
        what = " ".join(filter(None, words))
        found.append(
            CachedKernel(
                name=told["name"],
                release=told["release"],
                what=what,
                patches=patches,
                where=note.parent,
            )
        )
    return found


def offered() -> dict[str, tuple[str, bool]]:
    """Debian's images by the selector that names exactly that version: the suite, and whether it has headers for it."""
    suites = dict.fromkeys(
        suite for known in (*debian_image.SUITES.values(), debian_image.NEWER) for suite in known
    )
    images = debian.candidates(r"linux-(image|headers)-\d+\.\d+\.\d+\S*-amd64", suites)
    headers = {
        (package.name, package.version)
        for package in images
        if package.name.startswith("linux-headers-")
    }
    found: dict[str, tuple[str, bool]] = {}
    for image in sorted(
        images, key=lambda package: [int(part) for part in re.findall(r"\d+", package.upstream)]
    ):
        if not debian_image.IMAGE.fullmatch(image.name):
            continue
        has = (image.name.replace("linux-image-", "linux-headers-", 1), image.version) in headers
        selector = debian_image.exactly(image)
        if selector not in found or (has and not found[selector][1]):
            found[selector] = (image.suite, has)
    return found


def definitions() -> dict[str, str]:
    """What kernels/ has, by name, each with its line of description."""
    return {name: definition.load(name).description for name in definition.names()}


def items() -> list[CacheEntry]:
    """Everything in the cache that cleaning may take, the longest unused first."""
    found = [
        CacheEntry(kind=kind, path=path, size=_size(path), used=_used(path))
        for kind in KINDS
        for path in (cache_dir() / kind).glob("[!.]*")
        if not path.name.endswith((".list", ".log"))
    ]
    return sorted(found, key=lambda item: item.used)


def clean(
    *, older: float | None = None, keep: int | None = None, dry: bool = False
) -> Iterator[CacheEntry]:
    """Remove what was not used for `older` seconds, and then the longest unused until `keep` bytes remain.

    Yields what is removed; with `dry` nothing is. What was used within the hour stays, and what is just being made.
    """
    all_items, now = items(), time.time()
    total = sum(item.size for item in all_items)
    for item in all_items:
        idle = now - item.used
        wanted = (older is not None and idle > older) or (keep is not None and total > keep)
        if wanted and idle > IN_USE and (dry or _remove(item.path)):
            total -= item.size
            yield item


def _remove(path: Path) -> bool:
    """Remove an entry unless somebody holds its lock; first out of sight, so that a half of it is never found."""
    lock = path / "lock" if (path / "lock").is_file() else path.with_name(f".{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        try:
            if path.is_dir():
                gone = path.with_name(f".{path.name}.partial-gone")
                path.rename(gone)
                shutil.rmtree(gone)
                path.with_name(f"{path.name}.list").unlink(missing_ok=True)
            else:
                path.unlink()
        except OSError as error:
            raise InfraError(f"{path} cannot be removed: {error.strerror}") from error
    return True


def _size(path: Path) -> int:
    """Bytes on the disk; a file with several names counts in part, as the others may stay."""
    if not path.is_dir():
        return path.lstat().st_blocks * 512
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            status = os.lstat(f"{folder}/{name}")
            total += status.st_blocks * 512 // status.st_nlink
    return total


def _used(path: Path) -> float:
    """The newest of the times at which it was made, asked for (paths.cached_dir() touches the lock), or built in."""
    signs = (path, path.with_name(f".{path.name}.lock"), path / "lock", path / "build.log")
    return max(sign.stat().st_mtime for sign in signs if sign.exists())
