# SPDX-License-Identifier: GPL-2.0-only
"""A private copy of a source, kept in step with it, in which kernels are built incrementally.

    cache_dir()/work/NAME/src      the source with patches applied. Only files whose content changes
                                   are ever replaced, so make rebuilds only what depends on them.
    cache_dir()/work/NAME/build    make's O= directory
    cache_dir()/work/NAME/state.json   the manifest of src

Finished kernels are copied out, so a workspace can safely switch to other patches or be deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import InfraError
from orchestrator.host.notices import waiting_for
from orchestrator.host.paths import cache_dir, write_whole
from orchestrator.kernel.sources import Manifest, Source, fingerprint


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
        return (self.root / "state.json").exists()

    def sync(self, source: Source, overlay: Mapping[str, Path | None]) -> None:
        """Make src equal to `source`, with the files in `overlay` replaced (None: deleted).

        Raises InfraError if a file of the source changes while it is copied.
        """
        target: Manifest = dict(source.manifest)
        for path, file in overlay.items():
            target.pop(path, None)
            if file:
                target[path] = fingerprint(file)
        state = self.root / "state.json"
        present = _load(state)
        removed = present.keys() - target.keys()
        changed = [path for path, expected in target.items() if present.get(path) != expected]
        if not removed and not changed:
            return
        # If this is interrupted, the next process must not assume that the changed files are as
        # they were before.
        unchanged = {
            path: printed for path, printed in present.items() if target.get(path) == printed
        }
        write_whole(state, json.dumps(unchanged))
        for path in removed:
            self._remove(path)
        folders: set[str] = set()
        for path in changed:
            folder = os.path.dirname(path)  # noqa: PTH120 (80,000 times)
            if folder not in folders:
                (self.src / folder).mkdir(parents=True, exist_ok=True)
                folders.add(folder)
            file = overlay.get(path) or source.root / path
            self._place(path, file, target[path], source.frozen, path in overlay)
        write_whole(state, json.dumps(target))

    def _remove(self, path: str) -> None:
        (self.src / path).unlink(missing_ok=True)
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
            temporary.symlink_to(file.readlink())
        elif frozen and not patched and not target.exists():
            try:
                os.link(file, temporary)
            except OSError:  # another filesystem, or too many links
                shutil.copy2(file, temporary)
        else:
            # Not copy2(): the modification time must be later than that of any object made from the
            # file that this one replaces.
            shutil.copyfile(file, temporary)
            shutil.copymode(file, temporary)
            temporary.chmod(temporary.stat().st_mode | 0o200)
            if not frozen and fingerprint(temporary) != expected:
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


def _load(state: Path) -> Manifest:
    try:
        loaded: Manifest = json.loads(state.read_text())
    except (OSError, ValueError):
        return {}
    return loaded
