# SPDX-License-Identifier: GPL-2.0-only
"""kernel.json, which lies beside each kernel in the cache: what its files do not tell about it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

FILE = "kernel.json"


@dataclass(frozen=True, kw_only=True)
class KernelRecord:
    """The content of one kernel.json."""

    name: str
    """The selector or tree that the kernel was first obtained for."""
    title: str = ""
    """Kernel.name at that time."""
    release: str
    """As `uname -r` prints it."""
    origin: dict[str, str]
    """See Kernel.origin."""
    make: dict[str, str] = field(default_factory=dict)
    """See Kernel.make."""

    def write(self, directory: Path) -> None:
        (directory / FILE).write_text(json.dumps(dataclasses.asdict(self), indent=1))

    @classmethod
    def read(cls, directory: Path) -> KernelRecord:
        """The record in `directory`, which must have one."""
        content = json.loads((directory / FILE).read_text())
        return cls(
            name=content["name"],
            title=content.get("title", ""),
            release=content["release"],
            origin=content["origin"],
            make=content.get("make", {}),
        )
