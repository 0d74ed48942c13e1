"""The checks: pure functions of the evidence, each with one sentence.

`run_checks(evidence)` is what the verdict is made of. A check may `fail` (the kernel broke a promise), `pass`, `skip`
(it does not apply, and says why), or be `blind`: what it needs was not observed, so that it proves nothing either way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.guest.klog import Finding
from orchestrator.verdict.evidence import SKIP, Evidence, StepEvidence
from orchestrator.verdict.model import CLAIMS, Poke

KERNEL_FAILED = ("panic", "oops", "hang", "fail", "warn", "timeout")
"""Outcomes that are the kernel's doing, the gravest first. Every other one but pass says nothing about it."""

Status = Literal["pass", "fail", "skip", "blind"]


@dataclass(frozen=True)
class CheckResult:
    """check: its name. status. text: one sentence. details: what it rests on, a line each."""

    check: str
    status: Status
    text: str
    details: tuple[str, ...] = ()


Check = Callable[[Evidence], CheckResult]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


def run_checks(evidence: Evidence) -> list[CheckResult]:
    """Every check's result, in a fixed order: those that name a fault most exactly come first."""
    claims = [claim for claim in CLAIMS if claim != "lock" or _owners(evidence)]
    return [_claim(evidence, claim) for claim in claims] + [
        function(evidence) for function in CHECKS
    ]


def _owners(evidence: Evidence) -> bool:
    """Whether this kernel's text_mutex says who holds it. Before 4.10 that depends on its configuration."""
    watched = [step.watched for step in evidence.coverage_steps if step.watched and step.shown]
    return not watched or any(seen.owners for seen in watched)


def _names(cpus: list[int]) -> str:
    return f"CPU {cpus[0]}" if len(cpus) == 1 else f"CPUs {', '.join(map(str, cpus))}"


# -- what the kernel must do


def kernel_faults(evidence: Evidence) -> list[Finding]:
    """The console's findings that are held against the kernel.

    A stall that passed is not: a host that is busy elsewhere makes a healthy guest report one.
    """
    return [
        finding
        for finding in evidence.findings
        if finding.outcome in KERNEL_FAILED
        and (finding.outcome != "hang" or finding.fatal or evidence.broken)
    ]


@check
def console(evidence: Evidence) -> CheckResult:
    """The kernel reports no fault of its own."""
    faults = kernel_faults(evidence)
    lines = tuple(
        f"line {finding.line}: {finding.kind}: {finding.text}"
        for finding in faults or evidence.findings
    )
    if faults:
        running = evidence.running if faults[0].fatal else None
        where = f", in scenario {running.scenario.name}" if running else ""
        return CheckResult("console", "fail", f"the kernel reports: {faults[0].text}{where}", lines)
    if lines:
        return CheckResult(
            "console",
            "blind",
            f"the kernel reports what may be the host's doing: {lines[0]}",
            lines,
        )
    if evidence.unscanned:
        return CheckResult("console", "blind", evidence.unscanned)
    excused = "".join(
        f", but for line {finding.line}, for want of a clock" for finding in evidence.excused[:1]
    )
    return CheckResult(
        "console",
        "pass",
        f"the kernel reports no panic, oops, BUG, warning, lockup or stall{excused}",
    )


@check
def guest(evidence: Evidence) -> CheckResult:
    """What the test module, and what ran beside it, assert."""
    done = [seen for seen in evidence.steps if seen.guest and not evidence.skipped(seen)]
    said = [f"{seen.name}: {'; '.join(wrong)}" for seen in done if (wrong := _wrong(seen))]
    said += [
        f"{name}: {companion.words or f'status {companion.status}'}"
        for name, companion in evidence.companions.items()
        if companion.status not in (0, SKIP)
    ]
    if said:
        return CheckResult(
            "guest", "fail", f"the guest's assertions do not hold in {said[0]}", tuple(said)
        )
    if not done:
        return CheckResult("guest", "blind", "the guest reported no step")
    passes = 0
    for seen in done:
        assert seen.guest
        if error := seen.guest.integer("error"):
            return CheckResult(
                "guest", "blind", f"{seen.name} could not be run in the guest (error {error})"
            )
        if seen.scenario.site and not (seen.guest.counts and seen.address):
            return CheckResult(
                "guest", "blind", f"the guest's counters of {seen.name} are not to be had"
            )
        passes += sum(count for counts in seen.guest.counts.values() for count in counts.values())
    steps = sum(1 for seen in done if seen.scenario.site)
    if flips := sum(
        seen.guest.integer("pokes") for seen in done if seen.guest and seen.scenario.sysctls
    ):
        return CheckResult(
            "guest", "pass", f"{flips} times a sysctl was switched, and said so each time"
        )
    text = (
        f"{passes:,} passes through {steps} steps, none torn, none stale, each the way it must go"
    )
    if code := {seen.scenario.name for seen in done if seen.scenario.code}:
        text += f"; {len(code)} scenarios in code hold"
    return CheckResult("guest", "pass", text)


