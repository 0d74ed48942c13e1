# SPDX-License-Identifier: GPL-2.0-only
"""The checks: pure functions of the evidence, each of which gives one sentence.

`run_checks(evidence)` is what the verdict is made of. A check may `fail` (the kernel broke a
promise), `pass`, `skip` (it does not apply, and says why), or be `blind`: what it needs was not
observed, so it proves nothing either way.

Each check declares the observers that it rests on. If one of them may not have seen everything,
`run_checks` makes the check blind, whatever it would have said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from orchestrator.guest.klog import Finding
from orchestrator.text.keys import PhaseCpu, SiteCpu
from orchestrator.verdict.evidence import BROKEN, OBSERVERS, Evidence, StepEvidence
from orchestrator.verdict.model import CLAIMS, Poke, cpu_names
from orchestrator.verdict.recorded.judgement import Judgement

KERNEL_FAILED = ("panic", "oops", "hang", "fail", "warn", "timeout")
"""Outcomes that the kernel caused, the gravest first. No other outcome but `pass` says anything
about the kernel."""

Status = Literal["pass", "fail", "skip", "blind"]


@dataclass(frozen=True)
class CheckResult:
    """The result of one check."""

    check: str
    """Name of the check."""
    status: Status
    text: str
    """One sentence."""
    details: tuple[str, ...] = ()
    """What the result rests on, one line each."""


Judge = Callable[[Evidence], CheckResult]


@dataclass(frozen=True)
class Check:
    name: str
    judge: Judge
    rests_on: tuple[str, ...]
    """Names of the observers, keys of OBSERVERS. The check may look at no other observer."""
    faults_stand: bool = False
    """Whether a `fail` is sound although an observer missed something: it shows what was seen, and
    not that something else was not."""


CHECKS: list[Check] = []


def check(*rests_on: str, faults_stand: bool = False) -> Callable[[Judge], Judge]:
    def declare(function: Judge) -> Judge:
        CHECKS.append(Check(function.__name__, function, rests_on, faults_stand))
        return function

    return declare


def run_checks(evidence: Evidence) -> list[CheckResult]:
    """The results of all checks in a fixed order: those that name a fault most exactly first."""
    # A violation shows what GDB saw up to then; Evidence has no event after one that is lost.
    claims = [
        Check(claim, partial(_claim, claim=claim), ("gdb", "record"), faults_stand=True)
        for claim in CLAIMS
        if claim != "lock" or _has_lock_owners(evidence)
    ]
    return [_result(check, evidence) for check in [*claims, *CHECKS]]


def _result(check: Check, evidence: Evidence) -> CheckResult:
    result = check.judge(evidence)
    losses = tuple(why for name in check.rests_on if (why := evidence.lost[name]))
    if not losses or (result.status == "fail" and check.faults_stand):
        return result
    return CheckResult(check.name, "blind", losses[0], losses)


def _has_lock_owners(evidence: Evidence) -> bool:
    """Whether this kernel's text_mutex says who holds it. Before 4.10 its configuration decides."""
    watched = [
        step.watched for step in evidence.coverage_steps if step.watched and step.judged_pokes
    ]
    return not watched or any(one.has_lock_owners for one in watched)


# -- what the kernel must do


def kernel_faults(evidence: Evidence) -> list[Finding]:
    """The console's findings that count against the kernel.

    A stall that the guest recovered from does not: on a busy host a healthy guest reports one.
    """
    return [
        finding
        for finding in evidence.findings
        if finding.outcome in KERNEL_FAILED
        and (finding.outcome != "hang" or finding.fatal or evidence.error)
    ]


