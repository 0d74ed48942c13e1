# SPDX-License-Identifier: GPL-2.0-only
"""The identity of this program, for results that are kept and for workers that must match."""

from __future__ import annotations

import hashlib
from functools import cache

from orchestrator.host.paths import PROJECT

ABOVE_A_RUN = ("many", "report", "commands")
"""Folders of orchestrator/ that start runs or show results. None of them can change a verdict."""


@cache
def digest() -> str:
    """Identify everything in this program that a verdict depends on, in hex.

    It covers all code and data of orchestrator/, apart from the folders of ABOVE_A_RUN, and all of
    guest/: the test module, the scenarios and init. A result is kept under this digest, so changing
    a check or a scenario makes a sweep and mutants run again, and changing a report does not.

    kernels/ is not covered. What a kernel is built from is in the kernel's own digest, and a mutant
    adds its fault.
    """
    code = PROJECT / "orchestrator"
    files = [
        file
        for file in code.rglob("*")
        if file.relative_to(code).parts[0] not in ABOVE_A_RUN and "__pycache__" not in file.parts
    ]
    hashed = hashlib.sha256()
    for file in sorted([*files, *(PROJECT / "guest").rglob("*")]):
        if file.is_file():
            hashed.update(str(file.relative_to(PROJECT)).encode() + b"\0" + file.read_bytes())
    return hashed.hexdigest()
