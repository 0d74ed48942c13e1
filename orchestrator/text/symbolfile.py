# SPDX-License-Identifier: GPL-2.0-only
"""An ELF file with only symbols, made from a guest's /proc/kallsyms.

It takes the place of the vmlinux for kernels that come without one.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from orchestrator.text.symbols import TEXT

KERNEL_HALF = 1 << 63
"""Lower values in kallsyms are not addresses but offsets into per-CPU data."""
LINE = re.compile(r"([0-9a-f]{1,16}) ([a-zA-Z]) ([!-~]+)", re.ASCII)
LAST_SIZE = 1 << 12
"""Assumed size in bytes of the last symbol."""

MOST_STRETCHES = 0xFF00 - 3

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
SHDR = struct.Struct("<IIQQQQIIQQ")
SYM = struct.Struct("<IBBHQQ")
ET_EXEC, EM_X86_64 = 2, 62
SHT_SYMTAB, SHT_STRTAB, SHT_NOBITS = 2, 3, 8
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR = 1, 2, 4
STT_OBJECT, STT_FUNC = 1, 2


@dataclass(frozen=True)
class Symbol:
    address: int
    code: bool
    name: str
    exported: bool


def from_kallsyms(lines: Iterable[str]) -> bytes:
    """The ELF file for the kernel's own symbols in `lines` of /proc/kallsyms, without modules.

    GDB looks up the section of an address before it looks for a symbol, so absolute symbols would
    not work. Instead each stretch of code or data becomes a section without contents; GDB reads the
    contents from the guest.

    Raises ValueError for more stretches than an ELF file has sections.
    """
    symbols = sorted(_symbols(lines), key=lambda symbol: symbol.address)
    strings = _Strings()
    table, sections = [SYM.pack(0, 0, 0, 0, 0, 0)], [SHDR.pack(*[0] * 10)]
    exported: list[bytes] = []
    stretches = [
        list(group) for _, group in itertools.groupby(symbols, key=lambda symbol: symbol.code)
    ]
    if len(stretches) > MOST_STRETCHES:
        raise ValueError(f"code and data alternate {len(stretches)} times")
    ends = [stretch[0].address for stretch in stretches[1:]] + [
        min(symbol.address + LAST_SIZE, (1 << 64) - 1) for symbol in symbols[-1:]
    ]
    for stretch, end in zip(stretches, ends, strict=True):
        code, start = stretch[0].code, stretch[0].address
        flags = SHF_ALLOC | (SHF_EXECINSTR if code else SHF_WRITE)
        name = strings.add(".text" if code else ".data")
        sections.append(SHDR.pack(name, SHT_NOBITS, flags, start, 0, end - start, 0, 0, 1, 0))
        following = {
            a.address: b.address for a, b in itertools.pairwise(stretch) if a.address != b.address
        }
        for symbol in stretch:
            size = following.get(symbol.address, end) - symbol.address
            info = symbol.exported << 4 | (STT_FUNC if code else STT_OBJECT)
            entry = SYM.pack(
                strings.add(symbol.name), info, 0, len(sections) - 1, symbol.address, size
            )
            (exported if symbol.exported else table).append(entry)
    local = len(table)  # the ELF specification requires local symbols to come first
    content = b"".join(table + exported)
    names = (strings.add(".symtab"), strings.add(".strtab"))
    at = EHDR.size
    count = len(sections) + 2
    sections.append(
        SHDR.pack(names[0], SHT_SYMTAB, 0, 0, at, len(content), count - 1, local, 8, SYM.size)
    )
    sections.append(
        SHDR.pack(names[1], SHT_STRTAB, 0, 0, at + len(content), len(strings.content), 0, 0, 1, 0)
    )
    headers = at + len(content) + len(strings.content)
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)  # 64 bits, little endian, version 1
    header = EHDR.pack(
        ident, ET_EXEC, EM_X86_64, 1, 0, 0, headers, 0, EHDR.size, 0, 0, SHDR.size, count, count - 1
    )
    return header + content + bytes(strings.content) + b"".join(sections)


def _symbols(lines: Iterable[str]) -> Iterable[Symbol]:
    """The symbols in `lines`. Other lines are left out: the guest may be damaged."""
    for line in lines:
        match = LINE.fullmatch(line)
        if match and int(match[1], 16) >= KERNEL_HALF:
            yield Symbol(int(match[1], 16), match[2] in TEXT, match[3], match[2].isupper())


class _Strings:
    """A string table."""

    def __init__(self) -> None:
        self.content = bytearray(b"\0")
        self._known: dict[str, int] = {}

    def add(self, text: str) -> int:
        if text not in self._known:
            self._known[text] = len(self.content)
            self.content += text.encode() + b"\0"
        return self._known[text]
