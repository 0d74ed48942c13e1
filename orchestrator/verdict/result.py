# SPDX-License-Identifier: GPL-2.0-only
"""The result of a run: in memory, with all that a report needs, and as verdict.json on disk.

verdict.json is written and read only here. orchestrator/report/verdict.schema.json describes it for
other programs.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pydantic

from orchestrator.errors import shortened
from orchestrator.host import files
from orchestrator.host.files import write_whole
from orchestrator.kernel.model import Kernel
from orchestrator.machine.qemu import MachineSpec
from orchestrator.spec import RunSpec
from orchestrator.verdict.checks import CheckResult, Status
from orchestrator.verdict.evidence import Evidence, Soak
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
LARGEST = 1 << 16
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


@dataclass(frozen=True, kw_only=True)
class KernelRecord:
    """The kernel as verdict.json keeps it; the fields are those of kernel.model.Kernel."""

    name: str
    release: str
    digest: str
    origin: dict[str, str] = field(default_factory=dict)


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

    def with_status(self, *statuses: Status) -> list[CheckResult]:
        """The checks with one of these statuses, in their order."""
        return [check for check in self.checks if check.status in statuses]


def record(result: RunResult) -> VerdictRecord:
    """What verdict.json keeps of `result`."""
    kernel, evidence, verdict = result.kernel, result.evidence, result.verdict
    return VerdictRecord(
        outcome=verdict.outcome,
        reason=verdict.reason,
        exit_status=verdict.exit_status,
        name=result.name,
        accel=result.machine.accel.option if result.machine else "",
        kernel=KernelRecord(
            name=kernel.name, release=kernel.release, digest=kernel.digest, origin=kernel.origin
        )
        if kernel
        else None,
        edited=tuple(evidence.edited),
        hang_report=tuple(evidence.hang_report),
        soak=evidence.soak,
        checks=tuple(verdict.results),
        seconds={name: round(seconds, 3) for name, seconds in result.seconds.items()},
    )


def reserve(directory: Path) -> None:
    """Take the disk space for verdict.json now: the disk may be full when the run ends."""
    files.reserve(directory / FILE, LARGEST)


def write(result: RunResult) -> None:
    """Write verdict.json into the run's directory, whole or not at all. Raises OSError."""
    content = {"schema": SCHEMA, **asdict(record(result))}
    write_whole(result.directory / FILE, json.dumps(content, indent=1) + "\n")


def read(directory: Path) -> VerdictRecord:
    """The verdict of the run in `directory`.

    Raises OSError when there is none, ValueError when it is damaged or has another schema.
    """
    file = directory / FILE
    try:
        content = json.loads(file.read_bytes())
        if content["schema"] != SCHEMA:
            raise ValueError(f"{file} was written by another version of this program")
        if lacking := [name for name in REQUIRED if name not in content]:
            raise ValueError(f"{file} is damaged: it lacks {', '.join(lacking)}")
        return RECORD.validate_python(content)
    except (KeyError, TypeError, RecursionError, pydantic.ValidationError) as error:
        raise ValueError(f"{file} is damaged: {shortened(' '.join(str(error).split()))}") from error


RECORD = pydantic.TypeAdapter(VerdictRecord)
"""Checks what it reads: the file may be a stranger's."""
