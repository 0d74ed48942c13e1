# SPDX-License-Identifier: GPL-2.0-only
"""The image of a guest: its root file system with the test module and the scenarios' scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.guest import initramfs, module
from orchestrator.host import tools
from orchestrator.kernel.model import Kernel
from orchestrator.scenarios.scenario import Scenario


def build(
    target: Path,
    kernel: Kernel | None,
    scenarios: Sequence[Scenario],
    files: Mapping[str, bytes | Path],
) -> Path:
    """Write the image to `target` and return it.

    kernel: the one that the test module is for; None for a guest without a test module.
    files: what else the guest has, as for initramfs.build().

    Raises what building the module raises, and InfraError where busybox or dropbear is missing.
    """
    scripts = {
        f"/scenarios/{one.name}": one.companion.encode() for one in scenarios if one.companion
    }
    return initramfs.build(
        target,
        busybox=tools.busybox(),
        dropbear=tools.dropbear(),
        files={**files, **(module.files(kernel) if kernel else {}), **scripts},
    )
