# SPDX-License-Identifier: GPL-2.0-only
"""The request for a run, declared once.

Everything that asks for runs derives from RunSpec and KernelRequest: the options of the commands,
the matrix of a sweep, bisect, mutants, repeat.sh, spec.json and the KCIDB report. A new option is
one field here, plus the code that uses it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.errors import UsageError, shortened
from orchestrator.kernel.model import KernelRequest
from orchestrator.machine.limits import (
    CHOICES,
    MAX_DURATION,
    MAX_MEMORY,
    MAX_SEED,
    MAX_SMP,
    MIN_MEMORY,
)
from orchestrator.machine.parameters import check as check_parameters
from orchestrator.options import LONGEST, anywhere, argv, check_texts, option, seconds

MACHINE, POKING, RUN = "machine", "poking", "run"
"""Groups of options: the guest's machine, the work inside the guest, and the rest of `run`."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Everything that decides the course of a run. The run's directory keeps it as spec.json.

    Raises UsageError, `FLAG takes ...`, for a value that is out of range.
    """

    kernel: KernelRequest = field(default_factory=KernelRequest)
    smp: int = option(
        "--smp",
        8,
        parse=int,
        metavar="N",
        group=MACHINE,
        axis=True,
        help="number of guest CPUs (default: 8)",
    )
    accel: str = option(
        "--accel",
        "auto",
        choices=CHOICES,
        group=MACHINE,
        axis=True,
        help="accelerator: KVM where it works, otherwise TCG (default: auto)",
    )
    cpu: str | None = option(
        "--cpu",
        None,
        metavar="MODEL",
        group=MACHINE,
        axis=True,
        help="QEMU CPU model (default: host under KVM, max under TCG)",
    )
    memory: int = option(
        "--memory",
        1024,
        parse=int,
        metavar="MIB",
        group=MACHINE,
        help="guest memory in MiB (default: 1024)",
    )
    append: tuple[str, ...] = option(
        "--append",
        (),
        metavar="PARAMETERS",
        group=MACHINE,
        key="append",
        help="kernel parameters; they are added to ours, or override them (repeatable)",
    )
    qemu: Path | None = option(
        "--qemu",
        None,
        parse=Path,
        metavar="PATH",
        group=MACHINE,
        help="QEMU binary (default: the system's if it is 9.2 or newer, else Debian's newest)",
    )
    scenarios: tuple[str, ...] = option(
        "--scenario",
        (),
        metavar="NAME",
        group=POKING,
        axis=True,
        help="run only these scenarios (glob, repeatable; default: all)",
    )
    skip: tuple[str, ...] = option(
        "--skip",
        (),
        metavar="NAME",
        group=POKING,
        help="leave out these scenarios (glob, repeatable)",
    )
    duration: float | None = option(
        "--duration",
        None,
        parse=float,
        metavar="S",
        group=POKING,
        help="seconds of free-running pokes, all scenarios together (default: 3, or less for few "
        "scenarios)",
    )
    soak: float = option(
        "--soak",
        0.0,
        parse=seconds,
        metavar="TIME",
        group=RUN,
        help="repeat until TIME is up, such as 90s, 30m or 8h (default: run once)",
    )
    seed: int = option(
        "--seed",
        1,
        parse=int,
        metavar="N",
        group=RUN,
        help="seed of every random choice (default: 1)",
    )
    timeout: float = option(
        "--timeout",
        0.0,
        parse=seconds,
        metavar="TIME",
        group=RUN,
        help="give up without a verdict when the whole run, a build included, takes longer than "
        "TIME (default: no limit)",
    )
    edits: Path | None = option(
        "--edit-text",
        None,
        parse=Path,
        metavar="FILE",
        group=RUN,
        key="edit-text",
        help="edit the kernel's code in guest memory before poking it (docs/mutants.md)",
    )
    directory: Path | None = None
    """Directory for the results; None for a new one in the state directory."""

    def __post_init__(self) -> None:
        check_texts(self)
        if not 1 <= self.smp <= MAX_SMP:
            raise UsageError(f"--smp takes 1 to {MAX_SMP}, not {_short(self.smp)}")
        if self.memory < MIN_MEMORY:
            raise UsageError(f"--memory takes {MIN_MEMORY} or more, not {_short(self.memory)}")
        if self.memory > MAX_MEMORY:
            raise UsageError(f"--memory takes at most {MAX_MEMORY}, not {_short(self.memory)}")
        if self.seed < 0:
            raise UsageError(f"--seed takes 0 or more, not {_short(self.seed)}")
        if self.seed > MAX_SEED:
            raise UsageError(f"--seed takes at most {MAX_SEED}, not {_short(self.seed)}")
        if self.duration is not None and not self.duration > 0:
            raise UsageError(f"--duration takes seconds greater than 0, not {self.duration:g}")
        if self.duration is not None and self.duration > MAX_DURATION:
            raise UsageError(
                f"--duration takes at most {MAX_DURATION:g} seconds, not {self.duration:g}: "
                "--soak repeats a run for longer"
            )
        check_parameters(self.append)
        if not 0 <= self.soak <= LONGEST:
            raise UsageError(f"--soak takes a time such as 90s, 30m or 8h, not {self.soak:g}")
        if not 0 <= self.timeout <= LONGEST:
            raise UsageError(f"--timeout takes a time such as 90s, 30m or 8h, not {self.timeout:g}")

    def anywhere(self) -> RunSpec:
        """The same request, from whatever directory it is made."""
        from orchestrator.kernel import checkout  # rarely needed, and --help must not wait for it

        kernel = anywhere(self.kernel)
        kernel = replace(kernel, selector=checkout.anywhere(kernel.selector))
        return anywhere(replace(self, kernel=kernel))

    def argv(self) -> list[str]:
        """The arguments of `orchestrator run` that ask for this run, without --output."""
        return [*self.kernel.argv(), *argv(self)]


def _short(number: int) -> str:
    """`number` for a message: people make mistakes of any length."""
    return shortened(str(number), 30)
