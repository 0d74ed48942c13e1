# SPDX-License-Identifier: GPL-2.0-only
"""What the independent observers of one run saw. orchestrator/verdict/checks.py judges it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from orchestrator.errors import OrchestratorError
from orchestrator.guest import ktap
from orchestrator.guest.klog import Finding
from orchestrator.machine.console import GuestConsole
from orchestrator.scenarios.scenario import Part, Scenario
from orchestrator.scenarios.steps import PlanStep
from orchestrator.text.keys import PhaseCpu, SiteCpu
from orchestrator.text.symbols import Symbols, where
from orchestrator.verdict.model import Poke, Violation, WatchedStep
from orchestrator.verdict.recorded.judgement import Judgement

HOLDS, BROKEN, SKIP = 0, 1, 4
"""Exit statuses of a companion: all is well; a promise was broken; the kernel lacks something, as
in the kernel's own selftests (KSFT_SKIP in tools/testing/selftests/kselftest.h). With any other it
could not do its work, and shows nothing: it was killed, or the guest is out of memory."""


OBSERVERS = {
    "console": "the console",
    "qmp": "QEMU's list of events",
    "gdb": "what GDB saw",
    "ledger": "QEMU's count of int3",
    "record": "the recorder's log",
    "guest": "the guest's report",
}
"""The observers of a run."""


@dataclass(frozen=True)
class Companion:
    """Result of the shell script that ran in the guest alongside a scenario."""

    status: int
    """Its exit status: HOLDS, BROKEN, SKIP, or any other."""
    message: str
    """The last line that it printed, empty for none."""


@dataclass(frozen=True, kw_only=True)
class StepEvidence:
    """What was seen of one step of a run."""

    step: PlanStep
    guest: ktap.StepReport | None
    """The guest's report, None when it gave none."""
    watched: WatchedStep | None = None
    """What GDB saw, None for a step that GDB did not watch."""

    @property
    def scenario(self) -> Scenario:
        return self.step.scenario

    @property
    def judged_pokes(self) -> Sequence[Poke]:
        """The pokes that must support the claims.

        These are the announced ones; sysctls announce none, so there it is all that were seen.
        """
        if self.watched is None:
            return ()
        return self.watched.unannounced if self.scenario.sysctls else self.watched.announced

    @property
    def name(self) -> str:
        return self.guest.name if self.guest else self.scenario.name

    @property
    def site(self) -> int:
        """Address of the site, 0 when the guest did not report it."""
        return self.guest.integer("addr", 16) if self.guest else 0

    @property
    def gdb_hits(self) -> Counter[PhaseCpu]:
        """int3 at the site, by GDB's count."""
        hits: Counter[PhaseCpu] = Counter()
        for poke in self.judged_pokes:
            hits.update(poke.hits)
        return hits

    def guest_hits(self) -> Counter[PhaseCpu]:
        """int3 at the site while the poker was held, by the guest's count.

        A site with an int3 target of its own counts them itself. A key's branch goes the old or the
        new way, so there every pass in phase 1 or 2 counts: none can get past int3.
        """
        hits: Counter[PhaseCpu] = Counter()
        for (cpu, phase), passes in self.guest.counts.items() if self.guest else []:
            if phase in ("1", "2"):
                direct = self.scenario.how == "direct"
                count = passes["int3"] if direct else sum(passes.values())
                if count:
                    hits[PhaseCpu(int(phase), cpu)] += count
        return hits

    def free_hits(self) -> Counter[int]:
        """int3 while running free, by CPU, by the guest's count."""
        counts = self.guest.counts.items() if self.guest else []
        return Counter(
            {
                cpu: passes["int3"]
                for (cpu, phase), passes in counts
                if phase == "free" and passes["int3"]
            }
        )


@dataclass(kw_only=True)
class Soak:
    """Totals of a run that repeats all scenarios until its time is up. Part of verdict.json."""

    seconds: float = 0
    rounds: int = 0
    pokes: int = 0
    """Free-running pokes."""
    int3: int = 0
    """By QEMU's count."""
    memory: dict[str, tuple[float, float]] = field(default_factory=dict)
    """MiB in use after the first round and now, by user: `orchestrator`, `QEMU`, `guest`."""

    def summary(self) -> str:
        """The totals in one line."""
        memory = ", ".join(
            f"{user} {first:.0f} -> {now:.0f} MiB" for user, (first, now) in self.memory.items()
        )
        return (
            f"{self.rounds} rounds, {self.pokes:,} free-running pokes, {self.int3:,} int3; "
            f"memory in use: {memory}"
        )


