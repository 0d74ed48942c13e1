# SPDX-License-Identifier: GPL-2.0-only
"""One cell, run wherever the executor puts it.

A sweep submits perform() to its executor, which may be a cluster. So perform() takes and returns
plain data and knows nothing of the sweep.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.host import keeper
from orchestrator.host.paths import PROJECT, is_intact, state_dir
from orchestrator.kernel import bundle
from orchestrator.kernel.from_source import VITAL
from orchestrator.kernel.model import KernelRequest
from orchestrator.kernel.obtain import BUILT, place
from orchestrator.many import program
from orchestrator.many.children import Children
from orchestrator.scenarios.steps import DURATION
from orchestrator.spec import RunSpec
from orchestrator.verdict.result import VerdictRecord

CHILDREN = Children()
"""The children of this process, which is the sweep itself or a worker."""
LONGEST = 3600.0
"""Time limit of one run in seconds, apart from its duration and soak time. A worker may have to
fetch or build the kernel first; a guest that hangs is ended much sooner."""
NOT_SENT = ("initramfs.cpio",)
"""Files of a run that stay on the worker: 12 MB that `repeat.sh` makes again."""
LARGEST = 16 << 20
"""Largest part of a file that a worker sends back, in bytes. Of a larger file it sends the end."""
RUN, LOG = "run", "log"
"""Names in a cell's directory: the run's own directory, and the output of the child."""


@dataclass(frozen=True, kw_only=True)
class CellTask:
    """What to run, and for whom."""

    spec: RunSpec
    built: str | None
    """Digest of a kernel that must be in the cache already; None to obtain spec.kernel."""
    bundle: str | None = None
    """bundle.digest() of the bundle that is sent along; None if none is."""
    program: str
    """program.digest() of the sweep."""
    directory: str | None
    """The cell's directory; None if this is another machine."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables: the versions that the sweep has chosen (kernel/versions.py)."""


@dataclass(frozen=True, kw_only=True)
class CellAnswer:
    """What perform() returns."""

    lacks: bool = False
    """The worker needs the bundle of the kernel first. Nothing else is set then."""
    verdict: VerdictRecord | None = None
    status: int | None = None
    """Exit status of the child; None if it reached the time limit or was not started."""
    why: str = ""
    """Why there is no verdict."""
    wrong_request: bool = False
    """Whether that is because the kernel cannot be run as requested."""
    seconds: float = 0.0
    host: str = field(default_factory=platform.node)
    """The machine that ran the cell."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Content by path below the cell's directory, if that is on another machine."""


def perform(task: CellTask, packed: bytes | None = None) -> CellAnswer:
    """Run the cell.

    packed: the bundle of its kernel (kernel/bundle.py), if this machine turned out to lack it.

    Raises children.Stopped when the result is no longer needed.
    """
    if task.program != program.digest():
        return CellAnswer(
            why="the worker has another version of orchestrator: install the sweep's version there"
        )
    spec = task.spec
    if task.built:
        if not is_intact(place(task.built), vital=VITAL):
            if packed is None:
                return CellAnswer(lacks=True)
            bundle.install(place(task.built), packed, task.bundle)
        spec = replace(spec, kernel=KernelRequest(selector=f"{BUILT}{task.built}"))
    if task.directory:
        return _run(task, spec, Path(task.directory), None)
    base, cancelled = _worker()
    with keeper.temporary_directory(base) as directory:
        answer = _run(task, spec, directory, cancelled)
        answer.files.update(_files(directory))
        return answer


def _run(
    task: CellTask, spec: RunSpec, directory: Path, unwanted: Callable[[], bool] | None
) -> CellAnswer:
    ended = CHILDREN.run(
        spec,
        directory / RUN,
        directory / LOG,
        cwd=PROJECT,
        longest=LONGEST + (spec.duration or DURATION) + spec.soak,
        unwanted=unwanted,
        env=task.env,
    )
    return CellAnswer(
        verdict=ended.verdict,
        status=ended.status,
        why=ended.why,
        wrong_request=ended.wrong_request,
        seconds=ended.seconds,
    )


def _worker() -> tuple[Path, Callable[[], bool] | None]:
    """Where to put temporary directories, and whether the current task was cancelled.

    On a dask worker the former is a directory that dask removes with the worker.
    """
    try:
        from distributed import get_worker

        worker = get_worker()
    except (ImportError, ValueError):  # the executor is not dask's
        return state_dir(), None
    key = worker.get_current_task()

    def cancelled() -> bool:
        # dask has no public way to ask. It cannot interrupt a thread, so it only notes that nobody
        # waits for the result.
        task = worker.state.tasks.get(key)
        return task is None or task.state == "cancelled"

    return Path(worker.local_directory), cancelled


def _files(directory: Path) -> dict[str, bytes]:
    contents = {}
    for path in directory.rglob("*"):
        if path.is_file() and path.name not in NOT_SENT:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - LARGEST))
                contents[str(path.relative_to(directory))] = file.read()
    return contents
