"""What happens while the guest runs: boot, load the module, poke, and collect what every observer saw."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path

from orchestrator import ui
from orchestrator.errors import BootError, GuestRefused, OrchestratorError
from orchestrator.guest import ktap, module
from orchestrator.machine.faults import KernelFault, TimedOut
from orchestrator.machine.machine import Machine
from orchestrator.scenarios.scenario import Scenario
from orchestrator.scenarios.steps import PlanStep, plan_steps
from orchestrator.text import symbols
from orchestrator.text.functions import LOCK, POKE_ONE
from orchestrator.verdict import model
from orchestrator.verdict.evidence import Companion, Evidence, StepEvidence
from orchestrator.watch.ledger import Ledger
from orchestrator.watch.watch import SYMBOLS, Watch

BOOT_SECONDS = 300
PART_SECONDS = 600
"""For the steps of a part, beyond the time that they are to take; a guest that is silent is given up much sooner."""
SILENCE_SECONDS = 60
"""Without a console line, an event of GDB's or an int3 anywhere. A gated step takes less than a second, and the guest's
own gate gives up after 30 seconds of its own time."""


@dataclass(frozen=True)
class Observer:
    """Runs one machine through the scenarios and puts what was seen into `evidence`, as far as it goes.

    ledger: QEMU's count of int3. duration: seconds of the free-running part. seed: of the random choices. directory:
    receives guest.ktap, events.jsonl and, when the guest does not go on, cpus.json. vmlinux: names its functions.
    bare: whether to do without the test module; then what the guest says is in guest/init/flip. again: asked when all
    scenarios were run and `evidence` is complete; true for once more, with evidence made anew. loaded: called when
    the test module is loaded, if any, and nothing was poked. attached: called after that, when GDB is there.
    """

    machine: Machine
    ledger: Ledger
    scenarios: Sequence[Scenario]
    duration: float
    seed: int
    directory: Path
    evidence: Evidence
    vmlinux: Path | None = None
    without_module: bool = False
    again: Callable[[], bool] = lambda: False
    loaded: Callable[[], None] = lambda: None
    attached: Callable[[Watch], None] = lambda _: None

    def prepare(self) -> tuple[dict[str, int], list[str]]:
        """Boot, and load the test module. Returns what _load_module() does. Raises BootError."""
        try:
            with ui.step("booting"), self._not_silent(SILENCE_SECONDS):
                self.machine.cont()
                self.machine.wait_ready(BOOT_SECONDS)
                self.evidence.cpus = self._online()
            with ui.step(
                "looking at its symbols" if self.without_module else "loading the test module"
            ):
                found = self._load_module()
                self.loaded()
        except (TimedOut, KernelFault) as error:
            raise BootError(f"{error}, before anything was poked") from error
        return found

    def observe(self) -> None:
        """Raises BootError when nothing could be poked, else what ended the run early, if anything did."""
        addresses, of_module = self.prepare()
        with Watch(
            self.machine, addresses, self.directory, module=not self.without_module
        ) as watch:
            self.attached(watch)
            for cycle in itertools.count():
                try:
                    self._poke_everything(watch, self.seed + cycle)
                except (TimedOut, KernelFault) as error:
                    self._say_why(watch, of_module, error)
                finally:
                    if not isinstance(
                        sys.exc_info()[1], KeyboardInterrupt
                    ):  # who wants to end, not wait for a guest
                        self._collect()
                        self._name(of_module)
                if not self.again():
                    break

    # -- the guest before the first poke

    def _online(self) -> tuple[int, ...]:
        text = self.machine.ssh.get("/sys/devices/system/cpu/online").decode().strip()
        cpus: list[int] = []
        for part in text.split(","):
            first, _, last = part.partition("-")
            cpus += range(int(first), int(last or first) + 1)
        return tuple(cpus)

    def _symbols(self, names: Sequence[str]) -> dict[str, int]:
        """Addresses by name, from the guest's own symbol table; names that it does not have are left out."""
        pattern = "|".join(names)
        _, text = self.machine.ssh.run(
            f"grep -E ' [a-zA-Z] ({pattern})([[:space:]]|$)' /proc/kallsyms"
        )
        found = _addresses(text.splitlines())
        if found and not any(found.values()):
            raise BootError("the guest's /proc/kallsyms has no addresses")
        return found

    def _load_module(self) -> tuple[dict[str, int], list[str]]:
        """Load the test module with the addresses that it needs.

        Returns those that the watch needs, and the module's part of the guest's symbol table.
        """
        wanted = (
            *POKE_ONE,
            LOCK,
            *(name for scenario in self.scenarios for name in scenario.symbols),
        )
        hidden = self._symbols((*wanted, *SYMBOLS))
        poke = next((name for name in POKE_ONE if name in hidden), None)
        if poke is None or LOCK not in hidden:
            raise BootError(
                f"this kernel has none of {', '.join(POKE_ONE)} or no text_mutex: there is nothing to test"
            )
        if self.without_module:
            return hidden, []
        # Hexadecimal without 0x: the kernel's sscanf() and 1024 bytes for a parameter.
        given = ",".join(
            f"{name}:{hidden[name]:x}" for name in dict.fromkeys(wanted) if name in hidden
        )
        status, said = self.machine.ssh.run(f"insmod /{module.NAME} symbols={given}")
        if status:
            raise BootError(f"the guest does not load the test module: {said.strip()}")
        _, text = self.machine.ssh.run(
            f"grep -F '[{module.NAME.removesuffix('.ko')}]' /proc/kallsyms"
        )
        of_module = text.splitlines()
        return hidden | _addresses(of_module), of_module

    # -- the two parts of a run

    def _poke_everything(self, watch: Watch, seed: int) -> None:
        """What GDB watches, each scenario there and back; then what runs free, with no breakpoint set."""
        evidence, ledger = self.evidence, self.ledger
        steps = plan_steps(self.scenarios, evidence.cpus, self.duration, seed)
        evidence.steps = [StepEvidence(step=step, guest=None) for step in steps]
        evidence.no_qemu_ledger, evidence.qemu_by_cpu = ledger.why_not, ledger.by_cpu
        self._give(f"- plan {len(steps)}\n", PART_SECONDS)
        before = ledger.read()
        watched_steps = [step for step in steps if step.is_watched]
        doing = "switching sysctls" if self.without_module else "holding the poker in each phase"
        with (
            ui.step(f"under GDB's eyes: {doing}"),
            watch.window(watched_steps[0].number if self.without_module else 0),
        ):
            evidence.points = tuple(watch.points)
            self._tell(watched_steps)
        between = ledger.read()
        evidence.qemu_gated = between - before
        with ui.step("free: poking as fast as it goes"):
            self._tell([step for step in steps if step.part == "free" and not step.scenario.alone])
            evidence.qemu_free = ledger.read() - between
            self._tell([step for step in steps if step.part == "alone" and not step.scenario.alone])
        if alone := [step for step in steps if not step.is_watched and step.scenario.alone]:
            with ui.step("free, while something else goes on in the guest"):
                for step in alone:
                    with self._nmis(step.scenario.nmi):
                        self._tell([step])

    def _tell(self, steps: Sequence[PlanStep]) -> None:
        """Have the test module run the steps, one after the other."""
        commands = [
            (step.scenario.name if step.scenario.companion else "-", step.command) for step in steps
        ]
        # In one write where nothing else goes on: going back to the shell takes longer than a gated step.
        groups = itertools.groupby(commands, key=itemgetter(0))
        lines = "".join(
            f"{name} {';'.join(command for _, command in group)}\n" for name, group in groups
        )
        said = self._give(lines, PART_SECONDS + 4 * self.duration) if lines else ""
        for line in said.splitlines():
            word, _, rest = line.partition(" ")
            if word == "companion":
                name, status, *last = rest.split(" ", 2)
                self.evidence.companions[name] = Companion(int(status), " ".join(last))

    def _give(self, lines: str, timeout: float) -> str:
        # Without QEMU's ledger nothing is seen of a step that runs free until it ends.
        patience = SILENCE_SECONDS + (self.duration if self.ledger.why_not else 0)
        with self._not_silent(patience):
            status, said = self.machine.ssh.run("steps", timeout, stdin=lines.encode())
        if status:
            raise GuestRefused(f"the test module refused a command: {' '.join(said.split())}")
        return said

    @contextlib.contextmanager
    def _nmis(self, rate: int) -> Iterator[None]:
        """While the block waits for the guest: about `rate` NMIs a second on every CPU, as seldom as the wait looks."""
        due = time.monotonic()

        def inject() -> None:
            nonlocal due
            while rate and due < time.monotonic():
                self.machine.qmp.inject_nmi()
                due += 1 / rate

        self.machine.on_poll.append(inject)
        try:
            yield
        finally:
            self.machine.on_poll.remove(inject)

    @contextlib.contextmanager
    def _not_silent(self, seconds: float) -> Iterator[None]:
        """Raise TimedOut from any wait in the block when no observer has seen anything new for `seconds`."""
        last: tuple[int, int, int] = (-1, -1, -1)
        since = looked = time.monotonic()

        def listen() -> None:
            nonlocal last, since, looked
            if time.monotonic() - looked < 1:
                return
            looked = time.monotonic()
            now = self._seen()
            if now != last:
                last, since = now, looked
            elif looked - since > seconds:
                raise TimedOut("a sign of life from the guest", seconds)

        self.machine.on_poll.append(listen)
        try:
            yield
        finally:
            self.machine.on_poll.remove(listen)

    def _seen(self) -> tuple[int, int, int]:
        """How much each observer has seen: console lines, bytes of events, int3."""
        events = self._events
        size = events.stat().st_size if events.exists() else 0
        return self.machine.console.scanner.lines, size, self.ledger.read().total()

    @property
    def _events(self) -> Path:
        return self.directory / "events.jsonl"

    # -- what became of it

    def _collect(self) -> None:
        """Put together what the guest and GDB saw of each step; a guest that is gone has said it on the console."""
        try:
            self.machine.check()  # a guest that has gone down does not answer; paramiko would wait for it
            text = self.machine.ssh.get(
                "/run/flips" if self.without_module else "/dev/orchestrator", timeout=30
            ).decode()
        except OrchestratorError:
            text = "\n".join(self.machine.console.lines)
        (self.directory / "guest.ktap").write_text(text)
        report = self.evidence.report = ktap.parse(text.splitlines())
        lines = self._events.read_text().splitlines() if self._events.exists() else []
        events = model.by_step(json.loads(line) for line in lines)
        for at, seen in enumerate(self.evidence.steps):
            number = seen.step.number
            guest = report.step(number)
            watched = None
            if seen.step.is_watched and not (guest and guest.skip):
                watched = model.follow(events.get(number, []), self.evidence.cpus)
            self.evidence.steps[at] = replace(seen, guest=guest, watched=watched)

    def _name(self, of_module: list[str]) -> None:
        """Names for the addresses that the report will show, and for whoever else poked."""
        evidence = self.evidence
        found = [
            poke for seen in evidence.watched_steps if seen.watched for poke in seen.watched.found
        ]
        cpu_snapshots = [
            look
            for seen in evidence.watched_steps
            if seen.watched
            for look in seen.watched.cpu_snapshots
        ]
        wanted = {word for poke in found for word in poke.begun["callers"]}
        if next(evidence.violations(), None):
            wanted |= {
                word
                for look in cpu_snapshots
                for cpu in look["cpus"]
                for word in (cpu["rip"], *cpu["stack"])
            }
        if not wanted:
            return
        lines = symbols.of_vmlinux(self.vmlinux)
        if not lines:
            with contextlib.suppress(OrchestratorError):
                self.machine.check()  # or there is nobody to ask
                pattern = "|".join(symbols.prefixes(wanted))
                _, text = self.machine.ssh.run(f"grep -E '^({pattern})' /proc/kallsyms")
                lines = text.splitlines()
        evidence.names = symbols.Symbols(lines + of_module)
        for poke in found:
            names = [
                name.partition("+")[0]
                for word in poke.begun["callers"]
                if (name := evidence.names.caller(word))
            ]
            owner = next((name for name in names if "text_poke" not in name), "")
            if owner:
                evidence.others[owner] += 1

    def _say_why(self, watch: Watch, of_module: list[str], error: TimedOut | KernelFault) -> None:
        """Look at the CPUs of a guest that does not go on, and raise what that tells."""
        cpus = watch.cpu_snapshot()
        (self.directory / "cpus.json").write_text(json.dumps(cpus, indent=1) + "\n")
        names = symbols.Symbols(symbols.of_vmlinux(self.vmlinux) + of_module)
        self.evidence.hang_report = tuple(symbols.where(cpu, names) for cpu in cpus)
        if isinstance(error, KernelFault):
            raise error
        for entry in watch.survey(2.0):
            if entry["traps"] > 20 and not entry["int3"]:
                error.outcome = "hang"
                where = f"CPU {entry['cpu']} traps for ever at {entry['ip']:x}, where memory holds no int3"
                error.args = (f"{where} ({error})",)
        try:
            self.machine.ssh.run("true", 30)
        except TimedOut:
            error.outcome = "hang"
        raise error


def _addresses(lines: Sequence[str]) -> dict[str, int]:
    """Addresses by name from lines of /proc/kallsyms."""
    return {words[2]: int(words[0], 16) for words in map(str.split, lines) if len(words) >= 3}
