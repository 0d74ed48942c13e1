# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator bisect`: find the first bad kernel of many."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.commands import document
from orchestrator.commands.options import MAX_JOBS, add_output, add_verbosity
from orchestrator.errors import (
    EXIT_PASS,
    EXIT_UNTESTABLE,
    OrchestratorError,
    UsageError,
    shortened,
)
from orchestrator.kernel.model import CHANGES, KernelRequest
from orchestrator.machine.limits import MAX_SEED
from orchestrator.options import add_options as add_declared
from orchestrator.options import argv, from_namespace, number, whole
from orchestrator.spec import MACHINE, POKING, RunSpec

if TYPE_CHECKING:
    from orchestrator.host.debian import Package
    from orchestrator.many.bisect.candidates import Candidates

NAME = "bisect"
HELP = "find the first bad kernel of many, even if the fault shows rarely"
EXAMPLES = (
    ("bisect --tree ~/linux --good v6.1 --bad v6.2", "commits of a tree"),
    ("bisect debian:6.1.170 debian:6.1.176", "Debian's kernels"),
    ("bisect --kernel 6.1-plain --series series", "patches of a series"),
)
BASE = "6.1-plain"
"""The kernel whose series is bisected, if no other is named."""
DESCRIPTION = """\
Finds the first bad kernel of many, even if the fault shows rarely. There are three ways to name the
candidates:
  --tree T --good G --bad B [-- P]  commits after G, up to B [that touch P]
  --kernel K --series FILE          the patches of a series on top of a kernel
  debian:6.1.170 debian:6.1.176 ... kernels by name, the good one first

Repeat the command to continue an interrupted bisection."""
PROBABILITIES = (1, 0.5, 0.2, 0.05)
COMMITS, TIMES = 1024, 200
"""Of a simulation."""
REAL = ("tree", "good", "bad", "kernel", "series", "kernels", "signature", "shows", "json")
MADE_UP = ("commits", "times", "probability")
"""Options that only the one or the other takes, each None, False or empty if it is not given."""
LOG = "log.jsonl"
"""By this file the directory of a bisection is known."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.description = DESCRIPTION
    parser.add_argument(
        "kernels",
        nargs="*",
        metavar="KERNEL",
        help="in order, from the good end to the bad end; with --good, paths in the tree",
    )
    parser.add_argument(
        "--tree", type=Path, metavar="PATH", help="git tree of the kernel (never written to)"
    )
    parser.add_argument("--good", metavar="COMMIT", help="good commit of the tree")
    parser.add_argument("--bad", metavar="COMMIT", help="bad commit, a descendant of the good one")
    parser.add_argument(
        "--kernel", metavar="NAME", help="kernel to apply the series to (default: 6.1-plain)"
    )
    parser.add_argument(
        "--series", type=_series, metavar="FILE", help="a series of patches, as --patch takes it"
    )
    add_declared(parser, KernelRequest, CHANGES)
    parser.add_argument(
        "--signature",
        metavar="TEXT",
        help="signature that counts as bad (default: that of the bad end's first failure)",
    )
    parser.add_argument(
        "--shows",
        metavar="REGEX",
        help="a kernel is bad if its console or report matches, whatever the verdict",
    )
    parser.add_argument(
        "--confidence",
        type=float,
        default=0.95,
        metavar="P",
        help="probability of being right at which to stop (default: 0.95)",
    )
    parser.add_argument(
        "--jobs", type=whole(1, MAX_JOBS), default=1, metavar="N", help="parallel runs (default: 1)"
    )
    parser.add_argument(
        "--build-cost",
        type=number(0, 1e6),
        metavar="RUNS",
        help="cost of one build, in runs (default: as measured, starting from 10)",
    )
    parser.add_argument(
        "--restart", action="store_true", help="discard the log of this bisection and start again"
    )
    parser.add_argument(
        "--no-confirm",
        action="store_true",
        help="do not try whether the bad end passes without what was found",
    )
    add_output(parser, "directory for the log and the runs (default: one in the state directory)")
    add_declared(parser, RunSpec, MACHINE, POKING)
    parser.add_argument(
        "--seed",
        type=whole(0, MAX_SEED),
        default=1,
        metavar="N",
        help="seed of the first run of each kernel (default: 1)",
    )
    document.add_json(parser)
    add_verbosity(parser)
    simulation = parser.add_argument_group("simulation, without any kernel")
    simulation.add_argument(
        "--simulate", action="store_true", help="simulate made-up faults and compare strategies"
    )
    simulation.add_argument(
        "--commits",
        type=whole(2, 100_000),
        metavar="N",
        help="length of the made-up history (default: 1024)",
    )
    simulation.add_argument(
        "--times",
        type=whole(1, 100_000),
        metavar="N",
        help="bisections per line of the table (default: 200)",
    )
    simulation.add_argument(
        "--probability",
        type=float,
        action="append",
        metavar="P",
        help="probability that a run shows the fault (repeatable; default: 1, 0.5, 0.2, 0.05)",
    )


def _refuse(options: argparse.Namespace, names: Sequence[str], why: str) -> None:
    """Refuse options that would do nothing."""
    for name in names:
        if getattr(options, name) not in (None, False, []):
            raise UsageError(f"{why} --{name}" if name != "kernels" else f"{why} names of kernels")


def main(options: argparse.Namespace) -> int:
    from orchestrator import ui
    from orchestrator.host.files import locked, write_report
    from orchestrator.host.paths import output_directory, real, state_dir
    from orchestrator.kernel import config, patches
    from orchestrator.many.bisect.bisection import Bisection, as_json, explained
    from orchestrator.many.bisect.search import Search
    from orchestrator.many.bisect.tester import ChildTester, property_signature

    if options.simulate:
        _refuse(options, REAL, "a simulation tests no kernel, and takes no")
        return _simulate(options)
    _refuse(options, MADE_UP, "without --simulate there is no")
    try:
        re.compile(options.shows or "")
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(
            f"--shows takes a regular expression, not {shortened(options.shows)}: {error}"
        ) from error
    spec = from_namespace(RunSpec, options)
    spec = replace(spec, qemu=spec.qemu and real(spec.qemu))
    candidates = _candidates(options)
    # Reports a wrong --confidence before anything is done.
    Search(len(candidates.candidates), confidence=options.confidence)
    files = [patches.canonical(options.patches), config.read_files(options.fragments)]
    # The seed is not part of the identity: any seed continues the same bisection.
    versions = _settle(options)
    identity = repr(
        (candidates.identity, versions, argv(spec, MACHINE, POKING), files, options.shows)
    )
    key = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:16]
    directory = options.output or state_dir() / "bisections" / key
    if options.output:
        directory = output_directory(real(options.output), "the runs of a bisection")
        if any(directory.iterdir()) and not (directory / LOG).is_file():
            raise UsageError(
                f"{directory} is not empty and belongs to no bisection: name another one"
            )

    def refuse() -> None:
        raise UsageError(f"the same bisection is running in another process ({directory})")

    with locked(directory.with_name(f".{key}.lock"), refuse):
        if options.restart:
            _discard(directory)
        bisection = Bisection(
            candidates,
            ChildTester(candidates, spec, directory, options.shows),
            directory / LOG,
            confidence=options.confidence,
            signature=property_signature(options.shows) if options.shows else options.signature,
            jobs=options.jobs,
            build=options.build_cost,
        )
        answer = bisection.run()
        sure = answer.probability >= options.confidence
        confirmation = bisection.confirm(answer) if sure and not options.no_confirm else None
        refuted = confirmation and confirmation.holds is False
        status = EXIT_PASS if sure and not refuted else EXIT_UNTESTABLE
        text = explained(bisection, answer, confirmation)
        with ui.saying_what_fails("answer.txt"):
            write_report(directory / "answer.txt", text)
        if options.json:
            content = as_json(bisection, answer, confirmation)
            return document.show("bisect", status, directory=directory, **content)
        ui.show(f"{text}\nresults: {directory}")
    return status


def _series(text: str) -> Path:
    from orchestrator.kernel import patches

    return patches.argument(text)


def _discard(directory: Path) -> None:
    """Remove what a bisection has written."""
    from orchestrator.host import files

    for path in (*directory.glob("*.[0-9]*"), *directory.glob("revert-*.patch")):
        files.remove(path)
    for name in (LOG, "answer.txt"):
        (directory / name).unlink(missing_ok=True)


def _settle(options: argparse.Namespace) -> list[list[Package]]:
    """Choose the versions of all kernels that are given by name, for all runs of the bisection.

    A bisection that is continued when there are newer ones is another one.
    """
    from orchestrator.kernel import versions
    from orchestrator.kernel.obtain import settle

    kernels = [] if options.tree else options.kernels
    names = kernels or ([] if options.tree else [options.kernel or BASE])
    for name in names:
        with contextlib.suppress(OrchestratorError):  # the runs of this kernel will report it
            settle(KernelRequest(selector=name))
    return [versions.last(name) for name in names]


def _candidates(options: argparse.Namespace) -> Candidates:
    from orchestrator.host.paths import real
    from orchestrator.many.bisect.candidates import Commits, Ready, Series

    commits = options.good is not None or options.bad is not None
    ways = [
        bool(options.kernels) and not commits,
        options.series is not None,
        commits,
    ]
    if sum(ways) != 1:
        raise UsageError(
            "name the candidates: --tree T --good G --bad B, --kernel K --series FILE, "
            "or kernels by name"
        )
    base = KernelRequest(
        selector=options.kernel or BASE,
        tree=options.tree,
        patches=tuple(map(real, options.patches)),
        fragments=tuple(map(real, options.fragments)),
        settings=tuple(options.settings),
        make=tuple(options.make),
    )
    if options.kernels and not commits:
        if options.tree or options.kernel:
            raise UsageError("kernels by name take neither --tree nor --kernel")
        return Ready(base, options.kernels)
    if options.series:
        return Series(base, options.series)
    if options.kernel:
        raise UsageError("a bisection of the commits of --tree takes no --kernel")
    if not (options.tree and options.good and options.bad):
        raise UsageError("a bisection of commits needs all of --tree, --good and --bad")
    return Commits(base, options.tree, options.good, options.bad, options.kernels)


def _simulate(options: argparse.Namespace) -> int:

    # Each bisection has one core, so threads of numpy's own would only slow the others down.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from orchestrator.many.bisect import simulate
    from orchestrator.report import tables
    from orchestrator.ui import SafeConsole

    commits, times = options.commits or COMMITS, options.times or TIMES
    build = 10.0 if options.build_cost is None else options.build_cost
    print(
        f"seed {options.seed}, {commits} commits, {times} bisections per line, "
        f"a build costs {build:g} runs"
    )
    if "git_bayesect" not in simulate.available():
        print("git_bayesect is not installed and not compared: `pip install git_bayesect` adds it")
    rows = simulate.simulate(
        commits=commits,
        ps=options.probability or PROBABILITIES,
        times=times,
        build=build,
        seed=options.seed,
    )
    tables.show(simulate.table(list(rows)), SafeConsole())
    return EXIT_PASS
