# SPDX-License-Identifier: GPL-2.0-only
"""A built kernel packed into bytes, for a machine that does not have the source to build it."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from orchestrator.errors import InfraError
from orchestrator.host import archive, proc
from orchestrator.host.paths import cached_dir, check
from orchestrator.kernel.from_source import VITAL

LINKED = ": file changed as we read it"
"""What tar says, with exit status 1, when a file gets another name: a build that goes on links the
headers that it has in common with this kernel. A file that has become shorter is another message.
"""


def pack(place: Path) -> bytes:
    """The kernel in the cache directory `place` (see obtain.identify()), about 20 MB.

    Raises InfraError if it is damaged, or tar fails.
    """
    check(place)
    command: list[str | Path] = [proc.need("tar", "tar"), "-C", place, "-cz", "."]
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(proc.mortal(command), capture_output=True, env=environment)
    proc.check_not_killed(command, done.returncode)
    said = done.stderr.decode(errors="replace").splitlines()
    wrong = [line for line in said if not line.endswith(LINKED)]
    if done.returncode > 1 or (done.returncode and wrong):
        raise InfraError(f"{place} cannot be packed: {' '.join(wrong)}")
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
