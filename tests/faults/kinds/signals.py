# SPDX-License-Identifier: GPL-2.0-only
"""Signals at random moments to every process of a run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from signal import Signals

from faults.fault import NOTICED, SURVIVED, TRUTH, Fault, killed_by
from faults.trial import MOMENTS, Trial

ENDING = (Signals.SIGTERM, Signals.SIGHUP, Signals.SIGINT)
GUEST = ("boot", "ready", "watch", "free")
"""Moments at which QEMU runs; GDB from the third on."""


def faults() -> Iterator[Fault]:
    yield Fault(name="signal/none", allowed=SURVIVED, repeats=False, short=True)
    yield from _to_us()
    yield from _by_batch_systems()
    yield from _to_helpers()
    yield from _to_compilers()


def _send(
    role: str, *numbers: Signals, at: tuple[str, ...], gap: float = 0.0
) -> Callable[[Trial], None]:
    def inject(trial: Trial) -> None:
        if trial.moment(*at):
            trial.signal(role, *numbers, gap=gap)

    return inject


def _to_us() -> Iterator[Fault]:
    for number in ENDING:
        name = number.name.removeprefix("SIG")
        ended = killed_by(number) | {TRUTH}  # the verdict may have been there already
        for part, at in (
            ("early", ("start", "early", "made")),
            ("guest", GUEST),
            ("late", ("free", "end", "report")),
        ):
            yield Fault(
                name=f"signal/main-{name}-{part}",
                inject=_send("main", number, at=at),
                allowed=ended,
                silence=10,
                short=part == "guest" and number is Signals.SIGTERM,
            )
        yield Fault(
            name=f"signal/main-{name}-twice",
            inject=_send("main", number, number, at=GUEST, gap=0.2),
            allowed=ended,
            silence=10,
        )
        yield Fault(
            name=f"signal/group-{name}", inject=_to_group(number), allowed=ended, silence=10
        )
    yield Fault(
        name="signal/main-INT-TERM-HUP",
        inject=_send(
            "main", *(Signals.SIGINT, Signals.SIGTERM, Signals.SIGHUP), at=GUEST, gap=0.05
        ),
        allowed=killed_by(Signals.SIGINT) | killed_by(Signals.SIGTERM) | killed_by(Signals.SIGHUP),
        silence=10,
    )
    for part, at in (
        ("early", ("start", "early", "made")),
        ("guest", GUEST),
        ("late", ("end", "report")),
    ):
        yield Fault(
            name=f"signal/main-KILL-{part}",
            inject=_send("main", Signals.SIGKILL, at=at),
            allowed=killed_by(Signals.SIGKILL),
            traces="files of a process that was killed are removed by the next one",
            short=part == "guest",
        )
    yield Fault(
        name="signal/main-STOP-CONT",
        inject=_send("main", Signals.SIGSTOP, Signals.SIGCONT, at=tuple(MOMENTS), gap=3),
        allowed=SURVIVED,
        silence=60,
    )
    yield Fault(
        name="signal/main-HUP-under-nohup",
        prepare=_under_nohup,
        inject=_send("main", Signals.SIGHUP, at=GUEST),
        allowed=SURVIVED,
        silence=60,
    )
    yield Fault(
        name="signal/main-WINCH-CONT",
        inject=_send("main", Signals.SIGWINCH, Signals.SIGCONT, at=GUEST, gap=0.1),
        allowed=SURVIVED,
        silence=60,
    )
    yield Fault(
        name="signal/main-TERM-soak",
        prepare=lambda trial: trial.arguments.extend(["--soak", "60s"]),
        inject=_send("main", Signals.SIGTERM, at=("free",)),
        allowed=killed_by(Signals.SIGTERM),
        silence=10,
    )


def _by_batch_systems() -> Iterator[Fault]:
    for name in ("QUIT", "USR1", "USR2", "ALRM", "XCPU"):
        number = Signals[f"SIG{name}"]
        yield Fault(
            name=f"signal/main-{name}",
            inject=_send("main", number, at=tuple(MOMENTS)),
            allowed=killed_by(number) | {TRUTH},
            silence=10,
        )


def _to_group(number: Signals) -> Callable[[Trial], None]:
    """To every process of the group, as the terminal does with Ctrl-C."""

    def inject(trial: Trial) -> None:
        if trial.moment("early", *GUEST) and trial.now():
            trial.signalled.add(number)
            os.killpg(trial.process.pid, number)

    return inject


def _under_nohup(trial: Trial) -> None:
    trial.wrapper += ["nohup"]


def _to_helpers() -> Iterator[Fault]:
    fatal = (Signals.SIGKILL, Signals.SIGTERM, Signals.SIGHUP, Signals.SIGINT, Signals.SIGSEGV)
    for role, at in (("qemu", GUEST), ("gdb", ("watch", "free"))):
        for number in fatal:
            name = number.name.removeprefix("SIG")
            yield Fault(
                name=f"signal/{role}-{name}",
                inject=_send(role, number, at=at),
                allowed=NOTICED,
                short=number is Signals.SIGKILL,
            )
        yield Fault(
            name=f"signal/{role}-STOP-CONT",
            inject=_send(role, Signals.SIGSTOP, Signals.SIGCONT, at=at, gap=3),
            allowed=SURVIVED,
            silence=60,
        )
        yield Fault(
            name=f"signal/{role}-STOP",
            inject=_send(role, Signals.SIGSTOP, at=at),
            allowed=NOTICED,
            silence=100,
            limit=240,
        )
    for number in (Signals.SIGKILL, Signals.SIGTERM):
        yield Fault(
            name=f"signal/shell-{number.name.removeprefix('SIG')}",
            inject=_send("shell", number, at=("boot", "ready")),
            allowed=SURVIVED,
            silence=60,
        )
    yield Fault(name="signal/any-KILL", inject=_any(Signals.SIGKILL), allowed=NOTICED)
    yield Fault(name="signal/any-TERM", inject=_any(Signals.SIGTERM), allowed=NOTICED)


def _any(number: Signals) -> Callable[[Trial], None]:
    """To a random one of the command's children, whatever it is for."""

    def inject(trial: Trial) -> None:
        if trial.moment("start", "early", "made", *GUEST):
            trial.signal(trial.rng.choice(("other", "shell", "probe", "qemu", "gdb")), number)

    return inject