def _wrong(seen: StepEvidence) -> list[str]:
    """What does not hold in a step by the module's word, or by its counters. A step that was not run proves nothing."""
    step = seen.guest
    assert step
    if step.integer("error"):
        return []
    wrong = [] if step.ok else step.complaints or ["not ok"]
    if step.ok and step.total("torn"):
        wrong.append("a CPU executed a torn instruction")
    if step.ok and any(step.stale.values()):
        wrong.append("a CPU executed other bytes than those last written")
    return wrong


def _claim(evidence: Evidence, claim: str) -> CheckResult:
    """One claim of the phase model over all gated pokes."""
    broken = [
        (step, violation)
        for step, _, violation in evidence.violations()
        if violation.claim == claim
    ]
    if broken:
        step, first = broken[0]
        lines = tuple(f"{step.scenario.name}: {v.text} [event {v.event}]" for step, v in broken)
        return CheckResult(claim, "fail", f"{first.text}, in scenario {step.scenario.name}", lines)
    if not any(step.shown for step in evidence.coverage_steps):
        return CheckResult(
            claim, "blind", f"no poke was watched, so nothing shows that {CLAIMS[claim]}"
        )
    unseen = [
        f"{step.name}: {why}" for step in evidence.coverage_steps if (why := _unseen(step, claim))
    ]
    if unseen:
        return CheckResult(
            claim, "blind", f"nothing shows that {CLAIMS[claim]}: {unseen[0]}", tuple(unseen)
        )
    return CheckResult(claim, "pass", CLAIMS[claim])


def _unseen(step: StepEvidence, claim: str) -> str | None:
    """What was not observed of a step, so that it cannot show the claim."""
    if not step.shown:
        return "no poke was watched"
    if step.scenario.sysctls:
        return _unseen_of_found(step.shown, claim)
    for poke in step.shown:
        if not poke.complete:
            return "the poke was not watched to its end"
        if claim == "irqs" and not poke.written:
            return "no write was seen"
        if claim == "bytes" and (missing := sorted(set(poke.phases) - poke.looked)):
            return f"the site was not read in phase {', '.join(map(str, missing))}"
        if claim == "sync" and not poke.cpus:
            return "the guest's CPUs are not known"
        if claim in ("int3", "consumed") and not poke.traps():
            return "no CPU met int3"
        if claim == "consumed" and not poke.targets:
            return "the guest did not say where a CPU that met int3 is to go on"
        if claim == "consumed" and poke.returns != poke.traps():
            return f"{poke.traps().total()} int3 entered the handler, and {poke.returns.total()} were seen to return"
    return None


def _unseen_of_found(pokes: Sequence[Poke], claim: str) -> str | None:
    """The same for pokes that nobody announced: all of them together must have met every kind of moment."""
    if unfinished := sum(1 for poke in pokes if poke.written < len(poke.plan)):
        return f"{unfinished} of {len(pokes)} pokes were not watched to their end"
    traps, returns = Counter[int](), Counter[int]()
    for poke in pokes:
        traps.update(poke.traps())
        returns.update(poke.returns)
    if claim in ("int3", "consumed") and not traps:
        return "no CPU met int3"
    if claim == "consumed" and returns != traps:
        return (
            f"{traps.total()} int3 entered the handler, and {returns.total()} were seen to return"
        )
    return None


@check
def progress(evidence: Evidence) -> CheckResult:
    """The free-running part really poked."""
    if not evidence.free:
        return CheckResult("progress", "blind", "no step ran free")
    # Not the kernel's fault: a host that does not get round to the poker in time looks the same. A poke that does not
    # come back is a hang, and found as one.
    idle = [
        step.scenario.name
        for step in evidence.free
        if not (step.guest and step.guest.integer("pokes"))
    ]
    if idle:
        return CheckResult(
            "progress", "blind", f"no poke was done in the free-running part of {', '.join(idle)}"
        )
    pokes, seconds = rate(evidence)
    return CheckResult(
        "progress",
        "pass",
        f"{pokes} pokes in {seconds:.1f} s running free ({pokes / seconds:.0f}/s)",
    )