@check("console", faults_stand=True)
def console(evidence: Evidence) -> CheckResult:
    """The kernel reports no fault of its own.

    verdict/signature.py parses the beginning of the details and the end of the text.
    """
    faults = kernel_faults(evidence)
    lines = tuple(
        f"line {finding.line}: {finding.kind}: {finding.text}"
        for finding in faults or evidence.findings
    )
    if faults:
        unfinished = evidence.unfinished_step if faults[0].fatal else None
        where = f", in scenario {unfinished.scenario.name}" if unfinished else ""
        return CheckResult("console", "fail", f"the kernel reports: {faults[0].text}{where}", lines)
    if lines:
        return CheckResult(
            "console",
            "blind",
            f"the kernel reports something that the host may have caused: {lines[0]}",
            lines,
        )
    excused = "".join(
        f", except line {finding.line}, {finding.excuse}" for finding in evidence.excused[:1]
    )
    return CheckResult(
        "console",
        "pass",
        f"the kernel reports no panic, oops, BUG, warning, lockup or stall{excused}",
    )


@check("guest", faults_stand=True)
def guest(evidence: Evidence) -> CheckResult:
    """The assertions of the test module and of the scripts that ran alongside it hold.

    verdict/signature.py parses the scenario at the beginning of the details.
    """
    if failures := failed_assertions(evidence, evidence.steps):
        return CheckResult(
            "guest", "fail", f"an assertion in the guest failed: {failures[0]}", tuple(failures)
        )
    reported = [seen for seen in evidence.steps if seen.guest and not evidence.skipped(seen)]
    if not reported:
        return CheckResult("guest", "blind", "the guest reported no step")
    missed = [
        f"{seen.name}: {why}" for seen in evidence.steps if (why := missed_step(evidence, seen))
    ]
    if missed:
        return CheckResult(
            "guest", "blind", f"not everything could be done: {missed[0]}", tuple(missed)
        )
    return CheckResult("guest", "pass", _assertions_held(reported))


def failed_assertions(evidence: Evidence, steps: Sequence[StepEvidence]) -> list[str]:
    """What does not hold in these steps and in the scripts that ran alongside them, as sentences
    that begin with the step's name. The word for a scenario in every report comes from here."""
    failures = [
        f"{seen.name}: {'; '.join(messages)}" for seen in steps if (messages := _broken(seen))
    ]
    for name in dict.fromkeys(seen.scenario.name for seen in steps):
        companion = evidence.companions.get(name)
        if companion and companion.status == BROKEN:
            failures.append(f"{name}: {companion.message or 'what ran alongside failed'}")
    return failures


def missed_step(evidence: Evidence, seen: StepEvidence) -> str | None:
    """Why a step shows nothing though the kernel lacks nothing for it. None when it shows all that
    it should, was skipped, or was not reported at all, which is the business of other checks."""
    if seen.guest is None or evidence.skipped(seen):
        return None
    return evidence.missed(seen) or _missing_counts(seen)


def _broken(seen: StepEvidence) -> list[str]:
    """What does not hold in a step, by the module's messages or its counters."""
    step = seen.guest
    if step is None or step.missed is not None:
        return []
    failures = [] if step.ok else step.complaints or ["not ok"]
    if step.ok and step.total("torn"):
        failures.append("a CPU executed a torn instruction")
    if step.ok and any(step.stale.values()):
        failures.append("a CPU executed bytes other than those last written")
    return failures


def _missing_counts(seen: StepEvidence) -> str | None:
    """Why the guest's report on a step is not enough to judge it, None when it is."""
    assert seen.guest
    if seen.scenario.site and not (seen.guest.counts and seen.site):
        return "the guest's counters are missing"
    return None


def _assertions_held(reported: Sequence[StepEvidence]) -> str:
    reports = [seen.guest for seen in reported if seen.guest]
    flips = sum(
        seen.guest.integer("pokes") for seen in reported if seen.guest and seen.scenario.sysctls
    )
    if flips:
        return f"a sysctl was switched {flips} times and read back the new value each time"
    passes = sum(sum(counts.values()) for report in reports for counts in report.counts.values())
    steps = sum(1 for seen in reported if seen.scenario.site)
    text = f"{passes:,} passes in {steps} steps: none torn, none stale, every one on a legal path"
    if code := {seen.scenario.name for seen in reported if seen.scenario.code}:
        text += f"; all assertions of {len(code)} code scenario{'s' if len(code) > 1 else ''} hold"
    return text


