"""Names for kernel addresses, from a vmlinux and from the guest's own symbol table."""

from __future__ import annotations

import bisect
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from orchestrator.host import proc

TEXT = frozenset("tTwW")
"""Types of nm(1) and /proc/kallsyms for code."""
FARTHEST = 1 << 16
"""Bytes behind a symbol beyond which an address is not taken for a part of it."""


class Symbols:
    """Functions by address."""

    def __init__(self, lines: Iterable[str]) -> None:
        """lines: as nm(1) and /proc/kallsyms have them: address, type, name, and perhaps a module in brackets."""
        # Data is kept as well, so that an address in it is not taken for a part of the function before it.
        words = [line.split() for line in lines]
        table = sorted(
            (int(w[0], 16), w[1] in TEXT, w[2], w[3] if len(w) > 3 else "")
            for w in words
            if len(w) >= 3
        )
        self._table = table
        self._addresses = [entry[0] for entry in table]

    def function(self, address: int) -> str | None:
        """`function+0x12`, with the module behind it if there is one; None when the address is in no function."""
        at = bisect.bisect_right(self._addresses, address) - 1
        if at < 0:
            return None
        start, code, name, module = self._table[at]
        if not code or address - start > FARTHEST:
            return None
        return f"{name}+{address - start:#x} {module}".rstrip()

    def caller(self, address: int) -> str | None:
        """The same for what may be a return address, which is never the first of a function."""
        name = self.function(address)
        return None if name and name.partition(" ")[0].endswith("+0x0") else name

    def name(self, address: int) -> str:
        return self.function(address) or f"{address:x}"


def of_vmlinux(vmlinux: Path | None) -> list[str]:
    """The lines of a vmlinux' symbol table; none when there is no vmlinux or it cannot be read."""
    if vmlinux is None:
        return []
    try:
        return proc.run([proc.need("nm", "binutils"), str(vmlinux)]).stdout.splitlines()
    except subprocess.CalledProcessError:
        return []


def prefixes(addresses: Iterable[int]) -> list[str]:
    """What the lines of /proc/kallsyms begin with that can name these addresses: so few that grep finds them fast."""
    return sorted(
        {f"{address - back:016x}"[:12] for address in addresses for back in (0, FARTHEST)}
    )


def where(cpu: Mapping[str, object], symbols: Symbols, depth: int = 8) -> str:
    """One line on where a CPU is (as Watch.cpu_snapshot() has it): the function it is in, then who may have called it.

    The callers are words on its stack that point into functions. Like the entries with a question mark in the kernel's
    own traces they may be left over from earlier calls.
    """
    stack = cpu["stack"] if isinstance(cpu["stack"], Sequence) else []
    callers = [name for word in stack if isinstance(word, int) and (name := symbols.caller(word))][
        :depth
    ]
    flags = cpu["eflags"] if isinstance(cpu["eflags"], int) else 0
    irqs = "on" if flags & 0x200 else "off"
    rip = cpu["rip"] if isinstance(cpu["rip"], int) else 0
    return f"CPU {cpu['cpu']}: {symbols.name(rip)}, interrupts {irqs}" + "".join(
        f" < {name}" for name in callers
    )
