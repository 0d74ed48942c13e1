# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator run`: do one run, write its reports, and exit with the verdict's status."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from orchestrator.commands import document
from orchestrator.commands.options import add_kernel, add_output, add_verbosity, run_spec
from orchestrator.errors import EXIT_PASS, printable
from orchestrator.options import add_options as add_declared
from orchestrator.spec import MACHINE, POKING, RUN, RunSpec

if TYPE_CHECKING:
    from orchestrator.machine.machine import Machine
    from orchestrator.verdict.result import RunResult

NAME = "run"
HELP = "boot a kernel, poke code that every CPU executes, and report the verdict"
EXAMPLES = (
    ("run --smp 4", "the default kernel on 4 CPUs"),
    ("run --tree . --patch fix.patch --seed 3", "your own tree with a patch"),
    ("run --kernel debian:6.1 --scenario 'nop*' --soak 8h", "some scenarios, all night"),
    ("run --smp 2 --json", "the verdict for a program"),
)
STATUSES = (
    (0, "pass: every promise held, and every CPU was seen in every phase"),
    (1, "the kernel did something wrong"),
    (125, "no verdict: the kernel does not build or boot, or host or emulator failed"),
    (129, "wrong usage"),
    (130, "interrupted (128 plus the number of the signal)"),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    add_kernel(parser)
    add_declared(parser, RunSpec, MACHINE, POKING, RUN)
    add_output(parser, "directory for the results (default: a new one in the state directory)")
    parser.add_argument(
        "--keep",
        nargs="?",
        const="failure",
        choices=("failure", "always"),
        metavar="always",
        help="if the run does not pass, or always, keep the guest for `orchestrator gdb`",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what the run would do, and how long such runs took; build and boot nothing",
    )
    document.add_json(parser)
    add_verbosity(parser, guest=True)


def main(options: argparse.Namespace) -> int:
    from orchestrator.attach import owner
    from orchestrator.host import interrupts
    from orchestrator.run import run

    spec = run_spec(options)
    if options.dry_run:
        return _dry_run(spec, options)

    def keep(result: RunResult, machine: Machine | None) -> None:
        _report(result, as_json=options.json, quiet=options.quiet)
        wanted = options.keep == "always" or result.verdict.exit_status
        if wanted and not interrupts.received():
            with interrupts.ending_with_ctrl_c():
                owner.keep(machine, result.directory)

    if options.keep:
        return run(spec, keep).verdict.exit_status
    result = run(spec)
    _report(result, as_json=options.json, quiet=options.quiet)
    return result.verdict.exit_status


def _dry_run(spec: RunSpec, options: argparse.Namespace) -> int:
    """Say what the run would do. Fetches nothing but package lists."""
    from orchestrator import doctor, ui
    from orchestrator.host import tools
    from orchestrator.kernel.obtain import identify, title
    from orchestrator.machine import accel
    from orchestrator.many import history
    from orchestrator.scenarios.scenario import select

    scenarios = [scenario.name for scenario in select(spec.scenarios, spec.skip)]
    digest, place = identify(spec.kernel)
    name = title(spec.kernel)
    kernel = {
        "name": name,
        "digest": digest,
        "cached": place.is_dir(),
        "directory": place,
        "patches": list(spec.kernel.patches),
    }
    qemu = tools.qemu(spec.qemu) if spec.qemu else doctor.HostProbes().qemu
    chosen = accel.choose(spec.accel, qemu) if qemu else None
    machine = {
        "smp": spec.smp,
        "memory": spec.memory,
        "accelerator": chosen.option if chosen else spec.accel,
        "cpu": spec.cpu or (chosen.cpu if chosen else "default"),
        "qemu": ".".join(map(str, qemu.version)) if qemu else "to be fetched",
    }
    expected, _ = history.expected(digest, name, spec.smp)
    if options.json:
        return document.show(
            "run --dry-run",
            kernel=kernel,
            machine=machine,
            scenarios=scenarios,
            seed=spec.seed,
            expected_seconds=expected,
            arguments=spec.argv(),
        )
    state = "in the cache" if kernel["cached"] else "not in the cache: fetched or built first"
    ui.show(f"kernel:    {name} ({state})")
    for patch in spec.kernel.patches:
        ui.show(f"patch:     {patch}")
    ui.show(
        f"machine:   {spec.smp} CPUs ({machine['cpu']}), {spec.memory} MiB, "
        f"{machine['accelerator']}, QEMU {machine['qemu']}, seed {spec.seed}"
    )
    ui.show(f"scenarios: {len(scenarios)}: {', '.join(scenarios)}")
    text = f"about {expected:.0f} s, as earlier runs took" if expected else "no such run so far"
    ui.show(f"time:      {text}")
    return EXIT_PASS


def _report(result: RunResult, *, as_json: bool = False, quiet: bool = False) -> None:
    """Write every report. One that cannot be written costs a line, and never changes the verdict.

    The history comes last: it may have to wait for other processes.
    """
    from orchestrator.host import failures
    from orchestrator.host.files import write_report
    from orchestrator.many import history, prune
    from orchestrator.report import files, page, terminal, trace
    from orchestrator.ui import SafeConsole
    from orchestrator.verdict import result as result_file

    def text(result: RunResult) -> None:
        content = io.StringIO()
        terminal.show(result, SafeConsole(file=content, width=120))
        write_report(result.directory / "report.txt", content.getvalue())

    def annotations(result: RunResult) -> None:
        for annotation in files.github(result):
            # GitHub reads both streams.
            print(printable(annotation), file=sys.stderr if as_json else sys.stdout)

    def screen(result: RunResult) -> None:
        if as_json:
            verdict = result_file.content(result)
            document.show(
                "run", verdict["exit_status"], directory=result.directory, verdict=verdict
            )
            return
        if quiet:
            terminal.show_verdict(result, SafeConsole())
            return
        try:
            terminal.show(result, SafeConsole())
        except Exception:
            print(f"{result.verdict.outcome.upper()}  {result.verdict.reason}")
            print(f"results: {result.directory}")
            raise
        finally:
            sys.stdout.flush()

    reports: dict[str, Callable[[RunResult], None]] = {
        "junit.xml and results.ktap": files.write,
        "report.html": page.write,
        "report.txt": text,
        "trace.json": trace.write,
        "GitHub's summary": annotations,
        "the report": screen,
        "the history": history.record,
        "the list of old runs": lambda _: prune.drop_images(),
    }
    for name, write in reports.items():
        try:
            write(result)
        except Exception as error:
            if failures.debugging() and not failures.expected(error):
                raise
            described = failures.described(error, result.directory)
            print(f"orchestrator: {name} could not be written: {described}", file=sys.stderr)
