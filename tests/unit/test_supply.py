# SPDX-License-Identifier: GPL-2.0-only
"""Packages, tools and Debian's images, without the mirror and (marked net) with it."""

from __future__ import annotations

import errno
import multiprocessing
import os
import subprocess
import time
from pathlib import Path

import pytest

from orchestrator.errors import InfraError, UsageError
from orchestrator.host import debian, paths, tools
from orchestrator.host.debian import Package
from orchestrator.kernel import debian_mirror, obtain
from orchestrator.kernel.kinds import debian_image
from orchestrator.kernel.model import KernelRequest


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    debian._mirrors.cache_clear()
    debian._state.cache_clear()


# --- debian --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "upstream"),
    [
        ("6.1.192-2", "6.1.192"),
        ("6.12.43-1~bpo12+1", "6.12.43"),
        ("1:10.0.2+ds-2", "10.0.2"),
        ("7.3.4-1", "7.3.4"),
    ],
)
def test_the_upstream_version_lacks_epoch_and_revision(version: str, upstream: str) -> None:
    assert Package("x", version, "sid").upstream == upstream


def test_the_newest_package_follows_dpkgs_order() -> None:
    versions = ["6.1.9-1", "6.1.10-1", "6.1.10-1~bpo12+1"]
    assert (
        debian.newest_of(Package("x", version, "sid") for version in versions).version == "6.1.10-1"
    )


def _deb(folder: Path, depends: str) -> Path:
    control = folder / "pkg/DEBIAN/control"
    control.parent.mkdir(parents=True)
    fields = {
        "Package": "x",
        "Version": "1",
        "Architecture": "all",
        "Maintainer": "x <x@example.org>",
    }
    fields |= {"Description": "x", "Depends": depends}
    control.write_text("".join(f"{name}: {value}\n" for name, value in fields.items()))
    (folder / "pkg/usr").mkdir()
    (folder / "pkg/usr/file").write_text("content")
    subprocess.run(
        ["dpkg-deb", "-b", folder / "pkg", folder / "x.deb"], check=True, capture_output=True
    )
    return folder / "x.deb"


def test_a_package_is_unpacked_and_its_dependencies_are_parsed(tmp_path: Path) -> None:
    deb = _deb(
        tmp_path,
        "linux-headers-6.1-common (= 6.1.192-2), linux-kbuild-6.1 (>= 6.1), kmod, aa | bb:any",
    )
    assert debian.depends(deb) == [
        ("linux-headers-6.1-common", "6.1.192-2"),
        ("linux-kbuild-6.1", None),
        ("kmod", None),
        ("aa", None),
        ("bb", None),
    ]
    debian.unpack(deb, tmp_path / "out")
    assert (tmp_path / "out/usr/file").read_text() == "content"


def test_a_damaged_package_is_removed_from_the_cache(tmp_path: Path) -> None:
    deb = paths.cache_dir() / "debs/x_1_all.deb"
    deb.parent.mkdir()
    deb.write_bytes(_deb(tmp_path, "kmod").read_bytes()[:-200])
    with pytest.raises(InfraError, match="damaged and was removed from the cache, repeat"):
        debian.unpack(deb, tmp_path / "out")
    assert not deb.exists()


def test_the_mirror_comes_from_the_machines_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    listing = (
        "https://others.example.org/\tbookworm\tmain\t\t/usr/share/keyrings/others.gpg\n"
        "http://mirror.example.org/debian/\tbookworm-updates\tmain\tDebian\t\n"
        "http://mirror.example.org/debian-security/\tbookworm-security\tmain\tDebian\t\n"
        "https://node.example.org/\tnodistro\tmain\t\t\n"
    )
    done = subprocess.CompletedProcess([], 0, listing, "")
    monkeypatch.setattr(debian.proc, "run", lambda *_, **__: done)
    monkeypatch.delenv(debian.MIRROR_VARIABLE, raising=False)
    assert debian._mirrors() == (
        "http://mirror.example.org/debian/",
        "http://mirror.example.org/debian-security/",
    )


def test_a_missing_mirror_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        debian.proc, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "", "")
    )
    monkeypatch.delenv(debian.MIRROR_VARIABLE, raising=False)
    with pytest.raises(InfraError, match=f"name no Debian mirror: set {debian.MIRROR_VARIABLE}"):
        debian._mirrors()


