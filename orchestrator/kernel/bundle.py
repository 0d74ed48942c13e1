"""A built kernel as one piece of bytes, for a machine that has not the source to build it from."""

from __future__ import annotations

import subprocess
from pathlib import Path

from orchestrator.errors import InfraError
from orchestrator.host import proc
from orchestrator.host.paths import cached_dir


def pack(place: Path) -> bytes:
    """The kernel in the directory `place` of the cache (obtain.identify()), about 20 MB."""
    done = subprocess.run(
        proc.mortal([proc.need("tar", "tar"), "-C", place, "-cz", "."]), capture_output=True
    )
    if done.returncode:
        raise InfraError(
            f"{place} cannot be packed: {done.stderr.decode(errors='replace').strip()}"
        )
    return done.stdout


def install(place: Path, parcel: bytes) -> None:
    """Put what pack() made at `place` in this machine's cache, unless it is there already."""

    def make(partial: Path) -> None:
        unpack = proc.mortal([proc.need("tar", "tar"), "-C", partial, "--no-same-owner", "-xz"])
        done = subprocess.run(unpack, input=parcel, capture_output=True)
        if done.returncode:
            raise InfraError(
                f"{place} cannot be unpacked: {done.stderr.decode(errors='replace').strip()}"
            )

    cached_dir(place, make)
