# SPDX-License-Identifier: GPL-2.0-only
"""Reading GDB's events back: what can be relied on when some are lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.watch.events import read

EVENTS: list[dict[str, Any]] = [
    {"n": number, "t": 0.0, "step": 1, "kind": "sync", "cpu": number} for number in range(1, 11)
]


def content(events: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def test_a_whole_recording_has_lost_nothing() -> None:
    assert read(content(EVENTS), 10).events == EVENTS
    assert read(content(EVENTS), 10).lost == ""
    assert read(b"", 0).lost == ""


DAMAGE: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "the beginning": (lambda: content(EVENTS[3:]), 0, "event 1 that GDB saw is missing"),
    "one in the middle": (
        lambda: content(EVENTS[:4] + EVENTS[5:]),
        4,
        "event 5 that GDB saw is missing",
    ),
    "the end": (
        lambda: content(EVENTS[:8]),
        8,
        "GDB saw 10 events, but only 8 of them can be read",
    ),
    "everything": (lambda: b"", 0, "GDB saw 10 events, but only 0 of them can be read"),
    "half of the last": (lambda: content(EVENTS)[:-9], 9, "event 10 that GDB saw is cut short"),
    "a hole of zeros": (
        lambda: bytes(200) + content(EVENTS[3:]),
        0,
        "event 1 that GDB saw is damaged",
    ),
    "what is no event": (
        lambda: content(EVENTS[:2]) + b"[]\n" + content(EVENTS[3:]),
        2,
        "event 3 that GDB saw is damaged",
    ),
    "an event that could not be taken": (
        lambda: content(
            [*EVENTS[:5], {**EVENTS[5], "kind": "error", "what": "MemoryError"}, *EVENTS[6:]]
        ),
        5,
        "the agent in GDB failed at event 6: MemoryError",
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_what_precedes_the_first_lost_event_is_kept_and_the_rest_is_not(what: str) -> None:
    """A later event would be taken for a fault of the kernel: the one before it is not known."""
    make, kept, lost = DAMAGE[what]
    recording = read(make(), 10)
    assert recording.events == EVENTS[:kept]
    assert recording.lost == lost


def test_an_agent_that_cannot_be_asked_may_have_seen_more() -> None:
    """watch.py says so; the recording itself has no gap."""
    assert read(content(EVENTS), None).lost == ""