NO_SITE = "no scenario was requested that pokes a site as often as it can"

BREAKPOINTS = {
    "writes": ("write",),
    "bytes": ("write",),
    "sync": ("write", "sync"),
    "int3": ("write", "int3"),
    "consumed": ("write", "int3"),
    "irqs": ("write",),
    "lock": ("write",),
    "stopper": ("write", "stopper"),
}
"""The breakpoints without which a claim can be neither shown nor refuted."""


def _claim(evidence: Evidence, claim: str) -> CheckResult:
    """One claim of the phase model, over all watched pokes."""
    recorded = evidence.record.violations_of(claim) if evidence.record else []
    needed = set(BREAKPOINTS[claim])
    if "sync" in evidence.impossible_breakpoints and evidence.record and evidence.record.rounds:
        needed -= {"sync"}  # the recorder has seen how each CPU serialised
    for name in sorted(needed):
        if name == "stopper" and name in evidence.impossible_breakpoints:
            return CheckResult(claim, "skip", evidence.impossible_breakpoints[name])
        if evidence.watched_steps and name not in evidence.breakpoints:
            return CheckResult(
                claim, "blind", f"nothing proves that {CLAIMS[claim]}: GDB had no breakpoint for it"
            )
    broken = [
        (step, violation)
        for step, _, violation in evidence.violations()
        if violation.claim == claim and not (claim == "sync" and _only_recorded(evidence))
    ]
    lines = [f"{step.scenario.name}: {v.text} [event {v.event}]" for step, v in broken]
    lines += [f"{violation.text} [{violation.place}]" for violation in recorded]
    if broken:
        step, first = broken[0]
        text = f"{first.text}, in scenario {step.scenario.name}"
        return CheckResult(claim, "fail", text, tuple(lines))
    if recorded and evidence.record:
        count = evidence.record.broken[claim]
        more = f" ({count:,} times in the whole run)" if count > 1 else ""
        return CheckResult(claim, "fail", f"{recorded[0].text}{more}", tuple(lines))
    unproven = f"nothing proves that {CLAIMS[claim]}"
    if evidence.holds_nothing and evidence.record and evidence.record.judged:
        return CheckResult(claim, "pass", f"{CLAIMS[claim]}, as far as the recorder shows")
    if not any(step.judged_pokes for step in evidence.coverage_steps):
        return CheckResult(claim, "blind", f"{unproven}: no poke was watched")
    if claim == "sync" and "sync" not in needed:
        return CheckResult(claim, "pass", CLAIMS[claim])
    gaps = [f"{step.name}: {gap}" for step in evidence.coverage_steps if (gap := _gap(step, claim))]
    if gaps:
        return CheckResult(claim, "blind", f"{unproven}: {gaps[0]}", tuple(gaps))
    return CheckResult(claim, "pass", CLAIMS[claim])


def _only_recorded(evidence: Evidence) -> bool:
    """Whether only the recorder can judge the sync rounds.

    GDB sees who ran do_sync_core(). A kernel may have no such function, sync in others as well, or
    leave idle CPUs out by design: then the recorder sees what each CPU did instead.
    """
    seen = evidence.record
    otherwise = bool(seen and (seen.deferred or seen.inline_syncs > seen.rounds / 2))
    by_design = otherwise and bool(seen and not seen.broken["sync"])
    return by_design or "sync" in evidence.impossible_breakpoints