def rate(evidence: Evidence) -> tuple[int, float]:
    """Pokes of the free-running part, and the guest's seconds that they took."""
    steps = [step.guest for step in evidence.free if step.guest]
    nanoseconds = sum(step.integer("elapsed_ns") for step in steps)
    return sum(step.integer("pokes") for step in steps), max(nanoseconds / 1e9, 1e-9)


# -- whether we looked


def expected_coverage(evidence: Evidence, step: StepEvidence) -> set[tuple[int, int]]:
    """The (phase, CPU) that a step is to reach. Without the test module only int3 tells where a CPU is."""
    if step.scenario.sysctls:
        return {(phase, cpu) for phase in (1, 2) for cpu in evidence.cpus}
    length = step.guest.integer("len") if step.guest else 0
    phases = (0, 1, 3) if length == 1 else (0, 1, 2, 3)
    return {(phase, cpu) for phase in phases for cpu in evidence.cpus}


def seen_coverage(step: StepEvidence) -> Counter[tuple[int, int]]:
    """Passes by (phase, CPU): GDB's hits for the phases with int3, the guest's passes for the others."""
    seen = Counter(step.gdb_hits)
    for (cpu, phase), count in step.guest.counts.items() if step.guest else []:
        passes = sum(count.values())
        if phase in ("0", "3") and passes:
            seen[int(phase), cpu] += passes
    return seen


@check
def coverage(evidence: Evidence) -> CheckResult:
    """Every CPU was seen in every phase of every gated poke."""
    wanted, missing = 0, []
    for step in evidence.coverage_steps:
        expected, seen = expected_coverage(evidence, step), seen_coverage(step)
        wanted += len(expected)
        for phase in sorted({phase for phase, _ in expected}):
            cpus = sorted(cpu for p, cpu in expected if p == phase and not seen[phase, cpu])
            if cpus:
                missing.append(
                    f"{step.guest.name if step.guest else '?'}: phase {phase}: {_names(cpus)} not seen"
                )
    if not wanted:
        return CheckResult(
            "coverage", "blind", "no gated step was run, so no CPU was seen in any phase"
        )
    if missing:
        text = f"not every CPU was seen in every phase, so a pass would mean nothing: {missing[0]}"
        return CheckResult("coverage", "blind", text, tuple(missing))
    phases = "both phases with int3" if evidence.without_module else "every phase"
    return CheckResult(
        "coverage", "pass", f"all {wanted} (step, phase, CPU) were seen: every CPU in {phases}"
    )


@check
def ledgers(evidence: Evidence) -> CheckResult:
    """Guest, GDB and QEMU count the same int3: gated all three, running free the guest and QEMU."""
    differ, held, free = [], 0, 0
    absent = [
        step.name
        for step in evidence.gated
        if not (step.guest and step.guest.counts and step.watched)
    ]
    if not evidence.without_module:
        absent += [step.name for step in evidence.free if not (step.guest and step.guest.counts)]
    if evidence.broken or absent:
        whose = f"those of {absent[0]} are missing" if absent else "the run was cut short"
        return CheckResult(
            "ledgers", "blind", f"the counts cannot be compared: {whose}", tuple(absent)
        )
    by_site: Counter[tuple[int, int]] = Counter()
    for step in evidence.watched_steps:
        by_site.update(step.watched.int3 if step.watched else {})
    for step in evidence.gated:
        assert step.guest and step.watched
        ours, theirs = step.gdb_hits, step.guest_hits()
        held += sum(ours.values())
        for phase, cpu in sorted(ours.keys() | theirs.keys()):
            if ours[phase, cpu] != theirs[phase, cpu]:
                differ.append(
                    f"{step.guest.name}: phase {phase}, CPU {cpu}: the guest counts {theirs[phase, cpu]} int3, "
                    f"GDB {ours[phase, cpu]}"
                )
    if evidence.without_module:
        held = by_site.total()
        if evidence.no_qemu_ledger:
            return CheckResult(
                "ledgers",
                "skip",
                f"only GDB counts int3: no test module, and {evidence.no_qemu_ledger}",
            )
    if evidence.no_qemu_ledger is None:
        everywhere = {address for address, _ in by_site | evidence.qemu_gated}
        qemu = _of_sites(evidence.qemu_gated, everywhere, evidence.qemu_by_cpu)
        if (
            evidence.without_module
        ):  # GDB does not look at all of them; none that it saw may be missing in QEMU's count
            qemu &= _of_sites(by_site, everywhere, evidence.qemu_by_cpu)
        differ += _differences("watched", "GDB", by_site, qemu, everywhere, evidence.qemu_by_cpu)
        running = _free_by_site(evidence)
        free = sum(running.values())
        sites = {address for address, _ in running}
        differ += _differences(
            "running free", "the guest", running, evidence.qemu_free, sites, evidence.qemu_by_cpu
        )
    if differ:
        return CheckResult("ledgers", "fail", f"the observers disagree: {differ[0]}", tuple(differ))
    if not held:
        return CheckResult("ledgers", "blind", "no int3 was counted in the gated part")
    if evidence.without_module:
        counted = (
            f"{evidence.qemu_gated.total():,}, and {evidence.qemu_free.total():,} running free"
        )
        text = f"the {held} int3 that GDB looked at are in QEMU's count ({counted}); no module counts in the guest"
    elif evidence.no_qemu_ledger:
        text = f"the guest and GDB count the same {held} int3; QEMU has no count: {evidence.no_qemu_ledger}"
    else:
        others = (
            f", and {by_site.total() - held} more that GDB watched"
            if by_site.total() > held
            else ""
        )
        text = f"guest, GDB and QEMU count the same {held} int3 gated{others}, guest and QEMU the same {free:,} free"
    return CheckResult("ledgers", "pass", text)


