# SPDX-License-Identifier: GPL-2.0-only
"""The package sources that this machine's apt is configured with, whatever it has downloaded."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import InfraError
from orchestrator.host import proc

SHAPE = "$(REPO_URI)\t$(RELEASE)\t$(COMPONENT)\t$(ARCHITECTURE)\t$(SOURCESENTRY)"
NOTHING_DOWNLOADED = ("-o", "Dir::State::lists=/nonexistent", "-o", "Dir::State::status=/dev/null")
"""Options for apt-get: without package lists it answers at once, and no list can make a difference.
"""
REMOVABLE = "cdrom:"


@dataclass(frozen=True)
class AptSource:
    """One component of one suite for one architecture."""

    uri: str
    suite: str
    component: str
    architecture: str
    signed_by: str = ""
    """The value of Signed-By: keyrings, fingerprints or a key. Empty for apt's own keyrings."""

    @property
    def debians(self) -> bool:
        """Whether its packages must be signed by Debian's archive keys."""
        return "debian-archive" in self.signed_by

    @property
    def foreign(self) -> bool:
        """Whether its packages must be signed by keys of somebody else."""
        return "/" in self.signed_by.partition("-----BEGIN")[0] and not self.debians


def configured() -> list[AptSource]:
    """All enabled sources of binary packages, in the order of the configuration.

    apt parses its configuration by itself: sources.list, sources.list.d, both formats, options,
    disabled entries. Raises InfraError if there is no apt, or it finds an error there.
    """
    proc.need("apt-get", "apt (this needs a Debian)")
    command = ["apt-get", *NOTHING_DOWNLOADED, "indextargets", "--no-release-info"]
    try:
        listing = proc.run([*command, "--format", SHAPE, "Created-By: Packages"]).stdout
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.output.splitlines() if line.startswith("E:")]
        reason = " ".join(lines or error.output.split("\n"))
        raise InfraError(f"apt cannot read this machine's sources: {reason}") from error
    sources = []
    for line in listing.splitlines():
        match line.split("\t"):
            case [uri, suite, component, architecture, entry] if not uri.startswith(REMOVABLE):
                keys = _signed_by(entry)
                sources.append(AptSource(uri, suite, component, architecture, keys))
            case _:  # a warning of apt
                continue
    return sources


def _signed_by(entry: str) -> str:
    """The value of Signed-By in `entry`, which is FILE:NUMBER.

    apt does not print it without package lists. The number is that of the line in FILE.list, or of
    the stanza in FILE.sources.
    """
    name, _, number = entry.rpartition(":")
    try:
        text = Path(name).read_text(errors="replace")
        if not name.endswith(".sources"):
            line = text.splitlines()[int(number) - 1]
            value = re.search(r"\[[^]]*\bsigned-by=([^]\s]+)", line)
        else:
            lines = [line for line in text.splitlines() if not line.startswith("#")]
            stanzas = re.split(r"\n(?:[ \t]*\n)+", "\n".join(lines).strip("\n \t"))
            field = re.compile(r"^signed-by:(.*(?:\n[ \t].*)*)", re.MULTILINE | re.IGNORECASE)
            value = field.search(stanzas[int(number) - 1])
    except (OSError, ValueError, IndexError):  # it was changed just now
        return ""
    return value[1].strip() if value else ""
