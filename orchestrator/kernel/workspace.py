# SPDX-License-Identifier: GPL-2.0-only
"""A private copy of a source, kept in step with it, in which kernels are built incrementally.

    cache_dir()/work/NAME/src      the source with patches applied. Only files whose content changes
                                   are ever replaced, so make rebuilds only what depends on them.
    cache_dir()/work/NAME/build    make's O= directory
    cache_dir()/work/NAME/stamps   fingerprints of the files in src, valid while size, modification
                                   time and inode of the file are the same

What is in src is always looked up there, never remembered: whatever an interrupted copy, an earlier
version of this program or a damaged disk left behind, the next build begins with the right files.
Finished kernels are copied out, so a workspace can safely switch to other patches or be deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import InfraError
from orchestrator.host import files, seal
from orchestrator.host.notices import waiting_for
from orchestrator.host.paths import cache_dir
from orchestrator.host.seal import fingerprint
from orchestrator.kernel.sources import Manifest, Source


@dataclass(frozen=True)
class Workspace:
    """A locked workspace."""

    root: Path
    """cache_dir()/work/NAME."""
    lock: int
    """A locked file descriptor. Child processes inherit it and hold the lock if they outlive us."""

    @property
    def src(self) -> Path:
        return self.root / "src"

    @property
    def build(self) -> Path:
        return self.root / "build"

    @property
    def used(self) -> bool:
        """Whether it has a source already."""
        return (self.root / "stamps").exists()

    def sync(self, source: Source, overlay: Mapping[str, Path | None]) -> None:
        """Make src equal to `source`, with the files in `overlay` replaced (None: deleted).

        Raises InfraError if a file of the source changes while it is copied.
        """
        target: Manifest = dict(source.manifest)
        for path, file in overlay.items():
            target.pop(path, None)
            if file:
                target[path] = fingerprint(file)
        noted = self._look()
        removed = noted.keys() - target.keys()
        changed = [path for path in target if path not in noted or noted[path][0] != target[path]]
        for path in removed:
            self._remove(path)
            del noted[path]
        folders: set[str] = set()
        for path in changed:
            folder = os.path.dirname(path)  # noqa: PTH120 (80,000 times)
            if folder not in folders:
                (self.src / folder).mkdir(parents=True, exist_ok=True)
                folders.add(folder)
            file = overlay.get(path) or source.root / path
            self._place(path, file, target[path], source.frozen, path in overlay)
            noted[path] = [target[path], *seal.stamp(f"{self.src}/{path}")]
        files.save(self.root / "stamps", noted)

    def _look(self) -> dict[str, list[Any]]:
        """What is in src: path -> fingerprint and stamp. Only files with a new stamp are read."""
        known: dict[str, list[Any]] = files.load(self.root / "stamps") or {}
        noted = {}
        for path in seal.listed(self.src):
            stamp = seal.stamp(f"{self.src}/{path}")
            entry = known.get(path)
            if entry is None or entry[1:] != stamp:
                entry = [fingerprint(self.src / path), *stamp]
            noted[path] = entry
        return noted

    def _remove(self, path: str) -> None:
        file = self.src / path
        file.unlink(missing_ok=True)
        for folder in file.relative_to(self.src).parents[:-1]:
            try:
                (self.src / folder).rmdir()
            except OSError:  # it has other files
                break
        if path.endswith((".c", ".S")):
            # make would keep using the object although its source is gone
            (self.build / path).with_suffix(".o").unlink(missing_ok=True)

    def _place(self, path: str, file: Path, expected: str, frozen: bool, patched: bool) -> None:
        """Copy or link `file` to `path` in src by renaming, which preserves links to the old file.

        expected: the fingerprint that the copy must have.
        """
        target = self.src / path
        temporary = target.with_name(f".{target.name}.new")
        temporary.unlink(missing_ok=True)
        if target.is_dir() and not target.is_symlink():  # a directory that became a file
            shutil.rmtree(target)
        if file.is_symlink():
            os.symlink(os.readlink(file), temporary)  # noqa: PTH115, PTH211 (exactly as it is)
        elif frozen and not patched and not target.exists():
            try:
                os.link(file, temporary)
            except OSError:  # another filesystem, or too many links
                shutil.copy2(file, temporary)
        else:
            # Not copy2(): the modification time must be later than that of any object made from the
            # file that this one replaces.
            shutil.copyfile(file, temporary)
            # without set-user-ID bits: the copy belongs to whoever builds, perhaps to root
            temporary.chmod(file.stat().st_mode & 0o777 | 0o200)
            if fingerprint(temporary) != expected:
                raise InfraError(
                    f"{file} changed while it was copied: repeat when nothing writes to the tree"
                )
        temporary.replace(target)


@contextlib.contextmanager
def opened(name: str) -> Iterator[Workspace]:
    """The workspace `name`, locked.

    If this process is killed, the lock lasts until its make has ended as well.
    """
    root = cache_dir() / "work" / name
    (root / "src").mkdir(parents=True, exist_ok=True)
    (root / "build").mkdir(exist_ok=True)
    descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting_for(f"another build in {name}")()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield Workspace(root, descriptor)
    finally:
        os.close(descriptor)
