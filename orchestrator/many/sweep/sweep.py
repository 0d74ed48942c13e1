# SPDX-License-Identifier: GPL-2.0-only
"""Runs the cells of a plan that have no result yet, in a good order and as many at a time as fit.

The result of a cell is kept in a directory named after everything that it depends on: the request,
the kernel's digest and this program. So an interrupted sweep continues when it is called again, and
a changed tree or program starts afresh. Only results that say something about the kernel are kept.
The next call repeats all others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean

from orchestrator import ui
from orchestrator.errors import (
    EXIT_KERNEL_FAILED,
    EXIT_PASS,
    EXIT_UNTESTABLE,
    InfraError,
    UsageError,
    sentence,
)
from orchestrator.host import proc
from orchestrator.host.paths import PROJECT, is_intact, write_whole
from orchestrator.kernel import bundle, definition, versions
from orchestrator.kernel.from_source import VITAL, is_built
from orchestrator.kernel.model import KernelRequest
from orchestrator.kernel.obtain import identify
from orchestrator.many import history, program
from orchestrator.many.children import PROGRAM, Children, Stopped
from orchestrator.many.sweep import task
from orchestrator.many.sweep.matrix import Cell, SweepPlan
from orchestrator.many.sweep.place import Place, Room
from orchestrator.many.sweep.task import CellAnswer, CellTask

CELLS = "cells"
"""The folder with the directories of the cells."""
CELL = re.compile(r".+-[0-9a-f]{16}")
"""The name of one of them."""
ATTEMPTS = 3
"""Attempts at a cell whose worker goes away, each with dask's own retries; then it is infra."""
BUILD = 7200.0
"""Time limit for building a kernel, in seconds."""
PROGRESS = 30.0
"""Seconds between two lines of progress while no cell ends."""


@dataclass(frozen=True)
class CellResult:
    """The result of a cell."""

    outcome: str
    """outcome, exit_status and reason are those of its verdict.json."""
    exit_status: int
    reason: str
    failed: tuple[str, ...] = ()
    """Names of the failed checks."""
    kernel: str = ""
    """Digest of the kernel that was run, empty if none was."""
    release: str = ""
    seconds: float = 0.0
    host: str = ""
    """The machine that ran it."""
    directory: str = ""
    """Directory of the run; the log of the build if there was no run."""
    kept: bool = False
    """Whether an earlier call ran it."""


@dataclass
class KernelRow:
    """A kernel of the plan."""

    request: KernelRequest
    named: bool
    """Whether any machine can get it by its name alone."""
    digest: str = ""
    """digest and place are the answer of identify()."""
    place: Path = Path()
    ready: bool = False
    """Whether its cells can start."""
    broken: str = ""
    """Why its cells can never start."""
    outcome: str = "infra"
    """What its cells end with then."""
    packed: bytes | None = None
    """Its bundle, for workers that lack it."""


@dataclass
class _RunningCell:
    cell: Cell
    need: Room
    since: float = field(default_factory=time.monotonic)