def test_an_unreachable_mirror_is_an_infra_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(debian.MIRROR_VARIABLE, f"file://{tmp_path}/nowhere")
    with pytest.raises(InfraError, match="cannot fetch the package lists of bookworm"):
        debian.candidates("busybox-static", ("bookworm",))


def test_a_suite_that_cannot_be_searched_is_skipped_and_asked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def state(suites: tuple[str, ...]) -> Path:
        asked.extend(suites)
        if suites == ("sid",):
            raise InfraError("no sid")
        return Path("state")

    monkeypatch.setattr(debian, "_state", state)
    monkeypatch.setattr(debian, "_mirrors", lambda: ("http://m.example.org", None))
    monkeypatch.setattr(
        debian, "_matching", lambda state, pattern, suite: [Package(pattern, "1", suite)]
    )
    suites = ("sid", "bookworm", "bookworm-security")
    assert debian.unsearched(suites) == []
    for _ in range(2):
        assert debian.candidates("x", suites) == [Package("x", "1", "bookworm")]
    assert asked == ["sid", "bookworm", "bookworm"]
    assert [str(failure) for failure in debian.unsearched(suites)] == ["no sid"]
    with pytest.raises(InfraError, match="no sid"):
        debian.candidates("x", ("sid",))
    with pytest.raises(InfraError, match="name no mirror for security updates"):
        debian.candidates("x", ("bookworm-security",))


# --- tools ---------------------------------------------------------------------------------------


def test_an_override_must_be_a_qemu_that_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a program"):
        tools.qemu(tmp_path / "qemu")
    fake = tmp_path / "qemu"
    fake.write_text("#!/bin/sh\necho QEMU emulator version 7.2.19 '(Debian 1:7.2)'\n")
    fake.chmod(0o755)
    qemu = tools.qemu(fake)
    assert qemu.version == (7, 2, 19) and not qemu.good
    fake.write_text(
        "#!/bin/sh\necho error while loading shared libraries: libfuse3.so.3; exit 127\n"
    )
    with pytest.raises(InfraError, match=r"does not run: .*libfuse3"):
        tools.qemu(fake)


def test_a_program_comes_with_its_libraries_and_loader() -> None:
    files = dict((guest, host) for host, guest in tools._with_libraries(Path("/bin/ls"), {}))
    assert files["/usr/sbin/ls"].is_file()
    assert "/lib64/ld-linux-x86-64.so.2" in files and "/lib/x86_64-linux-gnu/libc.so.6" in files
    assert all(host.is_file() and not host.is_symlink() for host in files.values())


def test_static_programs_are_recognized(tmp_path: Path) -> None:
    assert not tools._is_static(Path("/bin/ls"))
    (tmp_path / "a.c").write_text("void _start(void) { for (;;); }\n")
    subprocess.run(
        ["gcc", "-static", "-nostdlib", "-o", tmp_path / "a", tmp_path / "a.c"], check=True
    )
    assert tools._is_static(tmp_path / "a")


# --- Debian's images -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "selector", ["debian:", "debian:6", "debian:bookworm", "debian:6.1-clod", "debian:6.1.1.1"]
)
def test_a_malformed_selector_is_wrong_usage(selector: str) -> None:
    with pytest.raises(UsageError, match="write debian:VERSION"):
        obtain.obtain(KernelRequest(selector=selector))