def _gap(step: StepEvidence, claim: str) -> str | None:
    """What was not observed in a step, so that the step cannot support the claim."""
    if not step.judged_pokes:
        return "no poke was watched"
    if step.scenario.sysctls:
        return _gap_of_unannounced(step.judged_pokes, claim)
    for poke in step.judged_pokes:
        if not poke.complete:
            return "the end of the poke was not observed"
        if claim == "irqs" and not poke.written:
            return "no write was observed"
        if claim == "bytes" and (missing := sorted(set(poke.phases) - poke.read_phases)):
            return f"the site was not read in phase {', '.join(map(str, missing))}"
        if claim == "sync" and not poke.cpus:
            return "the guest's CPUs are not known"
        if claim in ("int3", "consumed") and not poke.traps():
            return "no CPU hit int3"
        if claim == "consumed" and not poke.targets:
            return "the guest did not report where a CPU must resume after int3"
        if claim == "consumed" and poke.returns != poke.traps():
            return _lost_returns(poke.traps(), poke.returns)
    return None


def _gap_of_unannounced(pokes: Sequence[Poke], claim: str) -> str | None:
    """The same for pokes that nobody announced; here all of them together must show the claim."""
    if unfinished := sum(1 for poke in pokes if poke.written < len(poke.planned_writes)):
        return f"the end of {unfinished} of {len(pokes)} pokes was not observed"
    traps, returns = Counter[int](), Counter[int]()
    for poke in pokes:
        traps.update(poke.traps())
        returns.update(poke.returns)
    if claim in ("int3", "consumed") and not traps:
        return "no CPU hit int3"
    if claim == "consumed" and returns != traps:
        return _lost_returns(traps, returns)
    return None


def _lost_returns(traps: Counter[int], returns: Counter[int]) -> str:
    return (
        f"the handler was entered for {traps.total()} int3 and was seen to return from "
        f"{returns.total()}"
    )


@check("guest")
def progress(evidence: Evidence) -> CheckResult:
    """The free-running part did poke."""
    if evidence.holds_nothing:
        return CheckResult("progress", "skip", NO_SITE)
    if not evidence.free_steps:
        return CheckResult("progress", "blind", "no free-running step ran")
    # This is not the kernel's fault: a host that does not run the poker in time looks the same. A
    # poke that never returns is a hang, and is found as one.
    idle = [
        step.scenario.name
        for step in evidence.free_steps
        if not (step.guest and step.guest.integer("pokes"))
    ]
    if idle:
        return CheckResult(
            "progress", "blind", f"nothing was poked in the free-running part of {', '.join(idle)}"
        )
    pokes, seconds = rate(evidence)
    return CheckResult(
        "progress",
        "pass",
        f"{pokes} free-running pokes in {seconds:.1f} s ({pokes / seconds:.0f}/s)",
    )


def rate(evidence: Evidence) -> tuple[int, float]:
    """Number of free-running pokes, and the guest's seconds that they took."""
    steps = [step.guest for step in evidence.free_steps if step.guest]
    nanoseconds = sum(step.integer("elapsed_ns") for step in steps)
    return sum(step.integer("pokes") for step in steps), max(nanoseconds / 1e9, 1e-9)


# -- whether we looked


def expected_coverage(evidence: Evidence, step: StepEvidence) -> set[PhaseCpu]:
    """The (phase, CPU) pairs that a step must cover.

    Without the test module only int3 shows where a CPU is.
    """
    if step.scenario.sysctls:
        return {PhaseCpu(phase, cpu) for phase in (1, 2) for cpu in evidence.cpus}
    length = step.guest.integer("len") if step.guest else 0
    phases = (0, 1, 3) if length == 1 else (0, 1, 2, 3)
    return {PhaseCpu(phase, cpu) for phase in phases for cpu in evidence.cpus}


def seen_coverage(step: StepEvidence) -> Counter[PhaseCpu]:
    """Passes in each phase: GDB's hits where there is int3, the guest's passes elsewhere."""
    seen = Counter(step.gdb_hits)
    for (cpu, phase), counts in step.guest.counts.items() if step.guest else []:
        passes = sum(counts.values())
        if phase in ("0", "3") and passes:
            seen[PhaseCpu(int(phase), cpu)] += passes
    return seen


def uncovered(evidence: Evidence, step: StepEvidence) -> dict[int, list[int]]:
    """The CPUs that a step did not show, by phase."""
    seen = seen_coverage(step)
    missing: dict[int, list[int]] = {}
    for key in sorted(expected_coverage(evidence, step)):
        if not seen[key]:
            missing.setdefault(key.phase, []).append(key.cpu)
    return missing


