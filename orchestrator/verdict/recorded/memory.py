# SPDX-License-Identifier: GPL-2.0-only
"""The mapping through which text is written, and text that changed though nobody wrote it.

text_poke_early() needs no mapping and no lock, as it writes to text of a module that is not live
yet. So its writes may come while another CPU has the mapping.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orchestrator.verdict.recorded.reading import Reading
from orchestrator.verdict.recorded.record import (
    CODE,
    F_EARLY,
    F_IRQS,
    F_MAPPED,
    FLUSH,
    LOADED,
    UNLOCK,
    WRITE,
)

PAGE = 4096
GLOBAL = 0x100
"""Of an entry of a page table: flushing its mm leaves it in the TLB."""
MEMORY_TYPE = 0x98
"""Of an entry for a small page: bits that choose a memory type, none for one that is cached."""


def _ends(log: Reading) -> NDArray[np.int64]:
    """Where a write through the mapping is over: at the next such write, and the unlock."""
    return np.flatnonzero(
        (log.kinds == UNLOCK) | ((log.kinds == WRITE) & (log.flags & F_EARLY == 0))
    )


def judge_mappings(log: Reading) -> None:
    """Nothing stays mapped after a write."""
    ends = _ends(log)
    for at in ends[log.flags[ends] & F_MAPPED != 0].tolist():
        text = "the mapping through which text is written was still there afterwards"
        before = int(log.writes[np.searchsorted(log.writes, at) - 1])
        log.blame("writes", text, at, int(log.words[before][0]), before)


def judge_loads(log: Reading) -> None:
    """While the mapping is loaded no interrupt comes, and its entries are of this mm only. They map
    the memory as it is mapped elsewhere."""
    for at in log.of_kind(LOADED).tolist():
        write = int(log.writes[np.searchsorted(log.writes, at) - 1])
        site = int(log.words[write][0])
        if log.flags[at] & F_IRQS:
            text = "the mapping through which text is written was loaded with interrupts enabled"
            log.blame("irqs", text, at, site, write)
        if int(log.words[at][0]) & GLOBAL:
            text = "the mapping through which text is written is global, and stays in the TLB"
            log.blame("writes", text, at, site, write)
        if int(log.words[at][0]) & MEMORY_TYPE:
            text = "the mapping through which text is written has another memory type than text"
            log.blame("writes", text, at, site, write)


def judge_flushes(log: Reading) -> None:
    """Where a kernel flushes the mapping through which it writes, it does so after each write, all
    of it: otherwise a later write may go to where an earlier one did. What is still mapped then
    comes back into the TLB."""
    flushes = log.of_kind(FLUSH)
    if not len(flushes):
        return
    too_early = log.flags[flushes] & F_MAPPED != 0
    ends = np.append(_ends(log), len(log.kinds))
    for at in ends[:-1][log.kinds[ends[:-1]] == WRITE].tolist():
        end = int(ends[np.searchsorted(ends, at, side="right")])
        if end == len(log.kinds):
            return  # the log ends before it may be there
        first, last = np.searchsorted(flushes, (at, end))
        mine = flushes[first:last]
        address, length = int(log.words[at][0]), int(log.numbers[at])
        pages = ((address & (PAGE - 1)) + length - 1) // PAGE + 1
        ranges = log.words[mine[~too_early[first:last]]].tolist()
        if not any(stop - start >= pages * PAGE for start, stop, *_ in ranges):
            much = "it was not"
            if ranges:
                much = "only a part of it was"
            elif len(mine):
                much = "it was while it was still there"
            text = f"the mapping through which text was written is to be flushed, and {much}"
            log.blame("writes", text, at, address)


def judge_code(log: Reading) -> None:
    """Text changes only by functions that write text."""
    changes = log.of_kind(CODE).tolist()
    if not log.around.only_writers:
        log.result.not_judged["changes of text by unknown functions"] += len(changes)
        return
    for at in changes:
        words, length = log.words[at], int(log.numbers[at])
        before, now = words[1:3].tobytes()[:length], words[3:5].tobytes()[:length]
        text = f"{before.hex()} became {now.hex()}, and no function that writes text did it"
        log.blame("bytes", text, at, int(words[0]))
