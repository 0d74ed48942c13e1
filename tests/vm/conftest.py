# SPDX-License-Identifier: GPL-2.0-only
"""Guests for the tests that need one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.guest import image
from orchestrator.host import proc, tools
from orchestrator.kernel.model import Kernel, KernelRequest
from orchestrator.kernel.obtain import obtain
from orchestrator.machine import accel
from orchestrator.machine.machine import Machine
from orchestrator.machine.qemu import MachineSpec
from orchestrator.machine.ssh import Keys

KERNEL = os.environ.get("ORCHESTRATOR_TEST_KERNEL", "6.1-plain")


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    return obtain(KernelRequest(selector=KERNEL))


@pytest.fixture(scope="session")
def provoke(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """provoke.ko for `kernel`."""
    directory = tmp_path_factory.mktemp("provoke")
    for source in (Path(__file__).parent / "provoke").iterdir():
        shutil.copy(source, directory)
    assert kernel.kbuild is not None
    proc.run(["make", "-C", str(kernel.kbuild), f"M={directory}", "modules"])
    return directory / "provoke.ko"


@pytest.fixture
def guest(kernel: Kernel, tmp_path: Path) -> Callable[..., Machine]:
    """A function that makes a Machine, not started yet, with its results in tmp_path / "run"."""

    def make(files: dict[str, bytes | Path] | None = None, **options: object) -> Machine:
        directory = tmp_path / "run"
        directory.mkdir()
        keys = Keys.fresh()
        files = {**keys.guest_files(), **(files or {})}
        initrd = image.build(directory / "initramfs.cpio", None, (), files)
        qemu = tools.qemu()
        options = {
            "accel": accel.choose("auto", qemu),
            "bzimage": kernel.bzimage,
            "smp": 2,
            **options,
        }
        spec = MachineSpec(qemu=qemu, initrd=initrd, **options)  # type: ignore[arg-type]
        return Machine(spec, directory, keys)

    return make