@check("gdb", "guest")
def coverage(evidence: Evidence) -> CheckResult:
    """Every CPU was observed in every phase of every gated poke."""
    if evidence.holds_nothing:
        return CheckResult("coverage", "skip", NO_SITE)
    total, missing = 0, []
    for step in evidence.coverage_steps:
        total += len(expected_coverage(evidence, step))
        for phase, cpus in uncovered(evidence, step).items():
            missing.append(f"{step.name}: phase {phase}: {cpu_names(cpus)} not observed")
    if not total:
        return CheckResult(
            "coverage", "blind", "no gated step ran, so no CPU was observed in any phase"
        )
    if missing:
        return CheckResult(
            "coverage",
            "blind",
            f"not every CPU was observed in every phase, so a pass would prove nothing: "
            f"{missing[0]}",
            tuple(missing),
        )
    phases = "both int3 phases" if evidence.without_module else "every phase"
    return CheckResult(
        "coverage",
        "pass",
        f"every CPU was observed in {phases} of every step ({total} of {total} combinations)",
    )


@check("gdb", "guest", "ledger", "record")
def ledgers(evidence: Evidence) -> CheckResult:
    """Guest, GDB and QEMU count the same int3: all three in the gated part, guest and QEMU free."""
    missing = _missing_ledgers(evidence)
    if evidence.error or missing:
        why = f"those of {missing[0]} are missing" if missing else "the run ended early"
        return CheckResult(
            "ledgers", "blind", f"the counts cannot be compared: {why}", tuple(missing)
        )
    if evidence.holds_nothing:
        return CheckResult("ledgers", "skip", NO_SITE)
    gdb = _gdb_by_site(evidence)
    gated = sum(step.gdb_hits.total() for step in evidence.gated_steps)
    if evidence.without_module:
        gated = gdb.total()
        if evidence.no_qemu_ledger:
            return CheckResult(
                "ledgers",
                "skip",
                f"only GDB counts int3: there is no test module, and {evidence.no_qemu_ledger}",
            )
    free = _free_by_site(evidence)
    differences = _guest_differences(evidence)
    if evidence.no_qemu_ledger is None:
        differences += _qemu_differences(evidence, gdb, free)
    if differences:
        return CheckResult(
            "ledgers", "fail", f"the observers disagree: {differences[0]}", tuple(differences)
        )
    if not gated:
        return CheckResult("ledgers", "blind", "no int3 was counted in the gated part")
    if evidence.without_module:
        text = (
            f"QEMU counted each of the {gated} int3 that GDB examined "
            f"(and {evidence.qemu_gated.total():,} in all while GDB watched, "
            f"{evidence.qemu_free.total():,} free-running); without a module the guest counts none"
        )
    elif evidence.no_qemu_ledger:
        text = (
            f"guest and GDB count the same {gated} gated int3; "
            f"QEMU has no count: {evidence.no_qemu_ledger}"
        )
    else:
        others = gdb.total() - gated
        also = f" (GDB and QEMU also count the same {others} others)" if others > 0 else ""
        text = (
            f"guest, GDB and QEMU count the same {gated} gated int3{also}; "
            f"guest and QEMU count the same {free.total():,} free-running int3"
        )
    return CheckResult("ledgers", "pass", text)


def _missing_ledgers(evidence: Evidence) -> list[str]:
    """Names of the steps whose counts by the guest or by GDB are missing."""
    missing = [
        step.name
        for step in evidence.gated_steps
        if not (step.guest and step.guest.counts and step.watched)
    ]
    if not evidence.without_module:
        missing += [
            step.name for step in evidence.free_steps if not (step.guest and step.guest.counts)
        ]
    return missing


def _gdb_by_site(evidence: Evidence) -> Counter[SiteCpu]:
    """All int3 that GDB saw."""
    counts: Counter[SiteCpu] = Counter()
    for step in evidence.watched_steps:
        counts.update(step.watched.int3 if step.watched else {})
    return counts