def _free_by_site(evidence: Evidence) -> Counter[tuple[int, int]]:
    """The guest's free-running int3 by (address, cpu), of sites that are only poked with a target of ours.

    The other ways through int3 cannot be told from none by the guest, so those sites have no ledger of the guest's.
    """
    sites: Counter[tuple[int, int]] = Counter()
    kernels_own = {step.address for step in evidence.free if step.scenario.how != "direct"}
    for step in evidence.free:
        if step.address not in kernels_own:
            sites.update({(step.address, cpu): count for cpu, count in step.free_hits().items()})
    return sites


def _differences(
    part: str,
    who: str,
    theirs: Counter[tuple[int, int]],
    qemu: Counter[tuple[int, int]],
    sites: set[int],
    by_cpu: bool,
) -> list[str]:
    """Where QEMU's count of one of the `sites` is another one: by CPU, or of all CPUs together."""
    ours, others = _of_sites(theirs, sites, by_cpu), _of_sites(qemu, sites, by_cpu)
    return [
        f"{part}: site {address:x}{f', CPU {cpu}' if by_cpu else ''}: {who} counts {ours[address, cpu]} int3, "
        f"QEMU {others[address, cpu]}"
        for address, cpu in sorted(ours.keys() | others.keys())
        if ours[address, cpu] != others[address, cpu]
    ]


def _of_sites(
    counts: Counter[tuple[int, int]], sites: set[int], by_cpu: bool
) -> Counter[tuple[int, int]]:
    """`counts` of those sites only; without `by_cpu` summed up under CPU 0."""
    chosen: Counter[tuple[int, int]] = Counter()
    for (address, cpu), count in counts.items():
        if address in sites:
            chosen[address, cpu if by_cpu else 0] += count
    return chosen


@check
def watch(evidence: Evidence) -> CheckResult:
    """The observers themselves worked to the end."""
    errors = [error for step in evidence.steps if step.watched for error in step.watched.errors]
    if errors:
        return CheckResult("watch", "blind", f"the agent in GDB failed: {errors[0]}", tuple(errors))
    if evidence.report is None or not evidence.report.whole:
        return CheckResult(
            "watch", "blind", "the guest's report is not whole: results are missing or out of order"
        )
    seen = [step.watched for step in evidence.watched_steps if step.watched]
    pokes, found = sum(len(w.pokes) for w in seen), sum(len(w.found) for w in seen)
    writes, traps = sum(len(w.foreign_writes) for w in seen), sum(len(w.foreign_int3) for w in seen)
    text = f"every step was run and reported; {pokes} pokes were ours"
    if found or writes or traps:
        whose = ", ".join(f"{count} by {name}" for name, count in evidence.others.most_common(3))
        text += f", {found} the kernel's own{f' ({whose})' if whose else ''}"
        text += f", and {writes} writes and {traps} int3 were told from both"
    return CheckResult("watch", "pass", text)


@check
def cpus(evidence: Evidence) -> CheckResult:
    """The guest runs on all CPUs that it was given."""
    if len(evidence.cpus) != evidence.asked:
        return CheckResult(
            "cpus", "blind", f"{len(evidence.cpus)} of the machine's {evidence.asked} CPUs came up"
        )
    return CheckResult("cpus", "pass", f"all {evidence.asked} CPUs are online")
