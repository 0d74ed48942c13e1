# SPDX-License-Identifier: GPL-2.0-only
"""text_mutex and interrupts at each write, the locks of who switches something, and their order."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np

from orchestrator.text.functions import LOCKS
from orchestrator.verdict.recorded.judgement import RecordViolation
from orchestrator.verdict.recorded.reading import Reading
from orchestrator.verdict.recorded.record import F_IRQS, ORDER, UNGUARDED, WRITER

TASK_BITS = ~7
"""What of a mutex' owner is the address of the task; the rest are flags."""


def owner_word(log: Reading) -> int | None:
    """Which of text_mutex' words has its owner: that which is most often the current task."""
    if not len(log.writes):
        return None
    after = log.writes[:-1] + 1
    writers = log.words[after[log.kinds[after] == WRITER]]
    current = writers[:, 4]
    hits = [
        int(np.count_nonzero((writers[:, at] & ~np.uint64(7) == current) & (current != 0)))
        for at in range(4)
    ]
    best = max(range(4), key=hits.__getitem__)
    return best if hits[best] else None


def check_writer(
    log: Reading, owner_at: int | None, at: int, site: int, *, live: bool = True
) -> None:
    """The writer has text_mutex, and interrupts are on, at a WRITE.

    owner_at: as owner_word() returns it.
    live: whether CPUs may execute that text. If not, interrupts may be off.
    """
    if log.kinds[at + 1 : at + 2].tolist() != [WRITER]:
        return
    if live and not log.flags[at] & F_IRQS and not log.in_stop_machine(at):
        log.blame("irqs", "text was written with interrupts disabled", at, site)
    if owner_at is None:
        return
    writer = log.words[at + 1]
    owner, current = int(writer[owner_at]) & TASK_BITS, int(writer[4])
    if not owner:
        log.blame("lock", "text was written while nobody held text_mutex", at, site)
    elif current and owner != current and not log.in_stop_machine(at):
        text = "text was written by a task that does not hold text_mutex"
        log.blame("lock", text, at, site)


def judge_guards(log: Reading) -> None:
    """Whoever switches keys and the like has the lock of what it switches."""
    for at in log.of_kind(UNGUARDED).tolist():
        function, caller = (log.place(int(word)).partition("+")[0] for word in log.words[at][:2])
        lock = LOCKS[int(log.numbers[at])]
        text = f"{function}() was called by {caller}(), which did not hold {lock}"
        log.result.blame(RecordViolation("lock", text, at, 0))


def judge_orders(log: Reading) -> None:
    """No two locks are taken in both orders, nor more of them in a circle."""
    orders = log.result.orders
    for at in log.of_kind(ORDER).tolist():
        held, wanted = int(log.numbers[at]), int(log.words[at][0])
        where = log.place(int(log.words[at][1]))
        orders.setdefault((held, wanted), where)
        if path := _path(orders, wanted, held):
            others = ", ".join(
                f"{LOCKS[b]} while {LOCKS[a]} was held by {orders[a, b]}"
                for a, b in itertools.pairwise(path)
            )
            text = f"{LOCKS[wanted]} was taken while {LOCKS[held]} was held by {where}"
            log.result.blame(RecordViolation("lock", f"{text}, and {others}", at, 0))


def _path(orders: Iterable[tuple[int, int]], start: int, end: int) -> list[int]:
    """Locks of which each was held while the next one was taken; empty if there is no such way."""
    ways = [[start]]
    seen = {start}
    for way in ways:
        for held, wanted in list(orders):
            if held == way[-1] and wanted == end:
                return [*way, end]
            if held == way[-1] and wanted not in seen:
                seen.add(wanted)
                ways.append([*way, wanted])
    return []