def _free_by_site(evidence: Evidence) -> Counter[SiteCpu]:
    """The guest's free-running int3, for the sites that are only poked with a target of our own.

    With any other target the guest cannot tell a pass through int3 from one without, so for these
    sites it keeps no ledger.
    """
    counts: Counter[SiteCpu] = Counter()
    owned = {step.site for step in evidence.free_steps if step.scenario.how != "direct"}
    for step in evidence.free_steps:
        if step.site not in owned:
            counts.update(
                {SiteCpu(step.site, cpu): count for cpu, count in step.free_hits().items()}
            )
    return counts


def _guest_differences(evidence: Evidence) -> list[str]:
    """Where the guest and GDB count different int3 in the gated part."""
    differences = []
    for step in evidence.gated_steps:
        gdb, guest = step.gdb_hits, step.guest_hits()
        for key in sorted(gdb.keys() | guest.keys()):
            if gdb[key] != guest[key]:
                differences.append(
                    f"{step.name}: phase {key.phase}, CPU {key.cpu}: "
                    f"the guest counts {guest[key]} int3, GDB {gdb[key]}"
                )
    return differences


def _qemu_differences(
    evidence: Evidence, gdb: Counter[SiteCpu], free: Counter[SiteCpu]
) -> list[str]:
    """Where QEMU counts other int3 than GDB in the watched part, or than the guest running free.

    gdb: GDB's count. free: the guest's.
    """
    sites = {site for site, _ in gdb | evidence.qemu_gated}
    expected, actual = _select(gdb, sites), _select(evidence.qemu_gated, sites)
    if evidence.without_module:
        # GDB does not examine every int3 then, but QEMU must have counted each that GDB saw.
        actual &= expected
    free_sites = {site for site, _ in free}
    seen = _select(evidence.qemu_free, free_sites)
    # The guest counts where a CPU went on at last, the int3 that were gone by then are more.
    for key, count in evidence.record.went_back.items() if evidence.record else ():
        seen[key] -= min(count, max(0, seen[key] - free[key]))
    return [
        *_differences("watched", "GDB", expected, actual),
        *_differences(
            "running free",
            "the guest",
            _select(free, free_sites),
            seen,
        ),
    ]


def _differences(
    part: str,
    observer: str,
    expected: Counter[SiteCpu],
    qemu: Counter[SiteCpu],
) -> list[str]:
    """A sentence for each key at which QEMU's count differs from the observer's."""
    return [
        f"{part}: site {key.site:x}, CPU {key.cpu}: "
        f"{observer} counts {expected[key]} int3, QEMU {qemu[key]}"
        for key in sorted(expected.keys() | qemu.keys())
        if expected[key] != qemu[key]
    ]


def _select(counts: Mapping[SiteCpu, int], sites: set[int]) -> Counter[SiteCpu]:
    """The counts of these sites only."""
    return Counter({SiteCpu(*key): count for key, count in counts.items() if key[0] in sites})


@check("record")
def record(evidence: Evidence) -> CheckResult:
    """Every poke of the run was judged, whoever made it. The claims say what was wrong with one."""
    seen = evidence.record
    if evidence.no_record:
        text = f"only what GDB watched is judged: {evidence.no_record}"
        return CheckResult("record", "skip", text)
    if seen is None:
        return CheckResult("record", "blind", "nothing was recorded")
    if seen.disagreements:
        text = f"the log is not what GDB saw: {seen.disagreements[0]}"
        return CheckResult("record", "blind", text, tuple(seen.disagreements))
    if not seen.judged:
        return CheckResult("record", "blind", "the recorder saw no poke")
    owners = ", ".join(f"{owner} {count:,}" for owner, count in seen.judged.most_common())
    count = seen.judged.total()
    text = (
        f"{count:,} poke{'s' if count != 1 else ''} of the whole run "
        f"{'were' if count != 1 else 'was'} judged ({owners}), "
        f"with {seen.rounds:,} sync rounds and {seen.int3:,} int3"
    )
    details = [f"not judged: {what}: {count:,}" for what, count in seen.not_judged.items()]
    details += [
        f"deferred: syncs of CPUs that were {where}: {count:,}"
        for where, count in seen.deferred.items()
    ]
    details += _recorded_coverage(seen)
    return CheckResult("record", "pass", text, tuple(details))


