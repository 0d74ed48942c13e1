"""A private copy of a source, kept in step with it, in which kernels are built incrementally.

    cache_dir()/work/NAME/src      the source with patches applied; only files whose content changes are ever replaced,
                                   so make rebuilds what depends on them and nothing else
    cache_dir()/work/NAME/build    make's O= directory
    cache_dir()/work/NAME/state.json   what src holds

Finished kernels are copied out, so a workspace can switch between patch series, or be deleted, without harm.
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
    """`root` as above. lock: a locked file descriptor; children inherit it, so that the lock outlives us with them."""

    root: Path
    lock: int

    @property
    def src(self) -> Path:
        return self.root / "src"

    @property
    def build(self) -> Path:
        return self.root / "build"

    @property
    def used(self) -> bool:
        """Whether it holds a source already."""
        return (self.root / "state.json").exists()

    def hold(self, source: Source, overlay: Mapping[str, Path | None]) -> None:
        """Make src equal to `source` with the files of `overlay` in place of its own (None: deleted)."""
        wanted: Manifest = dict(source.manifest)
        for path, file in overlay.items():
            wanted.pop(path, None)
            if file:
                wanted[path] = fingerprint(file)
        state = self.root / "state.json"
        present = _load(state)
        removed = present.keys() - wanted.keys()
        changed = [path for path, printed in wanted.items() if present.get(path) != printed]
        if not removed and not changed:
            return
        # Whoever comes after an interruption must not believe that these are as they were.
        certain = {
            path: printed for path, printed in present.items() if wanted.get(path) == printed
        }
        write_whole(state, json.dumps(certain))
        for path in removed:
            (self.src / path).unlink(missing_ok=True)
            if path.endswith(
                (".c", ".S")
            ):  # make would go on using the object of a source that is gone
                (self.build / path).with_suffix(".o").unlink(missing_ok=True)
        folders: set[str] = set()
        for path in changed:
            folder = os.path.dirname(path)  # noqa: PTH120 (80,000 times)
            if folder not in folders:
                (self.src / folder).mkdir(parents=True, exist_ok=True)
                folders.add(folder)
            self._place(
                path,
                overlay.get(path) or source.root / path,
                wanted[path],
                source.frozen,
                path in overlay,
            )
        write_whole(state, json.dumps(wanted))

    def _place(self, path: str, file: Path, printed: str, frozen: bool, patched: bool) -> None:
        """Put `file` at `path` in src by renaming, so that what is linked to the old file keeps it."""
        target = self.src / path
        temporary = target.with_name(f".{target.name}.new")
        temporary.unlink(missing_ok=True)
        if target.is_dir() and not target.is_symlink():  # a folder that became a file
            shutil.rmtree(target)
        if file.is_symlink():
            temporary.symlink_to(file.readlink())
        elif frozen and not patched and not target.exists():
            try:
                os.link(file, temporary)
            except OSError:  # another filesystem, or too many links
                shutil.copy2(file, temporary)
        else:
            # Not copy2: the time must be now, later than any object made from the file that it replaces.
            shutil.copyfile(file, temporary)
            shutil.copymode(file, temporary)
            temporary.chmod(temporary.stat().st_mode | 0o200)
            if not frozen and fingerprint(temporary) != printed:
                raise InfraError(
                    f"{file} changed while it was copied: repeat when nothing writes to the tree"
                )
        temporary.replace(target)


@contextlib.contextmanager
def opened(name: str) -> Iterator[Workspace]:
    """The workspace `name`, locked. The lock also lasts while a make lives on that lost its parent to SIGKILL."""
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
