# SPDX-License-Identifier: GPL-2.0-only
"""What is asked of a QEMU: the probe of an accelerator, and the plugin that counts int3."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.host import debian, tools
from orchestrator.host.paths import PROJECT, cache_dir, cached_dir
from orchestrator.machine import accel
from orchestrator.watch import recorder

pytestmark = pytest.mark.vm

LIBRARIES = "usr/lib/x86_64-linux-gnu"


@pytest.fixture(scope="session")
def newest_qemu() -> Path:
    """A script that runs the QEMU of Debian sid, with the C library and all others from there."""
    (package,) = debian.candidates("qemu-system-x86", ("sid",))
    final = cache_dir() / "tools" / f"qemu-of-sid-{package.upstream}"

    def make(root: Path) -> None:
        for deb in debian.closure(["qemu-system-x86"], ("sid",)):
            if deb.name.startswith(("lib", "qemu", "seabios", "ipxe")) and "-dev_" not in deb.name:
                debian.unpack(deb, root)
        libraries, binary = final / LIBRARIES, final / "usr/bin/qemu-system-x86_64"
        loader = [f"{libraries}/ld-linux-x86-64.so.2", "--library-path", str(libraries)]
        firmware = [
            argument
            for share in ("qemu", "seabios")
            for argument in ("-L", final / "usr/share" / share)
        ]
        command = shlex.join(map(str, [*loader, binary, *firmware]))
        script = root / "qemu"
        script.write_text(
            f'#!/bin/sh\nexport QEMU_MODULE_DIR={libraries}/qemu\nexec {command} "$@"\n'
        )
        script.chmod(0o755)

    return cached_dir(final, make) / "qemu"


@pytest.mark.parametrize("accelerator", ["tcg", "tcg,thread=multi"])
def test_the_probe_runs_to_its_end_under_tcg(accelerator: str) -> None:
    assert accel.probe(tools.qemu(), accelerator, "max") == ""


def test_a_probe_that_qemu_refuses_says_what_qemu_said() -> None:
    assert "invalid accelerator" in accel.probe(tools.qemu(), "nonsense", "max")


@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="there is no /dev/kvm")
def test_a_kvm_passes_the_probe_or_the_reason_is_a_sentence() -> None:
    trouble = accel.probe(tools.qemu(), "kvm", "host")
    assert trouble == "" or trouble.startswith("a small guest did not ")


def test_the_plugin_counts_every_int3_of_the_probe() -> None:
    assert recorder.plugin_for(tools.qemu()).is_file()


@pytest.mark.net
def test_a_run_with_the_newest_qemu_has_all_three_ledgers(
    newest_qemu: Path, tmp_path: Path
) -> None:
    qemu = tools.qemu(newest_qemu)
    assert qemu.version >= (11, 1)
    assert accel.probe(qemu, "tcg", "max") == ""
    command = [
        *(sys.executable, "-m", "orchestrator", "run", "--accel", "tcg", "--smp", "2"),
        *("--scenario", "nop5", "--duration", "0.2", "--output", tmp_path / "run"),
    ]
    environment = {**os.environ, tools.QEMU_VARIABLE: str(newest_qemu)}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "recorder: none" not in done.stderr
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text())
    (ledgers,) = (check for check in verdict["checks"] if check["check"] == "ledgers")
    assert ledgers["status"] == "pass" and "guest, GDB and QEMU count the same" in ledgers["text"]


def test_a_run_without_qemus_ledger_says_so_at_its_start_and_in_its_check(tmp_path: Path) -> None:
    """With a QEMU that refuses every plugin."""
    real = tools.qemu()
    script = tmp_path / "qemu"
    exports = "".join(f"export {name}={shlex.quote(text)}\n" for name, text in real.env.items())
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *-plugin*) echo no plugins here >&2; exit 1;; esac\n'
        f'{exports}exec {shlex.join(real.command)} "$@"\n'
    )
    script.chmod(0o755)
    command = [
        *(sys.executable, "-m", "orchestrator", "run", "--accel", "tcg", "--smp", "2"),
        *("--scenario", "nop5", "--duration", "0.2", "--output", tmp_path / "run"),
    ]
    environment = {**os.environ, tools.QEMU_VARIABLE: str(script)}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    reason = "none, because our plugin does not work in this QEMU"
    assert f"recorder: {reason}" in done.stderr and "no plugins here" in done.stderr
    assert "QEMU has no count: our plugin does not work in this QEMU" in done.stdout