def _recorded_coverage(seen: Judgement) -> list[str]:
    """What the pokes of the whole run have shown, for free: nothing requires it."""
    phases: dict[tuple[int, int], Counter[int]] = {}
    for (cpu, met, handled), count in seen.met.items():
        phases.setdefault((met, handled), Counter())[cpu] += count
    lines = [
        f"int3 met in phase {met}, handled in phase {handled}: {cpus.total():,} ({cpu_names(cpus)})"
        for (met, handled), cpus in sorted(phases.items())
    ]
    lines += [f"syncs of CPUs that were {where}: {n:,}" for where, n in seen.interrupted.items()]
    if seen.while_offline:
        lines.append(f"writes while a CPU was offline: {seen.while_offline:,}")
    if seen.batches:
        pairs = sum(n * size * (size - 1) // 2 for size, n in seen.batches.items())
        lines.append(
            f"batches: {sum(n for size, n in seen.batches.items() if size > 1):,}, with up to "
            f"{max(seen.batches):,} sites, and {pairs:,} pairs of sites"
        )
    return lines


@check("record", faults_stand=True)
def sites(evidence: Evidence) -> CheckResult:
    """Each site of a static key or static call is what the key or call is set to."""
    seen = evidence.record
    if evidence.no_record:
        return CheckResult("sites", "skip", f"nobody looks at all sites: {evidence.no_record}")
    if seen and (wrong := seen.violations_of("sites")):
        count = seen.broken["sites"]
        more = f" ({count:,} times in the whole run)" if count > 1 else ""
        lines = tuple(f"{violation.text} [{violation.place}]" for violation in wrong)
        return CheckResult("sites", "fail", f"{wrong[0].text}{more}", lines)
    if seen is None:
        return CheckResult("sites", "blind", "nothing was recorded")
    if not seen.sites_looked_at:
        return CheckResult("sites", "skip", "this kernel's tables of sites cannot be read")
    text = f"every site of a key, static call or tracer was as it is set ({seen.sites_looked_at:,})"
    return CheckResult("sites", "pass", text)


@check(*OBSERVERS)
def watch(evidence: Evidence) -> CheckResult:
    """The observers themselves worked to the end."""
    watched = [step.watched for step in evidence.watched_steps if step.watched]
    announced = sum(len(one.announced) for one in watched)
    unannounced = sum(len(one.unannounced) for one in watched)
    writes = sum(len(one.foreign_writes) for one in watched)
    int3 = sum(len(one.foreign_int3) for one in watched)
    text = f"every step ran and was reported; {announced} pokes came from the test module"
    if unannounced or writes or int3:
        pokers = ", ".join(
            f"{count} by {name}" for name, count in evidence.kernel_pokers.most_common(3)
        )
        text += f", {unannounced} from the kernel itself{f' ({pokers})' if pokers else ''}"
        text += f", plus {writes} unrelated writes and {int3} unrelated int3"
    if evidence.damaged_logs:
        text += f"; of the files for people, {evidence.damaged_logs[0]}"
    return CheckResult("watch", "pass", text, evidence.damaged_logs)


@check()
def cpus(evidence: Evidence) -> CheckResult:
    """The guest runs on all CPUs of the machine."""
    online, requested = len(evidence.cpus), evidence.requested_cpus
    if online != requested:
        return CheckResult("cpus", "blind", f"{online} of the machine's {requested} CPUs came up")
    text = f"all {requested} CPUs are online" if requested > 1 else "the guest's one CPU is online"
    return CheckResult("cpus", "pass", text)
