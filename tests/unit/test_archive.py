# SPDX-License-Identifier: GPL-2.0-only
"""Archives of strangers: what is unpacked, perhaps as root, and what never is."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.errors import InfraError, UsageError
from orchestrator.host import archive, debian
from orchestrator.kernel import bundle, sources

FAKE = Path(__file__).parent / "fakekernel"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = os.umask(0)  # the worst that a user can have
    yield
    os.umask(before)


def member(name: str, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, link: str = "") -> object:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname, info.uid = kind, mode, link, 12345
    info.devmajor, info.devminor = 1, 3
    return info


HOSTILE = [
    member("top", tarfile.DIRTYPE, 0o7777),
    member("top/setuid", mode=0o6755),
    member("top/sticky", tarfile.DIRTYPE, 0o3777),
    member("top/sticky/writable", mode=0o666),
    member("top/closed", tarfile.DIRTYPE, 0),
    member("top/closed/setuid", mode=0o4711),
    member("top/pipe", tarfile.FIFOTYPE),
    member("top/device", tarfile.CHRTYPE, 0o666),
    member("top/disk", tarfile.BLKTYPE, 0o666),
    member("top/inside", tarfile.SYMTYPE, link="sticky/writable"),
    member("top/absolute", tarfile.SYMTYPE, link="/etc/passwd"),
    member("top/upwards", tarfile.SYMTYPE, link="../../.."),
    member("top/here", tarfile.SYMTYPE, link="."),
    member("top/by-here", tarfile.SYMTYPE, link="here/here/../../x"),
    member("top/loop", tarfile.SYMTYPE, link="loop"),
]
"""Everything that tar can be kept from refusing."""
LEFT = {
    "top", "top/setuid", "top/sticky", "top/sticky/writable", "top/closed", "top/closed/setuid",
    "top/inside", "top/here", "top/loop",
}  # fmt: skip

REFUSED = {
    "a name that leads upwards": [member("top/../../escaped")],
    "a link upwards, and a file in it": [
        member("top/l", tarfile.SYMTYPE, link="../.."), member("top/l/escaped")
    ],
    "an absolute link, and a file in it": [
        member("top/l", tarfile.SYMTYPE, link="{outside}"), member("top/l/escaped")
    ],
    "a second link to a file": [member("top/l", tarfile.LNKTYPE, link="{outside}/victim")],
    "a link upwards to a file": [member("top/l", tarfile.LNKTYPE, link="../../outside/victim")],
    "a link, and a file in its place": [
        member("top/l", tarfile.SYMTYPE, link="{outside}/victim"), member("top/l", mode=0o4777)
    ],
    "an absolute name": [member("{outside}/escaped")],
}  # fmt: skip
"""What tar refuses or makes harmless. Either will do, as long as nothing is outside."""


def packed(members: list[object], outside: Path = Path("/")) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        for entry in members:
            assert isinstance(entry, tarfile.TarInfo)
            copy = tarfile.TarInfo.frombuf(entry.tobuf(), "utf-8", "strict")
            copy.name = entry.name.format(outside=outside)
            copy.linkname = entry.linkname.format(outside=outside)
            tar.addfile(copy, io.BytesIO())
    return data.getvalue()


def paths(root: Path) -> set[str]:
    found = set()
    for folder, folders, files in os.walk(root):
        found |= {os.path.relpath(f"{folder}/{name}", root) for name in (*folders, *files)}
    return found


def assert_tame(root: Path) -> None:
    for path in root.rglob("*"):
        status = path.lstat()
        if path.is_symlink():
            assert root.resolve() in (path.resolve() if path.exists() else root / "x").parents or (
                path.resolve() == root.resolve()
            )
            continue
        assert stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode), path
        assert not stat.S_IMODE(status.st_mode) & 0o7022, path
        assert status.st_uid == os.geteuid(), path


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory that no archive may change."""
    outside = tmp_path / "outside"
    outside.mkdir()
    victim = outside / "victim"
    victim.write_text("as it was")
    victim.chmod(0o644)
    yield outside
    assert victim.read_text() == "as it was" and victim.stat().st_nlink == 1
    assert stat.S_IMODE(victim.stat().st_mode) == 0o644
    assert [path.name for path in outside.iterdir()] == ["victim"]
    assert not list(tmp_path.glob("escaped")) and not list(tmp_path.glob("*/escaped"))


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make devices")


@needs_root
def test_only_files_folders_and_links_within_are_left(tmp_path: Path, outside: Path) -> None:
    root = tmp_path / "root"
    root.mkdir(0o755)
    gone = archive.unpack(packed(HOSTILE), root, compression="--gzip")
    assert paths(root) == LEFT
    assert (
        set(gone) == {entry.name for entry in HOSTILE if isinstance(entry, tarfile.TarInfo)} - LEFT
    )
    assert_tame(root)
    assert (root / "top/setuid").stat().st_mode & 0o111
    assert stat.S_IMODE(root.stat().st_mode) == 0o755


def test_nobody_can_enter_while_an_archive_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    monkeypatch.setattr(archive, "_run", lambda *_: modes.append(tmp_path.stat().st_mode & 0o777))
    tmp_path.chmod(0o755)
    archive.unpack(b"", tmp_path)
    assert modes == [0o700] and tmp_path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("name", REFUSED)
