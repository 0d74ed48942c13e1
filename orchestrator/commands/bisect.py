# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator bisect`: from its options to a bisection, and what is shown of it."""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import EXIT_PASS, EXIT_UNTESTABLE, UsageError
from orchestrator.host.paths import locked, state_dir
from orchestrator.kernel.model import CHANGES, KernelRequest
from orchestrator.options import add_options as add_declared
from orchestrator.options import argv, from_namespace
from orchestrator.spec import MACHINE, POKING, RunSpec

if (
    TYPE_CHECKING
):  # numpy takes as long to import as all the rest together, and cli imports this for every command
    from orchestrator.many.bisect.candidates import Candidates

NAME = "bisect"
HELP = "find the first bad kernel of many, even if the fault shows rarely"
DESCRIPTION = """\
Finds the first bad one of many kernels, also when the fault shows only now and then. Three ways to say which:
  --tree T --good G --bad B         the commits of a git tree after G, up to B
  --kernel K --series FILE          the patches of a series on a kernel
  debian:6.1.170 debian:6.1.176 ... kernels by their names, the good one first
An interrupted bisection goes on where it was when the same command is given again."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description, parser.formatter_class = DESCRIPTION, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "kernels", nargs="*", metavar="KERNEL", help="in order: the good end, others, the bad end"
    )
    parser.add_argument(
        "--tree", type=Path, metavar="PATH", help="a git tree of the kernel (never written into)"
    )
    parser.add_argument("--good", metavar="COMMIT", help="a commit of the tree that is good")
    parser.add_argument("--bad", metavar="COMMIT", help="a later one that is bad")
    parser.add_argument(
        "--kernel",
        default=None,
        metavar="NAME",
        help="the kernel that the series is for (6.1-plain)",
    )
    parser.add_argument("--series", type=Path, metavar="FILE", help="a list of patches, quilt's")
    add_declared(parser, KernelRequest, CHANGES)
    parser.add_argument(
        "--signature", metavar="TEXT", help="what counts as bad (what the bad end shows first)"
    )
    parser.add_argument(
        "--shows", metavar="REGEX", help="bad is what matches in console or report, no fault"
    )
    parser.add_argument(
        "--confidence", type=float, default=0.95, metavar="P", help="at which to stop (0.95)"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (1)")
    parser.add_argument(
        "--build-cost",
        type=float,
        metavar="RUNS",
        help="of one build (10 at first, then as measured)",
    )
    parser.add_argument(
        "--restart", action="store_true", help="forget what is known of this bisection"
    )
    add_declared(parser, RunSpec, MACHINE, POKING)
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="of the first run of each kernel (1)"
    )
    played = parser.add_argument_group("no kernel at all")
    played.add_argument(
        "--simulate", action="store_true", help="play faults through that are made up, and compare"
    )
    played.add_argument(
        "--commits", type=int, default=1024, metavar="N", help="of the made-up history (1024)"
    )
    played.add_argument(
        "--times", type=int, default=200, metavar="N", help="bisections for each line (200)"
    )
    played.add_argument(
        "--probability",
        type=float,
        action="append",
        metavar="P",
        help="of a run to show the fault; repeatable (1, 0.5, 0.2, 0.05)",
    )


def main(options: argparse.Namespace) -> int:
    from orchestrator.many.bisect.bisection import Bisection, explained
    from orchestrator.many.bisect.search import Search
    from orchestrator.many.bisect.tester import ChildTester, property_signature

    if options.simulate:
        return _simulate(options)
    if options.jobs < 1:
        raise UsageError(f"--jobs takes 1 or more, not {options.jobs}")
    try:
        re.compile(options.shows or "")
    except re.error as error:
        raise UsageError(
            f"--shows takes a regular expression, not {options.shows}: {error}"
        ) from error
    candidates = _candidates(options)
    Search(
        len(candidates.candidates), confidence=options.confidence
    )  # a wrong --confidence, before anything is done
    runs = _run_options(options)
    files = [path.read_bytes() for path in (*options.patches, *options.fragments) if path.is_file()]
    identity = repr((candidates.identity, runs, files, options.shows))
    key = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:16]
    directory = state_dir() / "bisections" / key

    def refuse() -> None:
        raise UsageError(f"the same bisection is under way in another process ({directory})")

    with locked(directory.with_name(f".{key}.lock"), refuse):
        if options.restart:
            shutil.rmtree(directory, ignore_errors=True)
        bisection = Bisection(
            candidates,
            ChildTester(candidates, runs, directory, options.seed, options.shows),
            directory / "log.jsonl",
            confidence=options.confidence,
            signature=property_signature(options.shows) if options.shows else options.signature,
            jobs=options.jobs,
            build=options.build_cost,
        )
        answer = bisection.run()
        text = explained(bisection, answer)
        (directory / "answer.txt").write_text(text)
    print(f"{text}\nkept in: {directory}")
    return EXIT_PASS if answer.probability >= options.confidence else EXIT_UNTESTABLE


def _candidates(options: argparse.Namespace) -> Candidates:
    from orchestrator.many.bisect.candidates import Commits, Ready, Series

    given = [
        bool(options.kernels),
        options.series is not None,
        options.good is not None or options.bad is not None,
    ]
    if sum(given) != 1:
        raise UsageError(
            "say what to bisect: --tree T --good G --bad B, --kernel K --series FILE, or kernels by name"
        )
    base = KernelRequest(
        selector=options.kernel or "6.1-plain",
        tree=options.tree,
        patches=tuple(path.resolve() for path in options.patches),
        fragments=tuple(path.resolve() for path in options.fragments),
        settings=tuple(options.settings),
    )
    if options.kernels:
        if options.tree or options.kernel:
            raise UsageError("kernels by name need neither --tree nor --kernel")
        return Ready(base, options.kernels)
    if options.series:
        return Series(base, options.series)
    if not (options.tree and options.good and options.bad):
        raise UsageError("a bisection of commits needs all of --tree, --good and --bad")
    return Commits(base, options.tree, options.good, options.bad, slots=options.jobs)


def _run_options(options: argparse.Namespace) -> list[str]:
    spec = from_namespace(RunSpec, options)
    return argv(replace(spec, qemu=spec.qemu and spec.qemu.resolve()), MACHINE, POKING)


def _simulate(options: argparse.Namespace) -> int:
    from rich.console import Console

    # numpy's own threads would only get into each other's way: each bisection has a core for itself.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from orchestrator.many.bisect import simulate

    build = 10.0 if options.build_cost is None else options.build_cost
    print(
        f"seed {options.seed}, {options.commits} commits, {options.times} times each, a build costs {build:g} runs"
    )
    if "git_bayesect" not in simulate.available():
        print(
            "git_bayesect is not installed, so it is not compared: pip install 'orchestrator[compare]'"
        )
    lines = simulate.simulate(
        commits=options.commits,
        ps=options.probability or (1, 0.5, 0.2, 0.05),
        times=options.times,
        build=build,
        seed=options.seed,
    )
    Console().print(simulate.table(list(lines)))
    return EXIT_PASS
