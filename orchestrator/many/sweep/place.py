"""Where cells run: on this host, or on the workers of a dask cluster. Each is an executor with the room it has."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from orchestrator import ui
from orchestrator.errors import InfraError, UsageError
from orchestrator.host import tools
from orchestrator.machine import accel
from orchestrator.many.sweep import task
from orchestrator.many.sweep.matrix import Cell
from orchestrator.many.sweep.task import CellAnswer

BESIDE_GUEST = 512
"""MiB that a run needs apart from its guest's memory: QEMU with its translations, GDB and orchestrator itself."""
CONNECT = 10.0
"""Seconds for a dask scheduler to answer."""

ADDRESS = re.compile(r"(?:(?:tcp|tls|ws|wss|ucx)://)?[^/\s]+:\d+")


@dataclass(frozen=True)
class Room:
    """cores: of the host. memory: MiB."""

    cores: int
    memory: int

    def __add__(self, other: Room) -> Room:
        return Room(self.cores + other.cores, self.memory + other.memory)

    def holds(self, other: Room) -> bool:
        return other.cores <= self.cores and other.memory <= self.memory


class Place(Protocol):
    """executor: to submit task.perform() to. remote: whether it has caches and directories other than ours."""

    executor: Executor
    remote: bool

    def room(self) -> Room:
        """What there is in all, now."""

    def need(self, cell: Cell) -> Room:
        """What a cell takes of it."""

    def parcel(self, digest: str, packed: bytes) -> Any:
        """What to submit for a parcel."""

    def stop(self, running: list[Future[CellAnswer]]) -> None:
        """End all that is under way. Returns when it has ended, or when that is no longer ours to see."""

    def close(self) -> None: ...


class LocalHost:
    """This host. jobs: cells at a time, None for as many as its cores and its free memory hold.

    A guest takes one core under TCG, however many CPUs it has: one QEMU thread translates for all of them, and while
    GDB or orchestrator have something to do it stands still (measured: 101 % of a core at --smp 2, 103 % at 8). With
    a thread for each CPU (tcg-multi, KVM) it takes as many cores as it has CPUs.
    """

    remote = False

    def __init__(self, jobs: int | None = None) -> None:
        self._jobs = jobs
        self._room = Room(jobs or len(os.sched_getaffinity(0)), 0 if jobs else _free_memory())
        self.executor: Executor = ThreadPoolExecutor(thread_name_prefix="cell", max_workers=256)

    def room(self) -> Room:
        return self._room

    def need(self, cell: Cell) -> Room:
        if self._jobs:
            return Room(1, 0)
        threads = cell.accel in ("kvm", "tcg-multi") or (cell.accel == "auto" and _kvm())
        return Room(cell.smp if threads else 1, cell.memory + BESIDE_GUEST)

    def parcel(self, digest: str, packed: bytes) -> Any:
        return packed

    def stop(self, running: list[Future[CellAnswer]]) -> None:
        task.CHILDREN.stop()
        self.executor.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        self.executor.shutdown(wait=True)


class Cluster:
    """The workers of the dask scheduler at `address`. Each worker's number of threads is how many cells it takes at a
    time; it sees to it that one whose worker is killed is run elsewhere, up to its setting `allowed-failures`."""

    remote = True

    def __init__(self, address: str) -> None:
        try:
            import distributed
        except ImportError:
            raise UsageError("--scheduler needs dask: pip install 'orchestrator[dask]'") from None
        if not ADDRESS.fullmatch(address):
            raise UsageError(
                f"--scheduler takes what `dask scheduler` says, tcp://HOST:PORT, not {address}"
            )
        # What it logs of lost connections says less than we do.
        for name in ("distributed", "distributed.client"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._address = address
        try:
            connect: Any = distributed.Client  # it has types, but no complete ones
            self._client: Any = connect(address, timeout=CONNECT, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            raise InfraError(
                f"no dask scheduler answers at {address}: start one with `dask scheduler`"
            ) from error
        # pure: of equal calls only one would be run.
        self.executor: Executor = self._client.get_executor(pure=False)
        self._parcels: dict[str, Any] = {}
        if not self._client.nthreads():
            ui.say(
                f"{address} has no worker yet: start `dask worker {address}` where cells are to run"
            )

    def room(self) -> Room:
        try:
            return Room(sum(self._client.nthreads().values()), 0)
        except OSError as error:
            raise InfraError(
                f"the dask scheduler at {self._address} is gone: with another one the same command goes on from here"
            ) from error

    def need(self, cell: Cell) -> Room:
        return Room(1, 0)

    def parcel(self, digest: str, packed: bytes) -> Any:
        """Scattered: workers pass it on to each other. Gone with the only worker that had it, it is sent again."""
        if digest not in self._parcels or self._parcels[digest].status != "finished":
            self._parcels[digest] = self._client.scatter(packed)
        return self._parcels[digest]

    def stop(self, running: list[Future[CellAnswer]]) -> None:
        for future in running:  # on the workers task.perform() sees that
            future.cancel()
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._client.close()


@cache
def _kvm() -> bool:
    """Whether `auto` means KVM here."""
    return not accel.kvm_trouble(tools.qemu())


def _free_memory() -> int:
    """MiB that can be had without swapping."""
    found = next(
        line
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable:")
    )
    return int(found.split()[1]) >> 10
