# SPDX-License-Identifier: GPL-2.0-only
"""Damaged entries of the cache are noticed, named and made again; leftovers are removed."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import ui
from orchestrator.host import files, paths, seal
from orchestrator.host.paths import PROJECT, cache_dir, cached_dir, state_dir


@pytest.fixture(autouse=True)
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


CONTENT = bytes(range(256)) * 64
FILES = ("bzImage", "config", "kernel.json", "vmlinux", "kbuild/Makefile", "kbuild/include/a.h")
VITAL = ("bzImage", "config", "kernel.json")


def make(partial: Path) -> None:
    """A small entry with everything that a file can be."""
    for name in FILES:
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).write_bytes(name.encode() + CONTENT)
    (partial / "kbuild/script").write_text("#!/bin/sh\n")
    (partial / "kbuild/script").chmod(0o755)
    (partial / "kbuild/link").symlink_to("include")
    (partial / "kbuild/dangling").symlink_to("nowhere")


def entry(vital: tuple[str, ...] = VITAL) -> Path:
    return cached_dir(cache_dir() / "kernels" / "abc", make, vital=vital)


def flip(file: Path) -> None:
    middle = file.stat().st_size // 2
    with file.open("r+b") as handle:
        handle.seek(middle)
        byte = handle.read(1)
        handle.seek(middle)
        handle.write(bytes([byte[0] ^ 1]))


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def missing(file: Path) -> None:
    file.unlink()


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES = (flip, cut, empty, missing, folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_noticed_named_and_made_again(
    name: str, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = entry() / name
    damage(whole)
    with ui.console.capture() as output:
        assert entry() == whole.parents[name.count("/")]
    assert output.get().strip().removeprefix("! ") == (
        f"cache: kernels/abc was damaged ({name}), making it again"
    )
    assert whole.read_bytes() == name.encode() + CONTENT
    with ui.console.capture() as output:
        entry()
    assert output.get() == ""


@pytest.mark.parametrize("name", VITAL)
def test_a_vital_file_is_read_at_each_use(name: str) -> None:
    """A flipped bit of a disk changes neither size nor time."""
    whole = entry() / name
    before = whole.stat()
    flip(whole)
    os.utime(whole, ns=(before.st_atime_ns, before.st_mtime_ns))
    entry()
    assert whole.read_bytes() == name.encode() + CONTENT


def test_all_files_are_read_once_a_day(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = entry() / "vmlinux"
    before = whole.stat()
    flip(whole)
    os.utime(whole, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert seal.damage(entry(), VITAL) == []
    assert seal.damage(entry(), VITAL, read_all=True) == ["vmlinux"]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + seal.READ_ALL + 1)
    entry()
    assert whole.read_bytes() == b"vmlinux" + CONTENT


def test_modes_and_links_are_part_of_the_content() -> None:
    place = entry()
    (place / "kbuild/script").chmod(0o644)
    assert seal.damage(place, ("*",)) == ["kbuild/script"]
    (place / "kbuild/script").chmod(0o755)
    (place / "kbuild/link").unlink()
    (place / "kbuild/link").symlink_to("elsewhere")
    assert seal.damage(place) == ["kbuild/link"]


@pytest.mark.parametrize("damage", DAMAGES[:4])
def test_damaged_checksums_are_not_believed(damage: Callable[[Path], None]) -> None:
    sums = entry() / seal.FILE
    damage(sums)
    with ui.console.capture() as output:
        place = entry()
    assert "kernels/abc has no valid checksums, making it again" in output.get()
    assert seal.damage(place) == []


def test_an_entry_of_an_earlier_version_is_made_again() -> None:
    old = cache_dir() / "kernels" / "abc"
    old.mkdir(parents=True)
    (old / "bzImage").write_bytes(b"who knows")
    assert (entry() / "bzImage").read_bytes() == b"bzImage" + CONTENT


def test_an_entry_restored_from_elsewhere_is_read_once(tmp_path: Path) -> None:
    place = entry()
    shutil.copytree(place, tmp_path / "copy", symlinks=True, copy_function=shutil.copyfile)
    (tmp_path / "copy/kbuild/script").chmod(0o755)
    shutil.rmtree(place)
    (tmp_path / "copy").rename(place)
    before = (place / seal.FILE).read_bytes()
    assert paths.is_intact(place, vital=VITAL)
    noted = (place / seal.FILE).read_bytes()
    assert noted != before
    assert paths.is_intact(place, vital=VITAL) and (place / seal.FILE).read_bytes() == noted


def test_a_damaged_entry_stays_until_the_new_one_is_complete() -> None:
    """Another process may use the files that are not damaged."""
    place = entry()
    reader = (place / "vmlinux").open("rb")
    flip(place / "bzImage")

    def failing(partial: Path) -> None:
        assert (place / "vmlinux").is_file()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_dir(place, failing)
    assert (place / "vmlinux").is_file() and not paths.is_intact(place)
    entry()
    assert paths.is_intact(place)
    assert reader.read() == b"vmlinux" + CONTENT
    assert sorted(path.name for path in place.parent.iterdir()) == [".abc.lock", "abc"]


def _use(place: Path) -> int:
    made = []

    def counted(partial: Path) -> None:
        made.append(1)
        time.sleep(0.3)
        make(partial)

    cached_dir(place, counted)
    return len(made)


def test_several_processes_mend_an_entry_once() -> None:
    flip(entry() / "bzImage")
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert sum(pool.map(_use, [cache_dir() / "kernels" / "abc"] * 3)) == 1


def test_a_file_in_the_place_of_an_entry_is_replaced() -> None:
    place = cache_dir() / "kernels" / "abc"
    place.parent.mkdir()
    place.write_text("?")
    assert (entry() / "bzImage").is_file()


FLUSH = files.flush


def test_a_new_entry_is_on_the_disk_before_it_has_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flushed: list[list[str]] = []

    def flush(directory: Path) -> None:
        FLUSH(directory)
        flushed.append(sorted(path.name for path in directory.parent.glob("[!.]*")))
        assert (directory / seal.FILE).is_file()

    monkeypatch.setattr(files, "flush", flush)
    entry()
    assert flushed == [[]]


# --- notes ---------------------------------------------------------------------------------------


def test_notes_are_read_back_unless_damaged(tmp_path: Path) -> None:
    note = tmp_path / "note"
    content = {"a": [1, "ü", None], "b\udcff": {}}
    assert files.load(note) is None
    files.save(note, content)
    assert files.load(note) == content
    whole = note.read_bytes()
    for position in range(0, len(whole) - 1):
        note.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        assert files.load(note) is None, position
        note.write_bytes(whole[:position])
        assert files.load(note) is None, position


# --- leftovers -----------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from orchestrator.host import files, paths

def die(partial=None):
    if partial:
        (partial / "half").write_bytes(bytes(100))
    print("ready", flush=True)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.stdin.read()

if sys.argv[1] == "directory":
    paths.cached_dir(paths.cache_dir() / "kernels" / "theirs", die)
else:
    os.fsync = lambda _: die()
    files.write_whole(paths.cache_dir() / "apt" / "answers", "text")
"""


