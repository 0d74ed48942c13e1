# SPDX-License-Identifier: GPL-2.0-only
"""The plugin for QEMU: compiled for each interface, and the one that QEMU loads is taken."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.errors import InfraError
from orchestrator.host import tools
from orchestrator.machine import accel
from orchestrator.watch import ledger, plugin

pytestmark = pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")

FAKE = """\
#!/bin/sh
[ "$1" = --version ] && {{ echo QEMU emulator version {version}; exit; }}
echo trial >> {log}
for argument; do
	case $argument in file=*) plugin=${{argument#file=}} plugin=${{plugin%%,*}} ;; esac
done
api=$(gdb -nx -batch -ex 'output (int) qemu_plugin_version' "$plugin")
[ "$api" = {supports} ] && exit
echo "QEMU: plugin requires interface $api, but this QEMU has {supports}" >&2
exit 1
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def fake_qemu(directory: Path, supports: int, version: str = "99.0.1") -> tools.Qemu:
    """A QEMU that loads plugins of the interface `supports` and nothing else."""
    binary = directory / f"qemu-{supports}"
    log = directory / "log"
    binary.write_text(FAKE.format(version=version, supports=supports, log=log))
    binary.chmod(0o755)
    return tools.qemu(binary)


def interface_of(so: Path) -> int:
    command = ["gdb", "-nx", "-batch", "-ex", "output (int) qemu_plugin_version", so]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)


@pytest.mark.parametrize("interface", plugin.INTERFACES)
def test_the_plugin_of_the_interface_that_qemu_has_is_taken(tmp_path: Path, interface: int) -> None:
    qemu = fake_qemu(tmp_path, interface)
    counts = ledger.Ledger(qemu, accel.choose("tcg", qemu), tmp_path)
    assert counts.why_not is None and counts.plugin
    assert interface_of(counts.plugin) == interface


def test_a_qemu_that_loads_no_plugin_leaves_a_run_without_a_ledger_and_says_why(
    tmp_path: Path,
) -> None:
    qemu = fake_qemu(tmp_path, 12)
    counts = ledger.Ledger(qemu, accel.choose("tcg", qemu), tmp_path)
    assert counts.plugin is None and counts.options == ()
    assert counts.why_not == (
        "this QEMU does not load our plugin: "
        "QEMU: plugin requires interface 7, but this QEMU has 12; "
        "QEMU: plugin requires interface 3, but this QEMU has 12"
    )


def test_a_plugin_is_tried_again_when_the_qemu_at_that_path_is_another_one(tmp_path: Path) -> None:
    qemu = fake_qemu(tmp_path, 7)
    first = plugin.compiled(ledger.SOURCE, qemu, ())
    assert plugin.compiled(ledger.SOURCE, qemu, ()) == first
    assert (tmp_path / "log").read_text().count("trial") == 1
    qemu.binary.write_text(qemu.binary.read_text() + "# the distribution's security update\n")
    assert plugin.compiled(ledger.SOURCE, qemu, ()) != first
    assert (tmp_path / "log").read_text().count("trial") == 2


def test_a_plugin_that_does_not_compile_is_one_sentence(tmp_path: Path) -> None:
    source = tmp_path / "broken.c"
    source.write_text('#error "no such thing"\n')
    with pytest.raises(InfraError, match="our plugin for QEMU does not compile: "):
        plugin.compiled(source, fake_qemu(tmp_path, 7), ())
