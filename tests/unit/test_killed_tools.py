# SPDX-License-Identifier: GPL-2.0-only
"""A tool that somebody kills has answered nothing, whatever the question was."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import InfraError
from orchestrator.host import archive, debian, seal
from orchestrator.kernel import build, bundle, patches
from orchestrator.machine import accel
from orchestrator.machine.qemu import Qemu
from orchestrator.text import symbols

PATCH = """\
--- a/file
+++ b/file
@@ -1 +1 @@
-old
+new
"""


def patched(directory: Path) -> object:
    (directory / "fix.patch").write_text(PATCH)
    return patches.apply([directory / "fix.patch"], lambda _: None, directory / "scratch")


def packed(directory: Path) -> object:
    entry = directory / "entry"
    entry.mkdir()
    seal.seal(entry)
    return bundle.pack(entry)


def unpacked(directory: Path) -> object:
    (directory / "some.deb").touch()
    return debian.unpack(directory / "some.deb", directory / "into")


def made(directory: Path) -> object:
    log = directory / "log"
    counter = build._ObjectCounter(directory / "objects", directory / ".config", None)
    with (directory / "lock").open("w") as lock:
        return build._run(["make"], os.environ, log, lock.fileno(), counter)


def kernel_symbols(directory: Path) -> object:
    (directory / "vmlinux").touch()
    return symbols.of_vmlinux(directory / "vmlinux")


QUESTIONS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "which symbols has this kernel": ("nm", kernel_symbols),
    "does this patch apply": ("git", patched),
    "which version is newer": ("dpkg", lambda _: debian._newer("1", "2")),
    "is this package damaged": ("dpkg-deb", unpacked),
    "is this archive damaged": ("tar", lambda path: archive._run(["tar", "-x"], b"")),
    "can this kernel be packed": ("tar", packed),
    "does this kernel build": ("make", made),
}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGRTMIN])
@pytest.mark.parametrize(("tool", "ask"), QUESTIONS.values(), ids=QUESTIONS.keys())
def test_a_killed_tool_answers_no_question(
    tool: str,
    ask: Callable[[Path], object],
    number: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / tool).write_text(f"#!/bin/sh\nkill -{number} $$\n")
    (binaries / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(binaries), prepend=":")
    with pytest.raises(InfraError, match=f"{tool}.* was killed by "):
        ask(tmp_path)


@pytest.mark.parametrize("number", accel.SIGNALS_OF_OTHERS)
def test_a_killed_probe_says_nothing_about_kvm(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "probe.bin").write_bytes(bytes(8))
    monkeypatch.setattr(accel, "_probe_image", lambda: tmp_path / "probe.bin")
    binary = tmp_path / "qemu"
    binary.write_text(f"#!/bin/sh\nkill -{number} $$\n")
    binary.chmod(0o755)
    (tmp_path / "kvm").touch()
    memory = tmp_path / "hosts.json"
    qemu = Qemu(binary=binary, version=(10, 0))
    with pytest.raises(InfraError, match=r"qemu.* was killed by "):
        accel.kvm_trouble(qemu, device=tmp_path / "kvm", memory=memory)
    assert not memory.exists()
