# SPDX-License-Identifier: GPL-2.0-only
"""A damaged entry of each kind is noticed, named and made again by whoever uses it."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator import ui
from orchestrator.attach import notes
from orchestrator.errors import InfraError
from orchestrator.guest import initramfs, module
from orchestrator.host import debian, files, proc, seal, tools
from orchestrator.host.debian import Package
from orchestrator.host.paths import cache_dir, cached_dir
from orchestrator.kernel import bundle, obtain
from orchestrator.kernel.kinds import debian_image
from orchestrator.kernel.model import Kernel, KernelRequest
from orchestrator.watch import recorder

FAKE = Path(__file__).parent / "fakekernel"


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def longer(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"more")


def directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


DAMAGES = (flip, cut, empty, longer, Path.unlink, directory, loop)


@pytest.fixture(autouse=True)
def private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def mended(use: Callable[[], object], file: Path) -> None:
    """Damage `file` in each way; each time `use` must name it and restore it."""
    whole, mode = file.read_bytes(), file.stat().st_mode
    place = next(parent for parent in file.parents if (parent / seal.FILE).exists())
    name = f"{place.parent.name}/{place.name} was damaged ({file.relative_to(place)})"
    for damage in DAMAGES:
        damage(file)
        with ui.console.capture() as output:
            use()
        assert f"cache: {name}, making it again" in output.get(), output.get()
        assert file.read_bytes() == whole and file.stat().st_mode == mode
        with ui.console.capture() as output:
            use()
        assert "cache:" not in output.get()


# --- kernels -------------------------------------------------------------------------------------


@pytest.fixture
def kernel(tree: Path) -> Callable[[], Kernel]:
    return lambda: obtain.obtain(KernelRequest(tree=tree))


@pytest.mark.parametrize(
    "name",
    ["bzImage", "config", "kernel.json", "vmlinux", "kbuild/Module.symvers", "kbuild/Makefile"],
)
def test_a_built_kernel(name: str, kernel: Callable[[], Kernel]) -> None:
    first = kernel()
    mended(kernel, first.bzimage.parent / name)
    assert kernel() == first


def test_a_built_kernel_that_cannot_be_built_again_is_not_used(
    kernel: Callable[[], Kernel],
) -> None:
    first = kernel()
    flip(first.bzimage)
    with pytest.raises(InfraError, match=r"kernels/\w+ was damaged \(bzImage\): make it again"):
        obtain.obtain(KernelRequest(selector=f"built:{first.digest}"))
    with pytest.raises(InfraError, match=r"was damaged \(bzImage\)"):
        bundle.pack(first.bzimage.parent)


def test_a_kernel_of_a_bundle(kernel: Callable[[], Kernel], tmp_path: Path) -> None:
    packed = bundle.pack(kernel().bzimage.parent)
    place = cache_dir() / "kernels" / "theirs"
    bundle.install(place, packed, bundle.digest(packed))
    assert not seal.damage(place)
    mended(lambda: bundle.install(place, packed, bundle.digest(packed)), place / "bzImage")


@pytest.mark.parametrize(
    "name",
    ["boot/vmlinuz-6.1.0-9-amd64", "boot/config-6.1.0-9-amd64", "kernel.json", "lib/modules/a.ko"],
)
def test_a_binary_kernel_of_debian(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def unpack(deb: Path, into: Path) -> None:
        for file in ("boot/vmlinuz-6.1.0-9-amd64", "boot/config-6.1.0-9-amd64", "lib/modules/a.ko"):
            (into / file).parent.mkdir(parents=True, exist_ok=True)
            (into / file).write_text(f"{deb} has {file}\n")

    image = Package(name="linux-image-6.1.0-9-amd64", version="6.1.176-1", suite="bookworm")
    monkeypatch.setattr(debian_image, "need_space", lambda *_: None)
    monkeypatch.setattr(debian_image, "_with_depends", lambda *_: [Path("image.deb")])
    monkeypatch.setattr(debian, "unpack", unpack)
    first = debian_image._unpacked("debian:6.1", image, None)
    mended(
        lambda: debian_image._unpacked("debian:6.1", image, None),
        first.bzimage.parent.parent / name,
    )
    assert debian_image._unpacked("debian:6.1", image, None) == first


def test_symbols_of_a_guest() -> None:
    listing = gzip.compress(b"ffffffff81000000 T _text\nffffffff81000100 T text_poke_bp\n")
    machine = SimpleNamespace(ssh=SimpleNamespace(run=lambda *_: (0, ""), get=lambda _: listing))
    place = cache_dir() / "symbols" / "digest"

    def use() -> Path:
        return notes._symbols_of_guest(machine, place, fetch=True)  # type: ignore[arg-type]

    mended(use, use())


# --- what goes into the guest --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["orch.ko", "orch-scn.ko", "main.c"])
def test_the_test_module(
    name: str, kernel: Callable[[], Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    built = kernel()

    def run(command: list[str], **_: object) -> None:
        directory = next(Path(word[2:]) for word in command if word.startswith("M="))
        for ko in ("orch.ko", "orch-scn.ko"):
            (directory / ko).write_bytes(b"\x7fELF" + ko.encode() * 100)

    monkeypatch.setattr(module.proc, "run", run)
    mended(lambda: module.build(built), module.build(built).with_name(name))


def test_kernels_with_the_same_headers_and_options_share_a_test_module(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: object) -> None:
        built.append(next(Path(word[2:]) for word in command if word.startswith("M=")))
        (built[-1] / "orch.ko").write_bytes(b"\x7fELF")

    built: list[Path] = []
    first = obtain.obtain(KernelRequest(tree=tree))
    code, header = tree / "drivers" / "console.c", tree / "include" / "linux" / "added.h"
    code.write_text(code.read_text() + "int added;\n")
    second = obtain.obtain(KernelRequest(tree=tree))
    header.write_text("#define ADDED\n")
    third = obtain.obtain(KernelRequest(tree=tree))
    assert len({first.digest, second.digest, third.digest}) == 3
    with monkeypatch.context() as context:
        context.setattr(module.proc, "run", run)
        assert module.build(first) == module.build(second) != module.build(third)
        assert module.build(third) != module.build(replace(third, make={"LLVM": "1"}))
    assert len(built) == 3


def test_the_base_image(tmp_path: Path) -> None:
    busybox = tmp_path / "busybox"
    busybox.write_text("#!/bin/sh\necho bin/sh\n")
    busybox.chmod(0o755)

    def use() -> bytes:
        image = tmp_path / "image"
        return initramfs.build(image, busybox=busybox, dropbear=[], files={}).read_bytes()

    first = use()
    (base,) = (cache_dir() / "initramfs").glob("*/base.cpio")
    mended(use, base)
    assert use() == first


@pytest.mark.parametrize("name", initramfs.HELPERS)
def test_a_compiled_helper(name: str) -> None:
    mended(lambda: initramfs._compiled(name), initramfs._compiled(name))


@pytest.mark.parametrize("instead", ["a file", "an empty directory", "a broken link"])
def test_something_else_in_the_place_of_an_entry_or_its_lock(instead: str) -> None:
    def make(directory: Path) -> None:
        (directory / "it").write_text("content")

    entry = cache_dir() / "helpers" / "entry"
    for path in (entry, files.lock_of(entry)):
        cached_dir(entry, make)
        files.remove(path)
        if instead == "a file":
            path.touch()
        elif instead == "an empty directory":
            path.mkdir()
        else:
            path.symlink_to("nowhere")
        assert (cached_dir(entry, make) / "it").read_text() == "content"


def test_the_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "qemu"
    binary.write_text("#!/bin/sh\n")
    qemu = tools.Qemu(binary=binary, version=(10, 0))
    monkeypatch.setattr("orchestrator.machine.accel.probe", lambda *_, **__: "")
    monkeypatch.setattr(recorder, "_miscount", lambda _: "")
    mended(lambda: recorder.plugin_for(qemu), recorder.plugin_for(qemu))


# --- Debian's packages ---------------------------------------------------------------------------


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A mirror with two packages, and apt that downloads them."""
    pool = tmp_path / "pool"
    pairs = [("tool", "1:2.0-1"), ("libtool", "3")]
    for name, version in pairs:
        root = pool / name
        (root / "DEBIAN").mkdir(parents=True)
        fields = {"Package": name, "Version": version, "Architecture": "all"}
        fields |= {"Maintainer": "x <x@example.org>", "Description": "x"}
        (root / "DEBIAN/control").write_text("".join(f"{k}: {v}\n" for k, v in fields.items()))
        (root / "usr/bin").mkdir(parents=True)
        (root / "usr/bin" / name).write_text(f"#!/bin/sh\necho {name}\n" + "# x\n" * 100)
        (root / "usr/bin" / name).chmod(0o755)
        deb = pool / f"{name}_{version.replace(':', '%3a')}_all.deb"
        subprocess.run(["dpkg-deb", "-b", root, deb], check=True, capture_output=True)

    def apt(state: Path, command: list[str], problem: str, cwd: Path | None = None) -> str:
        assert command[:2] == ["apt-get", "download"] and cwd
        for word in command[2:]:
            shutil.copy(pool / f"{word.replace('=', '_').replace(':', '%3a')}_all.deb", cwd)
        return ""

    monkeypatch.setattr(debian, "_apt", apt)
    monkeypatch.setattr(debian, "_configure", lambda state: None)
    monkeypatch.setattr(debian, "_state", lambda suites: tmp_path)
    return pairs