@dataclass(kw_only=True)
class Evidence:
    """Everything that the observers of one run saw. Filled in as the run proceeds."""

    requested_cpus: int
    """Number of CPUs that the machine has."""
    cpus: tuple[int, ...] = ()
    """CPUs that are online in the guest."""
    lost: dict[str, str] = field(
        default_factory=lambda: {name: f"{what} was not read" for name, what in OBSERVERS.items()}
    )
    """Why each of OBSERVERS may not have seen everything, as a sentence without a full stop; empty
    if it has. What an observer did see before is sound, and the other fields have it."""
    damaged_logs: tuple[str, ...] = ()
    """What is wrong with the files of the run's directory, which no check rests on."""
    not_taken: tuple[str, ...] = ()
    """Those of our kernel parameters that are not in the guest's /proc/cmdline."""
    kernel_offset: int = 0
    """How far the kernel is from where its vmlinux has it, in bytes."""
    breakpoints: tuple[str, ...] = ()
    """Names of the agent's breakpoints."""
    impossible_breakpoints: dict[str, str] = field(default_factory=dict)
    """Breakpoints that make no sense in this kernel, and why."""
    steps: list[StepEvidence] = field(default_factory=list)
    """All planned steps, in the order of the run."""
    companions: dict[str, Companion] = field(default_factory=dict)
    """Results of the scripts that ran alongside scenarios, by the scenario's name."""
    findings: list[Finding] = field(default_factory=list)
    """Faults found by the console scan."""
    excused: list[Finding] = field(default_factory=list)
    """Reports on the console that the host caused."""
    consoles: dict[str, GuestConsole] = field(default_factory=dict)
    """Those of the guests of this round."""
    fingerprints: dict[str, str] = field(default_factory=dict)
    """What identifies the course of each branch that repeats itself, by its name; empty for one
    that did not come to its end. See docs/determinism.md."""
    report: ktap.GuestReport | None = None
    error: OrchestratorError | None = None
    """The error that ended the run early, None for a run that was completed."""
    qemu_gated: Counter[SiteCpu] = field(default_factory=Counter)
    """int3 that QEMU executed while GDB watched."""
    qemu_free: Counter[SiteCpu] = field(default_factory=Counter)
    """int3 that QEMU executed in the free-running part."""
    no_qemu_ledger: str | None = None
    """Why QEMU counted nothing, None when it did."""
    record: Judgement | None = None
    """What the recorder's log shows of every poke, whoever made it. None if there is no log."""
    no_record: str | None = None
    """Why there is none; None if there is one."""
    hung: Sequence[Mapping[str, Any]] = ()
    """Where each CPU was when the guest stopped making progress, as Watch.cpu_snapshot() says."""
    hang_names: Symbols = field(default_factory=lambda: Symbols([]))
    """Function names for that."""
    untrusted: str | None = None
    """Why the emulator itself may cause a failure, None when no such defect is known."""
    names: Symbols = field(default_factory=lambda: Symbols([]))
    """Function names for the addresses that the report shows."""
    decoded: dict[str, str] = field(default_factory=dict)
    """Lines of the kernel's traces, with source lines added; by the lines as they were."""
    kernel_pokers: Counter[str] = field(default_factory=Counter)
    """Number of the kernel's own pokes, by the function that asked for them."""
    soak: Soak | None = None
    """Totals of a soak run; all other fields are about its last round."""
    edited: list[str] = field(default_factory=list)
    """Changes that --edit-text made to the kernel's code before the first poke, one line each."""

    def take_consoles(self) -> None:
        """Take what the scans of the consoles have found so far.

        Each console of a branch has shown what the guest wrote before it was saved.
        """
        if not self.consoles:
            return
        self.findings = [
            replace(finding, guest=guest)
            for number, (guest, console) in enumerate(self.consoles.items())
            for finding in (console.new_findings if number else console.scanner.findings)
        ]
        consoles = self.consoles.values()
        self.excused = list(next(iter(consoles)).scanner.excused)
        blind = [one.lost or one.scanner.blind for one in consoles]
        self.lost["console"] = next(filter(None, blind), "")

    def take_report(self, report: ktap.GuestReport, lost: str = "") -> None:
        """Take the guest's report. lost: why it may be incomplete; empty if it was read in full."""
        self.report = report
        if not lost and not report.whole:
            lost = "the guest's report is incomplete: results are missing or out of order"
        self.lost["guest"] = lost

    def start_round(self) -> None:
        """Forget the results of the scenarios, to run all of them once more."""
        per_round = (
            *("steps", "companions", "report", "qemu_gated", "qemu_free", "kernel_pokers"),
            *("lost", "breakpoints", "consoles", "fingerprints"),
        )
        for declared in fields(self):
            if declared.name in per_round:
                factory = declared.default_factory
                value = factory() if callable(factory) else declared.default
                setattr(self, declared.name, value)

    def skipped(self, seen: StepEvidence) -> str | None:
        """What the kernel lacks for a step, None when the step was not skipped."""
        companion = self.companions.get(seen.scenario.name)
        if companion and companion.status == SKIP and not seen.step.is_watched:
            return companion.message or "the guest lacks something"
        return seen.guest.skip if seen.guest else None

    def missed(self, seen: StepEvidence) -> str | None:
        """Why a step could not be done this time, None when it was."""
        companion = None if seen.step.is_watched else self.companions.get(seen.scenario.name)
        if companion and companion.status not in (HOLDS, BROKEN, SKIP):
            status = f"what ran alongside ended with status {companion.status}"
            return f"{companion.message} ({status})" if companion.message else status
        return seen.guest.missed if seen.guest else None

    @property
    def unfinished_step(self) -> StepEvidence | None:
        """The step in which the run ended early: the first without a result. None if it did not."""
        return next((seen for seen in self.steps if not seen.guest), None) if self.error else None

    @property
    def fingerprint(self) -> str | None:
        """Identifies the course of all branches that repeat themselves; None if there are none, or
        one did not end."""
        if not self.fingerprints or not all(self.fingerprints.values()):
            return None
        lines = (f"{name} {printed}\n" for name, printed in sorted(self.fingerprints.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]

    @property
    def without_module(self) -> bool:
        """Whether the run did without the test module: nobody held the poker or counted passes."""
        return any(seen.scenario.sysctls for seen in self.steps)

    def steps_of(self, *parts: Part) -> list[StepEvidence]:
        """The steps of these parts that were not skipped."""
        return [seen for seen in self.steps if seen.step.part in parts and not self.skipped(seen)]

    @property
    def gated_steps(self) -> list[StepEvidence]:
        """Steps in which the poker was held in each phase."""
        return self.steps_of("gated")

    @property
    def watched_steps(self) -> list[StepEvidence]:
        """Steps that GDB watched."""
        return self.steps_of("gated", "watched")

    @property
    def coverage_steps(self) -> list[StepEvidence]:
        """Steps that must cover every CPU in every phase and support every claim."""
        return [
            seen
            for seen in self.watched_steps
            if seen.step.part == "gated" or seen.scenario.sysctls
        ]

    @property
    def free_steps(self) -> list[StepEvidence]:
        """Steps whose int3 are in the free-running ledger: sites poked with nothing alongside."""
        return [
            seen
            for seen in self.steps_of("free")
            if not seen.scenario.code and not seen.scenario.exclusive
        ]

    @property
    def hang_report(self) -> tuple[str, ...]:
        """Where each CPU was when the guest stopped making progress, one line each."""
        return tuple(where(cpu, self.hang_names) for cpu in self.hung)

    @property
    def holds_nothing(self) -> bool:
        """Whether only code scenarios were requested, so that no site is held in its phases."""
        return bool(self.steps) and all(seen.scenario.code for seen in self.steps)

    def violations(self) -> Iterator[tuple[StepEvidence, Poke, Violation]]:
        """All violations of the phase model, in the order of the run."""
        for seen in self.watched_steps:
            for poke in seen.watched.all_pokes if seen.watched else []:
                for violation in poke.violations:
                    yield seen, poke, violation
