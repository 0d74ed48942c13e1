"""The report for a person at a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestrator.report.failure import explain
from orchestrator.soak import told
from orchestrator.verdict.checks import expected_coverage, rate, seen_coverage
from orchestrator.verdict.evidence import Evidence, StepEvidence
from orchestrator.verdict.model import Poke
from orchestrator.verdict.result import RunResult

MARKS = {
    "pass": ("ok", "green"),
    "fail": ("FAIL", "bold red"),
    "skip": ("skip", "yellow"),
    "blind": ("blind", "magenta"),
}
PHASES = ("0 old", "1 cc+old", "2 cc+new", "3 new")


def show(result: RunResult, console: Console) -> None:
    """Print the whole report to `console`."""
    _heading(result, console)
    evidence = result.evidence
    if evidence.steps:
        console.print(_sites(evidence))
        if any(seen.scenario.code for seen in evidence.steps):
            console.print(_code(evidence))
        console.print(_cpus(evidence))
        console.print(_totals(evidence), highlight=False)
    for check in result.verdict.results if evidence.steps or evidence.findings else []:
        mark, style = MARKS[check.status]
        console.print(
            Text.assemble((f"{mark:>6}", style), f"  {check.check:<9} {check.text}"), soft_wrap=True
        )
        if check.status in ("fail", "blind"):
            for line in check.details[1:6]:
                console.print(
                    f"                    {line}", markup=False, highlight=False, soft_wrap=True
                )
            if len(check.details) > 6:
                console.print(
                    f"                    and {len(check.details) - 6} more: see verdict.json"
                )
    if why := list(explain(result)):
        console.print()
        for line in why:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if evidence.hang_report:
        console.print(
            "\nwhere each CPU was when the guest did not go on, and who on its stack may have called it:"
        )
        for line in evidence.hang_report:
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    if evidence.soak:
        console.print(
            f"\nsoaked for {evidence.soak.seconds:.0f} s: {told(evidence.soak)}", soft_wrap=True
        )
    if times := ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.seconds.items()):
        console.print(f"\ntime:    {times}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"kept in: {result.directory}", markup=False, highlight=False, soft_wrap=True)
    verdict = result.verdict
    style = {0: "bold green", 1: "bold red"}.get(verdict.exit_status, "bold yellow")
    console.print(
        Text.assemble((verdict.outcome.upper(), style), f"  {verdict.reason}"), soft_wrap=True
    )


def _heading(result: RunResult, console: Console) -> None:
    spec, machine = result.spec, result.machine
    if result.kernel:
        console.print(
            f"kernel:  {result.kernel.name} ({result.kernel.release}; {_origin(result.kernel.origin)})",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if machine:
        version = ".".join(map(str, machine.qemu.version))
        console.print(
            f"machine: {spec.smp} CPUs, {machine.cpu or machine.accel.cpu}, {machine.accel.option}, QEMU {version}, "
            f"seed {spec.seed}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


def _origin(origin: dict[str, str]) -> str:
    """Where the kernel came from, in a few words; verdict.json has all of it."""
    words = [
        origin.get("kind", ""),
        origin.get("package") or origin.get("tree", ""),
        origin.get("version", ""),
    ]
    patches = [name for name in origin.get("patches", "none").split(", ") if name != "none"]
    return " ".join(filter(None, words)) + (f", {len(patches)} patches" if patches else "")


def _sites(evidence: Evidence) -> Table:
    table = _table("\nscenarios: held, int3, coverage in the gated part | running free")
    for column in ("scenario", "old/new bytes"):
        table.add_column(column, no_wrap=True)
    for column in ("held", "int3", "covered", "pokes", "int3"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, steps in _by_scenario(evidence, code=False).items():
        if skipped := next((why for seen in steps if (why := evidence.skipped(seen))), None):
            table.add_row(name, f"skipped: {skipped}")
            continue
        gated, free = (
            [s for s in steps if s in evidence.coverage_steps],
            [s for s in steps if s.step.part == "free"],
        )
        pokes = [poke for s in gated for poke in s.shown]
        expected = sum(len(expected_coverage(evidence, s)) for s in gated)
        seen = sum(len(expected_coverage(evidence, s) & seen_coverage(s).keys()) for s in gated)
        table.add_row(
            name,
            _bytes(pokes) if pokes else "?" if gated else "-",
            str(sum(len(poke.held) for poke in pokes))
            if gated and not evidence.without_module
            else "-",
            str(sum(sum(s.gdb_hits.values()) for s in gated)) if gated else "-",
            f"{seen}/{expected}" if gated else "-",
            str(sum(s.guest.integer("pokes") for s in free if s.guest)),
            f"{sum(s.guest.total('int3') for s in free if s.guest):,}"
            if steps[0].scenario.how == "direct"
            else "-",
        )
    return table


def _bytes(pokes: Sequence[Poke]) -> str:
    """What the site held and holds; of many sites how many there were."""
    if len({poke.site for poke in pokes}) > 1:
        return f"{len(pokes)} pokes of {len({poke.site for poke in pokes})} sites"
    return f"{pokes[0].old.hex()}/{pokes[0].new.hex()}"


def _by_scenario(evidence: Evidence, *, code: bool) -> dict[str, list[StepEvidence]]:
    found: dict[str, list[StepEvidence]] = {}
    for seen in evidence.steps:
        if bool(seen.scenario.code) is code:
            found.setdefault(seen.scenario.name, []).append(seen)
    return found


def _code(evidence: Evidence) -> Table:
    table = _table("\nscenarios in code: pokes and int3 that GDB watched, and what the guest found")
    for column in ("scenario", "pokes", "int3"):
        table.add_column(column, no_wrap=True, justify="left" if column == "scenario" else "right")
    table.add_column("")
    for name, steps in _by_scenario(evidence, code=True).items():
        skipped = next((why for seen in steps if (why := evidence.skipped(seen))), None)
        watched = [seen.watched for seen in steps if seen.watched]
        wrong = [
            words for seen in steps if seen.guest and not seen.guest.ok for words in seen.guest.complaints
        ]
        silent = [seen for seen in steps if not seen.guest]
        word = (
            f"skipped: {skipped}"
            if skipped
            else wrong[0]
            if wrong
            else "not reported"
            if silent
            else "holds"
        )
        table.add_row(
            name,
            str(sum(len(w.all_pokes) for w in watched)) if watched else "-",
            str(sum(w.int3.total() for w in watched)) if watched else "-",
            Text(word, "red" if wrong else ""),
        )
    return table


def _table(title: str) -> Table:
    return Table(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )


def _cpus(evidence: Evidence) -> Table:
    """Passes of each CPU in each phase while the poker was held, and what it did running free."""
    gated: Counter[tuple[int, int]] = Counter()
    wanted: set[tuple[int, int]] = set()
    for step in evidence.coverage_steps:
        wanted |= expected_coverage(evidence, step)
        gated.update(seen_coverage(step))
    free: Counter[tuple[int, str]] = Counter()
    for step in evidence.free:
        for (cpu, _), counts in step.guest.counts.items() if step.guest else []:
            for result, count in counts.items():
                free[cpu, result] += count
    table = _table("\npasses by CPU: held in each phase | running free")
    table.add_column("CPU", justify="right")
    for phase in PHASES:
        table.add_column(phase, justify="right", no_wrap=True)
    for column in ("old", "new", "int3", "torn"):
        table.add_column(column, justify="right")
    for cpu in evidence.cpus:
        held = [
            str(gated[phase, cpu] or "-")
            if gated[phase, cpu] or (phase, cpu) not in wanted
            else Text("none", "red")
            for phase in range(4)
        ]
        table.add_row(
            str(cpu),
            *held,
            *(f"{free[cpu, result]:,}" for result in ("old", "new", "int3", "torn")),
        )
    return table


def _totals(evidence: Evidence) -> str:
    pokes, seconds = rate(evidence)
    steps = [step.guest for step in evidence.free if step.guest]
    mean = sum(s.integer("poke_ns") for s in steps) / max(pokes, 1) / 1e6
    longest = max((s.integer("poke_ns_max") for s in steps), default=0) / 1e6
    took = f"one took {mean:.2f} ms, at most {longest:.1f} ms"
    return f"free: {pokes} pokes in {seconds:.1f} s, {pokes / seconds:.0f}/s; {took}"