def test_nothing_is_written_elsewhere(name: str, tmp_path: Path, outside: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    try:
        archive.unpack(packed(REFUSED[name], outside), root, compression="--gzip")
    except archive.ArchiveError:
        return
    assert_tame(root)


def test_an_archive_may_be_called_like_a_host(tmp_path: Path) -> None:
    file = tmp_path / "host:x.tar"
    file.write_bytes(packed([member("a")]))
    archive.unpack(Path(os.path.relpath(file)), tmp_path)
    assert (tmp_path / "a").exists()


# --- who unpacks what


def _source_of_tarball(tmp_path: Path, data: bytes) -> Path:
    (tmp_path / "linux.tar.gz").write_bytes(data)
    return sources.from_tree(tmp_path / "linux.tar.gz").root


def _installed_bundle(tmp_path: Path, data: bytes) -> Path:
    place = tmp_path / "cache" / "kernel"
    bundle.install(place, data, bundle.digest(data))
    return place


def _unpacked_deb(tmp_path: Path, data: bytes) -> Path:
    (tmp_path / "debian-binary").write_text("2.0\n")
    (tmp_path / "control.tar.gz").write_bytes(packed([member("control")]))
    (tmp_path / "data.tar.gz").write_bytes(data)
    files = ("debian-binary", "control.tar.gz", "data.tar.gz")
    subprocess.run(["ar", "rc", "x.deb", *files], cwd=tmp_path, check=True)
    debian.unpack(tmp_path / "x.deb", tmp_path / "deb")
    return tmp_path / "deb"


@needs_root
@pytest.mark.parametrize("unpack", [_source_of_tarball, _installed_bundle, _unpacked_deb])
def test_tarballs_bundles_and_packages_are_unpacked_safely(
    unpack: Callable[[Path, bytes], Path], tmp_path: Path, outside: Path
) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as tar:
        tar.add(FAKE, "top", filter=lambda info: info)
        for entry in HOSTILE:
            assert isinstance(entry, tarfile.TarInfo)
            tar.addfile(entry, io.BytesIO())
    root = unpack(tmp_path, data.getvalue())
    assert_tame(root)
    (setuid,) = [path for path in root.rglob("setuid") if path.parent.name != "closed"]
    assert setuid.stat().st_mode & 0o7777 == 0o755


def test_an_absolute_link_in_a_package_refers_to_where_it_is_unpacked(tmp_path: Path) -> None:
    members = [
        member("usr/share/x", mode=0o644),
        member("usr/lib/link", tarfile.SYMTYPE, link="/usr/share/x"),
        member("link", tarfile.SYMTYPE, link="/etc/passwd"),
    ]
    root = _unpacked_deb(tmp_path, packed(members))
    assert (root / "usr/lib/link").readlink() == Path("../share/x")
    assert not (root / "link").exists()


def test_a_tarball_says_what_was_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(tmp_path / "linux.tar", "w") as tar:
        tar.add(FAKE, "top")
        link = member("top/source", tarfile.SYMTYPE, link="/home/me/linux")
        assert isinstance(link, tarfile.TarInfo)
        tar.addfile(link)
    assert "source" not in sources.from_tree(tmp_path / "linux.tar").manifest
    assert "left out, such as source" in " ".join(capsys.readouterr().err.split())


def test_a_kernel_is_packed_while_a_build_links_its_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tar takes a file that gets another name for one that changes."""
    place = tmp_path / "kernel"
    place.mkdir()
    for number in range(4):
        (place / f"header-{number}.h").write_bytes(os.urandom(4 << 20))
    monkeypatch.setattr(bundle, "check", lambda _: None)
    over = threading.Event()

    def link() -> None:
        while not over.is_set():
            for number in range(4):
                name = tmp_path / f"other-{number}.h"
                name.hardlink_to(place / f"header-{number}.h")
                name.unlink()

    builds = threading.Thread(target=link)
    builds.start()
    try:
        data = bundle.pack(place)
    finally:
        over.set()
        builds.join()
    bundle.install(tmp_path / "there", data, bundle.digest(data))
    for path in place.iterdir():
        assert (tmp_path / "there" / path.name).read_bytes() == path.read_bytes()


def test_what_tar_cannot_read_is_not_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "check", lambda _: None)
    with pytest.raises(InfraError, match="cannot be packed"):
        bundle.pack(tmp_path / "gone")


def test_a_bundle_that_is_not_what_was_sent_is_not_installed(tmp_path: Path) -> None:
    data = packed([member("bzImage")])
    for expected in (bundle.digest(data + b"x"), None):
        with pytest.raises(InfraError, match="is not what was sent"):
            bundle.install(tmp_path / "kernel", data, expected)
    assert not (tmp_path / "kernel").exists()
    with pytest.raises(InfraError, match="cannot be unpacked"):
        bundle.install(tmp_path / "kernel", data[:-20], bundle.digest(data[:-20]))
    assert not (tmp_path / "kernel").exists()
    bundle.install(tmp_path / "kernel", data, bundle.digest(data))
    assert (tmp_path / "kernel" / "bzImage").exists()


def test_a_tarball_that_does_not_unpack_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "linux.tar.gz").write_bytes(packed(HOSTILE)[:-30])
    with pytest.raises(UsageError, match="does not unpack"):
        sources.from_tree(tmp_path / "linux.tar.gz")
