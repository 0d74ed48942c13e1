# SPDX-License-Identifier: GPL-2.0-only
"""Names for kernel addresses, from a vmlinux and from the guest's own symbol table."""

from __future__ import annotations

import bisect
import functools
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from orchestrator.host import proc

TEXT = frozenset("tTwW")
"""Symbol types of code in nm(1) and /proc/kallsyms."""
MAX_OFFSET = 1 << 16
"""An address further than this many bytes behind a symbol does not belong to it."""


CLONE = r"(\.(llvm|constprop|isra|lto_priv|__uniq)\.[0-9]+)"
"""What passes of gcc and clang add to the name of a static function, most often with LTO.

`.cold` and `.part` are not among them: that is a piece of the function, and not where it begins.
"""


def plain(name: str) -> str:
    """The name of a function in its source: `do_sync_core` of `do_sync_core.llvm.8808`."""
    return re.sub(f"{CLONE}+$", "", name) if "." in name else name


def addresses(lines: Iterable[str]) -> dict[str, int]:
    """Addresses by name in the lines of a symbol table; clones have their plain name as well.

    lines: as for Symbols. Of several symbols with a name the first one counts, clones last.
    """
    found: dict[str, int] = {}
    clones: dict[str, int] = {}
    for line in lines:
        words = line.split()
        if len(words) >= 3:
            found.setdefault(words[2], int(words[0], 16))
            clones.setdefault(plain(words[2]), int(words[0], 16))
    return {**clones, **found}


class Symbols:
    """Functions by address."""

    def __init__(self, lines: Iterable[str]) -> None:
        """lines: address, type, name and optionally [module], as in nm(1) and /proc/kallsyms."""
        # Data symbols are kept, so that no function is named for an address of data behind it.
        rows = [line.split() for line in lines]
        self._table = sorted(
            (int(row[0], 16), row[1] in TEXT, plain(row[2]), row[3] if len(row) > 3 else "")
            for row in rows
            if len(row) >= 3
        )
        self._addresses = [entry[0] for entry in self._table]
        self.lines: Mapping[int, str] = {}
        """FILE:LINE of addresses in the kernel, for reports: see text/sourcelines.py."""

    def function(self, address: int) -> str | None:
        """`function+0x12` or `function+0x12 [module]`; None when the address is in no function."""
        at = bisect.bisect_right(self._addresses, address) - 1
        if at < 0:
            return None
        start, code, name, module = self._table[at]
        if not code or address - start > MAX_OFFSET:
            return None
        return f"{name}+{address - start:#x} {module}".rstrip()

    def caller(self, address: int) -> str | None:
        """The same for a possible return address, which is never the start of a function."""
        name = self.function(address)
        return None if name and name.partition(" ")[0].endswith("+0x0") else name

    def name(self, address: int) -> str:
        """The function, or the address in hexadecimal."""
        return self.function(address) or f"{address:x}"


def of_vmlinux(vmlinux: Path | None) -> list[str]:
    """The lines of a vmlinux's symbol table; empty when there is none or it cannot be read."""
    if vmlinux is None:
        return []
    try:
        status = vmlinux.stat()
    except OSError:
        return []
    return [*_printed_by_nm(vmlinux, status.st_mtime_ns, status.st_size)]


@functools.lru_cache(maxsize=2)
def _printed_by_nm(vmlinux: Path, _changed: int, _size: int) -> tuple[str, ...]:
    """A run needs them several times."""
    try:
        return (*proc.run([proc.need("nm", "binutils"), str(vmlinux)]).stdout.splitlines(),)
    except subprocess.CalledProcessError:
        return ()


def offset(lines: Iterable[str], guest: Mapping[str, int]) -> int:
    """How far a kernel is from where its symbol table has it: 0 unless KASLR has moved it.

    lines: of the symbol table. guest: some of the guest's addresses, by name.
    """
    for line in lines:
        words = line.split()
        if len(words) == 3 and words[2] in guest:
            return guest[words[2]] - int(words[0], 16)
    return 0


def shifted(lines: Iterable[str], by: int) -> list[str]:
    """The lines of a symbol table, with `by` added to each address of kernel code and data."""
    if not by:
        return list(lines)
    rows = (line.split(maxsplit=1) for line in lines)
    return [
        f"{int(row[0], 16) + by:016x} {row[1]}"
        for row in rows
        if len(row) == 2 and len(row[0]) == 16 and row[0].startswith("ffffffff")
    ]


def prefixes(addresses: Iterable[int]) -> list[str]:
    """Prefixes of the lines of /proc/kallsyms that can name these addresses.

    They are few enough for a fast grep.
    """
    return sorted(
        {f"{address - back:016x}"[:12] for address in addresses for back in (0, MAX_OFFSET)}
    )


def where(cpu: Mapping[str, object], symbols: Symbols, depth: int = 8) -> str:
    """One line about where a CPU is: its function, then its possible callers.

    cpu: one entry of what Watch.cpu_snapshot() returns.
    depth: maximum number of callers.

    The callers are words on the stack that point into functions. Like the entries with a question
    mark in the kernel's own traces, they may be left over from earlier calls.
    """
    stack = cpu["stack"] if isinstance(cpu["stack"], Sequence) else []
    callers = [
        f"{name}{_line(symbols, word - 1)}"
        for word in stack
        if isinstance(word, int) and (name := symbols.caller(word))
    ][:depth]
    flags = cpu["eflags"] if isinstance(cpu["eflags"], int) else 0
    irqs = "on" if flags & 0x200 else "off"
    rip = cpu["rip"] if isinstance(cpu["rip"], int) else 0
    here = f"{symbols.name(rip)}{_line(symbols, rip)}"
    return f"CPU {cpu['cpu']}: {here}, interrupts {irqs}" + "".join(
        f" < {name}" for name in callers
    )


def _line(symbols: Symbols, address: int) -> str:
    line = symbols.lines.get(address)
    return f" ({line})" if line else ""
