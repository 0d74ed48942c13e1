# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator mutants`: run kernels that are broken on purpose, and check the checks."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from orchestrator.commands import document
from orchestrator.commands.options import MAX_JOBS, add_output, add_verbosity
from orchestrator.options import whole

if TYPE_CHECKING:
    from orchestrator.many.mutants import Mutant, MutantResult

NAME = "mutants"
HELP = "mutation testing: run kernels that are broken on purpose and check that each is caught"
EXAMPLES = (
    ("mutants --only 'sync-*'", ""),
    ("mutants --kernel 6.1-int3 --healthy 10", "and ten healthy runs"),
)
STATUSES = (
    (0, "each mutant was caught, and no healthy kernel blamed"),
    (1, "one was missed, or a healthy kernel blamed"),
    (125, "nothing could be tested"),
    (129, "wrong usage"),
    (130, "interrupted (128 plus the number of the signal)"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="GLOB",
        help="run only mutants whose name matches (repeatable)",
    )
    parser.add_argument("--kernel", metavar="NAME", help="run only the mutants of this kernel")
    parser.add_argument(
        "--jobs", type=whole(1, MAX_JOBS), default=2, metavar="N", help="parallel runs (default: 2)"
    )
    parser.add_argument(
        "--healthy",
        type=whole(0, 1000),
        default=0,
        metavar="N",
        help="also run each unbroken kernel N times",
    )
    parser.add_argument(
        "--stock",
        action="append",
        default=[],
        metavar="NAME",
        help="additional kernel for --healthy (repeatable)",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="rerun mutants even if nothing that they depend on has changed",
    )
    add_output(
        parser,
        "directory for mutants.json, .md and .html (default: one in the state directory)",
    )
    document.add_json(parser)
    add_verbosity(parser)


def main(options: argparse.Namespace) -> int:
    import time

    from orchestrator import ui
    from orchestrator.errors import EXIT_KERNEL_FAILED, EXIT_PASS
    from orchestrator.host.paths import output_directory, state_dir
    from orchestrator.kernel.model import KernelRequest
    from orchestrator.kernel.obtain import settle
    from orchestrator.many import mutants
    from orchestrator.report import mutants as report

    output = options.output or state_dir() / "mutants"
    output_directory(output, "the results")
    chosen = mutants.select(options.only, options.kernel)
    if options.healthy:
        kernels = list(dict.fromkeys([*(mutant.base for mutant in chosen), *options.stock]))
        chosen = [*chosen, *mutants.healthy(kernels, options.healthy)]
    for kernel in dict.fromkeys(mutant.base for mutant in chosen):
        settle(KernelRequest(selector=kernel))
    finished = 0

    def on_result(mutant: Mutant, result: MutantResult) -> None:
        nonlocal finished
        finished += 1
        progress = f"{finished}/{len(chosen)}"
        ui.say(f"{progress}  {mutant.base} {mutant.name}: {result.result} ({result.seconds:.0f} s)")

    start = time.monotonic()
    results = mutants.run_all(chosen, options.jobs, options.again, on_result)
    pairs = list(zip(chosen, results, strict=True))
    seconds = time.monotonic() - start
    counted = [result.result for mutant, result in pairs if not mutant.unseen]
    status = EXIT_PASS if set(counted) <= set(report.GOOD) else EXIT_KERNEL_FAILED
    with ui.saying_what_fails("the results"):
        report.write(pairs, seconds, output)
    if options.json:
        content = report.content(pairs, seconds)
        return document.show("mutants", status, directory=output, **content)
    report.show(pairs, seconds, ui.SafeConsole())
    print(f"results: {output}/mutants.html, {output}/mutants.json")
    return status
