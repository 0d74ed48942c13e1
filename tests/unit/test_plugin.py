# SPDX-License-Identifier: GPL-2.0-only
"""The plugin for QEMU: compiled for each interface, and the one that works is taken."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from orchestrator.errors import InfraError
from orchestrator.host import tools
from orchestrator.machine import accel
from orchestrator.watch import plugin, recorder

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class FakeQemu:
    """A QEMU that works with plugins of the interface `supports`, and counts `counted` int3."""

    def __init__(self, directory: Path, supports: int, counted: int = 2000) -> None:
        self.supports, self.counted = supports, counted
        self.tried: list[int] = []
        binary = directory / "qemu"
        binary.write_text("#!/bin/sh\necho QEMU emulator version 99.0.1\n")
        binary.chmod(0o755)
        self.qemu = tools.qemu(binary)

    def probe(self, qemu: tools.Qemu, accel: str, cpu: str, options: Sequence[str]) -> str:
        """In place of accel.probe()."""
        match = re.fullmatch("file=(.*),ledger=(.*)", options[1])
        assert match and qemu == self.qemu
        self.tried.append(interface_of(Path(match[1])))
        if self.tried[-1] != self.supports:
            return f"QEMU ended with status 1 (it has {self.supports})"
        record = recorder.SLOT.pack(0xFFFFFFFF81000000, self.counted, *[0] * 63)
        Path(match[2]).write_bytes(record + bytes(recorder.SLOT.size))
        return ""


def interface_of(so: Path) -> int:
    command = ["gdb", "-nx", "-batch", "-ex", "output (int) qemu_plugin_version", so]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeQemu:
    fake = FakeQemu(tmp_path, supports=7)
    monkeypatch.setattr("orchestrator.machine.accel.probe", fake.probe)
    return fake


@pytest.mark.parametrize("interface", plugin.INTERFACES)
def test_the_plugin_compiles_without_warnings(tmp_path: Path, interface: int) -> None:
    flags = [*plugin.CFLAGS, "-Wextra", "-Werror", f"-DAPI={interface}"]
    sources = [file for file in recorder.FILES if file.suffix == ".c"]
    subprocess.run(["gcc", *flags, "-o", tmp_path / "a.so", *sources], check=True)


@pytest.mark.parametrize("interface", plugin.INTERFACES)
def test_the_plugin_of_the_interface_that_qemu_has_is_taken(fake: FakeQemu, interface: int) -> None:
    fake.supports = interface
    counts = recorder.Recorder(fake.qemu, accel.choose("tcg", fake.qemu))
    assert counts.why_not is None and counts.plugin
    assert interface_of(counts.plugin) == interface


def test_a_qemu_in_which_no_plugin_works_has_no_ledger_and_the_reason_is_given(
    fake: FakeQemu,
) -> None:
    fake.supports = 12
    counts = recorder.Recorder(fake.qemu, accel.choose("tcg", fake.qemu))
    assert counts.plugin is None and counts.options == ()
    assert counts.why_not == (
        "our plugin does not work in this QEMU: "
        "with interface 7 QEMU ended with status 1 (it has 12); "
        "with interface 4 QEMU ended with status 1 (it has 12)"
    )


def test_a_plugin_that_loads_and_miscounts_is_not_taken(fake: FakeQemu) -> None:
    fake.counted = 1999
    with pytest.raises(InfraError, match="interface 7 it counted 1999 int3 where 2000 were exec"):
        recorder.plugin_for(fake.qemu)


def test_a_plugin_is_tried_again_when_the_qemu_at_that_path_is_another_one(fake: FakeQemu) -> None:
    first = recorder.plugin_for(fake.qemu)
    assert recorder.plugin_for(fake.qemu) == first
    assert fake.tried == [7]
    fake.qemu.binary.write_text(fake.qemu.binary.read_text() + "# a security update\n")
    assert recorder.plugin_for(fake.qemu) != first
    assert fake.tried == [7, 7]


def test_a_plugin_that_does_not_compile_is_one_sentence(tmp_path: Path, fake: FakeQemu) -> None:
    source = tmp_path / "broken.c"
    source.write_text('#error "no such thing"\n')
    with pytest.raises(InfraError, match="our plugin for QEMU does not compile: "):
        plugin.compiled("broken", [source], fake.qemu, "out", lambda file: "")
