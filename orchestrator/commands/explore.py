# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator explore`: many seeds of free-running pokes from one snapshot."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from orchestrator.commands import document
from orchestrator.commands.options import (
    MAX_JOBS,
    add_kernel,
    add_output,
    add_verbosity,
    run_spec,
)
from orchestrator.errors import EXIT_KERNEL_FAILED, EXIT_PASS
from orchestrator.machine.limits import MAX_SEED
from orchestrator.options import add_options as add_declared
from orchestrator.options import seconds, whole
from orchestrator.spec import MACHINE, POKING, RunSpec

if TYPE_CHECKING:
    from orchestrator.explore import Explored, Trial

NAME = "explore"
HELP = "try one schedule for each seed, until one fails or they show nothing new"
EXAMPLES = (
    ("explore --smp 2 --time 5m", "the default kernel"),
    ("explore --tree . --patch fix.patch --scenario 'nop*' --seeds 200", ""),
)
STATUSES = (
    (0, "no schedule failed"),
    (1, "the kernel did something wrong in a schedule"),
    (125, "no verdict: the kernel does not build or boot, or host or emulator failed"),
    (129, "wrong usage"),
    (130, "interrupted (128 plus the number of the signal)"),
)
DURATION = 0.3
POINTS = 10
"""Points of the curve that are shown."""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_kernel(parser)
    add_declared(parser, RunSpec, MACHINE, POKING)
    parser.set_defaults(duration=DURATION)
    # Of a run the default is another one.
    duration = f"seconds of pokes for each seed, all scenarios together (default: {DURATION})"
    parser._option_string_actions["--duration"].help = duration
    parser.add_argument(
        "--time", type=seconds, default=300.0, metavar="TIME", help="stop after TIME (default: 5m)"
    )
    parser.add_argument(
        "--seeds",
        type=whole(0, MAX_SEED),
        default=0,
        metavar="N",
        help="number of seeds (default: until they show nothing new)",
    )
    parser.add_argument(
        "--seed", type=whole(0, MAX_SEED), default=1, metavar="N", help="first seed (default: 1)"
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="let CPUs change places only by themselves, not also by timers of the seed",
    )
    parser.add_argument(
        "--jobs",
        type=whole(1, MAX_JOBS),
        metavar="N",
        help="number of seeds to run at once (default: number of CPUs)",
    )
    add_output(parser, "directory for a failure (default: a new one in the state directory)")
    document.add_json(parser)
    add_verbosity(parser)


def main(options: argparse.Namespace) -> int:
    from orchestrator import ui
    from orchestrator.explore import WINDOW, explore, jobs_here

    def progress(found: Explored) -> None:
        if found.seeds % WINDOW == 0:
            ui.say(f"{found.seeds} seeds, {found.curve[-1]:,} interleavings")

    found = explore(
        run_spec(options),
        seconds=options.time,
        seeds=options.seeds,
        jobs=options.jobs or jobs_here(),
        cuts=not options.plain,
        on_progress=progress,
    )
    status = EXIT_KERNEL_FAILED if found.failed else EXIT_PASS
    if options.json:
        return document.show("explore", status, **_content(found))
    for line in _lines(found):
        ui.show(line)
    return status


def _content(found: Explored) -> dict[str, Any]:
    return {
        "seeds": found.seeds,
        "pokes": found.pokes,
        "curve": found.curve,
        "why": found.why,
        "seconds": round(found.seconds, 1),
        "failed": _trial(found.failed),
        "shrunk": _trial(found.shrunk),
        "directory": found.directory,
        "replay": _replay(found),
    }


def _trial(trial: Trial | None) -> dict[str, Any] | None:
    if trial is None:
        return None
    return {
        "seed": trial.plan.seed,
        "smp": trial.plan.smp,
        "steps": [step.command for step in trial.plan.steps],
        "check": trial.check,
        "failure": trial.failure,
    }


def _replay(found: Explored) -> str | None:
    from orchestrator.rundir import replay_command

    return replay_command(found.directory) if found.directory else None


def _lines(found: Explored) -> list[str]:
    curve = found.curve
    places = sorted({len(curve) * number // POINTS for number in range(1, POINTS + 1)} - {0})
    points = ", ".join(f"{place}: {curve[place - 1]:,}" for place in places)
    lines = [
        f"{found.seeds} seeds in {found.seconds:.0f} s, {found.pokes:,} pokes; ended because "
        f"{found.why}",
        f"interleavings after so many seeds: {points}",
    ]
    if found.failed and found.shrunk:
        small = found.shrunk.plan
        lines += [
            f"FAIL  seed {found.failed.plan.seed}: {found.failed.check}: {found.failed.failure}",
            f"smallest: seed {small.seed}, {small.smp} CPUs, "
            + "; ".join(step.command for step in small.steps),
            f"again:    {_replay(found)}",
        ]
    return lines
