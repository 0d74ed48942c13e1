# SPDX-License-Identifier: GPL-2.0-only
"""The report for a person at a terminal, and report.txt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from rich.console import Console
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from orchestrator.report import tables
from orchestrator.report.failure import explain
from orchestrator.text.keys import PhaseCpu
from orchestrator.verdict.checks import (
    CheckResult,
    expected_coverage,
    failed_assertions,
    missed_step,
    rate,
    seen_coverage,
)
from orchestrator.verdict.evidence import Evidence, StepEvidence
from orchestrator.verdict.model import Poke
from orchestrator.verdict.result import RunResult, patches

MARKS = {
    "pass": ("ok", "green"),
    "fail": ("FAIL", "bold red"),
    "skip": ("skip", "yellow"),
    "blind": ("blind", "magenta"),
}
PHASES = ("0 old", "1 cc+old", "2 cc+new", "3 new")
RESULTS = ("old", "new", "int3", "torn")
MAX_TIMES = 3
"""Number of activities whose durations are shown."""
MAX_DETAILS = 5
"""Maximum number of details shown for a check."""


def show(result: RunResult, console: Console) -> None:
    """Print the whole report to `console`."""
    evidence = result.evidence
    _print(console, _heading(result))
    if evidence.steps:
        _show_table(
            console,
            "scenarios: held phases, int3, coverage | free-running: pokes, int3",
            _sites(evidence),
        )
        if any(step.scenario.code for step in evidence.steps):
            _show_table(
                console,
                "code scenarios: pokes and int3 that GDB watched | result in the guest",
                _code(evidence),
            )
        _show_table(
            console, "passes by CPU: while held in each phase | free-running", _cpus(evidence)
        )
        _print(console, [_free_running(evidence)])
    if evidence.steps or evidence.findings:
        for check, *others in tables.said_once(result.verdict.results, why_blind):
            _show_check(check, [other.check for other in others], console)
    _print_section(console, explain(result))
    _print_section(console, _hang_report(evidence))
    _print_section(console, _footer(result))
    show_verdict(result, console)


def show_verdict(result: RunResult, console: Console) -> None:
    """Print the one line that says how the run ended."""
    verdict = result.verdict
    style = {0: "bold green", 1: "bold red"}.get(verdict.exit_status, "bold yellow")
    line = Text.assemble((verdict.outcome.upper(), style), f"  {verdict.reason}")
    console.print(line, soft_wrap=True)


def _print(console: Console, lines: Iterable[str]) -> None:
    """Print lines as they are. A Text would turn the tabs in the name of a directory to spaces."""
    for line in lines:
        console.print(Segments([Segment(f"{line}\n")]), soft_wrap=True)


def _print_section(console: Console, lines: Iterable[str]) -> None:
    """Print lines after an empty one, if there are any."""
    if section := list(lines):
        _print(console, ["", *section])


def _heading(result: RunResult) -> Iterator[str]:
    kernel, machine, spec = result.kernel, result.machine, result.spec
    if kernel:
        yield f"kernel:  {kernel.name} ({kernel.release}; {_origin(kernel.origin)})"
    if machine:
        cpu = machine.cpu or machine.accel.cpu
        version = ".".join(map(str, machine.qemu.version))
        yield (
            f"machine: {spec.smp} CPUs, {cpu}, {machine.accel.option}, QEMU {version}, "
            f"seed {spec.seed}"
        )
    if missing := result.evidence.not_taken:
        yield f"guest:   these parameters are not in effect: {' '.join(missing)}"


def _origin(origin: dict[str, str]) -> str:
    """Where the kernel came from, in a few words; verdict.json has all of it."""
    words = [
        origin.get("kind", ""),
        origin.get("package") or origin.get("tree", ""),
        origin.get("version", ""),
    ]
    count = len(patches(origin))
    return " ".join(filter(None, words)) + (
        f", {count} patch{'' if count == 1 else 'es'}" if count else ""
    )


# -- tables


def _show_table(console: Console, title: str, table: Table) -> None:
    # Not as the table's own title, which rich wraps to the width of the table.
    console.print()
    console.print(title, style="bold", highlight=False)
    tables.show(table, console)


def _sites(evidence: Evidence) -> Table:
    """The scenarios with a site or sysctls."""
    table = tables.terminal(
        ("scenario", "old/new bytes", "held", "int3", "covered", "pokes", "int3"),
        left=2,
        fold=("old/new bytes",),
        optional=("old/new bytes", "held", "pokes"),
    )
    for name, steps in _by_scenario(evidence, code=False).items():
        if reason := _why_no_result(evidence, steps):
            table.add_row(name, reason)
        else:
            table.add_row(name, *_site_cells(evidence, steps))
    return table


def _site_cells(evidence: Evidence, steps: Sequence[StepEvidence]) -> Iterator[str]:
    gated = [step for step in steps if step in evidence.coverage_steps]
    reports = [step.guest for step in steps if step.step.part == "free" and step.guest]
    pokes = [poke for step in gated for poke in step.judged_pokes]
    if gated:
        expected = [expected_coverage(evidence, step) for step in gated]
        seen = [
            keys & seen_coverage(step).keys() for keys, step in zip(expected, gated, strict=True)
        ]
        yield _bytes(pokes) if pokes else "?"
        held = sum(len(poke.held_phases) for poke in pokes)
        yield "-" if evidence.without_module else str(held)
        yield str(sum(step.gdb_hits.total() for step in gated))
        yield f"{sum(map(len, seen))}/{sum(map(len, expected))}"
    else:
        yield from ("-", "-", "-", "-")
    yield str(sum(report.integer("pokes") for report in reports))
    direct = steps[0].scenario.how == "direct"
    yield f"{sum(report.total('int3') for report in reports):,}" if direct else "-"


def _bytes(pokes: Sequence[Poke]) -> str:
    """Old and new bytes of the site; for several sites, how many there are."""
    sites = {poke.site for poke in pokes}
    if len(sites) > 1:
        return f"{len(pokes)} pokes of {len(sites)} sites"
    return f"{pokes[0].old.hex()}/{pokes[0].new.hex()}"


def _code(evidence: Evidence) -> Table:
    """The code scenarios."""
    table = tables.terminal(
        ("scenario", "pokes", "int3", "result"),
        fold=("result",),
    )
    table.columns[-1].justify = "left"
    for name, steps in _by_scenario(evidence, code=True).items():
        watched = [step.watched for step in steps if step.watched]
        table.add_row(
            name,
            str(sum(len(one.all_pokes) for one in watched)) if watched else "-",
            str(sum(one.int3.total() for one in watched)) if watched else "-",
            _code_result(evidence, steps),
        )
    return table


def _code_result(evidence: Evidence, steps: Sequence[StepEvidence]) -> Text:
    if failures := failed_assertions(evidence, steps):
        return Text(failures[0].partition(": ")[2], "red")
    if reason := _why_no_result(evidence, steps):
        return Text(reason)
    return Text("holds" if all(step.guest for step in steps) else "not reported")


def _by_scenario(evidence: Evidence, *, code: bool) -> dict[str, list[StepEvidence]]:
    steps: dict[str, list[StepEvidence]] = {}
    for step in evidence.steps:
        if bool(step.scenario.code) is code:
            steps.setdefault(step.scenario.name, []).append(step)
    return steps


def _why_no_result(evidence: Evidence, steps: Sequence[StepEvidence]) -> str | None:
    for step in steps:
        if reason := evidence.skipped(step):
            return f"skipped: {reason}"
        if reason := missed_step(evidence, step):
            return f"not done: {reason}"
    return None


def _cpus(evidence: Evidence) -> Table:
    """Passes of each CPU in each phase while the poker was held, and while it ran free."""
    gated: Counter[PhaseCpu] = Counter()
    expected: set[PhaseCpu] = set()
    for step in evidence.coverage_steps:
        expected |= expected_coverage(evidence, step)
        gated.update(seen_coverage(step))
    free: Counter[tuple[int, str]] = Counter()
    for step in evidence.free_steps:
        for (cpu, _), counts in step.guest.counts.items() if step.guest else []:
            for result, count in counts.items():
                free[cpu, result] += count
    table = tables.terminal(
        ("CPU", *PHASES, *RESULTS),
        left=0,
        optional=("2 cc+new", "1 cc+old", "3 new", "0 old"),
    )
    for cpu in evidence.cpus:
        held: list[str | Text] = []
        for key in (PhaseCpu(phase, cpu) for phase in range(4)):
            missing = key in expected and not gated[key]
            held.append(Text("none", "red") if missing else str(gated[key] or "-"))
        table.add_row(str(cpu), *held, *(f"{free[cpu, result]:,}" for result in RESULTS))
    return table


# -- lines


def _free_running(evidence: Evidence) -> str:
    pokes, seconds = rate(evidence)
    reports = [step.guest for step in evidence.free_steps if step.guest]
    mean = sum(report.integer("poke_ns") for report in reports) / max(pokes, 1) / 1e6
    longest = max((report.integer("poke_ns_max") for report in reports), default=0) / 1e6
    return (
        f"free-running: {pokes} pokes in {seconds:.1f} s ({pokes / seconds:.0f}/s); "
        f"duration of a poke: mean {mean:.2f} ms, max {longest:.1f} ms"
    )


def why_blind(check: CheckResult) -> str | None:
    """Why a check is blind; None if it is not."""
    return check.text if check.status == "blind" else None


def _show_check(check: CheckResult, others: Sequence[str], console: Console) -> None:
    """others: the names of those that are blind for the same reason."""
    mark, style = MARKS[check.status]
    line = Text.assemble((f"{mark:>6}", style), f"  {check.check:<9} {check.text}")
    if others:
        line.append(f"; the same goes for {tables.listed(others)}")
    console.print(line, soft_wrap=True)
    if check.status in ("fail", "blind"):
        # The text has the first of the details.
        rest = check.details[1:]
        lines = list(rest[:MAX_DETAILS])
        if len(rest) > MAX_DETAILS:
            lines.append(f"and {len(rest) - MAX_DETAILS} more in verdict.json")
        _print(console, (" " * 20 + detail for detail in lines))


def _hang_report(evidence: Evidence) -> Iterator[str]:
    if evidence.hang_report:
        yield (
            "Where each CPU was when the guest stopped making progress "
            "(function < possible callers):"
        )
        for line in evidence.hang_report:
            yield f"  {line}"


def _times(seconds: Mapping[str, float]) -> str:
    """How long the run took and what took longest, in a sentence; verdict.json has everything."""
    longest = sorted(seconds.items(), key=lambda item: -item[1])[:MAX_TIMES]
    named = [f"{took:.1f} s for {name.partition(': ')[2] or name}" for name, took in longest]
    return f"{sum(seconds.values()):.1f} s, of them {tables.listed(named)}"


def _footer(result: RunResult) -> Iterator[str]:
    if soak := result.evidence.soak:
        yield f"soak:    {soak.seconds:.0f} s, {soak.summary()}"
    if result.seconds:
        yield f"time:    {_times(result.seconds)}"
    if printed := result.evidence.fingerprint:
        yield f"course:  the free-running part has the fingerprint {printed}; this seed repeats it"
    yield f"results: {result.directory}"
