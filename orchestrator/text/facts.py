"""What a kernel's code for patching live text is like, read off the kernel itself: no version number is asked.

Names come from its symbol table; what its sites look like, and how many fit in a batch, from its memory.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from orchestrator.text import disasm
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

Read = Callable[[int, int], bytes]
"""Reads bytes of the guest's memory: address, size."""

SITES = 400
"""Of the jump labels, so many are looked at."""
ENTRY = 16
"""Bytes of a struct jump_entry: two distances of four and a key (include/linux/jump_label.h, since 4.20)."""
OLD_ENTRY = 24
"""The same as three addresses, before that."""


def facts(lines: Sequence[str], read: Read) -> dict[str, str]:
    """By what it is about, in the order in which it is told. lines: the symbol table with the guest's addresses."""
    symbols = _addresses(lines)
    ends = _ends(symbols)

    def first(names: Sequence[str]) -> str:
        return next((name for name in names if name in symbols), "none")

    poke, queue = first(POKE_ONE), first(POKE_BATCH)
    told = {
        "pokes one site": poke,
        "pokes a batch": f"{queue}{_limit(queue, symbols, ends, read)}"
        if queue != "none"
        else "none",
        "writes text": first(WRITERS),
        "takes int3": first(tuple(HANDLERS))
        + (" (a die notifier)" if first(tuple(HANDLERS)) == "int3_notify" else ""),
        "syncs a core": first((SYNC,)),
        "lock": first((LOCK,)),
        "stops machines": first(STOPPERS),
        "pokes for": ", ".join(what for name, what in PATCHERS.items() if _any(name, symbols))
        or "nobody",
    }
    return told | _jump_labels(symbols, read)


def _addresses(lines: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in lines:
        words = line.split()
        if len(words) == 3:
            found.setdefault(words[2], int(words[0], 16))
    return found


def _ends(symbols: Mapping[str, int]) -> dict[int, int]:
    addresses = sorted(set(symbols.values()))
    return dict(itertools.pairwise(addresses))


def _any(name: str, symbols: Mapping[str, int]) -> bool:
    """Whether there is such a function, if only split or specialised by the compiler."""
    return name in symbols or any(symbol.startswith((f"{name}.", f"{name}_")) for symbol in symbols)


def _limit(queue: str, symbols: Mapping[str, int], ends: Mapping[int, int], read: Read) -> str:
    """How many sites a batch takes: what the function that adds one, or what it calls, compares its count with."""
    for name in (queue, "text_poke_flush", "smp_text_poke_batch_flush", "text_poke_loc_init"):
        address = symbols.get(name)
        if address is None or address not in ends:
            continue
        code = read(address, min(ends[address] - address, 1024))
        for text, _ in disasm.instructions(code, address, None):
            if limit := re.match(r"cmp[lwq]? \$(0x[0-9a-f]+), ", text):
                number = int(limit[1], 16)
                if number in (0xFF, 0x100, 0xAA, 0xAB, 0x80):  # a page of them, by the size of one
                    return f", at most {number + (number in (0xFF, 0xAA - 1))}"
    return ""


def _jump_labels(symbols: Mapping[str, int], read: Read) -> dict[str, str]:
    """How many there are, their sizes, and what stands at those that are off."""
    start, stop = symbols.get("__start___jump_table"), symbols.get("__stop___jump_table")
    if start is None or stop is None or stop <= start:
        return {"jump labels": "none"}
    text = range(symbols.get("_stext", 0), symbols.get("_etext", 1 << 64))
    image = range(
        text.start, symbols.get("_end", 1 << 64)
    )  # the first ones may be of code that is gone after boot
    size = (
        ENTRY
        if all(site in image for site in _sites(read(start, 4 * ENTRY), start, ENTRY))
        else OLD_ENTRY
    )
    count = (stop - start) // size
    every = max(1, count // SITES)
    looked: Counter[str] = Counter()
    for number in range(0, count, every):
        at = start + number * size
        (site,) = _sites(read(at, size), at, size)
        if site not in text:
            continue
        code = read(site, 8)
        words, length = next(disasm.instructions(code, site, None), ("", 0))
        kind = (
            "jmp"
            if words.startswith("jmp")
            else code[:length].hex()
            if words.startswith("nop")
            else "other"
        )
        looked[f"{length} bytes {kind}"] += 1
    seen = ", ".join(f"{kind}: {many}" for kind, many in looked.most_common(6))
    return {"jump labels": f"{count}", f"of {looked.total()} of them": seen}


def _sites(table: bytes, at: int, size: int) -> list[int]:
    """The addresses of the sites of the entries in `table`, which lies at `at`."""
    if size == OLD_ENTRY:
        return [entry[0] for entry in struct.iter_unpack("<3Q", table)]
    return [
        at + size * number + entry[0]
        for number, entry in enumerate(struct.iter_unpack("<iiq", table))
    ]