class Sweep:
    """One call of `orchestrator sweep`.

    - directory: the sweep's own directory. It exists, and no other process uses it meanwhile.
    - again: also run cells that have a result.

    Raises UsageError for a kernel that does not exist.
    """

    def __init__(
        self, plan: SweepPlan, directory: Path, place: Place, *, again: bool = False
    ) -> None:
        self.plan, self.directory, self.place = plan, directory, place
        self.results: dict[Cell, CellResult] = {}
        if place.remote:
            _check_remote(plan)
        self._rows = {
            label: _row(request, remote=place.remote) for label, request in plan.kernels.items()
        }
        self._expected: dict[Cell, float | None] = {}
        self._attempts: dict[Cell, int] = {}
        self._took: dict[Cell, float] = {}
        self._built: list[float] = []  # seconds of each build or fetch
        self._building = ""  # the kernel that is being built or fetched
        self._last_line = time.monotonic()
        self._width = 1  # cells at a time
        self._waiting = self._ordered(
            [cell for cell in plan.cells if again or not self._load_result(cell)]
        )
        if self.results:
            ui.say(
                f"{len(self.results)} of {len(plan.cells)} cells are known from an earlier call "
                "(--again runs all)"
            )

    def run(self) -> dict[Cell, CellResult]:
        """Run the waiting cells. Returns the results of all cells, in the order of the matrix."""
        running: dict[Future[CellAnswer], _RunningCell] = {}
        preparing: Future[None] | None = None
        builds = Children()
        self._say_plan()
        with ThreadPoolExecutor(1, thread_name_prefix="kernel") as builder:
            try:
                while self._waiting or running:
                    self._drop_broken()
                    # One build at a time, because make uses all cores by itself. Cells whose
                    # kernel is ready run meanwhile.
                    unready = self._unready()
                    if unready and (preparing is None or preparing.done()):
                        preparing = builder.submit(self._prepare, unready[0], builds)
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
                        if restarted := self._finish(run, future, running.values()):
                            running[restarted] = run
                    self._show_progress(running.values())
            except BaseException:
                builds.stop()
                self.place.stop(list(running))
                raise
        self.place.close()
        return {cell: self.results[cell] for cell in self.plan.cells}

    def _say_plan(self) -> None:
        """Say what is going to be done, and for how long, as far as that is known."""
        if not self._waiting:
            return
        first = pick(self._waiting, self.place.need, self.place.room(), Room(0, 0))
        self._width = max(1, len(first))
        cells = "1 cell" if len(self._waiting) == 1 else f"{len(self._waiting)} cells"
        at_a_time = f", {self._width} at a time" if self._width > 1 else ""
        ui.say(f"runs {cells}{at_a_time}{self._estimate([])}")

    # -- kernels

    def _unready(self) -> list[str]:
        """The kernels to prepare. What is only fetched comes first: its cells run during builds."""
        rows = {c.kernel: row for c in self._waiting if not (row := self._rows[c.kernel]).ready}
        return sorted(rows, key=lambda label: is_built(rows[label].place))

    def _prepare(self, label: str, builds: Children) -> None:
        """Build or fetch a kernel, in a child process. Its row says what came of it."""
        start = time.monotonic()
        self._building = label
        try:
            self._build(label, builds)
            self._built.append(time.monotonic() - start)
        except Stopped:
            return
        except Exception as error:
            self._rows[label].broken = sentence(error)
        finally:
            self._building = ""

    def _build(self, label: str, builds: Children) -> None:
        row, log = self._rows[label], self._log(label)
        log.parent.mkdir(parents=True, exist_ok=True)
        ui.say(f"{label} has to be built or fetched first ({log})")
        command = [*PROGRAM, "kernels", "build", "--json", *row.request.argv()]
        status = builds.call(command, log, cwd=PROJECT, longest=BUILD)
        if status == EXIT_PASS and row.place.is_dir():
            row.ready = True
            return
        row.outcome, reason = _why_not_built(log.read_text(errors="replace"), status)
        row.broken = " ".join(reason.split())[:500]

    def _log(self, label: str) -> Path:
        return self.directory / f"kernel-{_file_name(label)}.log"

    def _drop_broken(self) -> None:
        """Record the waiting cells whose kernel cannot be built."""
        for cell in [cell for cell in self._waiting if self._rows[cell.kernel].broken]:
            self._waiting.remove(cell)
            reason, log = self._rows[cell.kernel].broken, self._log(cell.kernel)
            directory = str(log) if log.exists() else ""
            self._record(
                cell,
                CellResult(
                    self._rows[cell.kernel].outcome, EXIT_UNTESTABLE, reason, directory=directory
                ),
                (),
            )

    # -- cells

    def _start(self, cell: Cell, *, with_bundle: bool = False) -> Future[CellAnswer]:
        row, directory = self._rows[cell.kernel], self._directory(cell)
        shutil.rmtree(directory, ignore_errors=True)
        try:
            directory.mkdir(parents=True)
        except OSError as error:
            failed: Future[CellAnswer] = Future()
            failed.set_exception(error)
            return failed
        cell_task = CellTask(
            spec=cell.spec,
            built=None if row.named or row.request.bzimage else row.digest,
            program=program.digest(),
            directory=None if self.place.remote else str(directory),
            env=versions.inherited(),
        )
        if not with_bundle:
            return self.place.executor.submit(task.perform, cell_task)
        row.packed = row.packed or bundle.pack(row.place)
        cell_task = replace(cell_task, bundle=bundle.digest(row.packed))
        return self.place.executor.submit(
            task.perform, cell_task, self.place.bundle(row.digest, row.packed)
        )

    def _finish(
        self, run: _RunningCell, future: Future[CellAnswer], others: Collection[_RunningCell]
    ) -> Future[CellAnswer] | None:
        """Take the answer for a cell. Returns a new future if the cell had to be started again."""
        cell = run.cell
        try:
            answer = future.result()
        except (Exception, CancelledError) as error:
            self._attempts[cell] = self._attempts.get(cell, 0) + 1
            why = f"{type(error).__name__}: {error}"
            if isinstance(error, OSError) and error.errno:
                why = sentence(error)
            # KilledWorker: dask has already tried other workers.
            if self._attempts[cell] < ATTEMPTS and type(error).__name__ != "KilledWorker":
                ui.say(f"{cell.name}: will be run again: {why}")
                self._waiting.insert(0, cell)
            else:
                self._record(
                    cell, CellResult("infra", EXIT_UNTESTABLE, f"it cannot be run: {why}"), others
                )
            return None
        if answer.lacks:
            row = self._rows[cell.kernel]
            if is_intact(row.place, vital=VITAL):
                return self._start(cell, with_bundle=True)
            self._attempts[cell] = self._attempts.get(cell, 0) + 1
            if self._attempts[cell] < ATTEMPTS:
                row.ready = False  # to be built again
                self._waiting.insert(0, cell)
            else:
                why = "its kernel in the cache is damaged whenever it has been built"
                self._record(cell, CellResult("infra", EXIT_UNTESTABLE, why), others)
            return None
        result = _result(answer, self._directory(cell))
        with ui.saying_what_fails(f"the result of {cell.name}"):
            self._keep(cell, answer, result)
        self._took[cell] = result.seconds
        self._record(cell, result, others)
        return None

    def _keep(self, cell: Cell, answer: CellAnswer, result: CellResult) -> None:
        """Write down what the worker sent, and the result for the next call."""
        directory = self._directory(cell)
        for name, content in answer.files.items():
            path = directory / name
            if not path.resolve().is_relative_to(directory.resolve()):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if result.exit_status == EXIT_PASS:
            # 12 MB that nobody will look at, and that repeat.sh makes again.
            (directory / task.RUN / "initramfs.cpio").unlink(missing_ok=True)
        conclusive = result.exit_status in (EXIT_PASS, EXIT_KERNEL_FAILED)
        if conclusive and result.kernel == self._rows[cell.kernel].digest:
            write_whole(directory / "result.json", json.dumps(asdict(result), indent=1) + "\n")

    def _record(self, cell: Cell, result: CellResult, others: Collection[_RunningCell]) -> None:
        self.results[cell] = result
        self._last_line = time.monotonic()
        why = "" if result.outcome == "pass" else f": {result.reason[:200]}"
        took = f" ({result.seconds:.0f} s)" if result.seconds else ""
        count = f"{len(self.results)}/{len(self.plan.cells)}"
        ui.say(f"{count}  {cell.name} {result.outcome}{took}{why}{self._remaining(others)}")

    def _load_result(self, cell: Cell) -> bool:
        """Put the result of an earlier call into self.results. Returns whether there is one."""
        directory = self._directory(cell)
        try:
            content = json.loads((directory / "result.json").read_text())
            result = CellResult(**{**content, "failed": tuple(content["failed"])})
        except (OSError, ValueError, TypeError, KeyError):
            return False
        self.results[cell] = replace(result, directory=str(directory / task.RUN), kept=True)
        return True

    def _directory(self, cell: Cell) -> Path:
        row, spec = self._rows[cell.kernel], cell.spec
        edits = spec.edits.read_text(errors="surrogateescape") if spec.edits else ""
        content = [{**cell.to_json(), "kernel": row.digest, "edits": edits}, program.digest()]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        name = _file_name(f"{cell.kernel}-smp{spec.smp}-seed{cell.seed}")
        return self.directory / CELLS / f"{name}-{digest[:16]}"

    # -- order and remaining time

    def _ordered(self, cells: Sequence[Cell]) -> list[Cell]:
        """Last time's failures first, so that they are known soon. Then the longest cells first, so
        that no long cell is left running alone at the end."""
        last = _last_statuses(self.directory)
        failed: dict[Cell, bool] = {}
        for cell, (seconds, in_history) in self._earlier(cells).items():
            self._expected[cell] = seconds
            failed[cell] = last.get(cell.name) == EXIT_KERNEL_FAILED
            if cell.name not in last:
                failed[cell] = in_history
        return sorted(
            cells, key=lambda cell: (not failed[cell], -(self._expected[cell] or float("inf")))
        )

    def _earlier(self, cells: Sequence[Cell]) -> dict[Cell, tuple[float | None, bool]]:
        """What the history knows about each cell, as history.expected() returns it."""
        earlier: dict[Cell, tuple[float | None, bool]] = dict.fromkeys(cells, (None, False))
        try:
            for cell in cells:
                row = self._rows[cell.kernel]
                name = row.request.source
                earlier[cell] = history.expected(row.digest, name, cell.spec.smp)
        except InfraError as error:
            ui.say(f"the order of the cells is not the best: {error}")
        return earlier

    def _show_progress(self, running: Collection[_RunningCell]) -> None:
        if time.monotonic() - self._last_line > PROGRESS:
            self._last_line = time.monotonic()
            ui.say(f"{len(self.results)}/{len(self.plan.cells)}{self._remaining(running)}")

    def _remaining(self, running: Collection[_RunningCell]) -> str:
        """What is left to do, and for how long."""
        if not (running or self._waiting):
            return ""
        building = f"building {self._building}, " if self._building else ""
        text = f"; {building}{len(running)} running, {len(self._waiting)} waiting"
        return f"{text}{self._estimate(running)}"

    def _estimate(self, running: Collection[_RunningCell]) -> str:
        """How many kernels have to be made, and how long everything takes.

        The estimate is the duration of earlier runs, scaled by how this sweep compares with them so
        far; a build takes as long as those before. It is omitted if there is a cell about which
        nothing is known, or a kernel to build and none was built yet.
        """
        known = [cell for cell in self._took if self._expected.get(cell)]
        expected = sum(self._expected[cell] or 0.0 for cell in known)
        pace = sum(self._took[cell] for cell in known) / expected if expected else 1.0
        typical = fmean(self._took.values()) if self._took else None

        def estimate(cell: Cell) -> float | None:
            seconds = self._expected.get(cell)
            return pace * seconds if seconds else typical

        now = time.monotonic()
        waiting = [estimate(cell) for cell in self._waiting]
        under_way = [estimate(run.cell) for run in running]
        builds = len({cell.kernel for cell in self._waiting if not self._rows[cell.kernel].ready})
        kernels = "1 kernel" if builds == 1 else f"{builds} kernels"
        text = f", {kernels} to build or fetch" if builds else ""
        if None in waiting or None in under_way or (builds and not self._built):
            return text
        rest = [
            max(1.0, (seconds or 0) - (now - run.since))
            for seconds, run in zip(under_way, running, strict=True)
        ]
        total = sum((*rest, *(seconds or 0 for seconds in waiting))) / max(1, self._width)
        total = max(total, *rest, 0.0) + (builds * fmean(self._built) if builds else 0.0)
        return f"{text}: {ui.left(total)}"


