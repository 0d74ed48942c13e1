# SPDX-License-Identifier: GPL-2.0-only
"""Where cells run: on this host or on the workers of a dask cluster."""

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
from orchestrator.host import extras, tools
from orchestrator.machine import accel
from orchestrator.many.sweep import task
from orchestrator.many.sweep.matrix import Cell
from orchestrator.many.sweep.task import CellAnswer

OVERHEAD = 512
"""Memory of a run besides the guest's, in MiB: QEMU with its translations, GDB, orchestrator."""
CONNECT = 10.0
"""Seconds that a dask scheduler has to answer."""

ADDRESS = re.compile(r"(?:(?:tcp|tls|ws|wss|ucx)://)?[^/\s]+:\d+")


@dataclass(frozen=True)
class Room:
    """Capacity of a place, or the part of it that cells use."""

    cores: int
    memory: int
    """MiB."""

    def __add__(self, other: Room) -> Room:
        return Room(self.cores + other.cores, self.memory + other.memory)

    def holds(self, other: Room) -> bool:
        """Whether `other` fits into this."""
        return other.cores <= self.cores and other.memory <= self.memory


class Place(Protocol):
    """An executor for task.perform(), and how much fits into it."""

    executor: Executor
    remote: bool
    """Whether its caches and directories are not those of this host."""

    def room(self) -> Room:
        """The current capacity, whether in use or not."""

    def need(self, cell: Cell) -> Room:
        """The part of room() that a cell uses."""

    def bundle(self, digest: str, packed: bytes) -> Any:
        """The argument to submit for a packed kernel."""

    def stop(self, running: list[Future[CellAnswer]]) -> None:
        """End all cells. Returns when they have ended, or when this host can no longer tell."""

    def close(self) -> None: ...


class LocalHost:
    """This host.

    jobs: cells to run at a time; None for as many as the cores and the free memory hold.

    Under TCG with one thread a guest counts as one core, however many CPUs it has: the QEMU thread
    that translates for all CPUs stands still while GDB or orchestrator are busy (measured: 101 % of
    a core with --smp 2, 103 % with --smp 8). With a thread for each CPU (tcg-multi, KVM) it counts
    as one core for each CPU.
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
        spec = cell.spec
        threads = spec.accel in ("kvm", "tcg-multi") or (spec.accel == "auto" and _kvm())
        return Room(spec.smp if threads else 1, spec.memory + OVERHEAD)

    def bundle(self, digest: str, packed: bytes) -> Any:
        return packed

    def stop(self, running: list[Future[CellAnswer]]) -> None:
        task.CHILDREN.stop()
        self.executor.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        self.executor.shutdown(wait=True)


class Cluster:
    """The workers of the dask scheduler at `address`.

    The number of threads of a worker is the number of cells that it runs at a time. If a worker is
    killed, dask runs its cells elsewhere, as often as its setting `allowed-failures` permits.
    """

    remote = True

    def __init__(self, address: str) -> None:
        distributed = extras.library("distributed", "--scheduler")
        if not ADDRESS.fullmatch(address):
            raise UsageError(
                f"--scheduler takes the address that `dask scheduler` prints, tcp://HOST:PORT, "
                f"not {address}"
            )
        # Its log messages about lost connections say less than ours.
        for name in ("distributed", "distributed.client"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._address = address
        try:
            connect: Any = distributed.Client  # its types are incomplete
            self._client: Any = connect(address, timeout=CONNECT, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            remedy = "start one with `dask scheduler`"
            if address.startswith("tls:"):
                remedy += ", or check the certificates in dask's configuration (docs/sweep.md)"
            raise InfraError(f"no dask scheduler answers at {address}: {remedy}") from error
        # With pure=True dask would run only one of two equal calls.
        self.executor: Executor = self._client.get_executor(pure=False)
        self._bundles: dict[str, Any] = {}
        if not self._client.nthreads():
            ui.say(
                f"{address} has no worker yet: start `dask worker {address}` on each machine "
                "that should run cells"
            )

    def room(self) -> Room:
        try:
            return Room(sum(self._client.nthreads().values()), 0)
        except OSError as error:
            raise InfraError(
                f"the dask scheduler at {self._address} is gone: start another one and repeat the "
                "command, which continues from here"
            ) from error

    def need(self, cell: Cell) -> Room:
        return Room(1, 0)

    def bundle(self, digest: str, packed: bytes) -> Any:
        """A handle of dask's: workers pass the bundle on to each other.

        If the only worker that had it is gone, it is sent again.
        """
        if digest not in self._bundles or self._bundles[digest].status != "finished":
            self._bundles[digest] = self._client.scatter(packed)
        return self._bundles[digest]

    def stop(self, running: list[Future[CellAnswer]]) -> None:
        for future in running:  # task.perform() polls for this on the workers
            future.cancel()
        self.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._client.close()


@cache
def _kvm() -> bool:
    """Whether --accel auto chooses KVM on this host."""
    return not accel.kvm_trouble(tools.qemu())


def _free_memory() -> int:
    """Memory that is available without swapping, in MiB."""
    available = next(
        line
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable:")
    )
    return int(available.split()[1]) >> 10
