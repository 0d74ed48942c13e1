# SPDX-License-Identifier: GPL-2.0-only
"""Whether the log and GDB have seen the same."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from orchestrator.verdict.model import Event
from orchestrator.verdict.recorded.judgement import LogName
from orchestrator.verdict.recorded.record import F_EARLY, INLINE, SYNC, WRITE, Records, written


def disagreements(
    records: Records, events: Iterable[Event], name: LogName | None = None
) -> list[str]:
    """Where the log and what GDB saw of the same time differ: in the writes, and the syncs between.

    name: of the log, as for judge() in judge.py.
    events: those of a whole window (orchestrator/watch/agent.py), in which GDB stops at each write
    and each sync. The log is of the whole run, so first the writes of the window are looked for.
    """
    theirs: list[_Write] = []
    syncs: list[Counter[int]] = []
    for event in events:
        if event["kind"] in ("write", "piece"):
            address, length, data = event.get(
                "written", (event["addr"], event["len"], event["src"])
            )
            theirs.append((address, length, data))
            syncs.append(Counter())
        elif event["kind"] == "sync" and syncs:
            syncs[-1][event["cpu"]] += 1
    if not theirs:
        return []
    numbers = np.flatnonzero((records["kind"] == WRITE) & (records["flags"] & F_EARLY == 0))
    ours = [_write(records, number) for number in numbers.tolist()]
    size = len(theirs)
    places = [
        at
        for at in range(len(ours) - size + 1)
        if ours[at] == theirs[0] and ours[at : at + size] == theirs
    ]
    if not places:
        return [f"the {size} writes that GDB saw are not in the recorder's log in this order"]
    found = (
        _other_syncs(records, numbers[at : at + size], syncs, name or LogName()) for at in places
    )
    return min(found, key=len)


_Write = tuple[int, int, str]
"""Address, length, and the bytes in hexadecimal if they are few."""


def _write(records: Records, at: int) -> _Write:
    address, length = int(records["word"][at][0]), int(records["number"][at])
    return address, length, written(records, at).hex() if length <= INLINE else ""


def _other_syncs(
    records: Records, writes: NDArray[np.int64], theirs: Sequence[Counter[int]], name: LogName
) -> list[str]:
    """Between which writes GDB saw other syncs than the log has."""
    differ = []
    for number, (start, end) in enumerate(itertools.pairwise(writes.tolist())):
        part = records[start:end]
        ours = Counter(part["cpu"][part["kind"] == SYNC].tolist())
        if ours != theirs[number]:
            differ.append(
                f"between two writes GDB saw {theirs[number].total()} syncs, the recorder "
                f"{ours.total()} [{name.place(start)}]"
            )
    return differ
