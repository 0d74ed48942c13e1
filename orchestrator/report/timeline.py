# SPDX-License-Identifier: GPL-2.0-only
"""One poke over time, from GDB's events or from the recorder's log.

Both say what happened in which order. Here it becomes marks in columns, a lane for each CPU: it is
drawn by picture.py, printed by mail.py, and exported by trace.py.
"""

from __future__ import annotations

import contextlib
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from orchestrator.rundir import files_of
from orchestrator.verdict.measures import Failure
from orchestrator.verdict.recorded import record
from orchestrator.verdict.recorded.record import Records
from orchestrator.watch import recorder

EVENTS, LOG = "events.jsonl", "recorder.log.gz"
INT3 = 0xCC
NEAR = 8
"""No instruction that is poked is longer, in bytes."""
DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    KeyError,
    TypeError,
    IndexError,
    StopIteration,
    zlib.error,
)
"""What reading a file raises that is not as we wrote it."""
TRAPS = 2
"""Int3 of a CPU that are shown in each phase; the others are counted."""
MOST = 1500
"""Records that are looked at behind the beginning of a poke at most, per CPU."""

Kind = Literal["write", "sync", "int3", "return", "hold", "end", "missing", "away", "other"]
NAMES: dict[Kind, str] = {
    "write": "write",
    "sync": "sync",
    "int3": "int3",
    "return": "goes on",
    "hold": "held",
    "end": "end",
    "missing": "no sync",
    "away": "elsewhere",
    "other": "stopper",
}
"""What a kind is called in tables."""


@dataclass(frozen=True)
class Mark:
    """One thing that a CPU did, or should have done."""

    column: int
    cpu: int
    """-1 if it is about no single CPU."""
    kind: Kind
    text: str
    number: int
    """Of the event in events.jsonl, or of the record in recorder.log.gz; -1 for none."""
    wrong: bool = False
    """Whether this is the failure."""


@dataclass
class Phase:
    """The time between two writes of the poke."""

    number: int
    """As in the phase model; -1 if the writes are not those of the protocol."""
    start: int
    """Its first column. It ends where the next one starts."""
    memory: str
    """What the site holds, in hexadecimal."""
    synced: set[int] = field(default_factory=set)
    """CPUs that have synced in it."""
    missing: tuple[int, ...] = ()
    """CPUs that the failure says have not."""


@dataclass
class Timeline:
    """A poke over time."""

    source: str
    """Name of the file that it was read from."""
    title: str
    cpus: range
    marks: list[Mark] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    columns: int = 0
    hidden: int = 0
    """Int3 that are left out."""

    def rows(self) -> list[tuple[str, str, str, str, bool]]:
        """The same as a table: number, CPU, what it did, details, whether it is wrong."""
        return [
            (
                str(mark.number) if mark.number >= 0 else "",
                str(mark.cpu) if mark.cpu >= 0 else "",
                NAMES[mark.kind],
                mark.text,
                mark.wrong,
            )
            for mark in self.marks
        ]


def of_failure(directory: Path, failure: Failure | None, cpus: int) -> Timeline | None:
    """The poke that failed in the run in `directory`; None if no single poke did, or no log of it
    can be read."""
    with contextlib.suppress(*DAMAGED):
        if failure and failure.event is not None:
            return _failed_event(read_events(directory), failure, cpus)
        if failure and failure.record is not None:
            return _of_records(read_log(files_of(directory, failure.guest)), failure, cpus)
    return None


def of_example(directory: Path, cpus: int) -> Timeline | None:
    """The first poke of a run that GDB watched; None if there is none."""
    with contextlib.suppress(*DAMAGED):
        events = read_events(directory)
        first = next(at for at, event in enumerate(events) if event["kind"] == "window")
        end = next(at for at in range(first, len(events)) if events[at]["kind"] == "end")
        return _of_events(events[first : end + 1], cpus)
    return None


def read_events(directory: Path) -> list[dict[str, Any]]:
    """What GDB saw. Raises OSError or ValueError."""
    lines = _file(directory / EVENTS).read_text(errors="replace").splitlines()
    return [json.loads(line) for line in lines]


def read_log(directory: Path) -> Records:
    """The recorder's log. Raises OSError, EOFError or ValueError."""
    return recorder.load(_file(directory / LOG))


def _file(path: Path) -> Path:
    if not path.is_file():  # reading a pipe would wait for ever
        raise FileNotFoundError(f"{path} is no file")
    return path


# -- from GDB's events


