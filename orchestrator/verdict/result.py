# SPDX-License-Identifier: GPL-2.0-only
"""The result of a run: in memory, with all that a report needs, and as verdict.json on disk.

verdict.json is written and read only here. orchestrator/report/verdict.schema.json describes it for
other programs.
"""

from __future__ import annotations

import datetime
import json
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pydantic

from orchestrator.errors import UsageError, shortened
from orchestrator.host import files, userfile, version
from orchestrator.host.files import write_whole
from orchestrator.kernel.model import Kernel
from orchestrator.machine.qemu import MachineSpec
from orchestrator.spec import RunSpec
from orchestrator.verdict import measures
from orchestrator.verdict.checks import CheckResult, Status
from orchestrator.verdict.evidence import Evidence, Soak
from orchestrator.verdict.measures import Coverage, Failure, Latency, LatencyBucket
from orchestrator.verdict.outcome import Verdict

FILE = "verdict.json"
SCHEMA = 2
"""Goes up when a field goes away or changes its meaning, not when one is added."""
REQUIRED = (
    "outcome", "reason", "exit_status", "kernel", "edited", "hang_report", "soak", "checks",
    "seconds",
)  # fmt: skip
"""Every file of this schema has these. What lacks one, such as a pass without checks, was not
written by write()."""
RESERVED = 1 << 16
"""Bytes that the file may take. The largest of some hundred runs had 22 KiB."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """Everything that is known about a run when it is over."""

    spec: RunSpec
    directory: Path
    name: str
    """What the kernel is called, also if there was none to run."""
    kernel: Kernel | None
    """None when there was none to run."""
    machine: MachineSpec | None
    """None when the run ended before the machine was chosen."""
    evidence: Evidence
    verdict: Verdict
    seconds: dict[str, float]
    """Host seconds by activity."""
    started: float = 0.0
    """When it began, in seconds since the epoch; 0 if nobody noted it."""


@dataclass(frozen=True, kw_only=True)
class KernelRecord:
    """The kernel as verdict.json keeps it; the fields are those of kernel.model.Kernel."""

    name: str
    release: str
    digest: str
    origin: dict[str, str] = field(default_factory=dict)
    patches: tuple[str, ...] = ()
    """Names of the patches, in their order; origin has them in one text."""


@dataclass(frozen=True, kw_only=True)
class MachineRecord:
    """The machine that was used, as verdict.json keeps it."""

    accelerator: str
    """The value of QEMU's -accel."""
    cpu: str
    """The value of QEMU's -cpu."""
    smp: int
    memory: int
    """MiB."""
    qemu: str
    """Its version."""


