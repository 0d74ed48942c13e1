# SPDX-License-Identifier: GPL-2.0-only
"""Running the branches of a finished run once more.

Either to see whether they take the same course, or to stop one of them at an event.

To stop, the recorder's callback at that event waits while QEMU takes the command to stop, which
takes effect at the end of the translated block. Some events earlier QEMU is asked to have one
instruction in a block. So the instruction of the event is executed, and nothing after it. The
recorder counts instructions, which shows whether that was so.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator import ui
from orchestrator.attach import notes, owner
from orchestrator.branch import BOOT_LOG, IDENTITY, PLAN, Branch, Branches
from orchestrator.errors import InfraError, UsageError
from orchestrator.host import keeper
from orchestrator.kernel.model import Kernel
from orchestrator.machine import cpus, waiting
from orchestrator.machine.faults import KernelFault
from orchestrator.options import from_json
from orchestrator.run import branches_of
from orchestrator.rundir import BRANCHES, FAILURE
from orchestrator.spec import RunSpec
from orchestrator.text.symbols import Symbols, where
from orchestrator.verdict import result
from orchestrator.verdict.model import NAMED
from orchestrator.verdict.recorded.judgement import PLACE
from orchestrator.verdict.recorded.record import (
    BRANCH,
    CALL,
    CALLERS,
    CODE,
    DIES,
    FLUSH,
    FREED,
    GRACE,
    INLINE,
    LOADED,
    MODE,
    PASS,
    RESUME,
    SERIALISE,
    STEP,
    STOPPER,
    SYNC,
    TRACED,
    TRAP,
    UNGUARDED,
    UNLOCK,
    WRITE,
    WRITER,
)
from orchestrator.verdict.result import VerdictRecord
from orchestrator.watch.recorder import CPUS, Recorder, Records, load

SECONDS = 3600.0
"""Limit for one branch."""
SILENCE_SECONDS = 2.0 * waiting.SILENCE_SECONDS
"""A guest in which nothing happens for so long never gets to the event. Others get half of it, but
here QEMU executes one instruction at a time near the event, which takes longer."""
MARGIN = 1000
"""So many events before the one to stop at, QEMU begins to execute one instruction at a time. What
it has translated before is left soon after."""
PAUSES = (0.05, 0.5, 3.0)
"""Seconds from the command to stop until the guest is let go, in the first and later tries: QEMU's
main thread must have begun to carry it out."""
NO_SHELL = "this guest carries out its plan, and has no shell"
BYTES = 16
"""Bytes shown of a site."""
HAS_ADDRESS = {
    WRITE: "writes to",
    SERIALISE: "serialises at",
    TRAP: "executes int3 at",
    RESUME: "goes on after int3 at",
    CODE: "finds another text at",
    PASS: "executes the site",
    DIES: "dies after int3 at",
}
"""Events whose first word is an address of text, and what a CPU does."""
OTHERWISE = {
    WRITER: "has text_mutex, or not, while it writes",
    CALLERS: "was called to write",
    SYNC: "enters do_sync_core",
    STOPPER: "enters multi_cpu_stop",
    UNLOCK: "releases text_mutex",
    MODE: "changes to user mode, the kernel or sleep",
    BRANCH: "looks at a branch of a key",
    CALL: "looks at a static call",
    FREED: "frees code at",
    STEP: "goes on elsewhere after the int3 of a kprobe",
    TRACED: "looks at functions that can be traced",
    GRACE: "waits for all tasks or CPUs",
    LOADED: "loads the mapping through which text is written",
    FLUSH: "flushes the mapping through which text is written",
    UNGUARDED: "calls a function without the lock that it takes",
}


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """One branch that was run again."""

    name: str
    events: int
    """Records in the log of the first time."""
    differs_at: int | None
    """Number of the first record that is another one, from 0; None if all are the same."""


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """A branch that was stopped at an event."""

    branch: Branch
    kernel: Kernel
    event: int
    """Its number in the log, from 0."""
    records: Records
    """The log until there, and what the instruction of the event still adds to it."""
    steps: int
    """How many instructions have begun after that of the event: 0 if it was stopped exactly."""
    differs_at: int | None
    """As in Replayed, of the log until there."""


@dataclass(frozen=True)
class _Finished:
    """A run that has branches, and what runs them again."""

    directory: Path
    verdict: VerdictRecord
    kernel: Kernel
    branches: Branches
    seed: int

    @property
    def names(self) -> list[str]:
        folders = (self.directory / BRANCHES).glob(f"*/{PLAN}")
        return sorted(path.parent.name for path in folders)

    def log(self, name: str) -> Records:
        """The log of a branch, of the first time."""
        try:
            return load(self.directory / BRANCHES / name / BOOT_LOG)
        except OSError as error:
            raise UsageError(f"the run has no log of a branch {name}") from error

    def start(self, stack: contextlib.ExitStack, name: str) -> Branch:
        """Begin to run a branch again."""
        commands = _text(self.directory / BRANCHES / name / PLAN).partition("\n")[2] + "\n"
        return self.branches.carry_out(stack, name, commands, self.seed)


@contextlib.contextmanager
def _finished(directory: Path) -> Iterator[_Finished]:
    """The run in `directory`. Raises UsageError if it cannot be repeated, and what a run raises."""
    spec, verdict = _request(directory)
    if not any((directory / BRANCHES).glob(f"*/{PLAN}")):
        raise UsageError(f"{directory} has no branches: only a run with a fingerprint is replayed")
    assert verdict.kernel
    with keeper.temporary_directory() as temporary:
        kernel, branches = branches_of(spec, temporary, verdict.kernel.digest)
        identity, _, seed_text = _text(directory / BRANCHES / IDENTITY).partition("\n")
        seed = int(seed_text) if seed_text.isdecimal() else spec.seed
        if branches.snapshot.identity != identity:
            ui.say("the snapshot of that run is gone: this one may take another course")
        yield _Finished(directory, verdict, kernel, branches, seed)


def replay(directory: Path) -> Iterator[Replayed]:
    """Run the branches of the run in `directory` again, one after the other.

    Raises UsageError if that run had none or cannot be repeated, and what a run raises.
    """
    with _finished(directory) as run:
        for name in run.names:
            before, whole = run.log(name), True
            with contextlib.ExitStack() as stack, ui.step(f"replaying the branch {name}"):
                one = run.start(stack, name)
                try:
                    one.wait(SECONDS)
                except KernelFault:  # what came after it depends on when the host looks
                    whole = False
                differs_at = first_difference(before, one.records(), whole=whole)
                yield Replayed(name=name, events=len(before), differs_at=differs_at)


def first_difference(before: Records, now: Records, *, whole: bool = True) -> int | None:
    """Number of the first record in which two logs differ; None if they are equal.

    whole: whether one that is longer than the other differs.
    """
    common = min(len(before), len(now))
    different = np.flatnonzero(before[:common] != now[:common])
    if len(different):
        return int(different[0])
    return common if whole and len(before) != len(now) else None


@contextlib.contextmanager
def stopped(directory: Path, event: str, back: int = 0) -> Iterator[Stopped]:
    """Run a branch of the run in `directory` again, and stop it at an event.

    event: `NUMBER`, `BRANCH:NUMBER`, the name of a claim that was broken, or `failure`.
    back: how many events earlier to stop.

    Raises UsageError if there is no such event, and what a run raises.
    """
    with _finished(directory) as run:
        name, number = _event(run, event)
        before, number = run.log(name), max(0, number - back)
        if number >= len(before):
            raise UsageError(f"the branch {name} has {len(before):,} events, from 0 on")
        for pause in PAUSES:
            with contextlib.ExitStack() as stack:
                with ui.step(f"replaying the branch {name} until event {number:,}"):
                    one, steps = _stop(stack, run, name, number + 1, pause)
                if steps and pause != PAUSES[-1]:
                    ui.say(f"{steps} instructions too far: once more")
                    continue
                records = one.records()
                differs_at = first_difference(before[: number + 1], records[: number + 1])
                yield Stopped(
                    branch=one,
                    kernel=run.kernel,
                    event=number,
                    records=records,
                    steps=steps,
                    differs_at=differs_at,
                )
                return


def _event(run: _Finished, text: str) -> tuple[str, int]:
    """Branch and number of an event."""
    name, _, number = text.rpartition(":")
    if number.isdecimal() and len(number) < 12:
        if not name and len(run.names) > 1:
            raise UsageError(f"--at {text}: say which branch: {_choices(run, number)}")
        return name or run.names[0], int(number)
    if text not in (FAILURE, *NAMED):
        claims = ", ".join(NAMED)
        raise UsageError(f"--at takes a number, BRANCH:NUMBER, {FAILURE}, or one of {claims}")
    failed = [check for check in run.verdict.checks if check.status == "fail"]
    for check in failed:
        if text not in (FAILURE, check.check):
            continue
        for line in (check.text, *check.details):
            if found := PLACE.search(line):
                if not found[2] and len(run.names) > 1:
                    raise UsageError(f"say which branch: {_choices(run, found[1])}")
                return found[2] or run.names[0], int(found[1])
    if text != FAILURE:
        raise UsageError(f"no event is known to have broken {text}")
    return _last_moment(run)


def _choices(run: _Finished, number: str) -> str:
    return " or ".join(f"{name}:{number}" for name in run.names)


def _last_moment(run: _Finished) -> tuple[str, int]:
    """The event to look at when a guest went down: the last int3 after which a CPU did not go on,
    otherwise the last one."""
    for name in run.names:
        if (trap := unanswered_int3(run.log(name))) is not None:
            return name, trap
    if run.verdict.fingerprint:
        raise UsageError("what failed is no event of a branch: see the report")
    return run.names[0], max(0, len(run.log(run.names[0])) - 1)


def unanswered_int3(log: Records) -> int | None:
    """Number of the first int3 from which its CPU never returned; None if there is none."""
    first = None
    for cpu in np.unique(log["cpu"]).tolist():
        at = np.flatnonzero((log["cpu"] == cpu) & np.isin(log["kind"], (TRAP, RESUME)))
        depth: list[int] = []
        for number in at.tolist():
            if log["kind"][number] == TRAP:
                depth.append(number)
            else:
                del depth[int(log["number"][number]) :]
        if depth and (first is None or depth[0] < first):
            first = depth[0]
    return first


def _stop(
    stack: contextlib.ExitStack, run: _Finished, name: str, records: int, pause: float
) -> tuple[Branch, int]:
    """Run a branch until it has so many records. Returns it, and the instructions since then."""
    recorder, spec = run.branches.recorder(), run.branches.spec
    early = records <= MARGIN
    spec = replace(spec, one_instruction=early)
    recorder.wait_at(records if early else records - MARGIN, single=early)
    again = replace(run, branches=replace(run.branches, recorder=lambda: recorder, spec=spec))
    one = again.start(stack, name)
    machine = one.machine
    machine.ignore_faults = True  # a guest that goes down has events, too
    with machine.silence.limit(SILENCE_SECONDS):
        _wait(one, recorder)
        if not early:
            line: dict[str, Any] = {"command-line": "one-insn-per-tb on"}
            machine.qmp.execute("human-monitor-command", **line)
            recorder.wait_at(records, single=True)
            recorder.let_go()
            _wait(one, recorder)
        timer = threading.Timer(pause, recorder.let_go)
        timer.start()
        try:
            machine.qmp.execute("stop")
        finally:
            timer.cancel()
            recorder.let_go()
    return one, recorder.steps


def _wait(one: Branch, recorder: Recorder) -> None:
    def there() -> bool:
        return recorder.waits or one.machine.ended()

    one.machine.wait(there, SECONDS, "the event")
    if not recorder.waits:
        raise InfraError("the guest has ended without getting to that event")


def debug(stop: Stopped, directory: Path) -> int:
    """Run an interactive GDB on a branch that is stopped. Returns GDB's exit status.

    directory: an empty one, for what tells GDB of the symbols.
    """
    one = stop.branch
    notes.note_saved(directory, stop.kernel, one.snapshot.sections)
    cpu = int(stop.records[stop.event]["cpu"])
    commands = (f"thread {cpu + 1}",) if cpu < one.machine.spec.smp else ()
    return owner.run_gdb(one.machine, directory, NO_SHELL, commands)


def described(stop: Stopped) -> Iterator[str]:
    """What happened at the event, where each CPU is, and the bytes at the site."""
    branches, machine = stop.branch, stop.branch.machine
    names = Symbols([*stop.branch.recorder.lines, *branches.snapshot.module_symbols])
    record = stop.records[stop.event]
    yield f"event {stop.event:,} of {branches.name}: {happened(record, names)}"
    course = "as in the run"
    if stop.differs_at is not None:
        course = f"another one than in the run, from event {stop.differs_at:,} on"
    yield f"the course until there: {course}"
    if stop.steps:
        yield f"not stopped exactly: {stop.steps:,} instructions have begun since"
    else:
        yield "stopped behind the instruction of the event"
    for state in cpus.snapshot(machine.qmp, machine.spec.smp):
        mark = "*" if state["cpu"] == record["cpu"] else " "
        yield f"{mark} {where(state, names)}"
    address = int(record["word"][0])
    if record["kind"] in HAS_ADDRESS and address >> 63:
        with contextlib.suppress(InfraError):
            yield f"{names.name(address)}: {machine.read_memory(address, BYTES).hex(' ')}"


def happened(record: np.void, names: Symbols) -> str:
    """An event in a few words."""
    words, number = record["word"].tolist(), int(record["number"])
    kind, at = int(record["kind"]), names.name(words[0])
    if kind == WRITE:
        new = record["word"][1:3].tobytes()[:number].hex(" ") if number <= INLINE else "more"
        what = f"writes {new} to {at}"
    elif kind == RESUME:
        what = f"goes on at {names.name(words[1])} after int3 at {at}"
    elif kind in HAS_ADDRESS:
        what = f"{HAS_ADDRESS[kind]} {at}"
    else:
        what = OTHERWISE.get(kind, f"has an event of kind {kind}")
    who = f"CPU {record['cpu']}" if record["cpu"] < CPUS else "the recorder"
    return f"{who} {what}"


def _request(directory: Path) -> tuple[RunSpec, VerdictRecord]:
    """What the run was asked for, and its verdict."""
    try:
        spec = from_json(RunSpec, json.loads((directory / "spec.json").read_text()))
        verdict = result.read(directory)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{directory} is not the directory of a finished run: {error}") from error
    if verdict.kernel is None:
        raise UsageError(f"{directory} had no kernel to run")
    return spec, verdict


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
