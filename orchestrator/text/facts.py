# SPDX-License-Identifier: GPL-2.0-only
"""Facts about a kernel's text patching code, read off the kernel itself and not off its version.

Function names come from its symbol table; the shape of its sites and the size of a batch come from
its memory.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from orchestrator.text import disasm, emulation
from orchestrator.text.functions import (
    HANDLERS,
    LOCK,
    PATCHERS,
    POKE_BATCH,
    POKE_ONE,
    STOPPERS,
    SYNC,
    WRITERS,
)
from orchestrator.text.symbols import addresses

Read = Callable[[int, int], bytes]
"""Reads guest memory: address, number of bytes."""

SITES = 400
"""Number of jump labels to sample."""
ENTRY = 16
"""Bytes of a struct jump_entry since 4.20: two 4-byte offsets and a key
(include/linux/jump_label.h)."""
OLD_ENTRY = 24
"""Bytes of a struct jump_entry before 4.20: three addresses."""


def facts(lines: Sequence[str], read: Read) -> dict[str, str]:
    """Label and value of each fact, in the order of the report.

    lines: the kernel's symbol table in the format of nm(1), with guest addresses.
    """
    symbols = addresses(lines)
    ends = _ends(symbols)

    def first(names: Sequence[str]) -> str:
        return next((name for name in names if name in symbols), "none")

    poke, queue = first(POKE_ONE), first(POKE_BATCH)
    handler = first(tuple(HANDLERS))
    found = {
        "pokes one site": poke,
        "pokes a batch": f"{queue}{_limit(queue, symbols, ends, read)}"
        if queue != "none"
        else "none",
        "writes text": first(WRITERS),
        "takes int3": handler + (" (a die notifier)" if handler == "int3_notify" else ""),
        "emulates": _emulates(symbols, read),
        "syncs a core": first((SYNC,)),
        "lock": first((LOCK,)),
        "stops machines": first(STOPPERS),
        "pokes for": ", ".join(
            user for name, user in PATCHERS.items() if _has_function(name, symbols)
        )
        or "nobody",
    }
    return found | _jump_labels(symbols, read)


def _emulates(symbols: Mapping[str, int], read: Read) -> str:
    emulated = emulation.emulated(symbols, read)
    if emulated is None:
        return "unknown"
    return ", ".join(sorted(emulated)) or "nothing: it sends CPUs to an address"


def _ends(symbols: Mapping[str, int]) -> dict[int, int]:
    return dict(itertools.pairwise(sorted(set(symbols.values()))))


def _has_function(name: str, symbols: Mapping[str, int]) -> bool:
    """Whether the function exists, also if the compiler has split or specialised it."""
    return name in symbols or any(symbol.startswith((f"{name}.", f"{name}_")) for symbol in symbols)


def _limit(queue: str, symbols: Mapping[str, int], ends: Mapping[int, int], read: Read) -> str:
    """The number of sites in a batch: what the function that adds one compares its count with."""
    for name in (queue, "text_poke_flush", "smp_text_poke_batch_flush", "text_poke_loc_init"):
        address = symbols.get(name)
        if address is None or address not in ends:
            continue
        code = read(address, min(ends[address] - address, 1024))
        for text, _ in disasm.instructions(code, address, None):
            if limit := re.match(r"cmp[lwq]? \$(0x[0-9a-f]+), ", text):
                number = int(limit[1], 16)
                # One page of entries; the size of an entry changed over the years.
                if number in (0xFF, 0x100, 0xAA, 0xAB, 0x80):
                    return f", at most {number + (number in (0xFF, 0xAA - 1))}"
    return ""


def _jump_labels(symbols: Mapping[str, int], read: Read) -> dict[str, str]:
    """The number of jump labels, and the instructions at a sample of them."""
    start, stop = symbols.get("__start___jump_table"), symbols.get("__stop___jump_table")
    if start is None or stop is None or stop <= start:
        return {"jump labels": "none"}
    text = range(symbols.get("_stext", 0), symbols.get("_etext", 1 << 64))
    # The first entries may belong to init code, which is outside the text and freed after boot.
    image = range(text.start, symbols.get("_end", 1 << 64))
    size = (
        ENTRY
        if all(site in image for site in _sites(read(start, 4 * ENTRY), start, ENTRY))
        else OLD_ENTRY
    )
    count = (stop - start) // size
    every = max(1, count // SITES)
    sample: Counter[str] = Counter()
    for number in range(0, count, every):
        at = start + number * size
        (site,) = _sites(read(at, size), at, size)
        if site not in text:
            continue
        code = read(site, 8)
        instruction, length = next(disasm.instructions(code, site, None), ("", 0))
        kind = (
            "jmp"
            if instruction.startswith("jmp")
            else code[:length].hex()
            if instruction.startswith("nop")
            else "other"
        )
        sample[f"{length} bytes {kind}"] += 1
    kinds = ", ".join(f"{kind}: {number}" for kind, number in sample.most_common(6))
    return {"jump labels": f"{count}", f"sample of {sample.total()}": kinds}


def _sites(table: bytes, at: int, size: int) -> list[int]:
    """The site addresses in the entries of `table`, which lies at `at`."""
    if size == OLD_ENTRY:
        return [entry[0] for entry in struct.iter_unpack("<3Q", table)]
    return [
        at + size * number + entry[0]
        for number, entry in enumerate(struct.iter_unpack("<iiq", table))
    ]