def test_an_unknown_version_lists_those_available(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = [
        Package(f"linux-image-6.1.0-{abi}-amd64", f"6.1.{point}-1", "bookworm")
        for abi, point in ((9, 90), (7, 7))
    ]
    monkeypatch.setattr(debian, "candidates", lambda *_: packages)
    with pytest.raises(
        UsageError, match=r"no such image \(did you mean debian:6\.1\.9\d?\?\); of 6\.1 there are"
    ):
        obtain.obtain(KernelRequest(selector="debian:6.1.91"))


def test_images_are_sorted_by_version_and_selected_by_flavour(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packages = [
        Package("linux-image-6.12.100+deb13-amd64", "6.12.100-1", "trixie-security"),
        Package("linux-image-6.12.100+deb12-amd64", "6.12.100-1~deb12u1", "bookworm-security"),
        Package("linux-image-6.12.90+deb12-amd64", "6.12.90-1", "bookworm-backports"),
        Package("linux-image-6.12.100+deb13-cloud-amd64", "6.12.100-1", "trixie-security"),
    ]
    monkeypatch.setattr(debian, "candidates", lambda *_: packages)
    monkeypatch.setattr(
        debian, "host_suites", lambda: ("bookworm", "bookworm-security", "bookworm-backports")
    )
    assert [package.version for package in debian_mirror.images("6.12")] == [
        "6.12.90-1",
        "6.12.100-1",
        "6.12.100-1~deb12u1",
    ]
    assert len(debian_mirror.images("6.12", "cloud")) == 1


def test_relocated_headers_work_in_any_directory(tmp_path: Path) -> None:
    headers, common = (
        tmp_path / f"usr/src/linux-headers-6.1-{name}" for name in ("amd64", "common")
    )
    headers.mkdir(parents=True)
    common.mkdir()
    (common / "Makefile").write_text("all:\n\t@echo $(CC) $(KBUILD_OUTPUT)\n")
    (headers / "Makefile").write_text(
        f"KBUILD_OUTPUT=/{headers.relative_to(tmp_path)}\n"
        "include .kernelvariables\n"
        f"include /{common.relative_to(tmp_path)}/Makefile\n"
    )
    (headers / ".kernelvariables").write_text("CC = $(if $(X),ccache) $(CROSS_COMPILE)gcc-99\n")
    debian_image._relocate(tmp_path)
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)
    done = subprocess.run(
        ["make", "-s", "-C", moved / headers.relative_to(tmp_path)], capture_output=True, text=True
    )
    compiler, output = done.stdout.split()
    assert compiler == "gcc"
    assert Path(output).resolve() == moved / headers.relative_to(tmp_path)


# --- cached directories --------------------------------------------------------------------------


def test_a_failed_make_leaves_nothing(tmp_path: Path) -> None:
    final = tmp_path / "store/thing"

    def failing(partial: Path) -> None:
        (partial / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        paths.cached_dir(final, failing)
    assert [path.name for path in final.parent.iterdir()] == [".thing.lock"]


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    final = tmp_path / "store/thing"
    stale = final.parent / ".thing.partial-dead"
    stale.mkdir(parents=True)
    paths.cached_dir(final, lambda partial: (partial / "whole").touch())
    assert final.is_dir() and not stale.exists()


def test_a_full_disk_is_explained(tmp_path: Path) -> None:
    def full(partial: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InfraError, match="no space left for thing"):
        paths.cached_dir(tmp_path / "thing", full)
    with pytest.raises(InfraError, match=r"it needs \d+ MiB in .*: free some space and try again"):
        paths.need_space(tmp_path, 1 << 40, "it")


def _make_slowly(final: Path) -> int:
    made = []

    def make(partial: Path) -> None:
        made.append(1)
        time.sleep(0.3)

    paths.cached_dir(final, make)
    return len(made)


def test_several_processes_make_a_directory_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert sum(pool.map(_make_slowly, [tmp_path / "thing"] * 3)) == 1


# --- with the mirror -----------------------------------------------------------------------------


@pytest.mark.net
@pytest.mark.timeout(300)
def test_tools_from_the_mirror_run() -> None:
    qemu = tools.qemu()
    assert qemu.good, "no QEMU >= 9.2 is available for this machine"
    subprocess.run(
        [qemu.binary, "-machine", "help"],
        env={**os.environ, **qemu.env},
        check=True,
        capture_output=True,
    )
    assert subprocess.run([tools.busybox(), "true"]).returncode == 0
    assert tools.dropbear()[0][1] == "/usr/sbin/dropbear"


@pytest.mark.net
@pytest.mark.timeout(600)
@pytest.mark.parametrize("selector", ["debian:6.1", "debian:5.10", "debian:6.12"])
def test_a_module_can_be_built_for_a_debian_image(selector: str, tmp_path: Path) -> None:
    kernel = obtain.obtain(KernelRequest(selector=selector))
    assert kernel.bzimage.is_file() and kernel.option("SMP") == "y" and kernel.kbuild
    (tmp_path / "hello.c").write_text(
        "#include <linux/module.h>\nstatic int __init hello(void) { return 0; }\n"
        'module_init(hello);\nMODULE_LICENSE("GPL");\n'
    )
    (tmp_path / "Makefile").write_text("obj-m := hello.o\n")
    subprocess.run(["make", "-s", "-C", kernel.kbuild, f"M={tmp_path}"], check=True)
    assert f"vermagic={kernel.release} SMP".encode() in (tmp_path / "hello.ko").read_bytes()
