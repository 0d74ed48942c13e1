"""The cells of a plan, run in an order and at a width that suit where they run; what is known already is not run again.

A cell's result is kept in a directory named after all it depends on: the machine, the seed, the kernel's digest, and
this program. So an interrupted sweep goes on when it is called again, and a changed tree or program begins anew. Only
what says something about the kernel is kept; what could not be tested is tried again by the next call.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean

from orchestrator import ui
from orchestrator.errors import (
    EXIT_KERNEL_FAILED,
    EXIT_PASS,
    EXIT_UNTESTABLE,
    EXIT_USAGE,
    InfraError,
    UsageError,
)
from orchestrator.host.paths import PROJECT, write_whole
from orchestrator.kernel import bundle, definition
from orchestrator.kernel.model import KernelRequest
from orchestrator.kernel.obtain import identify
from orchestrator.many import history
from orchestrator.many.children import PROGRAM, Children, Stopped
from orchestrator.many.sweep import task
from orchestrator.many.sweep.matrix import Cell, SweepPlan
from orchestrator.many.sweep.place import Place, Room
from orchestrator.many.sweep.task import CellAnswer, CellTask

ATTEMPTS = 3
"""At a cell whose worker goes away, with what dask has tried by itself each time; then it is infra."""
BUILD = 7200.0
"""Seconds after which building a kernel is given up."""
TELL = 30.0
"""Seconds between two lines on how far it is while nothing ends."""


@dataclass(frozen=True)
class CellResult:
    """What a cell came to. outcome, exit_status, reason: as in verdict.json. failed: names of the checks that did.

    kernel: digest of what was run, empty when nothing was. seconds: of the run. host: where. directory: of the run, or
    what there is in its place. kept: an earlier call's result.
    """

    outcome: str
    exit_status: int
    reason: str
    failed: tuple[str, ...] = ()
    kernel: str = ""
    release: str = ""
    seconds: float = 0.0
    host: str = ""
    directory: str = ""
    kept: bool = False


@dataclass
class KernelRow:
    """A kernel. named: any host can get it by its name alone. digest, where: as identify() tells them. ready: cells of
    it can go. broken: why they never can. packed: for workers that lack it."""

    request: KernelRequest
    named: bool
    digest: str = ""
    where: Path = Path()
    ready: bool = False
    broken: str = ""
    packed: bytes | None = None


@dataclass
class _RunningCell:
    cell: Cell
    need: Room
    since: float = field(default_factory=time.monotonic)


class Sweep:
    """One call of `orchestrator sweep`. directory: of the sweep, for us alone. again: run what is known, too."""

    def __init__(
        self, plan: SweepPlan, directory: Path, place: Place, *, again: bool = False
    ) -> None:
        self.plan, self.directory, self.place = plan, directory, place
        self.results: dict[Cell, CellResult] = {}
        self._rows = {
            label: _row(request, remote=place.remote) for label, request in plan.kernels.items()
        }
        self._expected: dict[Cell, float | None] = {}
        self._attempts: dict[Cell, int] = {}
        self._took: dict[Cell, float] = {}
        self._told = time.monotonic()
        self._width = 1  # cells at a time
        self._waiting = self._ordered(
            [cell for cell in plan.cells if again or not self._kept(cell)]
        )
        if self.results:
            ui.say(
                f"{len(self.results)} of {len(plan.cells)} cells are known from an earlier call (--again runs all)"
            )

    def run(self) -> dict[Cell, CellResult]:
        """Run what is to be run; the result of every cell, in the order of the matrix."""
        running: dict[Future[CellAnswer], _RunningCell] = {}
        preparing: Future[None] | None = None
        builds = Children()
        with ThreadPoolExecutor(1, thread_name_prefix="kernel") as builder:
            try:
                while self._waiting or running:
                    self._give_up()
                    # One at a time: make uses all cores by itself. Cells of other kernels go on meanwhile.
                    unready = next(
                        (
                            cell.kernel
                            for cell in self._waiting
                            if not self._rows[cell.kernel].ready
                        ),
                        None,
                    )
                    if unready and (preparing is None or preparing.done()):
                        preparing = builder.submit(self._prepare, unready, builds)
                    used = sum((run.need for run in running.values()), Room(0, 0))
                    ready = [cell for cell in self._waiting if self._rows[cell.kernel].ready]
                    for cell in pick(ready, self.place.need, self.place.room(), used):
                        self._waiting.remove(cell)
                        running[self._start(cell)] = _RunningCell(cell, self.place.need(cell))
                    self._width = len(running)
                    if not running:
                        time.sleep(0.5)  # a kernel is being built, or the cluster has no workers
                    for future in wait(running, timeout=1, return_when=FIRST_COMPLETED).done:
                        run = running.pop(future)
                        if further := self._finish(run, future, running.values()):
                            running[further] = run
                    self._progress(running.values())
            except BaseException:
                builds.stop()
                self.place.stop(list(running))
                raise
        self.place.close()
        return {cell: self.results[cell] for cell in self.plan.cells}

    # -- kernels

    def _prepare(self, label: str, builds: Children) -> None:
        """Build or fetch a kernel, in a process of its own."""
        row, log = self._rows[label], self._log(label)
        ui.say(f"{label} has to be built or fetched first ({log})")
        command = [*PROGRAM, "kernels", "build", *row.request.argv()]
        try:
            status = builds.call(command, log, cwd=PROJECT, longest=BUILD)
        except Stopped:
            return
        if status == EXIT_PASS and row.where.is_dir():
            row.ready = True
            return
        said = log.read_text(errors="replace")
        why = (
            said.rpartition("orchestrator: ")[2]
            if status
            else "its source changed while it was built: repeat"
        )
        row.broken = " ".join(why.split())[:500] or f"building it ended with status {status}"

    def _log(self, label: str) -> Path:
        return self.directory / f"kernel-{_plain(label)}.log"

    def _give_up(self) -> None:
        """What cannot be built cannot be run."""
        for cell in [cell for cell in self._waiting if self._rows[cell.kernel].broken]:
            self._waiting.remove(cell)
            reason, log = self._rows[cell.kernel].broken, self._log(cell.kernel)
            directory = str(log) if log.exists() else ""
            self._record(
                cell, CellResult("build-error", EXIT_UNTESTABLE, reason, directory=directory), ()
            )

    # -- cells

    def _start(self, cell: Cell, *, with_parcel: bool = False) -> Future[CellAnswer]:
        row, directory = self._rows[cell.kernel], self._directory(cell)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        asked = CellTask(
            arguments=tuple(cell.arguments()),
            kernel=tuple(row.request.argv()),
            built=None if row.named or row.request.bzimage else row.digest,
            program=task.program(),
            directory=None if self.place.remote else str(directory),
        )
        if not with_parcel:
            return self.place.executor.submit(task.perform, asked)
        row.packed = row.packed or bundle.pack(row.where)
        return self.place.executor.submit(
            task.perform, asked, self.place.parcel(row.digest, row.packed)
        )

    def _finish(
        self, run: _RunningCell, future: Future[CellAnswer], others: Collection[_RunningCell]
    ) -> Future[CellAnswer] | None:
        """Take what came of a cell. Returns another future when it is not done yet."""
        cell = run.cell
        try:
            answer = future.result()
        except (Exception, CancelledError) as error:
            self._attempts[cell] = self._attempts.get(cell, 0) + 1
            why = f"{type(error).__name__}: {error}"
            # dask has tried it elsewhere by itself before it gives up with KilledWorker.
            if self._attempts[cell] < ATTEMPTS and type(error).__name__ != "KilledWorker":
                ui.say(f"{cell.name}: to be run again: {why}")
                self._waiting.insert(0, cell)
            else:
                self._record(
                    cell, CellResult("infra", EXIT_UNTESTABLE, f"it cannot be run: {why}"), others
                )
            return None
        if answer.lacks:
            return self._start(cell, with_parcel=True)
        directory = self._directory(cell)
        for name, content in answer.files.items():
            path = directory / name
            if not path.resolve().is_relative_to(directory.resolve()):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        result = _result(answer, directory)
        if (
            result.exit_status == EXIT_PASS
        ):  # 12 MB that nobody will look at, and repeat.sh makes again
            (directory / task.RUN / "initramfs.cpio").unlink(missing_ok=True)
        if (
            result.exit_status in (EXIT_PASS, EXIT_KERNEL_FAILED)
            and result.kernel == self._rows[cell.kernel].digest
        ):
            write_whole(directory / "result.json", json.dumps(asdict(result), indent=1) + "\n")
        self._took[cell] = result.seconds
        self._record(cell, result, others)
        return None

    def _record(self, cell: Cell, result: CellResult, others: Collection[_RunningCell]) -> None:
        self.results[cell] = result
        self._told = time.monotonic()
        why = "" if result.outcome == "pass" else f": {result.reason[:200]}"
        took = f" ({result.seconds:.0f} s)" if result.seconds else ""
        said = (
            f"{len(self.results)}/{len(self.plan.cells)}  {cell.name} {result.outcome}{took}{why}"
        )
        ui.say(f"{said}{self._left(others)}")

    def _kept(self, cell: Cell) -> bool:
        """Whether the result is known; then it is in self.results."""
        try:
            told = json.loads((self._directory(cell) / "result.json").read_text())
            directory = str(self._directory(cell) / task.RUN)
            told |= {"failed": tuple(told["failed"]), "directory": directory, "kept": True}
            self.results[cell] = CellResult(**told)
        except (OSError, ValueError, TypeError, KeyError):
            return False
        return True

    def _directory(self, cell: Cell) -> Path:
        content = [{**asdict(cell), "kernel": self._rows[cell.kernel].digest}, task.program()]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        name = _plain(f"{cell.kernel}-smp{cell.smp}-seed{cell.seed}")
        return self.directory / "cells" / f"{name}-{digest[:16]}"

    # -- order, and how long it takes

    def _ordered(self, cells: Sequence[Cell]) -> list[Cell]:
        """What failed the last time first, so that it is known soon; then the longest, so that none is left alone at
        the end while all else is idle."""
        last = _last(self.directory)
        failed: dict[Cell, bool] = {}
        for cell in cells:
            row = self._rows[cell.kernel]
            given = row.request.tree or (row.request.bzimage and row.request.bzimage.name)
            name = str(given or row.request.selector)
            self._expected[cell], once = history.expected(row.digest, name, cell.smp)
            failed[cell] = last[cell.name] == EXIT_KERNEL_FAILED if cell.name in last else once
        return sorted(
            cells, key=lambda cell: (not failed[cell], -(self._expected[cell] or float("inf")))
        )

    def _progress(self, running: Collection[_RunningCell]) -> None:
        if time.monotonic() - self._told > TELL:
            self._told = time.monotonic()
            ui.say(f"{len(self.results)}/{len(self.plan.cells)}{self._left(running)}")

    def _left(self, running: Collection[_RunningCell]) -> str:
        """What is under way, and how long it may still take, by what such runs took and how this sweep compares."""
        if not (running or self._waiting):
            return ""
        known = [cell for cell in self._took if self._expected.get(cell)]
        expected = sum(self._expected[cell] or 0.0 for cell in known)
        pace = sum(self._took[cell] for cell in known) / expected if expected else 1.0
        typical = fmean(self._took.values()) if self._took else None

        def seconds(cell: Cell) -> float | None:
            guess = self._expected.get(cell)
            return pace * guess if guess else typical

        now = time.monotonic()
        ahead = [seconds(cell) for cell in self._waiting]
        under_way = [seconds(run.cell) for run in running]
        builds = len({cell.kernel for cell in self._waiting if not self._rows[cell.kernel].ready})
        said = f"; {len(running)} running, {len(self._waiting)} waiting"
        said += f", {builds} kernels to build or fetch" if builds else ""
        if None in ahead or None in under_way:
            return said
        rest = [
            max(1.0, (left or 0) - (now - run.since))
            for left, run in zip(under_way, running, strict=True)
        ]
        total = max(sum((*rest, *(left or 0 for left in ahead))) / max(1, self._width), *rest, 0.0)
        return (
            f"{said}: about {total / 60:.0f} min" if total >= 90 else f"{said}: about {total:.0f} s"
        )


def pick(cells: Sequence[Cell], need: Callable[[Cell], Room], room: Room, used: Room) -> list[Cell]:
    """Those of `cells`, in their order, that fit beside what is in use. What does not fit lets later ones pass, and one
    that never fits goes when nothing else runs."""
    picked: list[Cell] = []
    for cell in cells:
        wanted = need(cell)
        if room.holds(used + wanted) or (used == Room(0, 0) and room.cores):
            picked.append(cell)
            used += wanted
    return picked


def exit_status(results: Mapping[Cell, CellResult]) -> int:
    """1 when any kernel failed, 0 when all passed, else 125."""
    statuses = {result.exit_status for result in results.values()}
    if EXIT_KERNEL_FAILED in statuses:
        return EXIT_KERNEL_FAILED
    return EXIT_PASS if statuses <= {EXIT_PASS} else EXIT_UNTESTABLE


def _row(request: KernelRequest, *, remote: bool) -> KernelRow:
    if request.bzimage and remote:
        raise UsageError(
            f"{request.bzimage} is run where it is: leave it out, or sweep without --scheduler"
        )
    changed = request.patches or request.fragments or request.settings
    named = not (request.tree or request.bzimage or changed) and (
        request.selector.startswith("debian:") or request.selector in definition.names()
    )
    row = KernelRow(request, named)
    try:
        row.digest, row.where = identify(request)
    except UsageError:
        raise
    except InfraError as error:
        row.broken = str(error)
        return row
    # Workers get by themselves what has a name. It may be another version there, which its digest tells.
    row.ready = row.where.is_dir() or (named and remote)
    return row


def _result(answer: CellAnswer, directory: Path) -> CellResult:
    told = answer.verdict
    if told is None:
        # 129: wrong for this cell alone, as that the kernel was built for fewer CPUs.
        outcome = "build-error" if answer.status == EXIT_USAGE else "infra"
        return CellResult(
            outcome,
            EXIT_UNTESTABLE,
            answer.why,
            seconds=answer.seconds,
            host=answer.host,
            directory=str(directory),
        )
    kernel = told["kernel"] or {}
    return CellResult(
        outcome=told["outcome"],
        exit_status=told["exit_status"],
        reason=told["reason"],
        failed=tuple(check["check"] for check in told["checks"] if check["status"] == "fail"),
        kernel=kernel.get("digest", ""),
        release=kernel.get("release", ""),
        seconds=round(answer.seconds, 1),
        host=answer.host,
        directory=str(directory / task.RUN),
    )


def _last(directory: Path) -> dict[str, int]:
    """Exit statuses by cell of the sweep before this one, whatever program and kernel that had."""
    try:
        told = json.loads((directory / "sweep.json").read_text())
        return {entry["cell"]: entry["exit_status"] for entry in told["cells"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _plain(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text)