def _to_compilers() -> Iterator[Fault]:
    for number in (Signals.SIGKILL, Signals.SIGTERM):
        yield Fault(
            name=f"signal/compiler-{number.name.removeprefix('SIG')}",
            prepare=_module_to_build,
            inject=_compiling(number),
            allowed=NOTICED,
            traces="gcc leaves its temporary files behind when it is killed",
            silence=60,
            again=True,
        )
    for number in ENDING:
        yield Fault(
            name=f"signal/main-{number.name.removeprefix('SIG')}-compiling",
            prepare=_module_to_build,
            inject=_compiling(number, "main"),
            allowed=killed_by(number),
            silence=10,
        )
    yield Fault(
        name="signal/main-KILL-compiling",
        prepare=_module_to_build,
        inject=_compiling(Signals.SIGKILL, "main"),
        allowed=killed_by(Signals.SIGKILL),
        traces="files of a process that was killed are removed by the next one",
        again=True,
    )


def _module_to_build(trial: Trial) -> None:
    cache = trial.world.private_cache(trial.directory)
    for modules in cache.glob("orchestrator/modules"):
        shutil.rmtree(modules)
    trial.env["XDG_CACHE_HOME"] = str(cache)


def _compiling(number: Signals, role: str = "compiler") -> Callable[[Trial], None]:
    def inject(trial: Trial) -> None:
        if trial.until(lambda: trial.find("compiler") is not None) and trial.pause(
            trial.rng.uniform(0, 4) * trial.world.scale
        ):
            trial.signal(role, number)

    return inject
