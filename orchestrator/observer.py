# SPDX-License-Identifier: GPL-2.0-only
"""What happens while the guest runs: boot, load the module, poke, collect what was observed."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import json
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from orchestrator import ui
from orchestrator.branch import Branch, Branches, fingerprint
from orchestrator.errors import (
    BootError,
    GuestRefused,
    InfraError,
    ModuleRefused,
    OrchestratorError,
)
from orchestrator.guest import klog, ktap, module
from orchestrator.host.logs import Log
from orchestrator.machine import cpus, qemu
from orchestrator.machine.faults import KernelFault, NoAnswer, TimedOut
from orchestrator.machine.machine import Machine
from orchestrator.machine.waiting import until
from orchestrator.scenarios.scenario import Scenario
from orchestrator.scenarios.steps import PlanStep, plan_steps
from orchestrator.survey import (
    KALLSYMS,
    addresses_of,
    companions,
    kernel_addresses,
    lines_for_steps,
    module_names,
    online_cpus,
    sites,
    targets,
)
from orchestrator.text import emulation, symbols
from orchestrator.text.functions import FTRACE, KPROBE_SYNC, LOCK, POKE_ONE
from orchestrator.text.keys import SiteCpu
from orchestrator.verdict import model, record
from orchestrator.verdict.evidence import Evidence, StepEvidence
from orchestrator.watch.events import Recording
from orchestrator.watch.recorder import CURRENT, Recorder, save
from orchestrator.watch.watch import SYMBOLS, Watch

BOOT_SECONDS = 300
PART_SECONDS = 600
"""Limit for the steps of one part, on top of their planned duration. A silent guest is given up
much sooner."""
SILENCE_SECONDS = 60
"""Limit for a time without a console line, a GDB event or an int3 anywhere. A gated step takes less
than a second, and the guest's own gate gives up after 30 seconds of guest time."""
STEPS_OUTPUT = 256 << 10
"""Most bytes that guest/init/steps may print: a line for each companion. At the speed of the serial
line, the guest could otherwise keep us listening for minutes."""
LOG_SECONDS = 5
"""Limit for reading the kernel's log, with which a guest whose kernel has failed may not answer."""
RECORDER_SECONDS = 30
"""Limit for the recorder to do what it is asked for. It does so as soon as the guest executes
anything."""
ANSWER_SECONDS = 20
"""Limit for an answer of a guest that has been silent for long."""
SURVEY_SECONDS = 2.0
"""How long a guest that makes no progress is looked at. A CPU that does not leave the kernel for so
long is stuck in it."""
BLOCKED = (
    'awk \'/^Name:/ { name = $2 } /^State:/ { blocked = $2 == "D" } '
    "/^VmSize:/ { if (blocked) print name }' /proc/[0-9]*/status 2>/dev/null"
)
"""Prints the names of programs in an uninterruptible sleep. Kernel threads have no VmSize."""
MARK_SECONDS = 60
"""Limit for the time until the console shows a line that the guest has just written."""
REFUSALS = (
    "Key was rejected",  # EKEYREJECTED: CONFIG_MODULE_SIG_FORCE, or module.sig_enforce
    "Required key not available",  # ENOKEY: the same before 5.4
    "not permitted",  # EPERM: lockdown, or the sysctl kernel.modules_disabled
    "not support",  # ENOSYS: no CONFIG_MODULES
    "not implemented",
)
"""What insmod says when the kernel takes no module of ours, however it is built."""
SITES = "sites"
"""Name of the branch that pokes sites with nothing alongside."""
LOOKS = 2
"""How often a branch looks at the whole text: when it begins, and when it ends."""
MIN_TRAPS = 20
"""A CPU that traps more often than this at an address without int3 is stuck there."""


