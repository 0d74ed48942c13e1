"""What the console says about the kernel: a scan of its lines, without I/O."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """kind: one of KINDS. line: number of the first line, from 1. text: that line without its prefix."""

    kind: str
    line: int
    text: str


class Scanner:
    """Feeds on lines and collects findings."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    @property
    def fatal(self) -> list[Finding]:
        return []

    def feed(self, line: str) -> None:
        pass
