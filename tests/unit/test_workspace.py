# SPDX-License-Identifier: GPL-2.0-only
"""One workspace follows its source from version to version, whatever was left in it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.host import files, seal
from orchestrator.host.paths import cache_dir, cached_dir
from orchestrator.kernel import sources, workspace
from orchestrator.kernel.sources import Source

OLD = {
    "Makefile": "SUBLEVEL = 176\n",
    "kernel/same.c": "int same;\n",
    "kernel/changed.c": "int old;\n",
    "kernel/removed.c": "int removed;\n",
    "gone/far/away.h": "\n",
    "scripts/mode.sh": "#!/bin/sh\n",
    "folder/file": "x\n",
    "file": "x\n",
}
NEW = {
    "Makefile": "SUBLEVEL = 192\n",
    "kernel/same.c": "int same;\n",
    "kernel/changed.c": "int new;\n",
    "kernel/added.c": "int added;\n",
    "scripts/mode.sh": "#!/bin/sh\n",
    "file/file": "x\n",
    "folder": "x\n",
}
OLD_LINKS = {"link": "kernel/same.c", "became-file": "Makefile", "dirlink": "kernel"}
NEW_LINKS = {"link": "kernel/changed.c", "dirlink": "scripts"}


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def frozen(version: str, texts: dict[str, str], links: dict[str, str]) -> Source:
    """An unpacked source of the cache, as Debian's are."""

    def make(partial: Path) -> None:
        for path, text in texts.items():
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            (partial / path).write_text(text)
            os.utime(partial / path, (1, 1))  # archives have old times
        for path, target in links.items():
            (partial / path).symlink_to(target)
        if version == "192":
            (partial / "scripts/mode.sh").chmod(0o755)
            (partial / "became-file").write_text("\n")

    final = cache_dir() / "sources" / f"linux-{version}"
    return Source(
        identity=f"linux-source-6.1 6.1.{version}",
        workspace="6.1",
        fetch=lambda: sources._unpacked(final, make, "source"),
        frozen=True,
    )


def old() -> Source:
    return frozen("176", OLD, OLD_LINKS)


def new() -> Source:
    return frozen("192", NEW, NEW_LINKS)


def sync(source: Source, overlay: dict[str, Path | None] | None = None) -> Path:
    with workspace.opened(source.workspace) as work:
        work.sync(source, overlay or {})
        return work.src


def content(folder: Path) -> dict[str, str]:
    return {path: seal.fingerprint(folder / path) for path in seal.listed(folder)}


def folders(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_dir()}


def test_a_new_version_of_the_source_replaces_what_differs_and_nothing_else() -> None:
    src = sync(old())
    assert content(src) == content(old().root)
    before = {path: os.lstat(src / path) for path in seal.listed(src)}
    sync(new())
    assert content(src) == content(new().root)
    assert folders(src) == folders(new().root)
    same = before["kernel/same.c"]
    assert os.lstat(src / "kernel/same.c").st_mtime_ns == same.st_mtime_ns
    for path in ("Makefile", "kernel/changed.c"):
        assert os.lstat(src / path).st_mtime > 1e9, "make must see that it is new"
    sync(old())
    assert content(src) == content(old().root)


def test_the_object_of_a_removed_file_is_removed() -> None:
    src = sync(old())
    objects = src.parent / "build" / "kernel"
    objects.mkdir()
    for name in ("removed.o", "same.o"):
        (objects / name).touch()
    sync(new())
    assert [path.name for path in objects.iterdir()] == ["same.o"]


def _unknown(src: Path) -> None:
    (src.parent / "stamps").unlink()


def _garbled(src: Path) -> None:
    (src.parent / "stamps").write_text("{}")


def _of_an_earlier_version(src: Path) -> None:
    """An earlier version gave all files of an unpacked source the same fingerprint."""
    (src.parent / "stamps").unlink()
    (src.parent / "state.json").write_text(json.dumps(dict.fromkeys(OLD, "original")))
    listing = cache_dir() / "sources" / "linux-192.list"
    listing.write_text("\n".join(OLD))


def _stray(src: Path) -> None:
    (src / "kernel/stray.h").write_text("#error\n")
    (src / ".kernel.new").write_text("half")


def _flipped(src: Path) -> None:
    (src / "kernel/same.c").unlink()
    (src / "kernel/same.c").write_text("int sane;\n")


@pytest.mark.parametrize("damage", [_unknown, _garbled, _of_an_earlier_version, _stray, _flipped])
@pytest.mark.parametrize("source", [old, new])
def test_what_is_in_a_workspace_is_looked_up_and_not_believed(
    damage: Callable[[Path], None], source: Callable[[], Source]
) -> None:
    src = sync(old())
    damage(src)
    sync(source())
    assert content(src) == content(source().root)


def test_an_interrupted_switch_is_completed(monkeypatch: pytest.MonkeyPatch) -> None:
    src = sync(old())
    place = workspace.Workspace._place
    for count in range(1, 6):
        done: list[str] = []

        def interrupted(
            self: workspace.Workspace,
            path: str,
            *rest: object,
            done: list[str] = done,
            count: int = count,
        ) -> None:
            if len(done) == count:
                raise KeyboardInterrupt
            done.append(path)
            place(self, path, *rest)  # type: ignore[arg-type]

        with monkeypatch.context() as patching:
            patching.setattr(workspace.Workspace, "_place", interrupted)
            with pytest.raises(KeyboardInterrupt):
                sync(new())
        sync(old())
        assert content(src) == content(old().root)


def test_patches_come_and_go(tmp_path: Path) -> None:
    patched = tmp_path / "patched.c"
    patched.write_text("int patched;\n")
    src = sync(old(), {"kernel/changed.c": patched, "kernel/removed.c": None, "new.c": patched})
    assert (src / "kernel/changed.c").read_text() == "int patched;\n"
    assert not (src / "kernel/removed.c").exists() and (src / "new.c").exists()
    sync(old())
    assert content(src) == content(old().root)


def test_a_damaged_source_is_unpacked_again_and_its_links_are_replaced() -> None:
    source = old()
    src = sync(source)
    damaged = source.root / "kernel/same.c"
    assert damaged.samefile(src / "kernel/same.c")
    damaged.write_text("int sane;\n")
    sync(old())
    assert (src / "kernel/same.c").read_text() == "int same;\n"
    assert content(src) == content(old().root)


def test_only_files_with_a_new_stamp_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    src = sync(old())
    source = old()
    assert source.manifest
    read = []
    monkeypatch.setattr(workspace, "fingerprint", lambda file: read.append(file) or "?")
    shutil.copy(src / "file", src / "copy")
    sync(source)
    assert read == [src / "copy"]


def test_the_fingerprints_of_a_source_are_made_once() -> None:
    manifest = old().manifest
    assert len(set(manifest.values())) > 5
    final = cache_dir() / "sources" / "linux-176"
    assert manifest == content(final)
    cached_dir(final, lambda _: pytest.fail("it exists already"), vital=())
    assert files.load(final / seal.FILE)