def pick(cells: Sequence[Cell], need: Callable[[Cell], Room], room: Room, used: Room) -> list[Cell]:
    """The cells to start now, in their order: those that fit into what `used` leaves of `room`.

    Smaller cells overtake one that does not fit. A cell that can never fit starts when nothing else
    is running.
    """
    picked: list[Cell] = []
    for cell in cells:
        needed = need(cell)
        if room.holds(used + needed) or (used == Room(0, 0) and room.cores):
            picked.append(cell)
            used += needed
    return picked


def exit_status(results: Mapping[Cell, CellResult]) -> int:
    """1 if any kernel failed, 0 if all cells passed, otherwise 125."""
    statuses = {result.exit_status for result in results.values()}
    if EXIT_KERNEL_FAILED in statuses:
        return EXIT_KERNEL_FAILED
    return EXIT_PASS if statuses <= {EXIT_PASS} else EXIT_UNTESTABLE


def _why_not_built(output: str, status: int | None) -> tuple[str, str]:
    """The outcome of the cells of a kernel that was not built, and the reason.

    output: what `orchestrator kernels build --json` has printed on both streams.
    """
    if status == EXIT_PASS:
        return "infra", "its source changed while it was built: repeat"
    for text in re.findall(r"^\{$.*?^\}$", output, re.MULTILINE | re.DOTALL):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            error = json.loads(text)["error"]
            kind = "build-error" if error["kind"] == "usage" else str(error["kind"])
            return kind, str(error["text"])
    ended = "was given up" if status is None else proc.how_it_ended(status)
    return "infra", f"building it {ended}"


