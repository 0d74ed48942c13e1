# SPDX-License-Identifier: GPL-2.0-only
"""Commands that start other runs, or keep a guest: none may outlive them, whatever ends them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from signal import Signals

from faults.fault import HEALTHY, INFRA, NOTICED, TRUTH, Fault, killed_by
from faults.trial import Trial

MATRIX = """\
kernels: [6.1-int3]
smp: [2]
scenarios: [nop5]
repeats: 2
duration: 0.3
"""

ENDING = (Signals.SIGTERM, Signals.SIGHUP, Signals.SIGINT, Signals.SIGKILL)


def faults() -> Iterator[Fault]:
    for command in ("sweep", "nightly"):
        for number in ENDING:
            yield Fault(
                name=f"many/{command}-{number.name.removeprefix('SIG')}",
                prepare=_matrix(command),
                inject=_sent("main", number),
                allowed=killed_by(number) | {TRUTH},
                kernel=HEALTHY,
                traces="files of a process that was killed are removed by the next one"
                if number is Signals.SIGKILL
                else "",
                silence=10,
                short=command == "sweep" and number is Signals.SIGTERM,
            )
    for role in ("orchestrator", "qemu", "gdb"):
        yield Fault(
            name=f"many/sweep-{role}-KILL",
            prepare=_matrix("sweep"),
            inject=_sent(role, Signals.SIGKILL),
            allowed=NOTICED,
            kernel=HEALTHY,
            traces="files of a process that was killed are removed by the next one",
            silence=100,
        )
    for number in ENDING:
        yield Fault(
            name=f"many/gdb-now-{number.name.removeprefix('SIG')}",
            prepare=_interactive,
            inject=_sent("main", number),
            allowed=killed_by(number) | {TRUTH, INFRA},
            kernel=HEALTHY,
            traces="files of a process that was killed are removed by the next one"
            if number is Signals.SIGKILL
            else "",
            silence=10,
        )
        yield Fault(
            name=f"many/keep-{number.name.removeprefix('SIG')}",
            prepare=lambda trial: trial.arguments.extend(["--keep", "always"]),
            inject=_while_kept(number),
            allowed=killed_by(number) | {TRUTH},
            traces="files of a process that was killed are removed by the next one"
            if number is Signals.SIGKILL
            else "",
            silence=10,
        )
        yield Fault(
            name=f"many/simulate-{number.name.removeprefix('SIG')}",
            prepare=_simulation,
            inject=_sent("main", number),
            allowed=killed_by(number) | {TRUTH},
            kernel=HEALTHY,
            silence=10,
        )


def _matrix(command: str) -> Callable[[Trial], None]:
    def prepare(trial: Trial) -> None:
        matrix = trial.directory / "matrix.yaml"
        matrix.write_text(MATRIX)
        output = str(trial.directory / "out" / "run")
        trial.arguments = [command, str(matrix), "--jobs", "2", "--output", output]

    return prepare


def _interactive(trial: Trial) -> None:
    output = str(trial.directory / "out" / "run")
    trial.arguments = ["gdb", "--now", "--smp", "2", "--output", output]
    trial.truth = 0


def _simulation(trial: Trial) -> None:
    trial.arguments = ["bisect", "--simulate", "--commits", "512", "--times", "50"]


def _sent(role: str, number: Signals) -> Callable[[Trial], None]:
    def inject(trial: Trial) -> None:
        if trial.pause(trial.rng.uniform(0, 12) * trial.world.scale):
            trial.signal(role, number)

    return inject


def _while_kept(number: Signals) -> Callable[[Trial], None]:
    def inject(trial: Trial) -> None:
        if trial.moment("report") and trial.pause(trial.rng.uniform(0, 2)):
            trial.signal("main", number)

    return inject
