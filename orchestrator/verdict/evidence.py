"""What the independent observers of one run saw. Nothing here judges; orchestrator/verdict/checks.py does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields

from orchestrator.errors import OrchestratorError
from orchestrator.guest import ktap
from orchestrator.guest.klog import FaultScanner, Finding
from orchestrator.scenarios.scenario import Part, Scenario
from orchestrator.scenarios.steps import PlanStep
from orchestrator.text.symbols import Symbols
from orchestrator.verdict.model import Poke, Violation, WatchedStep

SKIP = 4
"""Exit status of what could not be tested, as in the kernel's own tools/testing/selftests (KSFT_SKIP)."""


@dataclass(frozen=True)
class Companion:
    """What became of what went on beside a scenario: its status (4: the kernel lacks something) and last words."""

    status: int
    words: str


@dataclass(frozen=True, kw_only=True)
class StepEvidence:
    """One step of a run. guest: the guest's account, None when it gave none. watched: what GDB saw of a watched one."""

    step: PlanStep
    guest: ktap.StepReport | None
    watched: WatchedStep | None = None

    @property
    def scenario(self) -> Scenario:
        return self.step.scenario

    @property
    def shown(self) -> Sequence[Poke]:
        """The pokes by which a step is to show the claims: those announced; of sysctls, which announce none, all."""
        if self.watched is None:
            return ()
        return self.watched.found if self.scenario.sysctls else self.watched.pokes

    @property
    def name(self) -> str:
        return self.guest.name if self.guest else self.scenario.name

    @property
    def address(self) -> int:
        """Of the site."""
        return self.guest.integer("addr", 16) if self.guest else 0

    @property
    def gdb_hits(self) -> Counter[tuple[int, int]]:
        """int3 at the site by (phase, cpu) as GDB saw them."""
        hits: Counter[tuple[int, int]] = Counter()
        for poke in self.shown:
            hits.update(poke.hits)
        return hits

    def guest_hits(self) -> Counter[tuple[int, int]]:
        """Passes by (phase, cpu) that met int3, by the guest's count.

        A site with a target of ours says so itself; a key's branch takes the old or the new way, so that each of its
        passes in a held phase counts, since none can get past int3.
        """
        hits: Counter[tuple[int, int]] = Counter()
        for (cpu, phase), count in self.guest.counts.items() if self.guest else []:
            if phase in ("1", "2"):
                met = count["int3"] if self.scenario.how == "direct" else sum(count.values())
                if met:
                    hits[int(phase), cpu] += met
        return hits

    def free_hits(self) -> Counter[int]:
        """Passes by cpu that met int3 while running free, by the guest's count."""
        counts = self.guest.counts.items() if self.guest else []
        return Counter(
            {
                cpu: count["int3"]
                for (cpu, phase), count in counts
                if phase == "free" and count["int3"]
            }
        )


@dataclass(kw_only=True)
class Soak:
    """What a run has done that goes on for long. rounds, pokes (running free), int3 (by QEMU's count), seconds: so far.

    memory: by name of who uses it, MiB in use after the first round and now. guest: that of the guest itself.
    """

    seconds: float = 0
    rounds: int = 0
    pokes: int = 0
    int3: int = 0
    memory: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(kw_only=True)
class Evidence:
    """asked: CPUs that the machine has. cpus: those online in the guest. points: the agent's breakpoints.
    steps: all that were planned, in the order of the run. beside: what went on beside scenarios, by their names.
    findings: of the console scan. excused: what it found that is the host's doing. broken: what ended the run before
    its end. qemu_gated, qemu_free: int3 that QEMU executed under GDB's eyes and in the free-running part, by (address,
    cpu); no_qemu_ledger: why they are empty; qemu_by_cpu: whether the cpu in them is right, or only the sum over all.
    unscanned: why the absence of findings proves nothing, empty if it does. stuck: where each CPU was when the guest
    did not go on, a line each. untrusted: why this machine's emulator could itself be what failed, None where it is not
    known to be. names: functions by address, as far as they were asked for. others: how many pokes were the kernel's
    own, by the function behind them.
    soak: the rounds of a run that goes on for long; the rest is the last round's. edited: what was changed in the
    kernel's code before anything was poked.
    """

    asked: int
    cpus: tuple[int, ...] = ()
    points: tuple[str, ...] = ()
    steps: list[StepEvidence] = field(default_factory=list)
    companions: dict[str, Companion] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    excused: list[Finding] = field(default_factory=list)
    unscanned: str = "the console was not read"
    report: ktap.GuestReport | None = None
    broken: OrchestratorError | None = None
    qemu_gated: Counter[tuple[int, int]] = field(default_factory=Counter)
    qemu_free: Counter[tuple[int, int]] = field(default_factory=Counter)
    hang_report: tuple[str, ...] = ()
    no_qemu_ledger: str | None = None
    qemu_by_cpu: bool = True
    untrusted: str | None = None
    names: Symbols = field(default_factory=lambda: Symbols([]))
    others: Counter[str] = field(default_factory=Counter)
    soak: Soak | None = None
    edited: list[str] = field(default_factory=list)

    def look_at(self, scanner: FaultScanner) -> None:
        """Take what the console's scan has found up to now."""
        self.findings, self.unscanned = list(scanner.findings), scanner.blind
        self.excused = list(scanner.excused)

    def renew(self) -> None:
        """Forget what the scenarios gave, to run them once more."""
        for name in ("steps", "companions", "report", "qemu_gated", "qemu_free", "others"):
            default = next(one for one in fields(self) if one.name == name)
            setattr(
                self, name, default.default_factory() if callable(default.default_factory) else None
            )

    def skipped(self, seen: StepEvidence) -> str | None:
        """Why a step could not be done: what the kernel lacks for it."""
        companion = self.companions.get(seen.scenario.name)
        if companion and companion.status == SKIP and not seen.step.is_watched:
            return companion.words or "the guest lacks something"
        return seen.guest.skip if seen.guest else None

    @property
    def running(self) -> StepEvidence | None:
        """The step at which a run ended early, None for one that was not cut short: the first without a result."""
        return next((seen for seen in self.steps if not seen.guest), None) if self.broken else None

    def part(self, *parts: Part) -> list[StepEvidence]:
        """The steps of these parts that were not skipped."""
        return [seen for seen in self.steps if seen.step.part in parts and not self.skipped(seen)]

    @property
    def gated(self) -> list[StepEvidence]:
        return self.part("gated")

    @property
    def without_module(self) -> bool:
        """Whether the kernel was run without the test module: then nobody held the poker, or counted in the guest."""
        return any(seen.scenario.sysctls for seen in self.steps)

    @property
    def coverage_steps(self) -> list[StepEvidence]:
        """Those in which every CPU is to be seen in every phase, and each claim to be shown."""
        return [
            seen
            for seen in self.watched_steps
            if seen.step.part == "gated" or seen.scenario.sysctls
        ]

    @property
    def watched_steps(self) -> list[StepEvidence]:
        """Whatever GDB watched."""
        return self.part("gated", "watched")

    @property
    def free(self) -> list[StepEvidence]:
        """Those whose int3 the free-running ledger has: nothing else went on meanwhile."""
        return [seen for seen in self.part("free") if not seen.scenario.alone]

    def violations(self) -> Iterator[tuple[StepEvidence, Poke, Violation]]:
        """What the phase model found to be wrong, in the order of the run."""
        for seen in self.watched_steps:
            for poke in seen.watched.all_pokes if seen.watched else []:
                for violation in poke.violations:
                    yield seen, poke, violation
