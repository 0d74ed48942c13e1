# SPDX-License-Identifier: GPL-2.0-only
"""The archive writer, checked with cpio(1), and the content of the guest's root file system."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from orchestrator.errors import InfraError
from orchestrator.guest import image as guest_image
from orchestrator.guest import initramfs
from orchestrator.kernel.model import Kernel
from orchestrator.scenarios.scenario import select


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    program = tmp_path / "busybox"
    program.write_text("#!/bin/sh\nprintf 'bin/sh\\nusr/bin/wc\\nlinuxrc\\n'\n")
    program.chmod(0o755)
    return program


def listing(image: Path) -> dict[str, str]:
    """Path -> mode string, as cpio reads the archive.

    Unlike the kernel, cpio stops at the first trailer.
    """
    text = subprocess.run(
        ["cpio", "-tv", "--quiet"], stdin=image.open(), capture_output=True, text=True
    ).stdout
    return {line.split(" -> ")[0].split()[-1]: line.split()[0] for line in text.splitlines()}


def test_the_base_has_init_applets_and_devices(tmp_path: Path, busybox: Path) -> None:
    server = tmp_path / "dropbear"
    server.write_bytes(b"\x7fELF...")
    image = initramfs.build(
        tmp_path / "image", busybox=busybox, dropbear=[(server, "/usr/sbin/dropbear")], files={}
    )
    names = listing(image)
    assert names["init"] == names["usr/sbin/dropbear"] == names["sbin/ttylink"] == "-rwxr-xr-x"
    assert names["bin/sh"].startswith("l") and names["usr/bin/wc"].startswith("l")
    assert names["dev/console"].startswith("c")
    assert names["proc"] == names["usr/bin"] == "drwxr-xr-x"
    assert "linuxrc" not in names  # the kernel would take it for an init
    order = list(names)
    assert order.index("usr") < order.index("usr/sbin") < order.index("usr/sbin/dropbear")


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, busybox: Path) -> None:
    files: dict[str, bytes | Path] = {"/b/c": b"2", "/a": b"1"}
    images = [
        initramfs.build(tmp_path / name, busybox=busybox, dropbear=[], files=order).read_bytes()
        for name, order in (("one", files), ("two", dict(reversed(files.items()))))
    ]
    assert images[0] == images[1]


@pytest.mark.timeout(30)
def test_an_image_replaces_what_is_in_its_place(tmp_path: Path, busybox: Path) -> None:
    os.mkfifo(tmp_path / "image")
    image = initramfs.build(tmp_path / "image", busybox=busybox, dropbear=[], files={})
    assert image.is_file() and image.stat().st_size


def test_the_files_of_a_run_are_in_a_second_archive(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    members = initramfs._with_parents(initramfs._entries({"/x/y/run": script, "/x/data": b"odd"}))
    image = tmp_path / "second"
    image.write_bytes(b"".join(initramfs.archive(members)))
    assert len(image.read_bytes()) % 4 == 0  # so that another archive can follow
    assert listing(image) == {
        "x": "drwxr-xr-x", "x/y": "drwxr-xr-x", "x/data": "-rw-r--r--", "x/y/run": "-rwxr-xr-x",
    }  # fmt: skip


def test_the_error_names_a_busybox_that_does_not_run(tmp_path: Path) -> None:
    broken = tmp_path / "busybox"
    broken.write_text("#!/bin/false\n")
    broken.chmod(0o755)
    with pytest.raises(InfraError, match="does not run on this host"):
        initramfs.build(tmp_path / "image", busybox=broken, dropbear=[], files={})


@pytest.mark.parametrize("with_module", [True, False])
def test_an_image_has_the_module_and_what_runs_alongside_the_scenarios(
    with_module: bool, tmp_path: Path, busybox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_image.tools, "busybox", lambda: busybox)
    monkeypatch.setattr(guest_image.tools, "dropbear", list)
    monkeypatch.setattr(guest_image.module, "files", lambda kernel: {"/orch.ko": busybox})
    kernel = Kernel(name="", release="", digest="", bzimage=busybox, config=None)
    scenarios = select(["hotplug", "contexts"])
    written: dict[str, dict[str, bytes | Path]] = {}
    monkeypatch.setattr(
        guest_image.initramfs, "build", lambda target, **given: written.update(given)
    )
    guest_image.build(tmp_path / "x", kernel if with_module else None, scenarios, {"/key": b"k"})
    files = written["files"]
    assert ("/orch.ko" in files) == with_module
    script = files.pop("/scenarios/hotplug")
    assert isinstance(script, bytes) and script.startswith(b"cd /sys")
    assert [*files] == (["/key", "/orch.ko"] if with_module else ["/key"])
