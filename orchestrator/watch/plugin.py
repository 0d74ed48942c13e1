# SPDX-License-Identifier: GPL-2.0-only
"""Compiles a plugin for the QEMU at hand.

QEMU's plugin interface changes, and no version of QEMU says in advance what it loads. So a plugin
is compiled for each interface that its files support, and the one that has worked is used.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from orchestrator.errors import InfraError
from orchestrator.host import proc
from orchestrator.host.paths import cache_dir, cached_dir
from orchestrator.host.tools import Qemu
from orchestrator.machine import accel
from orchestrator.machine.qemu import escaped

INTERFACES = (7, 4)
"""The versions of the interface in qemu-plugin.h, newest first."""
CFLAGS = ("-shared", "-fPIC", "-O2", "-Wall", "-fvisibility=hidden")


def compiled(
    name: str, files: Sequence[Path], qemu: Qemu, output: str, check: Callable[[Path], str]
) -> Path:
    """The plugin `name`, compiled for the interface with which it works in `qemu`.

    Tried with the probe of the accelerators as the guest, because a plugin can be loaded and then
    crash, or count nothing. Cached by its files and the QEMU.

    files: all that it is made of, C files and headers.
    output: the plugin's argument that names the file to write.
    check: given the file that it wrote about the probe, returns what is wrong with it.

    Raises InfraError if it does not compile, or if it works with no interface.
    """
    identity = [repr((qemu.identity, CFLAGS)).encode()]
    for file in files:
        identity += [file.name.encode(), file.read_bytes()]
    digest = hashlib.sha256(b"\0".join(identity)).hexdigest()[:16]
    library = f"{name}.so"

    def make(directory: Path) -> None:
        failures = []
        for interface in INTERFACES:
            plugin, trial = directory / library, directory / "trial"
            _compile(files, interface, plugin)
            options = ("-plugin", f"file={escaped(plugin)},{output}={escaped(trial)}")
            trouble = accel.probe(qemu, "tcg", "max", options=options) or check(trial)
            if not trouble:
                return
            failures.append(f"with interface {interface} {trouble}")
        raise InfraError(f"our plugin does not work in this QEMU: {'; '.join(failures)}")

    return cached_dir(cache_dir() / name / digest, make) / library


def _compile(files: Sequence[Path], interface: int, plugin: Path) -> None:
    gcc = proc.need("gcc", "gcc")
    sources = [file for file in files if file.suffix == ".c"]
    try:
        proc.run([gcc, *CFLAGS, f"-DAPI={interface}", "-o", plugin, *sources])
    except subprocess.CalledProcessError as error:
        lines = error.output.strip().splitlines()
        reason = lines[-1] if lines else "gcc gives no reason"
        raise InfraError(f"our plugin for QEMU does not compile: {reason}") from error
