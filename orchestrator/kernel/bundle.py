# SPDX-License-Identifier: GPL-2.0-only
"""A built kernel packed into bytes, for a machine that does not have the source to build it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from orchestrator.errors import InfraError
from orchestrator.host import proc
from orchestrator.host.paths import cached_dir, check
from orchestrator.kernel.from_source import VITAL


def pack(place: Path) -> bytes:
    """The kernel in the cache directory `place` (see obtain.identify()), about 20 MB.

    Raises InfraError if it is damaged, or tar fails.
    """
    check(place)
    done = subprocess.run(
        proc.mortal([proc.need("tar", "tar"), "-C", place, "-cz", "."]), capture_output=True
    )
    if done.returncode:
        raise InfraError(f"{place} cannot be packed: {_message(done.stderr)}")
    return done.stdout


def install(place: Path, packed: bytes) -> None:
    """Unpack the result of pack() to `place` in this machine's cache, unless it is there already.

    Raises InfraError if tar fails.
    """

    def make(partial: Path) -> None:
        unpack = proc.mortal([proc.need("tar", "tar"), "-C", partial, "--no-same-owner", "-xz"])
        done = subprocess.run(unpack, input=packed, capture_output=True)
        if done.returncode:
            raise InfraError(f"{place} cannot be unpacked: {_message(done.stderr)}")

    cached_dir(place, make, vital=VITAL)


def _message(stderr: bytes) -> str:
    return stderr.decode(errors="replace").strip()