@dataclass(frozen=True, kw_only=True)
class VerdictRecord:
    """The content of a verdict.json."""

    outcome: str
    reason: str
    exit_status: int
    name: str = ""
    """What the kernel is called, also if there was none to run."""
    accel: str = ""
    """The accelerator as QEMU names it; empty if the run ended before it was chosen."""
    kernel: KernelRecord | None = None
    edited: tuple[str, ...] = ()
    """Instructions that --edit-text changed in the kernel's code, one line each."""
    hang_report: tuple[str, ...] = ()
    """Where each CPU was when the guest stopped making progress, one line each."""
    soak: Soak | None = None
    checks: tuple[CheckResult, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    version: str = ""
    """Of this program, with its commit."""
    command: tuple[str, ...] = ()
    """Command and options that ask for the same run, without --output."""
    host: str = ""
    """Name of the host."""
    started: str | None = None
    """ISO 8601, like `ended`."""
    ended: str | None = None
    machine: MachineRecord | None = None
    """None if the run ended before the machine was chosen."""
    smp: int | None = None
    """Requested number of CPUs."""
    seed: int | None = None
    fingerprint: str | None = None
    """Equal for runs whose free-running parts were equal event by event; None if they ran in a
    guest that does not repeat itself."""
    coverage: Coverage = field(default_factory=Coverage)
    pokes: dict[str, int] = field(default_factory=dict)
    """Number of judged pokes, by owner."""
    latencies: tuple[Latency, ...] = ()
    """By scenario."""
    latency_histogram: tuple[LatencyBucket, ...] = ()
    """Of all scenarios together."""
    failure: Failure | None = None
    """The first failure; None if no check failed."""

    def with_status(self, *statuses: Status) -> list[CheckResult]:
        """The checks with one of these statuses, in their order."""
        return [check for check in self.checks if check.status in statuses]


def record(result: RunResult) -> VerdictRecord:
    """What verdict.json keeps of `result`."""
    evidence, verdict = result.evidence, result.verdict
    failed = {check.check: check.text for check in verdict.results if check.status == "fail"}
    return VerdictRecord(
        outcome=verdict.outcome,
        reason=verdict.reason,
        exit_status=verdict.exit_status,
        name=result.name,
        accel=result.machine.accel.option if result.machine else "",
        kernel=_kernel(result.kernel) if result.kernel else None,
        edited=tuple(evidence.edited),
        hang_report=tuple(evidence.hang_report),
        soak=evidence.soak,
        checks=tuple(verdict.results),
        seconds={name: round(seconds, 3) for name, seconds in result.seconds.items()},
        version=version.version(),
        command=_command(result.spec, result.kernel),
        host=platform.node(),
        started=_iso(result.started) if result.started else None,
        ended=_iso(time.time()),
        machine=_machine(result.machine) if result.machine else None,
        smp=result.spec.smp,
        seed=result.spec.seed,
        fingerprint=evidence.fingerprint,
        coverage=measures.coverage(evidence),
        pokes=measures.pokes(evidence),
        latencies=measures.latencies(evidence),
        latency_histogram=measures.latency_histogram(evidence),
        failure=measures.first_failure(evidence, failed),
    )


def _command(spec: RunSpec, kernel: Kernel | None) -> tuple[str, ...]:
    """What asks for the same run in any directory, on any day."""
    if kernel and kernel.pinned:
        spec = replace(spec, kernel=replace(spec.kernel, selector=kernel.pinned))
    return ("run", *spec.anywhere().argv())


def reserve(directory: Path) -> None:
    """Take the disk space for verdict.json now: the disk may be full when the run ends."""
    files.reserve(directory / FILE, RESERVED)


def _kernel(kernel: Kernel) -> KernelRecord:
    return KernelRecord(
        name=kernel.name,
        release=kernel.release,
        digest=kernel.digest,
        origin=kernel.origin,
        patches=patches(kernel.origin),
    )


def _machine(machine: MachineSpec) -> MachineRecord:
    return MachineRecord(
        accelerator=machine.accel.option,
        cpu=machine.cpu or machine.accel.cpu,
        smp=machine.smp,
        memory=machine.memory,
        qemu=".".join(map(str, machine.qemu.version)),
    )


def patches(origin: Mapping[str, str]) -> tuple[str, ...]:
    """The patches of a kernel by its origin, in their order."""
    names = origin.get("patches", "none").split(", ")
    return tuple(name for name in names if name not in ("", "none"))


def _iso(seconds: float) -> str:
    when = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return when.isoformat(timespec="milliseconds")


def content(result: RunResult) -> dict[str, Any]:
    """The content of verdict.json."""
    return as_json(record(result))


def as_json(verdict: VerdictRecord) -> dict[str, Any]:
    """A verdict as JSON values."""
    return {"schema": SCHEMA, **asdict(verdict)}


def write(result: RunResult) -> None:
    """Write verdict.json into the run's directory, whole or not at all. Raises OSError."""
    write_whole(result.directory / FILE, json.dumps(content(result), indent=1) + "\n")


READ_AT_MOST = 64 << 20
"""Bytes of a verdict.json that are read; ten thousand times what one has."""


def read(directory: Path) -> VerdictRecord:
    """The verdict of the run in `directory`.

    Raises OSError when there is none, ValueError when it is damaged or has another schema.
    """
    file = directory / FILE
    file.stat()  # an OSError if there is none
    try:
        content = userfile.read_bytes(file, "verdict", READ_AT_MOST)
    except UsageError as error:
        raise ValueError(str(error)) from error
    try:
        found = json.loads(content)
        if found["schema"] != SCHEMA:
            raise ValueError(f"{file} was written by another version of this program")
        if lacking := [name for name in REQUIRED if name not in found]:
            raise ValueError(f"{file} is damaged: it lacks {', '.join(lacking)}")
        return RECORD.validate_python(found)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is damaged: it is not JSON") from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{file} is damaged: {place}: {first['msg']}") from error
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {shortened(' '.join(str(error).split()))}") from error


RECORD = pydantic.TypeAdapter(VerdictRecord)
"""Checks what it reads: the file may be a stranger's."""
