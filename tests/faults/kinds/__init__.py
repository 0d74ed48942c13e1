# SPDX-License-Identifier: GPL-2.0-only
"""The faults, one module for each kind."""

from faults.fault import Fault
from faults.kinds import (
    build,
    cache,
    disk,
    environment,
    files,
    guest,
    input,
    many,
    signals,
    state,
    tools,
)

MODULES = (signals, files, disk, cache, guest, tools, input, environment, state, build, many)

FAULTS: tuple[Fault, ...] = tuple(fault for module in MODULES for fault in module.faults())
"""All faults there are."""

SHARES = {
    "signal": 48, "files": 44, "disk": 22, "cache": 40, "guest": 44, "qemu": 22, "gdb": 12,
    "input": 24, "env": 24, "state": 6, "build": 8, "many": 6,
}  # fmt: skip
"""Of 300 faults, how many are of each kind."""
