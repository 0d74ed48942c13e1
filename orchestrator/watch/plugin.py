# SPDX-License-Identifier: GPL-2.0-only
"""Compiles a plugin for the QEMU at hand.

QEMU's plugin interface changes, and no version of QEMU says in advance what it loads. So a plugin
is compiled for each interface that its source supports, and the one that QEMU has loaded is used.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import InfraError
from orchestrator.host import proc
from orchestrator.host.paths import cache_dir, cached_dir
from orchestrator.host.tools import Qemu

HEADER = Path(__file__).with_name("qemu-plugin.h")
INTERFACES = (7, 3)
"""The versions of the interface in HEADER, newest first."""
CFLAGS = ("-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-fvisibility=hidden")
TRIAL = "trial"
"""Stands for a file in the arguments that a plugin is tried with."""


def compiled(source: Path, qemu: Qemu, arguments: Sequence[str]) -> Path:
    """The plugin in `source`, compiled for an interface with which `qemu` has loaded it.

    It is cached by its source and the QEMU.

    arguments: what QEMU passes to the plugin when it is tried, such as `ledger=trial`.

    Raises InfraError if it does not compile, or if this QEMU loads none.
    """
    identity = [source.read_bytes(), HEADER.read_bytes(), repr((qemu.identity, CFLAGS)).encode()]
    digest = hashlib.sha256(b"\0".join(identity)).hexdigest()[:16]
    name = f"{source.stem}.so"

    def make(directory: Path) -> None:
        refusals = {}
        for interface in INTERFACES:
            plugin = _compile(source, interface, directory / name)
            reason = _refusal(plugin, qemu, arguments, directory)
            if not reason:
                return
            refusals[reason] = interface
        raise InfraError(f"this QEMU does not load our plugin: {'; '.join(refusals)}")

    return cached_dir(cache_dir() / source.stem / digest, make) / name


def _compile(source: Path, interface: int, plugin: Path) -> Path:
    gcc = proc.need("gcc", "gcc")
    try:
        proc.run([gcc, *CFLAGS, f"-DAPI={interface}", "-o", plugin, source])
    except subprocess.CalledProcessError as error:
        raise InfraError(
            f"our plugin for QEMU does not compile: {_last_line(error.output)}"
        ) from error
    return plugin


def _refusal(plugin: Path, qemu: Qemu, arguments: Sequence[str], directory: Path) -> str:
    """Why `qemu` does not load `plugin`; empty if it does."""
    option = ",".join([f"file={plugin}", *arguments])
    command = [
        *qemu.command,
        *("-M", "none"),
        "-nodefaults",
        *("-display", "none"),
        *("-monitor", "stdio"),
        *("-plugin", option),
    ]
    done = proc.run(command, cwd=directory, env=qemu.env, stdin="quit\n", check=False)
    return _last_line(done.stdout) if done.returncode else ""


def _last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1] if lines else "no reason given"