def _check_remote(plan: SweepPlan) -> None:
    """Raise UsageError for files of this host that a run on another machine would need."""
    for cell in plan.cells:
        if path := cell.spec.kernel.bzimage or cell.spec.edits:
            raise UsageError(
                f"workers cannot read {path}: leave it out, or sweep without --scheduler"
            )


def cells_of(directory: Path) -> list[Path]:
    """The directories of a sweep's cells, of all calls. What else is beside them is not ours."""
    folder = directory / CELLS
    if folder.is_symlink() or not folder.is_dir():
        return []
    return [
        path
        for path in folder.iterdir()
        if CELL.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]


def _row(request: KernelRequest, *, remote: bool) -> KernelRow:
    changed = request.patches or request.fragments or request.settings or request.make
    named = not (request.tree or request.bzimage or changed) and (
        request.selector.startswith("debian:") or request.selector in definition.names()
    )
    row = KernelRow(request, named)
    try:
        row.digest, row.place = identify(request)
    except UsageError:
        raise
    except InfraError as error:
        row.broken = str(error)  # the mirror or the network, not the kernel
        return row
    # Workers obtain named kernels by themselves, possibly in another version with another digest.
    row.ready = row.place.is_dir() or (named and remote)
    return row


def _result(answer: CellAnswer, directory: Path) -> CellResult:
    verdict = answer.verdict
    if verdict is None:
        # Wrong for this cell alone, such as a kernel built for fewer CPUs.
        return CellResult(
            outcome="build-error" if answer.wrong_request else "infra",
            exit_status=EXIT_UNTESTABLE,
            reason=answer.why,
            seconds=answer.seconds,
            host=answer.host,
            directory=str(directory),
        )
    return CellResult(
        outcome=verdict.outcome,
        exit_status=verdict.exit_status,
        reason=verdict.reason,
        failed=tuple(check.check for check in verdict.with_status("fail")),
        kernel=verdict.kernel.digest if verdict.kernel else "",
        release=verdict.kernel.release if verdict.kernel else "",
        seconds=round(answer.seconds, 1),
        host=answer.host,
        directory=str(directory / task.RUN),
    )


def _last_statuses(directory: Path) -> dict[str, int]:
    """Exit statuses of the previous sweep by name of the cell, whatever its program and kernel."""
    try:
        content = json.loads((directory / "sweep.json").read_text())
        return {entry["cell"]: entry["exit_status"] for entry in content["cells"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text)[:100]