def start(what: str, how: str) -> subprocess.Popen[str]:
    """A process that is killed, or waits, while it makes a directory or a file of the cache."""
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, what, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )
    assert child.stdout and child.stdout.readline() == "ready\n"
    return child


def temporary() -> list[Path]:
    return [path for path in cache_dir().rglob(f".*{files.PARTIAL}*") if path.exists()]


@pytest.mark.parametrize("what", ["directory", "file"])
def test_what_a_killed_process_leaves_is_removed_by_the_next_one(what: str) -> None:
    (cache_dir() / "apt").mkdir()
    assert start(what, "killed").wait() == -signal.SIGKILL
    assert len(temporary()) == 1
    cached_dir(cache_dir() / "modules" / "ours", lambda partial: None)
    assert temporary() == []


@pytest.mark.parametrize("what", ["directory", "file"])
def test_what_a_running_process_works_on_stays(what: str) -> None:
    (cache_dir() / "apt").mkdir()
    child = start(what, "waits")
    assert len(temporary()) == 1
    files.remove_leftovers(cache_dir(), paths.CACHE_DEPTH)
    assert len(temporary()) == 1
    child.communicate("")
    assert temporary() == [] and child.returncode == 0
    made = cache_dir() / ("kernels/theirs/half" if what == "directory" else "apt/answers")
    assert made.exists()


def test_temporary_files_of_notes_in_the_state_directory_are_removed() -> None:
    folder = state_dir() / "mutants"
    folder.mkdir()
    for name in (f".a.json{files.PARTIAL}x7", f".b.json{files.PARTIAL}y8"):
        (folder / name).write_text(json.dumps({}))
    cached_dir(cache_dir() / "modules" / "ours", lambda partial: None)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("text", ["short\n", "x" * 100_000, ""])
def test_what_has_reserved_its_space_can_be_written_on_a_full_disk(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> tuple[int, str]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = tmp_path / "verdict.json"
    files.reserve(file, 1 << 16)
    assert not file.exists()
    assert sum(path.stat().st_blocks for path in tmp_path.iterdir()) * 512 >= 1 << 16
    monkeypatch.setattr(tempfile, "mkstemp", full)
    files.write_whole(file, text)
    assert file.read_text() == text and file.stat().st_mode & 0o777 == 0o644
    assert [*tmp_path.iterdir()] == [file]
    with pytest.raises(OSError, match="No space left"):
        files.write_whole(file, "more")
    files.reserve(tmp_path / "missing" / "file", 1)  # a run goes on without


def test_a_lock_can_be_held_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache of another user, or on a read-only file system."""
    real = os.open

    def read_only(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_WRONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, mode)

    with files.locked(tmp_path / "lock"):
        pass
    monkeypatch.setattr(os, "open", read_only)
    with files.locked(tmp_path / "lock"):
        handle = real(tmp_path / "lock", os.O_RDONLY)
        assert not files._try_lock(handle)
        os.close(handle)
    with pytest.raises(OSError, match="Read-only"), files.locked(tmp_path / "missing"):
        pass
