# SPDX-License-Identifier: GPL-2.0-only
"""The identity of this program, for results that are kept and for workers that must match."""

from __future__ import annotations

import hashlib
from functools import cache

from orchestrator.host.paths import DATA, PACKAGE

ABOVE_A_RUN = ("many", "report", "commands")
"""Folders of orchestrator/ that start runs or show results. None of them can change a verdict."""
OUTSIDE = tuple(f"orchestrator/{folder}/" for folder in (*ABOVE_A_RUN, "data"))
"""What digest() does not cover. Of orchestrator/data/, which a wheel has, it covers guest/."""


@cache
def digest() -> str:
    """Identify everything in this program that a verdict depends on, in hex.

    It covers all code and data of orchestrator/, apart from the folders of ABOVE_A_RUN, and all of
    guest/: the test module, the scenarios and init. A result is kept under this digest, so changing
    a check or a scenario makes a sweep and mutants run again, and changing a report does not. The
    digest of a wheel is that of its checkout.

    kernels/ is not covered. What a kernel is built from is in the kernel's own digest, and a mutant
    adds its fault.
    """
    files = {
        f"{folder.name}/{file.relative_to(folder)}": file
        for folder in (PACKAGE, DATA / "guest")
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    hashed = hashlib.sha256()
    for name, file in sorted(files.items()):
        if not name.startswith(OUTSIDE):
            hashed.update(name.encode() + b"\0" + file.read_bytes())
    return hashed.hexdigest()