@dataclass(frozen=True, kw_only=True)
class Observer:
    """Takes one machine through the scenarios and fills in `evidence` as far as it gets."""

    machine: Machine
    recorder: Recorder
    """QEMU's log of what the guest does to its text, and its count of int3."""
    scenarios: Sequence[Scenario]
    duration: float
    """Seconds for all free-running steps together."""
    seed: int
    """Seed of every random choice."""
    directory: Path
    """Receives copies for people: guest.ktap, events.jsonl, int3.ledger, recorder.log.gz and, when
    the guest stops making progress, cpus.json."""
    evidence: Evidence
    vmlinux: Path | None = None
    """Names the kernel's functions."""
    without_module: bool = False
    """Whether to do without the test module; guest/init/flip then writes the guest's report."""
    fallback: Sequence[Scenario] = ()
    """The scenarios to run without the module, if the kernel refuses it."""
    branches: Branches | None = None
    """Makes the guests in which the free-running steps run, besides the one that GDB watches. None:
    they run in the same guest, afterwards."""
    another_round: Callable[[], bool] = lambda: False
    """Called when all scenarios have run and the evidence is complete. True repeats them, with
    another seed; the callee clears the evidence."""
    on_loaded: Callable[[], Path | None] = lambda: None
    """Called once the test module is loaded, if there is one, and before anything is poked. Returns
    a file with the kernel's symbols, in case there is no vmlinux."""
    on_attached: Callable[[Watch], None] = lambda _: None
    """Called after that, once GDB is attached."""

    def prepare(self) -> tuple[dict[str, int], list[str]]:
        """Boot the guest and load the test module.

        Returns the addresses that the watch needs, by name, and the module's lines of
        /proc/kallsyms. Raises BootError.
        """
        limit = self.machine.silence.limit
        with ui.step("booting"), self._nothing_poked(), limit(SILENCE_SECONDS):
            self.machine.cont()
            try:
                self.machine.wait_ready(BOOT_SECONDS)
            except BootError:
                self._locate_cpus()
                raise
            self.evidence.cpus = self._online()
            self._look_up_parameters()
        return self._load()

    def _load(self) -> tuple[dict[str, int], list[str]]:
        loading = "reading kernel symbols" if self.without_module else "loading the test module"
        limit = self.machine.silence.limit
        with ui.step(loading), self._nothing_poked(), limit(SILENCE_SECONDS):
            addresses, module_symbols = self._load_module()
            self._configure_recorder(module_symbols, self.on_loaded())
        return addresses, module_symbols

    @contextlib.contextmanager
    def _nothing_poked(self) -> Iterator[None]:
        """A guest that fails in this block fails before anything was poked: BootError."""
        try:
            yield
        except (TimedOut, KernelFault) as error:
            self._locate_cpus()
            raise BootError(f"{error}; nothing had been poked yet") from error

    def observe(self) -> None:
        """Run everything.

        Raises BootError when nothing could be poked, otherwise the error that ended the run early.
        """
        try:
            addresses, module_symbols = self.prepare()
        except ModuleRefused as refusal:
            if not self.fallback:
                raise
            ui.say(f"{refusal}: only what needs no test module is run")
            observer = replace(
                self, scenarios=self.fallback, fallback=(), without_module=True, branches=None
            )
            observer._observe(*observer._load())
        else:
            self._observe(addresses, module_symbols)

    def _observe(self, addresses: dict[str, int], module_symbols: list[str]) -> None:
        silence = self.machine.silence
        silence.signs.append(lambda: self.recorder.events)
        watch = Watch(self.machine, addresses, self.directory, module=not self.without_module)
        self.evidence.impossible_breakpoints = watch.impossible
        with silence.limit(SILENCE_SECONDS), watch:
            self.on_attached(watch)
            # From now on, text is to change by its writers only.
            if not self.recorder.look(self._wait):
                raise InfraError("QEMU's plugin does not look at the kernel's text")
            for number in itertools.count():
                self._observe_round(watch, module_symbols, self.seed + number)
                if not self.another_round():
                    break

    def _observe_round(self, watch: Watch, module_symbols: list[str], seed: int) -> None:
        steps = plan_steps(self.scenarios, self.evidence.cpus, self.duration, seed, self._lacking())
        self.evidence.steps = [StepEvidence(step=step, guest=None) for step in steps]
        with self._in_branches(steps, seed) as (here, branches):
            self._observe_steps(watch, module_symbols, here, branches)

    @contextlib.contextmanager
    def _in_branches(
        self, steps: Sequence[PlanStep], seed: int
    ) -> Iterator[tuple[list[PlanStep], list[Branch]]]:
        """Start branches for the steps that can run in one. Yields the other steps, and these."""
        if not self.branches:
            yield [*steps], []
            return
        # QEMU injects NMIs when this process asks it to.
        free = [step for step in steps if not step.is_watched and not step.scenario.nmi]
        parts = {
            # The free-running ledger has only the sites, not what code scenarios poke.
            SITES: [s for s in free if not s.scenario.code and not s.scenario.exclusive],
            "code": [s for s in free if s.scenario.code or s.scenario.exclusive],
        }
        with contextlib.ExitStack() as stack:
            branches = [
                self.branches.start(stack, name, part, seed) for name, part in parts.items() if part
            ]
            self.evidence.consoles = [one.machine.console for one in branches]
            yield [step for step in steps if step not in free], branches

    def _observe_steps(
        self,
        watch: Watch,
        module_symbols: list[str],
        here: Sequence[PlanStep],
        branches: Sequence[Branch],
    ) -> None:
        """Run the steps in this guest, and wait for the branches."""
        try:
            try:
                self._poke_everything(watch, here, numbered=bool(branches))
                self._prove_console()
            except (TimedOut, KernelFault) as error:
                with self.machine.post_mortem():
                    self._explain(watch, module_symbols, error)
            self._wait_for(branches)
        finally:
            # Ctrl-C means to stop now, not to wait for an answer of the guest.
            if not isinstance(cause := sys.exc_info()[1], KeyboardInterrupt):
                hangs = getattr(cause, "outcome", "") == "hang"
                answers = not hangs and not isinstance(cause, NoAnswer)
                if answers and not isinstance(cause, KernelFault):  # _explain() has asked
                    self._excuse_programs()
                recording = self._collect(watch, answers, branches)
                self._judge_record(recording, module_symbols, ended=cause is not None)
                self._judge_branches(branches)
                self._copy_results()
                self._resolve_names(module_symbols)

    def _wait_for(self, branches: Sequence[Branch]) -> None:
        """Wait until all branches have ended. Raises what went wrong in one of them."""
        if not branches:
            return
        with ui.step("free-running: waiting for the branches"):
            for one in branches:
                with one.machine.silence.limit(SILENCE_SECONDS):
                    try:
                        one.wait(PART_SECONDS + 4 * self.duration)
                    except (TimedOut, KernelFault):
                        with one.machine.post_mortem():
                            snapshot = cpus.snapshot(one.machine.qmp, one.machine.spec.smp)
                            self._record_cpus(snapshot, [*one.snapshot.module_symbols])
                        raise

    # -- the guest before the first poke

    def _online(self) -> tuple[int, ...]:
        text = self._text("/sys/devices/system/cpu/online").strip()
        return online_cpus(text, self.machine.spec.smp)

    def _text(self, path: str, timeout: float = 300) -> str:
        """The content of a file in the guest, whatever bytes there are in it."""
        return self.machine.ssh.get(path, timeout).decode(errors="replace")

    def _look_up_parameters(self) -> None:
        """Find out which of our kernel parameters did not arrive, and say what that means."""
        command_line = self._text("/proc/cmdline")
        # The user may have asked to do without some of ours, which means the same for a run.
        wanted = (*qemu.PARAMETERS, *qemu.parameters(self.machine.spec))
        wanted = tuple(dict.fromkeys(wanted))
        missing = self.evidence.not_taken = qemu.not_taken(wanted, command_line)
        if not missing:
            return
        ui.say(f"{len(missing)} parameters are not in effect: {' '.join(missing)}")
        for parameter in missing:
            if meaning := qemu.WITHOUT.get(parameter):
                ui.say(f"without {parameter}: {meaning}")

    def _lacking(self) -> dict[str, str]:
        """What the kernel lacks for scenarios that need a parameter that it did not take."""
        missing = self.evidence.not_taken
        # Its own line may have some of the same.
        ignored = len(missing) > len(qemu.PARAMETERS) / 2
        return {
            scenario.name: "the kernel ignores its command line (CONFIG_CMDLINE_OVERRIDE)"
            if ignored
            else f"the kernel did not take the parameter {parameter}"
            for scenario in self.scenarios
            for parameter in scenario.append
            if parameter in missing
        }

    def _kernel_lines(self) -> list[str]:
        """The lines of the vmlinux's symbol table, with the guest's addresses."""
        return symbols.shifted(symbols.of_vmlinux(self.vmlinux), self.evidence.kernel_offset)

    def _symbols(self, names: Sequence[str]) -> dict[str, int]:
        """Addresses by name from the guest's symbol table; names that it lacks are left out."""
        pattern = "|".join(names)
        _, output = self.machine.ssh.run(
            f"grep -E ' [a-zA-Z] ({pattern}){symbols.CLONE}*([[:space:]]|$)' /proc/kallsyms"
        )
        return kernel_addresses(output.splitlines())

    def _load_module(self) -> tuple[dict[str, int], list[str]]:
        """Load the test module with the addresses that it needs. Returns what prepare() does."""
        names = module_names(self.scenarios)
        kernel_symbols = self._symbols((*names, *SYMBOLS, *emulation.SYMBOLS))
        poke = next((name for name in POKE_ONE if name in kernel_symbols), None)
        if poke is None or LOCK not in kernel_symbols:
            raise BootError(
                f"this kernel has no {' or '.join(POKE_ONE)}, or no {LOCK}: "
                "there is nothing to test"
            )
        if "nokaslr" in self.evidence.not_taken:
            lines = symbols.of_vmlinux(self.vmlinux)
            self.evidence.kernel_offset = symbols.offset(lines, {poke: kernel_symbols[poke]})
        if self.without_module:
            return kernel_symbols, []
        # Hexadecimal without 0x: the module parses with the kernel's sscanf(), and a parameter has
        # 1024 bytes.
        parameter = ",".join(
            f"{name}:{kernel_symbols[name]:x}" for name in names if name in kernel_symbols
        )
        emulates = self._emulates(kernel_symbols)
        status, output = self.machine.ssh.run(
            f"insmod /{module.NAME} symbols={parameter} {emulates}"
        )
        if status:
            self._explain_refusal(_short(output))
        _, output = self.machine.ssh.run(
            f"grep -F '[{module.NAME.removesuffix('.ko')}]' /proc/kallsyms"
        )
        module_symbols = [line for line in output.splitlines() if KALLSYMS.match(line)]
        return kernel_symbols | addresses_of(module_symbols), module_symbols

    def _explain_refusal(self, output: str) -> NoReturn:
        """Raise what insmod's output means, with what the kernel's log says about the module."""
        name = module.NAME.removesuffix(".ko")
        _, log = self.machine.ssh.run(f"dmesg | grep -E '\\b{name}: |Lockdown: insmod' | tail -n 1")
        reason = f"{output}; {_short(log)}" if log.strip() else output
        if any(refusal in output for refusal in REFUSALS):
            raise ModuleRefused(f"the kernel does not take the test module ({reason})")
        raise BootError(f"the guest cannot load the test module: {reason}")

    def _emulates(self, kernel_symbols: dict[str, int]) -> str:
        """The module's parameter that says what the kernel can emulate, empty if nobody knows."""
        emulated = emulation.emulated(kernel_symbols, self.machine.read_memory)
        if emulated is None:
            ui.say(
                "cannot find out which instructions this kernel emulates at int3: "
                "RET and conditional jumps are left out"
            )
            return ""
        return f"emulates={','.join(sorted(emulated))}"

    def _configure_recorder(self, module_symbols: Sequence[str], file: Path | None) -> None:
        """Have the recorder watch what is known only now: the kernel of which there is no vmlinux,
        one that is elsewhere (KASLR), the test module's sites.

        file: a file with the kernel's symbols, in case there is no vmlinux.
        """
        lines = self._kernel_lines() or symbols.of_vmlinux(file)
        found = self._symbols((*CURRENT, LOCK))  # a per-CPU variable alone has no real address
        current = [f"{found[name]:x} A {name}" for name in CURRENT if name in found]
        self.recorder.configure([*lines, *current], sites(module_symbols))
        self.recorder.reload(self._wait)

    def _wait(self, done: Callable[[], bool]) -> bool:
        return until(done, RECORDER_SECONDS, self.machine.check)

    # -- the two parts of a run

    def _poke_everything(self, watch: Watch, steps: Sequence[PlanStep], *, numbered: bool) -> None:
        """First what GDB watches, each scenario there and back; then free, with no breakpoint.

        numbered: whether other steps of the plan run elsewhere.
        """
        evidence = self.evidence
        evidence.no_qemu_ledger = self.recorder.why_not
        self._send(f"- plan {len(steps)}\n", PART_SECONDS)
        start = self.recorder.read()
        self._run_watched(watch, [step for step in steps if step.is_watched])
        middle = self.recorder.read()
        evidence.qemu_gated = middle - start
        free = [step for step in steps if not step.is_watched]
        if numbered:
            self._run_exclusive(free, numbered=True)
        else:
            self._run_free(free, middle)

    def _run_watched(self, watch: Watch, steps: Sequence[PlanStep]) -> None:
        activity = "switching sysctls" if self.without_module else "holding the poker in each phase"
        with (
            ui.step(f"GDB watches: {activity}"),
            self.recorder.gdb(),
            watch.window(steps[0].number if self.without_module else 0),
        ):
            self.evidence.breakpoints = tuple(watch.points)
            self._run_steps(steps)

    def _run_free(self, steps: Sequence[PlanStep], before: Counter[SiteCpu]) -> None:
        """before: QEMU's count of int3 at the end of the watched part."""
        shared = [step for step in steps if not step.scenario.exclusive]
        exclusive = [step for step in steps if step.scenario.exclusive]
        with ui.step("free-running: poking as fast as possible"):
            # The free-running ledger has only the sites, not what code scenarios poke.
            self._run_steps([step for step in shared if not step.scenario.code])
            self.evidence.qemu_free = self.recorder.read() - before
            self._run_steps([step for step in shared if step.scenario.code])
        self._run_exclusive(exclusive)

    def _run_exclusive(self, steps: Sequence[PlanStep], *, numbered: bool = False) -> None:
        """Run steps that need the guest to themselves."""
        if steps:
            with ui.step("free-running: poking with other activity in the guest"):
                for step in steps:
                    with self._nmis(0 if step.lacks else step.scenario.nmi):
                        self._run_steps([step], numbered=numbered)

    def _run_steps(self, steps: Sequence[PlanStep], *, numbered: bool = False) -> None:
        """Have the test module run the steps one after the other."""
        lines = lines_for_steps(steps, numbered=numbered)
        output = self._send(lines, PART_SECONDS + 4 * self.duration) if lines else ""
        self.evidence.companions |= companions(output.splitlines())

    def _send(self, lines: str, timeout: float) -> str:
        """Send lines to guest/init/steps and return its output."""
        # Without QEMU's ledger nothing is seen of a free-running step until it ends.
        patience = SILENCE_SECONDS + (self.duration if self.recorder.why_not else 0)
        with self.machine.silence.limit(patience):
            status, output = self.machine.ssh.run(
                "steps", timeout, stdin=lines.encode(), most=STEPS_OUTPUT
            )
        if status:
            raise GuestRefused(f"the test module refused a command: {_short(output)}")
        return output

    @contextlib.contextmanager
    def _nmis(self, rate: int) -> Iterator[None]:
        """Inject about `rate` NMIs per second on every CPU while the block waits for the guest.

        The rate is limited by how often the wait polls.
        """
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

    # -- the results

    def _prove_console(self) -> None:
        """Have the guest write a line, and find it on the console.

        This shows that whatever the kernel reported before has been seen. Raises InfraError if it
        does not arrive.
        """
        mark = f"orchestrator: end of the scenarios {secrets.token_hex(8)}"
        self.machine.ssh.run(f"echo '{mark}' >/dev/kmsg")
        shown = until(lambda: self.machine.console.shows(mark), MARK_SECONDS, self.machine.check)
        if not shown:
            raise InfraError(
                "the console does not show what the guest writes to it, so a fault that the kernel "
                "reported may have been overlooked"
            )

    def _collect(self, watch: Watch, answers: bool, branches: Sequence[Branch] = ()) -> Recording:
        """Merge what the observers saw into the evidence. Returns what GDB saw.

        answers: whether the guest still runs commands. The report of a guest that is gone is taken
        from the console.
        """
        evidence = self.evidence
        text, lost = self._report(answers)
        report = ktap.parse(text.splitlines())
        for one in branches:
            lost = self._collect_branch(one, report) or lost
        evidence.take_report(report, lost)
        with self.machine.post_mortem():
            recording = watch.recording()
        evidence.lost["gdb"] = recording.lost
        events = model.by_step(recording.events)
        for index, seen in enumerate(evidence.steps):
            number = seen.step.number
            guest = report.step(number)
            watched = None
            if seen.step.is_watched and not (guest and guest.skip):
                watched = model.follow(events.get(number, []), evidence.cpus)
            evidence.steps[index] = replace(seen, guest=guest, watched=watched)
        evidence.lost["ledger"] = self.recorder.lost_int3
        qmp = self.machine.qmp
        started = qmp.find("RESUME")
        evidence.lost["qmp"] = qmp.lost or (
            "" if started else "QEMU's events lack the guest's start"
        )
        self._log("guest.ktap").write(text)
        return recording

    def _collect_branch(self, one: Branch, report: ktap.GuestReport) -> str:
        """Add what the observers saw of a branch. Returns why its report may be incomplete."""
        text, lost = "\n".join(one.machine.console.lines), ""
        if one.machine.ended():
            text = one.report()
        else:
            lost = f"the report of the branch {one.name} was read off the console: it did not end"
        report.add(ktap.parse(text.splitlines()))
        self.evidence.companions |= companions(one.output())
        if one.name == SITES:
            counts = one.recorder.read().items()
            self.evidence.qemu_free = Counter({SiteCpu(*key): count for key, count in counts})
        self._log_of(one, "guest.ktap").write(text)
        return lost

    def _judge_branches(self, branches: Sequence[Branch]) -> None:
        """Judge every poke in the recorders' logs of the branches."""
        judged = self.evidence.record
        if not branches or not self.branches or not judged:
            return
        own = judged.sites
        with ui.step("judging every poke of the branches"):
            around = self._surroundings(branches[0].snapshot.module_symbols)
            boot = record.judge(self.branches.boot_log(), around)
            for one in branches:
                records = one.records()
                judged.sites = copy.deepcopy(boot.sites)
                record.judge(records, around, judged)
                if one.machine.ended() and not one.recorder.lost:
                    self.evidence.fingerprints[one.name] = fingerprint(records)
                save(records, self._log_of(one, "recorder.log.gz"))
                lost = one.recorder.lost
                if one.machine.ended() and one.recorder.looks != LOOKS:
                    lost = lost or f"the text of the branch {one.name} was not looked at"
                self.evidence.lost["record"] = self.evidence.lost["record"] or lost
                self.evidence.lost["ledger"] = (
                    self.evidence.lost["ledger"] or one.recorder.lost_int3
                )
        judged.sites = own

    def _judge_record(
        self, recording: Recording, module_symbols: Sequence[str], *, ended: bool
    ) -> None:
        """Judge every poke in the recorder's log. ended: whether the guest may no longer run."""
        recorder, evidence = self.recorder, self.evidence
        evidence.no_record = recorder.why_not
        if not recorder.why_not and not recorder.ordered:
            evidence.no_record = "QEMU runs several CPUs at once, so the log is in no order"
        if evidence.no_record:
            evidence.lost["record"] = ""
            return
        with ui.step("judging every poke that was recorded"), self.machine.post_mortem():
            looked = ended or recorder.look(self._wait)
            records = recorder.records() if ended else recorder.take(self._wait)
            around = self._surroundings(module_symbols)
            evidence.record = record.judge(records, around, evidence.record)
            if not recording.lost:
                differ = record.disagreements(records, recording.events)
                evidence.record.disagreements = differ
            save(records, self._log("recorder.log.gz"))
        evidence.lost["record"] = recorder.lost
        if not looked:
            evidence.lost["record"] = "the recorder did not look at the kernel's text at the end"

    def _surroundings(self, module_symbols: Sequence[str]) -> record.Surroundings:
        recorder = self.recorder
        own = addresses_of(module_symbols)
        names = symbols.Symbols([*recorder.lines, *module_symbols])
        functions = {line.split()[2] for line in recorder.lines}
        modern = not functions.isdisjoint(KPROBE_SYNC)
        return record.Surroundings(
            name=functools.cache(names.function),
            text=(recorder.address("text_start"), recorder.address("text_end")),
            sites={site: targets(site, own) for site in sites(module_symbols)},
            # To the end of the page: the last symbol has a length, too.
            module=(min(own.values()), (max(own.values()) | 0xFFF) + 1) if own else (0, 0),
            syncs=bool(recorder.address("sync")),
            kprobe_syncs=modern,
            only_writers=modern or FTRACE not in functions,
            rcu_tasks=modern and bool(recorder.address("tasks")),
        )

    def _copy_results(self) -> None:
        self.recorder.save_int3(self._log("int3.ledger"))
        self.evidence.damaged_logs = tuple(log.lost for log in self.machine.logs if log.lost)

    def _report(self, answers: bool) -> tuple[str, str]:
        """The test module's report, and why it may be incomplete; empty if it is not."""
        path = "/run/flips" if self.without_module else "/dev/orchestrator"
        lost = "the guest does not answer any more, so its report was read off the console"
        try:
            if answers:
                self.machine.check()  # a guest that went down gives no answer
                return self._text(path, timeout=30), ""
        except OrchestratorError as error:
            lost = f"the guest's report was read off the console: {error}"
        return "\n".join(self.machine.console.lines), lost

    def _log_of(self, one: Branch, name: str) -> Log:
        """A file for people in the directory of a branch, empty: of a soak run's last round."""
        log = one.machine.log(name)
        log.start_over()
        return log

    def _log(self, name: str) -> Log:
        """A file for people, empty."""
        path = self.directory / name
        log = next((log for log in self.machine.logs if log.path == path), None)
        log = log or self.machine.log(name)
        log.start_over()
        return log

    def _resolve_names(self, module_symbols: list[str]) -> None:
        """Find names for the addresses that the report shows and for the kernel's own pokers."""
        evidence = self.evidence
        watched = [seen.watched for seen in evidence.watched_steps if seen.watched]
        pokes = [poke for one in watched for poke in one.unannounced]
        addresses = {word for poke in pokes for word in poke.first_write["callers"]}
        if next(evidence.violations(), None):
            addresses |= {
                word
                for one in watched
                for snapshot in one.cpu_snapshots
                for cpu in snapshot["cpus"]
                for word in (cpu["rip"], *cpu["stack"])
            }
        if not addresses:
            return
        lines = self._kernel_lines() or self._kallsyms(addresses)
        evidence.names = symbols.Symbols(lines + module_symbols)
        for poke in pokes:
            callers = [
                name.partition("+")[0]
                for word in poke.first_write["callers"]
                if (name := evidence.names.caller(word))
            ]
            poker = next((name for name in callers if "text_poke" not in name), None)
            if poker:
                evidence.kernel_pokers[poker] += 1

    def _kallsyms(self, addresses: set[int]) -> list[str]:
        """The lines of the guest's symbol table that can name the addresses; none if it is gone."""
        with contextlib.suppress(OrchestratorError):
            self.machine.check()
            pattern = "|".join(symbols.prefixes(addresses))
            _, output = self.machine.ssh.run(f"grep -E '^({pattern})' /proc/kallsyms")
            return [line for line in output.splitlines() if KALLSYMS.match(line)]
        return []

    def _excuse_programs(self) -> None:
        """Ask the kernel's own log which of the console's findings are not the kernel's."""
        scanner = self.machine.console.scanner
        known = list(scanner.findings)
        if not known:
            return
        # A guest that does not answer: its kernel did what the console says.
        with contextlib.suppress(OrchestratorError), self.machine.post_mortem():
            _, log = self.machine.ssh.run("dmesg -r", LOG_SECONDS)
            klog.excuse_programs(scanner, known, log.splitlines())

    def _locate_cpus(self) -> None:
        """Record where the CPUs of a guest are that does not boot. GDB is not attached yet."""
        with contextlib.suppress(OrchestratorError):
            self._record_cpus(cpus.snapshot(self.machine.qmp, self.machine.spec.smp), [])

    def _record_cpus(self, snapshot: list[dict[str, Any]], module_symbols: list[str]) -> None:
        self._log("cpus.json").write(json.dumps(snapshot, indent=1) + "\n")
        names = symbols.Symbols(self._kernel_lines() + module_symbols)
        self.evidence.hang_report = tuple(symbols.where(cpu, names) for cpu in snapshot)

    def _explain(
        self, watch: Watch, module_symbols: list[str], error: TimedOut | KernelFault
    ) -> None:
        """Record where the CPUs of a guest that makes no progress are, and raise the error.

        A guest that no longer answers turns the error into a hang. It is no fault of the kernel if
        that owes us nothing: a program of the guest may be stopped, or its terminal be mad.
        """
        self._record_cpus(watch.cpu_snapshot(), module_symbols)
        if isinstance(error, KernelFault):
            self._excuse_programs()
            if error.fault.excuse:
                raise InfraError(f"what ended the run was {error.fault.excuse}: {error}") from error
            raise error
        trapping, answers, blocked = self._endless_traps(watch), True, ""
        owes = trapping or self._unfinished(watch)
        try:
            blocked = self._blocked_programs()
        except TimedOut:
            answers = False
        owes = owes or blocked
        if trapping or not answers:
            error.outcome = "hang"
        if not owes:
            reason = f"{error}; the kernel has ended every step, and no CPU is stuck in it"
            raise (InfraError if answers else NoAnswer)(reason) from error
        error.args = (f"{error}; {owes}",)
        raise error

    def _endless_traps(self, watch: Watch) -> str:
        """Which CPU traps again and again where there is nothing to trap on; empty if none does."""
        for entry in watch.survey(SURVEY_SECONDS):
            if entry["traps"] > MIN_TRAPS and not entry["int3"]:
                where = f"{entry['ip']:x}, where memory holds no int3"
                return f"CPU {entry['cpu']} keeps trapping at {where}"
        return ""

    def _unfinished(self, watch: Watch) -> str:
        """What the kernel has to do and does not get done, as far as can be seen from outside."""
        step = watch.step()
        if step and ktap.parse(self.machine.console.lines).step(step) is None:
            return f"step {step} has begun and does not end"
        smp = self.machine.spec.smp
        if stuck := cpus.stuck(self.machine.qmp, smp, SURVEY_SECONDS, self.machine.check):
            return f"the kernel does not leave CPU {', '.join(map(str, stuck))}"
        return ""

    def _blocked_programs(self) -> str:
        """The guest's programs that the kernel keeps in an uninterruptible sleep, if there are any.

        Raises TimedOut if the guest does not answer.
        """
        _, names = self.machine.ssh.run(BLOCKED, ANSWER_SECONDS)
        return f"blocked in the kernel: {_short(names)}" if names.strip() else ""


def _short(text: str) -> str:
    """The guest's output for a message."""
    return " ".join(text.split())[:500]
