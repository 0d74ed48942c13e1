# SPDX-License-Identifier: GPL-2.0-only
"""A run in Chrome's trace format, which Perfetto (ui.perfetto.dev) opens: trace.json.

Process 1 is what GDB saw, by the host's clock. Process 2 is the recorder's log, which has an order
and no times: there a record is a microsecond. Each CPU is a thread of both, and each poke is on a
track of its own. The format is described in "Trace Event Format" by the Chromium project.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.host.files import write_report
from orchestrator.report.timeline import DAMAGED, EVENTS, INT3, LOG, read_events, read_log
from orchestrator.verdict.measures import Failure
from orchestrator.verdict.recorded import record
from orchestrator.verdict.recorded.record import Records
from orchestrator.verdict.result import RunResult, VerdictRecord
from orchestrator.verdict.result import record as record_of

FILE = "trace.json"
MOST = 20_000
"""Records of each source that are exported. The file has at most 6 MB then."""
GDB, RECORDER = 1, 2
"""Numbers of the processes."""
POKES = 1000
"""Number of the thread that writes for nobody, behind all CPUs."""

Entry = dict[str, Any]


def write(result: RunResult) -> None:
    """Write trace.json into the directory of a run in which the kernel failed."""
    if result.verdict.exit_status == 1:
        write_report(result.directory / FILE, text(result.directory, record_of(result)))


def text(directory: Path, verdict: VerdictRecord) -> str:
    """The trace of the run in `directory`."""
    return json.dumps(trace(directory, verdict), separators=(",", ":")) + "\n"


def trace(directory: Path, verdict: VerdictRecord) -> dict[str, Any]:
    """The same as JSON values. What cannot be read, or is too much, is named in otherData."""
    left_out: dict[str, str] = {}
    entries: list[Entry] = []
    for name, process, make in (
        (EVENTS, GDB, _of_gdb),
        (LOG, RECORDER, _of_recorder),
    ):
        try:
            found, why = make(directory, verdict.failure)
        except DAMAGED as error:
            left_out[name] = f"it cannot be read: {error}"
            continue
        if why:
            left_out[name] = why
        entries += _names(process, name, found)
        entries += found
    about = {
        "kernel": verdict.name,
        "outcome": verdict.outcome,
        "reason": verdict.reason,
        "version": verdict.version,
        "left out": left_out or "nothing",
    }
    return {"displayTimeUnit": "ns", "otherData": about, "traceEvents": entries}


def _names(process: int, name: str, entries: Iterable[Entry]) -> Iterator[Entry]:
    what = "GDB" if process == GDB else "recorder (1 us is a record)"
    yield {"ph": "M", "name": "process_name", "pid": process, "args": {"name": f"{what}: {name}"}}
    for thread in sorted({entry["tid"] for entry in entries}):
        label = f"CPU {thread}" if thread != POKES else "pokes"
        common = {"ph": "M", "pid": process, "tid": thread}
        yield {**common, "name": "thread_name", "args": {"name": label}}
        yield {**common, "name": "thread_sort_index", "args": {"sort_index": thread}}


def _entry(
    process: int, cpu: int, at: float, name: str, duration: float = 0.5, **args: object
) -> Entry:
    thread = cpu if 0 <= cpu < 64 else POKES
    entry = {"ph": "X", "pid": process, "tid": thread, "ts": round(at, 1), "name": name}
    return {**entry, "dur": round(duration, 1), "args": args}


def _failed(process: int, at: float, failure: Failure) -> Entry:
    entry = {"ph": "i", "s": "g", "pid": process, "tid": POKES, "ts": round(at, 1)}
    return {**entry, "name": f"FAIL: {failure.check}", "args": {"text": failure.text}}


def _poke(process: int, start: float, end: float, site: int) -> Iterator[Entry]:
    """A poke on a track of its own, as those of a batch overlap."""
    common = {"pid": process, "tid": POKES, "cat": "poke", "id": f"{site:x}-{start:.0f}"}
    for phase, at in (("b", start), ("e", end)):
        yield {**common, "ph": phase, "ts": round(at, 1), "name": f"poke {site:x}"}


def _of_gdb(directory: Path, failure: Failure | None) -> tuple[list[Entry], str]:
    events = read_events(directory)
    if not events:
        return [], ""
    start, found = events[0]["t"], []
    traps: dict[int, Entry] = {}
    window: tuple[float, int] | None = None
    kept = events[:MOST]
    for event in kept:
        kind, cpu, at = event["kind"], event["cpu"], (event["t"] - start) * 1e6
        if failure and event["n"] == failure.event:
            found.append(_failed(GDB, at, failure))
        if kind == "window":
            window = at, event["site"]
        elif kind == "end" and window:
            found += _poke(GDB, window[0], at, window[1])
            window = None
        elif kind == "int3":
            traps[cpu] = _entry(GDB, cpu, at, "int3", event=event["n"], ip=f"{event['ip']:x}")
            found.append(traps[cpu])
        elif kind == "return" and cpu in traps:
            trap = traps.pop(cpu)
            trap["dur"] = round(at - trap["ts"], 1)
            trap["args"]["resumes"] = f"{event['ip']:x}"
        elif kind in ("write", "piece", "hold"):
            name, site = f"{kind} {event['src']}", f"{event['addr']:x}"
            found.append(_entry(GDB, cpu, at, name, 100, event=event["n"], site=site))
        elif kind in ("sync", "stopper"):
            found.append(_entry(GDB, cpu, at, kind, 100, event=event["n"]))
    more = len(events) - len(kept)
    return found, f"the last {more:,} of {len(events):,} events" if more else ""


def _of_recorder(directory: Path, failure: Failure | None) -> tuple[list[Entry], str]:
    log = read_log(directory)
    shown = failure.record if failure and failure.record is not None else None
    end = len(log) if shown is None else min(len(log), shown + MOST // 2)
    start = max(0, end - MOST)
    found = list(_records(log, start, end))
    if shown is not None and failure and start <= shown < end:
        found.append(_failed(RECORDER, shown, failure))
    kept = end - start
    why = f"all but records {start:,} to {end:,} of {len(log):,}" if kept < len(log) else ""
    return found, why


def _records(log: Records, start: int, end: int) -> Iterator[Entry]:
    traps: dict[tuple[int, int], Entry] = {}
    pokes: dict[int, int] = {}
    for at in range(start, end):
        entry = log[at]
        kind, cpu, word = int(entry["kind"]), int(entry["cpu"]), int(entry["word"][0])
        if kind == record.WRITE:
            data = entry["word"][1:3].tobytes()[: min(int(entry["number"]), record.INLINE)]
            yield _entry(RECORDER, cpu, at, f"write {data.hex()}", record=at, site=f"{word:x}")
            if data == b"\xcc":
                pokes.setdefault(word, at)
            elif word in pokes and data[:1] != bytes([INT3]):
                yield from _poke(RECORDER, pokes.pop(word), at, word)
        elif kind == record.SYNC:
            yield _entry(RECORDER, cpu, at, "sync", record=at)
        elif kind == record.TRAP:
            traps[cpu, word] = _entry(RECORDER, cpu, at, "int3", record=at, site=f"{word:x}")
        elif kind == record.RESUME:
            if trap := traps.pop((cpu, word), None):
                ip = f"{int(entry['word'][1]):x}"
                yield {**trap, "dur": at - trap["ts"], "args": {**trap["args"], "resumes": ip}}
        elif kind in (record.STOPPER, record.UNLOCK):
            name = "stopper" if kind == record.STOPPER else "unlock"
            yield _entry(RECORDER, cpu, at, name, record=at)
    yield from traps.values()
