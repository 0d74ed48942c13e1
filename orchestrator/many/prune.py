# SPDX-License-Identifier: GPL-2.0-only
"""Removes the directories of old runs from the state directory.

The history keeps its lines about them. Only runs in the place that the program chose itself are
removed, never one that --output put elsewhere, and none whose guest is kept or that has not ended.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.attach.notes import LIVE
from orchestrator.host import files
from orchestrator.host.paths import state_dir
from orchestrator.verdict import result

IMAGE = "initramfs.cpio"
"""8 MB of a run's directory; repeat.sh makes it again."""
IMAGE_LASTS = 24 * 3600.0
"""Seconds that the image is kept after a run, for whoever wants to look at it."""
LASTS = 24 * 3600.0
"""Seconds since its last change after which a directory without a verdict belongs to no run any
more."""


@dataclass(frozen=True)
class Pruned:
    """One thing that was removed."""

    directory: Path
    bytes: int
    what: Literal["run", "initramfs"]
    """The whole directory, or only the guest's image in it."""


@dataclass(frozen=True)
class _RunDirectory:
    path: Path
    changed: float
    """When it was last changed, in seconds since the epoch."""
    size: int


def prune(*, older: float | None, keep: int | None, dry: bool = False) -> Iterator[Pruned]:
    """Remove directories of runs, oldest first, then the guest's images of those that stay.

    - older: runs that ended more than so many seconds ago go.
    - keep: the oldest go until so many bytes remain.
    - dry: nothing is removed.
    """
    runs, now = _ended(), time.time()
    total = sum(run.size for run in runs)
    for run in runs:
        old = older is not None and now - run.changed > older
        if old or (keep is not None and total > keep):
            total -= run.size
            if not dry:
                files.remove(run.path)
            yield Pruned(run.path, run.size, "run")
            continue
        image = run.path / IMAGE
        with contextlib.suppress(OSError):
            size = image.lstat().st_blocks * 512
            if not dry:
                image.unlink()
            total -= size
            yield Pruned(run.path, size, "initramfs")


def drop_images() -> None:
    """Remove the guest's images of runs that ended more than IMAGE_LASTS seconds ago."""
    now = time.time()
    for path in _directories():
        with contextlib.suppress(OSError):
            image = path / IMAGE
            if now - image.stat().st_mtime > IMAGE_LASTS and (path / result.FILE).exists():
                image.unlink()


def _directories() -> Iterator[Path]:
    """The directories of runs whose guest is not kept."""
    runs = state_dir() / "runs"
    for path in runs.iterdir() if runs.is_dir() else ():
        if not path.is_symlink() and path.is_dir() and not (path / LIVE).exists():
            yield path


def _ended() -> list[_RunDirectory]:
    """The directories of runs that have ended, oldest first."""
    found = []
    for path in _directories():
        with contextlib.suppress(OSError):  # another process has just removed it
            changed = path.stat().st_mtime
            if (path / result.FILE).exists() or time.time() - changed > LASTS:
                found.append(_RunDirectory(path, changed, _size(path)))
    return sorted(found, key=lambda run: run.changed)


def _size(path: Path) -> int:
    """Bytes on disk."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(f"{folder}/{name}").st_blocks * 512
    return total
