"""The commands. No logic of the flow is here: options in, RunSpec out, exit status back."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from rich.console import Console

from orchestrator import __version__, nightly, scenario
from orchestrator.bisect import command as bisect_command
from orchestrator.errors import (
    EXIT_INTERRUPTED,
    EXIT_KERNEL_FAILED,
    EXIT_PASS,
    EXIT_UNTESTABLE,
    EXIT_USAGE,
    OrchestratorError,
)
from orchestrator.options import kernel_options, kernel_request, machine_options, poking_options
from orchestrator.sweep import command as sweep_command

if TYPE_CHECKING:
    from orchestrator.run import RunResult


class Parser(argparse.ArgumentParser):
    """argparse with our exit status for wrong usage: 2 would be read as a failed kernel by `git bisect run`."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"orchestrator: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except OrchestratorError as error:
        print(f"orchestrator: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("orchestrator: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader (`| head`) has gone, and has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PASS
    except OSError as error:  # the disk is full, a directory must not be written
        print(f"orchestrator: {error}", file=sys.stderr)
        return EXIT_UNTESTABLE
    except Exception:  # Python's own status would be 1, which says that the kernel failed
        traceback.print_exc()
        print("orchestrator: the above is a fault of orchestrator itself and says nothing about the kernel",
              file=sys.stderr)
        return EXIT_UNTESTABLE


def _parser() -> Parser:
    parser = Parser(prog="orchestrator", description="Does this kernel patch its own code safely on every CPU?")
    parser.add_argument("--version", action="version", version=f"orchestrator {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND", parser_class=Parser)

    run = commands.add_parser("run", help="boot a kernel, poke it on every CPU, and say what became of it")
    kernel_options(run)
    machine_options(run)
    poking_options(run)
    run.add_argument("--soak", type=_seconds, default=0.0, metavar="TIME", help="again and again for 90s, 30m, 8h")
    run.add_argument("--seed", type=int, default=1, metavar="N", help="fixes every random choice (1)")
    run.add_argument("--edit-text", type=Path, metavar="FILE",
                     help="change the kernel's code in memory before poking it (docs/mutants.md)")
    run.add_argument("--output", type=Path, metavar="DIR", help="keep the results there")
    run.add_argument("--keep", nargs="?", const="failure", choices=("failure", "always"), metavar="always",
                     help="keep the guest for `orchestrator gdb` when it does not pass (or always)")
    run.set_defaults(command=_run)

    gdb = commands.add_parser("gdb", help="a GDB with symbols, on a guest of its own or one that was kept")
    which = gdb.add_mutually_exclusive_group()
    which.add_argument("run", nargs="?", metavar="RUN", help="a run's name or directory (the newest one kept)")
    which.add_argument("--now", action="store_true", help="boot a guest for it, as the options below say")
    kernel_options(gdb)
    machine_options(gdb)
    gdb.add_argument("--output", type=Path, metavar="DIR", help="keep logs there")
    gdb.set_defaults(command=_gdb)

    kernels = commands.add_parser("kernels", help="which kernels there are; build or fetch one")
    kernels_commands = kernels.add_subparsers(required=True, metavar="ACTION", parser_class=Parser)
    kernels_list = kernels_commands.add_parser("list", help="what can be had by name, and what is in the cache")
    kernels_list.set_defaults(command=_kernels_list)
    build = kernels_commands.add_parser("build", help="fetch and build a kernel, and say where it is")
    kernel_options(build)
    build.set_defaults(command=_kernels_build)
    shown = kernels_commands.add_parser("show", help="look at a kernel: how does it patch its code?")
    kernel_options(shown)
    shown.set_defaults(command=_kernels_show)
    fetched = kernels_commands.add_parser("fetch", help="get packages and sources, and build nothing")
    fetched.add_argument("kernels", nargs="+", metavar="KERNEL", help="by name, as for run --kernel")
    fetched.set_defaults(command=_kernels_fetch)
    cleaned = kernels_commands.add_parser("clean", help="what the cache takes; remove what was not used for long")
    cleaned.add_argument("--older-than", type=_seconds, metavar="TIME", help="remove what was not used for 30d, 12h")
    cleaned.add_argument("--keep", type=float, metavar="GIB", help="remove the longest unused until so much is left")
    cleaned.add_argument("--dry-run", action="store_true", help="only say what would go")
    cleaned.set_defaults(command=_kernels_clean)

    scenarios = commands.add_parser("scenarios", help="what a run does, and what the kernel promises in each")
    scenarios.set_defaults(command=_scenarios)

    mutants = commands.add_parser("mutants", help="run the kernels that are broken on purpose: is each caught?")
    mutants.add_argument("--only", action="append", default=[], metavar="GLOB", help="only these (repeatable)")
    mutants.add_argument("--kernel", metavar="NAME", help="only those of this kernel")
    mutants.add_argument("--jobs", type=int, default=2, metavar="N", help="runs at a time (2)")
    mutants.add_argument("--healthy", type=int, default=0, metavar="N", help="and each unbroken kernel N times")
    mutants.add_argument("--stock", action="append", default=[], metavar="NAME", help="a kernel more for --healthy")
    mutants.add_argument("--again", action="store_true", help="also those that have a result for this very content")
    mutants.add_argument("--output", type=Path, metavar="DIR", help="where mutants.json and mutants.html go")
    mutants.set_defaults(command=_mutants)

    past = commands.add_parser("history", help="earlier runs on this machine, and what is flaky")
    past.add_argument("--kernel", default="*", metavar="GLOB", help="only kernels of that name or release")
    past.add_argument("--failed", metavar="GLOB", help="only runs in which this scenario or claim failed")
    past.add_argument("--flaky", action="store_true", help="what both passed and failed on one and the same kernel")
    past.add_argument("--count", type=int, default=20, metavar="N", help="the newest N (20)")
    past.set_defaults(command=_history)
    bisect = commands.add_parser("bisect", help="find the first bad one of many kernels, also when it rarely fails")
    bisect_command.add_options(bisect)
    bisect.set_defaults(command=bisect_command.main)

    sweep = commands.add_parser("sweep", help="run every cell of a matrix of kernels and machines")
    sweep_command.add_options(sweep)
    sweep.set_defaults(command=sweep_command.main)
    night = commands.add_parser("nightly", help="a sweep of what changed since the last one, and what is new about it")
    nightly.add_options(night)
    night.set_defaults(command=nightly.main)

    export = commands.add_parser("export", help="runs in the format of others: KCIDB's")
    export.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directories of runs")
    export.add_argument("--kcidb", action="store_true", required=True, help="a report for KCIDB, schema 5.3, as JSON")
    export.add_argument("--origin", required=True, metavar="NAME", help="of whoever submits it, as KCIDB knows it")
    export.set_defaults(command=_export)

    doctor = commands.add_parser("doctor", help="what this host has, what is missing, and what that means")
    doctor.set_defaults(command=_doctor)
    return parser


def _seconds(text: str) -> float:
    """`90`, `90s`, `30m`, `8h` in seconds."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        return float(number) * units[unit]
    except ValueError:
        raise argparse.ArgumentTypeError(f"write a time such as 90s, 30m or 8h, not {text}") from None


def _run(options: argparse.Namespace) -> int:
    from orchestrator import interactive
    from orchestrator.machine.machine import Machine
    from orchestrator.run import RunSpec, run

    spec = RunSpec(
        kernel=kernel_request(options),
        smp=options.smp,
        accel=options.accel,
        cpu=options.cpu,
        memory=options.memory,
        scenarios=tuple(options.scenario),
        duration=options.duration,
        soak=options.soak,
        seed=options.seed,
        qemu=options.qemu,
        edits=options.edit_text,
        directory=options.output,
    )

    def keep(result: RunResult, machine: Machine | None) -> None:
        _report(result)
        if options.keep == "always" or result.verdict.exit_status:
            interactive.keep(machine, result.directory)

    if options.keep:
        return run(spec, keep).verdict.exit_status
    result = run(spec)
    _report(result)
    return result.verdict.exit_status


def _gdb(options: argparse.Namespace) -> int:
    from orchestrator import interactive
    from orchestrator.run import RunSpec, debug

    if not options.now:
        return interactive.attach(options.run)
    return debug(
        RunSpec(
            kernel=kernel_request(options),
            smp=options.smp,
            accel=options.accel,
            cpu=options.cpu,
            memory=options.memory,
            qemu=options.qemu,
            directory=options.output,
        )
    )


def _report(result: RunResult) -> None:
    import sqlite3

    from orchestrator import history
    from orchestrator.report import files, page, terminal

    def text(result: RunResult) -> None:
        with (result.directory / "report.txt").open("w") as file:
            terminal.show(result, Console(file=file, width=120))

    def annotations(result: RunResult) -> None:
        for annotation in files.github(result):
            print(annotation)

    reports = {"junit.xml and results.ktap": files.write, "report.html": page.write, "the history": history.record}
    for name, write in (reports | {"report.txt": text, "GitHub's summary": annotations}).items():
        try:
            write(result)
        except (OSError, sqlite3.Error) as error:  # the disk is full: the verdict stands all the same
            print(f"orchestrator: {name} could not be written: {error}", file=sys.stderr)
    try:
        terminal.show(result, Console())
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # the reader (`| head`) has gone, and rich would exit with 1: kernel failed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _kernels_list(options: argparse.Namespace) -> int:
    from orchestrator.kernel import shelf

    cached = shelf.kernels()
    by_name = {one.name for one in cached}
    print("from kernels/, built from source:")
    for name, description in shelf.definitions().items():
        patched = sum(1 for one in cached if one.name == name)
        print(f"  {name:<24} {f'{patched} in the cache' if patched else '':<16} {description}")
    print("\nDebian's images, as this machine's mirror has them (debian:6.1 is the newest 6.1 that has headers):")
    for selector, (suite, headers) in shelf.offered().items():
        state = "in the cache" if selector in by_name else ""
        print(f"  {selector:<24} {state:<16} {suite}{'' if headers else ', no headers: without the test module'}")
    others = [one for one in cached if one.name not in shelf.definitions() and not one.name.startswith("debian:")]
    if others:
        print("\nin the cache, from elsewhere:")
    for one in others:
        print(f"  {one.name:<24} {one.release:<16} {len(one.patches)} patches")
    print("\nand --tree PATH, --kernel git:WHERE@REF, --bzimage FILE; `orchestrator kernels show` looks at one")
    return 0


def _kernels_show(options: argparse.Namespace) -> int:
    from orchestrator.run import look

    kernel, found = look(kernel_request(options))
    about = {"release": kernel.release, "digest": kernel.digest[:24], "image": str(kernel.bzimage)}
    about |= {name: text for name, text in kernel.origin.items() if text not in ("", "none")}
    about["modules for it"] = "can be built" if kernel.kbuild else "cannot be built: no headers"
    print(kernel.name)
    for name, text in (about | found).items():
        first, *more = text.split("; ")
        print(f"  {name + ':':<18} {first}", *(f"{'':20} {line}" for line in more), sep="\n")
    return 0


def _kernels_fetch(options: argparse.Namespace) -> int:
    from orchestrator.kernel.obtain import fetch

    for selector in options.kernels:
        print(f"{selector}: {fetch(selector)}")
    return 0


def _kernels_clean(options: argparse.Namespace) -> int:
    from collections import Counter

    from orchestrator.kernel import shelf

    sizes: Counter[str] = Counter()
    if options.older_than is None and options.keep is None:
        for item in shelf.items():
            sizes[item.kind] += item.size
        for kind, size in sizes.most_common():
            print(f"{size / (1 << 30):7.2f} GiB  {kind}")
        print(f"{sizes.total() / (1 << 30):7.2f} GiB  in all; say --older-than 30d, or --keep 10 (GiB), to free some")
        return 0
    keep = None if options.keep is None else int(options.keep * (1 << 30))
    for item in shelf.clean(older=options.older_than, keep=keep, dry=options.dry_run):
        sizes[item.kind] += item.size
        print(f"{item.size / (1 << 20):9.1f} MiB  {item.kind}/{item.path.name}")
    verb = "would be" if options.dry_run else "were"
    print(f"{sizes.total() / (1 << 30):.2f} GiB {verb} freed")
    return 0


def _kernels_build(options: argparse.Namespace) -> int:
    from orchestrator.kernel.obtain import obtain

    kernel = obtain(kernel_request(options))
    print(f"{kernel.name} {kernel.release} {kernel.digest}\n{kernel.bzimage}")
    return 0


def _scenarios(options: argparse.Namespace) -> int:
    for entry in scenario.load_all():
        print(f"{entry.name:<12} {entry.title}\n{'':<12} {entry.promise}")
    return 0


def _mutants(options: argparse.Namespace) -> int:
    import time

    from orchestrator import mutants, ui
    from orchestrator.paths import state_dir
    from orchestrator.report import mutants as report

    chosen = mutants.select(options.only, options.kernel)
    if options.healthy:
        kernels = list(dict.fromkeys([*(mutant.base for mutant in chosen), *options.stock]))
        chosen = [*chosen, *mutants.healthy(kernels, options.healthy)]
    came = 0

    def done(mutant: mutants.Mutant, result: mutants.Result) -> None:
        nonlocal came
        came += 1
        ui.say(f"{came}/{len(chosen)}  {mutant.base} {mutant.name}: {result.standing} ({result.seconds:.0f} s)")

    start = time.monotonic()
    results = mutants.run_all(chosen, max(1, options.jobs), options.again, done)
    pairs = list(zip(chosen, results, strict=True))
    seconds = time.monotonic() - start
    report.show(pairs, seconds, Console())
    output = options.output or state_dir() / "mutants"
    output.mkdir(parents=True, exist_ok=True)
    report.write(pairs, seconds, output)
    print(f"kept in: {output}/mutants.html, {output}/mutants.json")
    bad = [result for mutant, result in pairs if not mutant.unseen and result.standing not in report.GOOD]
    return EXIT_PASS if not bad else EXIT_KERNEL_FAILED


def _history(options: argparse.Namespace) -> int:
    from orchestrator import history

    if options.flaky:
        for found in history.flaky(kernel=options.kernel):
            cell = f"{found.kernel} ({found.digest[:12]}) smp{found.smp} {found.accel}"
            print(f"{cell}: {found.kind} {found.name} passed {found.passed} times, failed {found.failed}")
        return EXIT_PASS
    for line in history.table(history.past(kernel=options.kernel, scenario=options.failed, count=options.count)):
        print(line)
    return EXIT_PASS


def _export(options: argparse.Namespace) -> int:
    import json

    from orchestrator.report import kcidb

    print(json.dumps(kcidb.report(options.runs, options.origin), indent=1))
    return EXIT_PASS


def _doctor(options: argparse.Namespace) -> int:
    from orchestrator import doctor

    return doctor.report()
