# SPDX-License-Identifier: GPL-2.0-only
"""Many trials: which faults are tried, two at a time, and the table of what came of them."""

from __future__ import annotations

import concurrent.futures
import fnmatch
import random
import shlex
import shutil
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from faults import processes
from faults.fault import Fault
from faults.judge import SEVERITIES, Finding, judge, outcome
from faults.kinds import SHARES
from faults.trial import Trial
from faults.world import World


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    fault: str
    """Name of the fault."""
    name: str
    """The same with the number of the try."""
    kernel: str
    status: int | None
    """Exit status, negative if ended by a signal, None if it had to be killed."""
    outcome: str | None
    seconds: float
    after: float | None
    """Seconds from the fault to the end; 0 if it was there at the start, None if it never came."""
    note: str
    command: str
    directory: Path
    """Where everything is kept if there are findings."""
    findings: Sequence[Finding] = field(default_factory=list)


def select(
    faults: Sequence[Fault], seed: int, count: int | None, only: Sequence[str]
) -> list[tuple[Fault, int]]:
    """`count` pairs of a fault and the number of its try, all kinds in the same proportion.

    count: None for each once. only: patterns for names (`signal/*`, or with the number of the try,
    `signal/qemu-KILL#2`).
    """
    chosen: list[tuple[Fault, int]] = []
    tries = 1 + max((int(glob.rpartition("#")[2]) for glob in only if "#" in glob), default=0)
    for number in range(tries if count is None else count):
        rest = [fault for fault in faults if number == 0 or fault.repeats]
        pairs = [
            (fault, number)
            for fault in _mixed(rest, f"{seed}:{number}")
            if _wanted(fault, number, only)
        ]
        chosen += pairs
        if not rest or (count is not None and len(chosen) >= count):
            break
    return chosen[:count]


def _wanted(fault: Fault, number: int, only: Sequence[str]) -> bool:
    names = (fault.name, f"{fault.name}#{number}")
    return not only or any(fnmatch.fnmatchcase(name, glob) for name in names for glob in only)


def _mixed(faults: Sequence[Fault], seed: str) -> list[Fault]:
    """`faults` in an order in which every beginning has all kinds in proportion to SHARES."""
    rng = random.Random(seed)
    placed: list[tuple[float, str, Fault]] = []
    for kind in sorted({fault.kind for fault in faults}):
        group = [fault for fault in faults if fault.kind == kind]
        rng.shuffle(group)
        placed += [((at + 0.5) / SHARES[kind], kind, fault) for at, fault in enumerate(group)]
    return [fault for _, _, fault in sorted(placed, key=lambda place: place[:2])]


def run_all(
    pairs: Sequence[tuple[Fault, int]], seed: int, world: World, jobs: int
) -> Iterator[TrialResult]:
    """The results, in the order in which they come. Call it in the main thread."""
    _signals_as_usual()
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(run_one, fault, number, seed, world) for fault, number in pairs]
        try:
            for done in concurrent.futures.as_completed(running):
                yield done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            processes.end_all(world.scratch.name)
            raise


def _signals_as_usual() -> None:
    """What is ignored here is ignored by the commands, too: SIGINT in a shell's background job.

    Whatever ends us ends as Ctrl-C does, so that no command is left behind.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)


def run_one(fault: Fault, number: int, seed: int, world: World) -> TrialResult:
    """Try one fault. Its directory is kept only if there are findings."""
    trial = Trial(fault, number, seed, world)
    findings: list[Finding] = []
    result = _result(trial, findings)
    try:
        fault.prepare(trial)
        trial.run()
        findings += judge(trial)
        result = _result(trial, findings)
        if fault.again and trial.status is not None:
            status = trial.run_again()
            wanted = trial.truth if trial.truth is not None else int(trial.broken)
            if status != wanted:
                findings.append(Finding("not healed", f"the next one ends with {status}"))
    except Exception as error:
        findings.append(Finding("harness", f"{type(error).__name__}: {error}"))
    finally:
        for undo in reversed(trial.undo):
            undo()
    if not findings:
        shutil.rmtree(trial.directory, ignore_errors=True)
    return result


def _result(trial: Trial, findings: list[Finding]) -> TrialResult:
    late = trial.over - trial.injected if trial.fault.injects else 0.0
    return TrialResult(
        fault=trial.fault.name,
        name=trial.name,
        kernel=trial.kernel,
        status=trial.status,
        outcome=outcome(trial),
        seconds=trial.over - trial.started,
        after=late if trial.took_place else None,
        note=trial.note,
        command=shlex.join(trial.command()),
        directory=trial.directory,
        findings=findings,
    )


def line(result: TrialResult) -> str:
    """One line about one trial."""
    status = "killed" if result.status is None else str(result.status)
    after = "missed" if result.after is None else f"{result.after:.1f} s" if result.after else ""
    head = f"{result.name:<44} {result.kernel:<8} {status:>6} {result.outcome or '-':<12}"
    text = f"{head} {result.seconds:6.1f} s {after:>9}  {result.note}"
    return "\n".join([text.rstrip(), *(f"    {f.kind}: {f.text}" for f in result.findings)])


def table(results: Sequence[TrialResult], seed: int) -> str:
    """By kind: how many trials, how many of each kind of finding; then each trial with findings."""
    bad = [result for result in results if result.findings]
    kinds = sorted({result.name.partition("/")[0] for result in results})
    used = [severity for severity in SEVERITIES if _count(bad, severity)]
    rows = [["kind", "trials", "missed", *used]]
    for kind in [*kinds, ""]:
        group = [result for result in results if result.name.startswith(f"{kind}/") or not kind]
        missed = sum(result.after is None for result in group)
        counts = [_count(group, severity) for severity in used]
        rows.append([kind or "all", *map(str, (len(group), missed, *counts))])
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    lines = [
        "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    ranked = sorted(
        bad, key=lambda result: (SEVERITIES.index(result.findings[0].kind), result.name)
    )
    for result in ranked:
        lines += ["", described(result, seed)]
    return "\n".join(lines)


def described(result: TrialResult, seed: int) -> str:
    """A trial with findings, how to try it again, and where what it left is."""
    again = f"    again: python -m faults --seed {seed} --only '{result.name}'"
    return "\n".join([line(result), again, f"    kept:  {result.directory}"])


def _count(results: Sequence[TrialResult], severity: str) -> int:
    kinds = Counter(kind for result in results for kind in {f.kind for f in result.findings})
    return kinds[severity]
