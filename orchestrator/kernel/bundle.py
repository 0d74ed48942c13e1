# SPDX-License-Identifier: GPL-2.0-only
"""A built kernel packed into bytes, for a machine that does not have the source to build it."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

from orchestrator.errors import InfraError
from orchestrator.host import archive, proc
from orchestrator.host.paths import cached_dir, check
from orchestrator.kernel.from_source import VITAL


def pack(place: Path) -> bytes:
    """The kernel in the cache directory `place` (see obtain.identify()), about 20 MB.

    Raises InfraError if it is damaged, or tar fails.
    """
    check(place)
    command: list[str | Path] = [proc.need("tar", "tar"), "-C", place, "-cz", "."]
    done = subprocess.run(proc.mortal(command), capture_output=True)
    proc.check_not_killed(command, done.returncode)
    if done.returncode:
        raise InfraError(f"{place} cannot be packed: {_message(done.stderr)}")
    return done.stdout


def digest(packed: bytes) -> str:
    """Identifies the bytes of a bundle."""
    return hashlib.sha256(packed).hexdigest()


def install(place: Path, packed: bytes, expected: str | None) -> None:
    """Unpack the result of pack() to `place` in this machine's cache, unless it is there already.

    expected: what digest() was on the machine that packed it.

    Raises InfraError if it is something else, or does not unpack.
    """
    if digest(packed) != expected:
        raise InfraError(
            f"the bundle of kernel {place.name} is not what was sent: it was damaged or replaced "
            "on its way"
        )

    def make(partial: Path) -> None:
        try:
            archive.unpack(packed, partial, compression="--gzip")
        except archive.ArchiveError as error:
            raise InfraError(f"{place} cannot be unpacked: {error}") from error

    cached_dir(place, make, vital=VITAL)


def _message(stderr: bytes) -> str:
    return stderr.decode(errors="replace").strip()
