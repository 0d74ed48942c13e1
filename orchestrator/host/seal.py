# SPDX-License-Identifier: GPL-2.0-only
"""Checksums of the cache's entries: what an entry was when it was made, and whether it still is.

An entry is a directory that is made once and not changed afterwards. Its file .sums has, for each
file, a fingerprint of its content and a stamp: size, modification time and inode. Reading all files
at each use would take too long, so damage() reads only

- files whose stamp differs from the noted one,
- the files that the caller calls vital,
- all files if a day has passed since they were all read.
"""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator.host import files

FILE = ".sums"
LAYOUT = 1
"""Of FILE. Increase it when entries made before must not be trusted."""
READ_ALL = 24 * 3600
"""Seconds after which all files of an entry are read again."""
ALL = ("*",)
"""Vital files of an entry that is small."""

Stamp = list[int]


def seal(directory: Path) -> None:
    """Note what is in `directory` and write it to the disk."""
    noted = {}
    for path in listed(directory):
        file = f"{directory}/{path}"
        noted[path] = [fingerprint(Path(file)), *stamp(file)]
    _note(directory, noted, time.time())
    files.flush(directory)


def damage(directory: Path, vital: Sequence[str] = ALL, *, read_all: bool = False) -> list[str]:
    """The files of `directory` that are missing or not what they were; empty if it is intact.

    An entry without FILE, or with a damaged one, is damaged: nothing is known about it.
    vital: patterns (`*.ko`) of the paths to read in any case.
    """
    sums = _sums(directory)
    if sums is None:
        return [FILE]
    noted: dict[str, list[Any]] = sums["files"]
    read_all |= not 0 <= time.time() - sums["read"] < READ_ALL
    patterns = re.compile("|".join(fnmatch.translate(pattern) for pattern in vital) or "(?!)")
    damaged, moved = [], {}
    for path, (printed, *before) in noted.items():
        file = f"{directory}/{path}"
        try:
            now = stamp(file)
            if now == before and not (read_all or patterns.match(path)):
                continue
            if fingerprint(Path(file)) != printed:
                damaged.append(path)
        except OSError:
            damaged.append(path)
            continue
        if now != before:
            moved[path] = [printed, *now]
    if not damaged and (moved or read_all):
        # Copied from elsewhere, for example by a CI's cache. A cache that belongs to another user,
        # or is full, can still be read.
        with contextlib.suppress(OSError):
            _note(directory, noted | moved, time.time() if read_all else sums["read"])
    return damaged


def fingerprints(directory: Path) -> dict[str, str]:
    """Path -> fingerprint() of each file of the sealed `directory`, as it was when it was made."""
    sums = _sums(directory)
    return {path: entry[0] for path, entry in sums["files"].items()} if sums else {}


def fingerprint(file: Path) -> str:
    """Text that identifies the content, type and executable bit of `file`."""
    mode = file.lstat().st_mode
    if stat.S_ISLNK(mode):
        return f"link {os.readlink(file)}"  # noqa: PTH115 (a Path would drop a trailing slash)
    if not stat.S_ISREG(mode):
        return f"special {mode:o}"
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "blake2b").hexdigest()[:40]
    return f"{'x' if mode & 0o100 else '-'} {digest}"


def stamp(file: str) -> Stamp:
    """What changes whenever somebody writes to `file`: size, modification time in ns, inode."""
    status = os.lstat(file)
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def listed(root: Path) -> Iterator[str]:
    """The paths of all files below `root`, relative to it. A link to a directory is a file."""
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(f"{root}/{folder}") as entries:
            for entry in entries:
                path = f"{folder}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{path}/")
                elif path != FILE:
                    yield path


def _sums(directory: Path) -> dict[str, Any] | None:
    sums = files.load(directory / FILE)
    return sums if isinstance(sums, dict) and sums.get("layout") == LAYOUT else None


def _note(directory: Path, noted: dict[str, list[Any]], read: float) -> None:
    """read: when all files were last read."""
    files.save(directory / FILE, {"layout": LAYOUT, "read": read, "files": noted})