def test_a_package(packages: list[tuple[str, str]]) -> None:
    def use() -> list[Path]:
        return debian._fetch(("sid",), packages)

    first, second = use()
    assert first.name == "tool_1%3a2.0-1_all.deb" and second.name == "libtool_3_all.deb"
    mended(use, first)
    assert use() == [first, second]
    assert not list(first.parents[1].glob(".*partial*"))


def test_packages_in_the_cache_need_no_mirror(
    packages: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    debian._fetch(("sid",), packages)
    monkeypatch.setattr(debian, "_state", lambda suites: pytest.fail("the mirror is not needed"))
    assert len(debian._fetch(("sid",), packages)) == 2


@pytest.mark.parametrize("vital", [(), seal.ALL])
def test_an_unpacked_program(
    vital: tuple[str, ...], packages: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "_closure", lambda _: debian._fetch(("sid",), packages))

    def use() -> Path:
        return tools._unpacked("tool", ["tool"], lambda root: None, vital)

    program = use() / "usr/bin/tool"
    mended(use, program)
    assert proc.run([use() / "usr/bin/tool"]).stdout == "tool\n"
    assert (cache_dir() / "tools/tool").resolve() == use()


def test_a_program_that_does_not_work_any_more_is_unpacked_again(
    packages: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tools, "_closure", lambda _: debian._fetch(("sid",), packages))
    broken = []

    def works(root: Path) -> None:
        if broken.pop() if broken else False:
            raise InfraError("a library is missing")

    first = tools._unpacked("tool", ["tool"], works)
    (first / "old").touch()
    assert tools._unpacked("tool", ["tool"], works) == first and (first / "old").exists()
    broken.append(True)
    assert tools._unpacked("tool", ["tool"], works) == first and not (first / "old").exists()


def test_package_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    updates = []

    def apt(state: Path, command: list[str], problem: str, cwd: Path | None = None) -> str:
        if command == ["apt-get", "update"]:
            updates.append(1)
            (state / "lists").mkdir(parents=True, exist_ok=True)
            (state / "lists/Packages").write_text("Package: tool\n" * 10)
        if command[:2] == ["apt-cache", "pkgnames"]:
            return "tool\n"
        return "tool | 2.0-1 | sid/main amd64 Packages\n" if "madison" in command else ""

    monkeypatch.setattr(debian, "_apt", apt)
    monkeypatch.setattr(debian, "_configure", lambda state: None)
    monkeypatch.setattr(debian, "_mirrors", lambda: ("http://m.example.org", None))

    def use() -> str:
        debian._state.cache_clear()
        return debian.newest("tool", ("sid",)).version

    state = cache_dir() / "apt/sid"
    for damage in DAMAGES:
        assert use() == use() == "2.0-1"
        before = len(updates)
        damage(state / "lists/Packages")
        assert use() == "2.0-1" and len(updates) == before + 1
        damage(state / "answers")
        assert use() == "2.0-1"
        files.remove(state / "answers")
