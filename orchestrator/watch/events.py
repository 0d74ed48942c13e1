# SPDX-License-Identifier: GPL-2.0-only
"""Reads the events that the agent in GDB has recorded, as far as they can be relied on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Event = Mapping[str, Any]
"""One line of the agent's events; agent.py documents its fields."""


@dataclass(frozen=True)
class Recording:
    """The events up to the first that is missing.

    What they show has happened. What they do not show may have happened all the same if some are
    lost: then no later event says anything about a kernel.
    """

    events: list[Event] = field(default_factory=list)
    lost: str = ""
    """Why later events are missing, as a sentence without a full stop; empty if all are there."""


def read(content: bytes, count: int | None) -> Recording:
    """The recording in the content of the agent's file.

    count: how many events the agent says it has recorded; None if it cannot be asked any more.
    """
    events: list[Event] = []
    *lines, rest = content.split(b"\n")
    for line in lines:
        try:
            event = json.loads(line)
            number, kind = event["n"], event["kind"]
        except (ValueError, TypeError, KeyError):
            return Recording(events, f"event {len(events) + 1} that GDB saw is damaged")
        if number != len(events) + 1:
            return Recording(events, f"event {len(events) + 1} that GDB saw is missing")
        if kind == "error":
            what = event.get("what", "")
            return Recording(events, f"the agent in GDB failed at event {number}: {what}")
        events.append(event)
    if rest:
        return Recording(events, f"event {len(events) + 1} that GDB saw is cut short")
    if count is not None and count != len(events):
        return Recording(
            events, f"GDB saw {count} events, but only {len(events)} of them can be read"
        )
    return Recording(events)