def _failed_event(events: Sequence[dict[str, Any]], failure: Failure, cpus: int) -> Timeline | None:
    # Numbers begin anew with each window of observation, and a run ends with the one that failed.
    found = [at for at, event in enumerate(events) if event["n"] == failure.event]
    if not found:
        return None
    at = found[-1]
    start = at
    while start > 0 and events[start]["kind"] not in ("window", "end"):
        start -= 1
    if events[start]["kind"] == "window" or at == start:
        while events[start]["kind"] != "window" and start > 0:
            start -= 1
        end = next((n for n in range(at, len(events)) if events[n]["kind"] == "end"), at)
        return _of_events(events[start : end + 1], cpus, failure)
    # A poke of the kernel's own, which nobody announced.
    site = next(
        events[n]["addr"]
        for n in range(at, -1, -1)
        if events[n]["kind"] in ("write", "hold", "piece")
    )
    begun = next(
        n
        for n in range(at, -1, -1)
        if events[n]["kind"] == "write"
        and events[n]["src"] == "cc"
        and 0 <= site - events[n]["addr"] < NEAR
    )
    return _of_events(events[begun : at + 1], cpus, failure, events[begun]["addr"])


def _of_events(
    events: Iterable[dict[str, Any]],
    cpus: int,
    failure: Failure | None = None,
    site: int | None = None,
) -> Timeline:
    """site: that of a poke that nobody announced."""
    line = _Line(Timeline(EVENTS, failure.step or "" if failure else "", range(cpus)), failure)
    for event in events:
        kind, cpu, number = event["kind"], event["cpu"], event["n"]
        wrong = failure is not None and number == failure.event
        if kind == "window":
            site = event["site"]
            line.begin(event["from"], len(event["to"]) // 2)
        elif kind == "write":
            offset = event["addr"] - (site or 0)
            if site is None or not 0 <= offset < NEAR:
                continue
            if not line.timeline.phases:
                line.begin(event.get("before", failure.old if failure else "") or "", 0)
            line.write(cpu, number, offset, event["src"], wrong)
        elif kind == "sync":
            line.sync(cpu, number, wrong)
        elif kind == "hold":
            line.away(event.get("elsewhere", ()), "idle or in user mode")
            line.add(cpu, "hold", "the poker is held until every CPU has run", number, wrong)
        elif kind == "int3" and event["ip"] == site:
            line.trap(cpu, number, wrong)
        elif kind == "return" and event["trap"] == site:
            text = f"goes on at {event['ip']:x}" if event["value"] else "nobody took the int3"
            line.goes_on(cpu, number, text, wrong)
        elif kind == "stopper":
            line.add(cpu, "other", "stop_machine() runs", number, wrong)
        elif kind == "end":
            line.add(-1, "end", "the poke is over", number, wrong)
        elif wrong:
            line.add(cpu, "other", kind, number, wrong)
    return line.finish()


# -- from the recorder's log


def _of_records(log: Records, failure: Failure, cpus: int) -> Timeline | None:
    shown = failure.record or 0
    since = shown if failure.since is None else failure.since
    site, begun = _begin(log, since)
    title = failure.text.partition("(site ")[2].rstrip(") ")
    line = _Line(Timeline(LOG, title, range(cpus)), failure)
    over = released = False
    for at in range(begun, min(len(log), max(begun + MOST * cpus, shown + 1))):
        entry = log[at]
        kind, cpu, word = int(entry["kind"]), int(entry["cpu"]), int(entry["word"][0])
        wrong = at == shown
        if at > shown and (released or (over and kind == record.WRITE)):
            break
        if kind == record.WRITE:
            offset, length = word - site, int(entry["number"])
            if 0 <= offset < NEAR:
                if not line.timeline.phases:
                    line.begin(entry["word"][3:5].tobytes()[:NEAR].hex(), 0)
                data = entry["word"][1:3].tobytes()[: min(length, record.INLINE)]
                line.write(cpu, at, offset, data.hex(), wrong)
                over = offset == 0 and data[0] != INT3
            elif wrong:
                line.add(cpu, "other", f"writes at {word:x}", at, wrong)
        elif kind == record.WRITER and log["kind"][at - 1] == record.WRITE:
            line.away(_bits(int(entry["word"][6])), "idle")
            line.away(_bits(int(entry["word"][5])), "in user mode")
        elif kind == record.SYNC:
            line.sync(cpu, at, wrong)
        elif kind == record.TRAP and word == site:
            line.trap(cpu, at, wrong)
        elif kind == record.RESUME and word == site:
            line.goes_on(cpu, at, f"goes on at {int(entry['word'][1]):x}", wrong)
        elif kind == record.STOPPER:
            line.add(cpu, "other", "multi_cpu_stop() runs", at, wrong)
        elif kind == record.UNLOCK:
            line.add(cpu, "end", "text_mutex is released", at, wrong)
            released = True
        elif wrong:
            line.add(cpu, "other", "here", at, wrong)
    return line.finish()


def _bits(mask: int) -> list[int]:
    return [cpu for cpu in range(mask.bit_length()) if mask >> cpu & 1]


def _begin(log: Records, since: int) -> tuple[int, int]:
    """The site that record `since` is about, and the record with which its poke began."""
    address = int(log["word"][since, 0])
    before = log[: since + 1]
    writes = np.flatnonzero(before["kind"] == record.WRITE)
    addresses = before["word"][writes, 0]
    # Unsigned: an address behind this one is far away.
    near = writes[np.uint64(address) - addresses < NEAR]
    first = before["word"][near, 1].astype(np.uint8) == INT3
    begun = near[first & (before["number"][near] == 1)]
    if not len(begun):
        return address, since
    return int(log["word"][begun[-1], 0]), int(begun[-1])


# -- both


class _Line:
    """Makes a timeline, mark after mark."""

    def __init__(self, timeline: Timeline, failure: Failure | None) -> None:
        self.timeline = timeline
        self._failure = failure
        self._memory = bytearray()
        self._length = 0
        self._written = 0
        self._traps: Counter[int] = Counter()
        self._shown: Counter[int] = Counter()
        """Int3 of each CPU that are shown and have not gone on."""
        self._away: list[tuple[int, Mark]] = []
        """Each with the index of its phase."""

    def begin(self, memory: str, length: int) -> None:
        """length: of the site; 0 if nobody knows yet."""
        self._memory = bytearray.fromhex(memory)
        self._length = length
        self.timeline.phases.append(Phase(0, 0, self._held()))

    def add(self, cpu: int, kind: Kind, text: str, number: int, wrong: bool = False) -> None:
        if wrong:
            self._miss()
        at = self.timeline.columns
        self.timeline.marks.append(Mark(at, cpu, kind, text, number, wrong))
        self.timeline.columns += 1

    def write(self, cpu: int, number: int, offset: int, data: str, wrong: bool) -> None:
        code = bytes.fromhex(data)
        self._memory[offset : offset + len(code)] = code
        self._length = max(self._length, offset + len(code))
        self._written += 1
        self._traps.clear()
        self.add(cpu, "write", f"writes {data} at +{offset}", number, wrong)
        phases = self.timeline.phases
        numbers = {(0, True): 1, (1, True): 2, (0, False): 3}
        here = numbers.get((min(offset, 1), self._memory[0] == INT3), -1)
        phases.append(Phase(here, self.timeline.columns - 1, self._held()))

    def sync(self, cpu: int, number: int, wrong: bool) -> None:
        if self.timeline.phases:
            self.timeline.phases[-1].synced.add(cpu)
        self.add(cpu, "sync", "runs do_sync_core()", number, wrong)

    def away(self, cpus: Iterable[int], where: str) -> None:
        """These CPUs execute nothing of the kernel, so it may leave them out of a round."""
        for cpu in cpus:
            mark = Mark(self.timeline.columns, cpu, "away", f"is {where}", -1)
            self._away.append((len(self.timeline.phases) - 1, mark))

    def trap(self, cpu: int, number: int, wrong: bool) -> None:
        self._traps[cpu] += 1
        if self._traps[cpu] > TRAPS and not wrong:
            self.timeline.hidden += 1
            return
        self._shown[cpu] += 1
        self.add(cpu, "int3", "executes the int3", number, wrong)

    def goes_on(self, cpu: int, number: int, text: str, wrong: bool) -> None:
        if self._shown[cpu] or wrong:
            self._shown[cpu] = max(0, self._shown[cpu] - 1)
            self.add(cpu, "return", text, number, wrong)

    def _miss(self) -> None:
        """Mark the CPUs that should have synced before now."""
        failure, phases = self._failure, self.timeline.phases
        if not failure or failure.check != "sync" or not failure.cpus or not phases:
            return
        phases[-1].missing = failure.cpus
        at = self.timeline.columns
        for cpu in failure.cpus:
            self.timeline.marks.append(Mark(at, cpu, "missing", "has not synced", -1, True))
        self.timeline.columns += 1

    def _held(self) -> str:
        return bytes(self._memory[:NEAR]).hex()

    def finish(self) -> Timeline:
        """The timeline, when all is in it: only then the length of the site is known."""
        phases, marks = self.timeline.phases, self.timeline.marks
        for phase in phases:
            phase.memory = phase.memory[: 2 * (self._length or NEAR)]
        seen: set[tuple[int, int]] = set()
        for index, mark in self._away:
            if index >= 0 and mark.cpu not in phases[index].synced | set(phases[index].missing):
                if (index, mark.cpu) not in seen:
                    marks.append(mark)
                seen.add((index, mark.cpu))
        marks.sort(key=lambda mark: mark.column)
        return self.timeline
