"""What the independent observers of one run saw. Nothing here judges; orchestrator/verdict/checks.py does."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from orchestrator.errors import OrchestratorError
from orchestrator.guest import ktap
from orchestrator.scenario import Scenario
from orchestrator.verdict.console import Finding
from orchestrator.watch.model import Watched


@dataclass(frozen=True, kw_only=True)
class StepSeen:
    """One step of a run: `scenario` poked once with the gate (`gated`), or many times without.

    name: as the guest reports it. poker: CPU that poked. guest: the guest's account, None when it gave none.
    watched: what GDB saw, None for a free-running step. gdb_hits: int3 at the site by (phase, cpu) as GDB saw them.
    """

    scenario: Scenario
    gated: bool
    poker: int
    guest: ktap.Step | None
    watched: Watched | None = None

    @property
    def name(self) -> str:
        return self.guest.name if self.guest else self.scenario.name

    @property
    def address(self) -> int:
        """Of the site."""
        return self.guest.integer("addr", 16) if self.guest else 0

    @property
    def skipped(self) -> str | None:
        """Why the kernel does not have what this step needs."""
        return self.guest.skip if self.guest else None

    @property
    def gdb_hits(self) -> Counter[tuple[int, int]]:
        hits: Counter[tuple[int, int]] = Counter()
        for poke in self.watched.pokes if self.watched else []:
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
        return Counter({cpu: count["int3"] for (cpu, phase), count in counts if phase == "free" and count["int3"]})


@dataclass(kw_only=True)
class Evidence:
    """asked: CPUs that the machine has. cpus: those online in the guest. points: the agent's breakpoints.
    steps: in the order they were run. planned: how many were to be run. findings: of the console scan.
    broken: what ended the run before its end. qemu_gated, qemu_free: int3 that QEMU executed in the gated and in the
    free-running part, by (address, cpu); no_qemu_ledger: why they are empty; qemu_by_cpu: whether the cpu in them is
    right, or only the sum over all. unscanned: why the absence of findings proves nothing, empty if it does. stuck:
    where each CPU was when the guest did not go on, a line each. untrusted: why this machine's emulator could itself
    be what failed, None where it is not known to be.
    """

    asked: int
    cpus: tuple[int, ...] = ()
    points: tuple[str, ...] = ()
    steps: list[StepSeen] = field(default_factory=list)
    planned: int = 0
    findings: list[Finding] = field(default_factory=list)
    unscanned: str = "the console was not read"
    report: ktap.Report | None = None
    broken: OrchestratorError | None = None
    qemu_gated: Counter[tuple[int, int]] = field(default_factory=Counter)
    qemu_free: Counter[tuple[int, int]] = field(default_factory=Counter)
    stuck: tuple[str, ...] = ()
    no_qemu_ledger: str | None = None
    qemu_by_cpu: bool = True
    untrusted: str | None = None

    @property
    def gated(self) -> list[StepSeen]:
        return [step for step in self.steps if step.gated and not step.skipped]

    @property
    def free(self) -> list[StepSeen]:
        return [step for step in self.steps if not step.gated and not step.skipped]
