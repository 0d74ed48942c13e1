# SPDX-License-Identifier: GPL-2.0-only
"""The cache as a user sees it: its content, and what cleaning removes and keeps."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from orchestrator import cli
from orchestrator.host import files
from orchestrator.host.debian import Package
from orchestrator.host.paths import cache_dir, cached_dir, is_intact, locked
from orchestrator.kernel import cache

DAY = 86400.0


@pytest.fixture(autouse=True)
def cache_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return cache_dir()


def entry(kind: str, name: str, *, idle: float, size: int = 4096) -> Path:
    """A directory of the cache that was last used `idle` seconds ago."""
    path = cache_dir() / kind / name
    path.mkdir(parents=True)
    (path / "file").write_bytes(b"x" * size)
    os.utime(path, (0, time.time() - idle))
    return path


def removed(**options: float) -> list[str]:
    return [item.path.name for item in cache.clean(**options)]  # type: ignore[arg-type]


def test_entries_not_used_recently_are_removed() -> None:
    old, new = entry("kernels", "old", idle=40 * DAY), entry("stock", "new", idle=2 * DAY)
    assert removed(older=30 * DAY) == ["old"]
    assert not old.exists() and new.exists()
    assert not list(cache_dir().glob("*/.*gone*"))


def test_the_least_recently_used_go_first_until_the_rest_fits() -> None:
    for name, days in (("b", 2), ("c", 3), ("a", 1)):
        entry("kernels", name, idle=days * DAY, size=1 << 20)
    assert removed(keep=(2 << 20) + 65536) == ["c"]
    assert removed(keep=0) == ["b", "a"]


def test_an_entry_in_use_counts_as_new() -> None:
    path = cached_dir(cache_dir() / "modules" / "used", lambda _: None)
    for sign in (path, path.with_name(f".{path.name}.lock")):
        os.utime(sign, (0, time.time() - 40 * DAY))
    assert removed(older=30 * DAY) == ["used"]
    cached_dir(path, lambda _: None)
    for sign in (path, path.with_name(f".{path.name}.lock")):
        os.utime(sign, (0, time.time() - 40 * DAY))
    cached_dir(path, lambda _: pytest.fail("it exists already"))
    assert removed(older=30 * DAY) == []


def test_new_entries_and_those_being_made_stay() -> None:
    entry("kernels", "new", idle=60)
    busy = entry("kernels", "busy", idle=40 * DAY)
    with locked(busy.with_name(f".{busy.name}.lock")):
        os.utime(busy.with_name(f".{busy.name}.lock"), (0, 0))
        assert removed(older=DAY, keep=0) == []
    assert busy.exists()


def test_a_dry_run_removes_nothing() -> None:
    path = entry("kernels", "old", idle=40 * DAY)
    assert removed(older=DAY, dry=True) == ["old"]
    assert path.exists()


def test_every_folder_of_the_cache_can_be_cleaned() -> None:
    for kind in ("initramfs", "helpers", "recorder", "tools", "apt", "facts", "of the future"):
        entry(kind, "old", idle=40 * DAY)
    assert {item.kind for item in cache.items()} >= {"tools", "apt", "of the future"}
    (cache_dir() / "tools" / "link").symlink_to("old")
    assert removed(older=30 * DAY) == ["old"] * 7


def test_the_compiler_cache_is_one_entry() -> None:
    for name in ("0", "1"):
        (cache_dir() / "ccache" / name).mkdir(parents=True)
    assert [item.path.name for item in cache.items()] == ["ccache"]
    assert removed(older=30 * DAY) == []
    old = time.time() - 40 * DAY
    for path in (*(cache_dir() / "ccache").iterdir(), cache_dir() / "ccache"):
        os.utime(path, (0, old))
    assert removed(older=30 * DAY) == ["ccache"]


def test_a_package_list_in_use_counts_as_new() -> None:
    path = entry("apt", "sid", idle=40 * DAY)
    (path / "answers").touch()
    assert removed(older=30 * DAY) == []


def run(*arguments: str) -> int:
    return cli.main(["kernels", *arguments])


def test_leftovers_are_shown_and_removed(capsys: pytest.CaptureFixture[str]) -> None:
    entry("kernels", "good", idle=0)
    folder = entry("kernels", ".x.partial-abc", idle=0, size=30 << 20)
    file = cache_dir() / "apt" / ".answers.partial-xyz"
    file.parent.mkdir()
    file.write_text("half")
    assert run("clean", "--dry-run") == 0
    assert "   0.03 GiB  left by killed processes: would be removed" in capsys.readouterr().out
    assert folder.exists() and file.exists()
    with locked(folder.with_name(".x.lock")):
        assert run("clean") == 0
    assert folder.exists() and not file.exists()
    capsys.readouterr()
    assert run("clean", "--keep", "100") == 0
    assert ".x.partial-abc, left by killed processes" in capsys.readouterr().out
    assert not folder.exists()
    assert [item.path.name for item in cache.items()] == ["good"]


def test_everything_is_read_by_verify(capsys: pytest.CaptureFixture[str]) -> None:
    def make(partial: Path) -> None:
        (partial / "vmlinux").write_bytes(b"x" * 4096)

    place, other = cache_dir() / "kernels" / "abc", cache_dir() / "kernels" / "other"
    for path in (place, other):
        cached_dir(path, make, vital=())
    entry("work", "no entry of this kind", idle=0)
    assert run("verify") == 0 and capsys.readouterr().out == "2 entries read, 0 damaged\n"
    before = (place / "vmlinux").stat()
    (place / "vmlinux").write_bytes(b"y" * 4096)
    os.utime(place / "vmlinux", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert is_intact(place, vital=())
    assert run("verify") == 125
    assert "kernels/abc: damaged (vmlinux), made again when next used" in capsys.readouterr().out
    assert not is_intact(place, vital=()) and is_intact(other, vital=())
    cached_dir(place, make, vital=())
    assert (place / "vmlinux").read_bytes() == b"x" * 4096


def test_a_kernel_with_a_damaged_record_is_not_listed() -> None:
    for number, text in enumerate(("", "{", "{}", "[]", '{"name": "x"}', "\0")):
        (entry("kernels", f"k{number}", idle=0) / "kernel.json").write_text(text)
    assert cache.kernels() == []


def test_a_cached_kernel_is_listed_with_its_patches() -> None:
    place = entry("kernels", "k", idle=0)
    origin = {"package": "linux-source-6.1", "version": "6.1.9-1", "patches": "a.patch, b.patch"}
    (place / "kernel.json").write_text(
        json.dumps({"name": "6.1-plain", "release": "6.1.9", "origin": origin})
    )
    (kernel,) = cache.kernels()
    assert (kernel.name, kernel.source, kernel.patches) == (
        "6.1-plain",
        "linux-source-6.1 6.1.9-1",
        ("a.patch", "b.patch"),
    )


def test_images_are_offered_by_their_exact_selector(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packages = [
        Package("linux-image-6.16.3-amd64", "6.16.3-1", "sid"),
        Package("linux-image-6.9.10-amd64", "6.9.10-1", "sid"),
        Package("linux-headers-6.9.10-amd64", "6.9.10-1", "sid"),
        Package("linux-image-6.9.10-cloud-amd64", "6.9.10-1", "sid"),
    ]
    monkeypatch.setattr("orchestrator.host.debian.candidates", lambda *_: packages)
    offered = cache.offered()
    assert list(offered)[-1] == "debian:6.16.3"
    assert {selector: headers for selector, (_, headers) in offered.items()} == {
        "debian:6.9.10": True, "debian:6.9.10-cloud": False, "debian:6.16.3": False,
    }  # fmt: skip


def test_of_a_folder_that_would_grow_for_ever_the_newest_and_what_is_in_use_stay() -> None:
    for age, name in enumerate(("new", "older", "oldest", "in use")):
        path = entry("snapshots", name, idle=age)
    files.use(path)
    os.utime(files.lock_of(path), (0, time.time() - DAY))
    cache.keep_newest(path.parent, 1)
    assert sorted(path.name for path in path.parent.glob("[!.]*")) == ["in use", "new"]
    cache.keep_newest(path.parent / "of nobody", 1)
