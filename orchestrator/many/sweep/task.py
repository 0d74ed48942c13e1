"""One cell, wherever it is to run. perform() is what a sweep gives to an executor: of a cluster's workers, too, so it
takes and returns plain data and knows nothing of the sweep."""

from __future__ import annotations

import hashlib
import platform
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from orchestrator.host.paths import PROJECT, state_dir
from orchestrator.kernel import bundle
from orchestrator.kernel.obtain import BUILT, place
from orchestrator.many.children import Children

CHILDREN = Children()
"""Of this process: of the sweep itself, or of a worker."""
LONGEST = 3600.0
"""Seconds for one run, in which a worker may have to fetch or build the kernel; a guest gives up much sooner."""
NOT_SENT = ("initramfs.cpio",)
"""Of a run's files: 12 MB that `repeat.sh` makes again."""
LARGEST = 16 << 20
"""Bytes of one file that a worker sends back; of a longer one the end."""
RUN, LOG = "run", "log"
"""Names in the directory of a cell: the run's own directory, and what the child said."""


@dataclass(frozen=True, kw_only=True)
class CellTask:
    """arguments: for `orchestrator run`, without the kernel. kernel: those that ask for it; built: its digest, when it
    is one that the cache must have already. program: program() of who asks. directory: of the cell, None on another
    machine.
    """

    arguments: tuple[str, ...]
    kernel: tuple[str, ...]
    built: str | None
    program: str
    directory: str | None


@dataclass(frozen=True, kw_only=True)
class CellAnswer:
    """What perform() returns. lacks: the worker needs the kernel's parcel first, and nothing else is told.

    verdict: as in verdict.json, None without one; then `why` says why. status: the exit status of the child. host:
    where it ran. files: by path below the cell's directory, when that is on another machine.
    """

    lacks: bool = False
    verdict: dict[str, Any] | None = None
    status: int | None = None
    why: str = ""
    seconds: float = 0.0
    host: str = field(default_factory=platform.node)
    files: dict[str, bytes] = field(default_factory=dict)


def perform(task: CellTask, packed: bytes | None = None) -> CellAnswer:
    """Run the cell. packed: its kernel (kernel/parcel.py), if this machine was found to lack it.

    Raises child.Stopped when nobody wants the result any more.
    """
    if task.program != program():
        return CellAnswer(
            why="the worker has another version of orchestrator: install the one that the sweep is run by"
        )
    if task.built and not place(task.built).is_dir():
        if packed is None:
            return CellAnswer(lacks=True)
        bundle.install(place(task.built), packed)
    kernel = ("--kernel", f"{BUILT}{task.built}") if task.built else task.kernel
    if task.directory:
        return _run(task, kernel, Path(task.directory), None)
    base, unwanted = _of_dask()
    directory = Path(tempfile.mkdtemp(prefix="cell-", dir=base))
    try:
        answer = _run(task, kernel, directory, unwanted)
        answer.files.update(_files(directory))
        return answer
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@cache
def program() -> str:
    """Identifies all of this program that a verdict depends on."""
    digest = hashlib.sha256()
    parts = sorted([*PROJECT.glob("orchestrator/**/*.py"), *PROJECT.glob("guest/**/*")])
    for file in parts:
        if file.is_file() and file.parent.name not in ("bisect", "sweep", "report"):
            digest.update(str(file.relative_to(PROJECT)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _run(
    task: CellTask, kernel: Sequence[str], directory: Path, unwanted: Callable[[], bool] | None
) -> CellAnswer:
    arguments = [*kernel, *task.arguments]
    ended = CHILDREN.run(
        arguments, directory / RUN, directory / LOG, cwd=PROJECT, longest=LONGEST, unwanted=unwanted
    )
    return CellAnswer(
        verdict=ended.verdict, status=ended.status, why=ended.why, seconds=ended.seconds
    )


def _of_dask() -> tuple[Path, Callable[[], bool] | None]:
    """On a worker of dask: where it keeps what is gone with it, and whether the task that asks this was cancelled."""
    try:
        from distributed import get_worker

        worker = get_worker()
    except (ImportError, ValueError):  # an executor of another kind
        return state_dir(), None
    key = worker.get_current_task()

    def cancelled() -> bool:
        # Nothing public says it: a thread cannot be interrupted, so dask only notes that nobody waits for the result.
        task = worker.state.tasks.get(key)
        return task is None or task.state == "cancelled"

    return Path(worker.local_directory), cancelled


def _files(directory: Path) -> dict[str, bytes]:
    found = {}
    for path in directory.rglob("*"):
        if path.is_file() and path.name not in NOT_SENT:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - LARGEST))
                found[str(path.relative_to(directory))] = file.read()
    return found
