# SPDX-License-Identifier: GPL-2.0-only
"""The guests of a run, and what its observers saw of each.

A run has one guest to which commands are sent, or several that find their plans. How a guest is
asked for something is the only difference: see ShellGuest and PlannedGuest.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import secrets
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from orchestrator import ui
from orchestrator.branch import BOOT, LOOKS, Branch, fingerprint
from orchestrator.errors import InfraError, OrchestratorError
from orchestrator.guest import klog, ktap
from orchestrator.host.logs import Log
from orchestrator.machine import cpus
from orchestrator.machine.faults import KernelFault, NoAnswer, TimedOut
from orchestrator.machine.machine import Machine
from orchestrator.machine.waiting import until
from orchestrator.survey import KALLSYMS, addresses_of, sites, targets
from orchestrator.text import symbols
from orchestrator.text.functions import EACH_CPU, FTRACE, KPROBE_SYNC, TASKS
from orchestrator.verdict import model
from orchestrator.verdict.evidence import Evidence
from orchestrator.verdict.recorded.agreement import disagreements
from orchestrator.verdict.recorded.judge import judge
from orchestrator.verdict.recorded.judgement import Judgement, LogName, Surroundings
from orchestrator.watch.events import Recording
from orchestrator.watch.recorder import Recorder, Records, save
from orchestrator.watch.watch import Watch

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
MIN_TRAPS = 20
"""A CPU that traps more often than this at an address without int3 is stuck there."""


@dataclass(frozen=True, kw_only=True)
class Guest(ABC):
    """One guest of a round, from its first poke on."""

    name: str = ""
    """Of the branch; empty for a guest that is no branch."""
    machine: Machine
    recorder: Recorder
    """QEMU's log of what the guest does to its text, and its count of int3."""
    addresses: Mapping[str, int]
    """Of kernel and test module, by name."""
    module_symbols: Sequence[str]
    """The test module's lines of /proc/kallsyms."""
    kernel_lines: Sequence[str]
    """The symbols of the kernel; empty if nobody knows them."""
    watch: Watch | None
    """GDB, if it watches this guest."""
    evidence: Evidence

    # -- what differs

    @abstractmethod
    def report(self, answers: bool) -> tuple[str, str]:
        """The test module's report, and why it may be incomplete; empty if it is not.

        answers: whether the guest still runs commands. The report of a guest that is gone is taken
        from the console.
        """

    @abstractmethod
    def kernel_log(self) -> str:
        """What `dmesg -r` prints; empty if the guest cannot be asked."""

    @abstractmethod
    def blocked_programs(self) -> str:
        """The programs that the kernel keeps in an uninterruptible sleep, if there are any.

        Raises TimedOut if the guest does not answer.
        """

    @abstractmethod
    def take_records(self, *, ended: bool) -> tuple[Records, str]:
        """The recorder's log of this round, and why it may lack something; empty if it does not.

        ended: whether the guest may no longer run.
        """

    @abstractmethod
    def judged_before(self) -> Judgement | None:
        """What is known of the log so far with which that of this round goes on."""

    def lines_for(self, addresses: set[int]) -> Sequence[str]:
        """Lines of a symbol table that can name the addresses."""
        return self.kernel_lines

    # -- what is the same

    def log(self, name: str) -> Log:
        """A file for people, empty."""
        known = (log for log in self.machine.logs if log.path.name == name)
        log = next(known, None) or self.machine.log(name)
        log.start_over()
        return log

    def recording(self) -> Recording | None:
        """What GDB saw; None if it does not watch this guest."""
        if not self.watch:
            return None
        with self.machine.post_mortem():
            return self.watch.recording()

    @property
    def surroundings(self) -> Surroundings:
        """What the judge of the recorder's log must know besides the log."""
        return surroundings(self.recorder, self.module_symbols)

    def excuse_programs(self) -> None:
        """Ask the kernel's own log which of the console's findings are not the kernel's."""
        scanner = self.machine.console.scanner
        known = list(scanner.findings)
        if not known:
            return
        # A guest that does not answer: its kernel did what the console says.
        with contextlib.suppress(OrchestratorError), self.machine.post_mortem():
            klog.excuse_programs(scanner, known, self.kernel_log().splitlines())

    def record_cpus(self, snapshot: list[dict[str, Any]]) -> None:
        """Note where the CPUs of a guest are that makes no progress."""
        self.log("cpus.json").write(json.dumps(snapshot, indent=1) + "\n")
        names = symbols.Symbols([*self.kernel_lines, *self.module_symbols])
        self.evidence.hung, self.evidence.hang_names = snapshot, names

    def explain(self, error: TimedOut | KernelFault) -> NoReturn:
        """Record where the CPUs of a guest that makes no progress are, and raise the error.

        A guest that no longer answers turns the error into a hang. It is no fault of the kernel if
        that owes us nothing: a program of the guest may be stopped, or its terminal be mad.
        """
        with self._gdb() as watch:
            self.record_cpus(watch.cpu_snapshot())
            if isinstance(error, KernelFault):
                self.excuse_programs()
                if error.fault.excuse:
                    reason = f"what ended the run was {error.fault.excuse}: {error}"
                    raise InfraError(reason) from error
                raise error
            trapping, answers, blocked = self._endless_traps(watch), True, ""
            owes = trapping or self._unfinished(watch)
        try:
            blocked = self.blocked_programs()
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

    @contextlib.contextmanager
    def _gdb(self) -> Iterator[Watch]:
        """The GDB that watches this guest, or one for the post-mortem."""
        if self.watch:
            yield self.watch
            return
        with Watch(self.machine, self.addresses, self.machine.directory) as watch:
            yield watch

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

    def judge_record(self, recording: Recording | None, *, ended: bool) -> str:
        """Judge every poke in the recorder's log. Returns why that may lack something."""
        with self.machine.post_mortem():
            records, lost = self.take_records(ended=ended)
        soak = self.evidence.soak
        name = LogName(self.name, soak.rounds + 1 if soak else 1)
        judged = judge(records, self.surroundings, self.judged_before(), name)
        self.evidence.record = judged
        if recording and not recording.lost:
            judged.disagreements = disagreements(records, recording.events, name)
        save(records, self.log("recorder.log.gz"))
        return lost

    def losses(self) -> dict[str, str]:
        """Why an observer may have missed something of this guest, by its name; empty if none."""
        qmp = self.machine.qmp
        started = qmp.find("RESUME")
        unseen = "" if started else "QEMU's events lack the guest's start"
        return {"ledger": self.recorder.lost_int3, "qmp": qmp.lost or unseen}


@dataclass(frozen=True, kw_only=True)
class ShellGuest(Guest):
    """A guest to which commands are sent by ssh."""

    flips: bool = False
    """Whether there is no test module, and guest/init/flip writes the report."""

    def report(self, answers: bool) -> tuple[str, str]:
        path = "/run/flips" if self.flips else "/dev/orchestrator"
        lost = "the guest does not answer any more, so its report was read off the console"
        try:
            if answers:
                self.machine.check()  # a guest that went down gives no answer
                return self.machine.ssh.get(path, 30).decode(errors="replace"), ""
        except OrchestratorError as error:
            lost = f"the guest's report was read off the console: {error}"
        return "\n".join(self.machine.console.lines), lost

    def kernel_log(self) -> str:
        return self.machine.ssh.run("dmesg -r", LOG_SECONDS)[1]

    def blocked_programs(self) -> str:
        _, names = self.machine.ssh.run(BLOCKED, ANSWER_SECONDS)
        return f"blocked in the kernel: {short(names)}" if names.strip() else ""

    def lines_for(self, addresses: set[int]) -> Sequence[str]:
        if self.kernel_lines:
            return self.kernel_lines
        with contextlib.suppress(OrchestratorError):
            self.machine.check()
            pattern = "|".join(symbols.prefixes(addresses))
            _, output = self.machine.ssh.run(f"grep -E '^({pattern})' /proc/kallsyms")
            return [line for line in output.splitlines() if KALLSYMS.match(line)]
        return []

    def take_records(self, *, ended: bool) -> tuple[Records, str]:
        looked = ended or self.recorder.look(self._wait)
        records = self.recorder.records() if ended else self.recorder.take(self._wait)
        if not looked:
            return records, "the recorder did not look at the kernel's text at the end"
        return records, self.recorder.lost

    def judged_before(self) -> Judgement | None:
        return self.evidence.record

    def prove_console(self) -> None:
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

    def _wait(self, done: Callable[[], bool]) -> bool:
        return until(done, RECORDER_SECONDS, self.machine.check)


class Boot:
    """What the branches of a run have in common: how their guest came up before it was saved."""

    def __init__(self, log: Callable[[], Records]) -> None:
        """log: the recorder's."""
        self._log = log
        self._surroundings: Surroundings | None = None
        self._judged: Judgement | None = None

    def surroundings(self, guest: Guest) -> Surroundings:
        self._surroundings = self._surroundings or surroundings(
            guest.recorder, guest.module_symbols
        )
        return self._surroundings

    def judged(self, guest: Guest) -> Judgement:
        self._judged = self._judged or judge(
            self._log(), self.surroundings(guest), name=LogName(BOOT)
        )
        return self._judged


@dataclass(frozen=True, kw_only=True)
class PlannedGuest(Guest):
    """A guest that finds its plan, and that nobody can ask anything."""

    branch: Branch
    boot: Boot

    def wait(self, seconds: float) -> None:
        """Wait until it has carried out its plan. Raises like Branch.wait()."""
        self.branch.wait(seconds)
        if self.watch:
            self.watch.end()

    def report(self, answers: bool) -> tuple[str, str]:
        if self.machine.ended():
            return self.branch.report(), ""
        lost = f"the report of the branch {self.name} was read off the console: it did not end"
        return "\n".join(self.machine.console.lines), lost

    def kernel_log(self) -> str:
        return ""

    def blocked_programs(self) -> str:
        raise TimedOut("an answer of a guest that only carries out its plan", 0)

    def take_records(self, *, ended: bool) -> tuple[Records, str]:
        records, lost = self.branch.records(), self.recorder.lost
        ended = self.machine.ended()
        if not self.watch:
            self.evidence.fingerprints[self.name] = fingerprint(records) if ended else ""
        if ended and self.recorder.looks != LOOKS:
            lost = lost or f"the text of the branch {self.name} was not looked at"
        return records, lost

    @property
    def surroundings(self) -> Surroundings:
        return self.boot.surroundings(self)

    def judged_before(self) -> Judgement | None:
        booted = self.boot.judged(self)
        judged = self.evidence.record or copy.deepcopy(booted)
        judged.sites = copy.deepcopy(booted.sites)
        judged.module_text = dict(booted.module_text)
        return judged


def surroundings(recorder: Recorder, module_symbols: Sequence[str]) -> Surroundings:
    own = addresses_of(module_symbols)
    text = [int(line.split()[0], 16) for line in module_symbols if line.split()[1] in "tT"]
    names = symbols.Symbols([*recorder.lines, *module_symbols])
    functions = {line.split()[2] for line in recorder.lines}
    modern = not functions.isdisjoint(KPROBE_SYNC)
    return Surroundings(
        name=functools.cache(names.function),
        text=(recorder.address("text_start"), recorder.address("text_end")),
        sites={site: targets(site, own) for site in sites(module_symbols)},
        # To the end of the page: the last symbol has a length, too. Since 6.13 another module's
        # text may be between the text of a module and its data.
        module=(min(text), (max(text) | 0xFFF) + 1) if text else (0, 0),
        syncs=bool(recorder.address("sync")),
        kprobe_syncs=modern,
        only_writers=modern or FTRACE not in functions,
        rcu_tasks=modern and TASKS in functions,
        waits_for_each_cpu=modern and EACH_CPU in functions,
        preemption="preempt_schedule" in functions,
        counts_handlers=any(map(recorder.address, ("patching_refs", "patching_refs_percpu"))),
        self_test=_self_test(recorder.lines),
    )


def _self_test(lines: Sequence[str]) -> dict[int, bytes]:
    """The int3 of int3_selftest() by its address, and the call that it stands for (7457c0da024b).

    Where the symbol is that of a variable with the address, nobody knows this.
    """
    found = {line.split()[2]: line.split() for line in lines if "int3_" in line}
    site, target = found.get("int3_selftest_ip"), found.get("int3_magic")
    if not site or not target or site[1] not in "tT":
        return {}
    address = int(site[0], 16)
    return {address: b"\xe8" + struct.pack("<i", int(target[0], 16) - (address + 5))}


def collect(
    evidence: Evidence, guests: Sequence[Guest], *, answers: bool = True, ended: bool = False
) -> None:
    """Take what the observers saw of all guests of a round.

    answers: whether the guests still run commands. ended: whether they may no longer run at all.
    """
    reports, lost = [], ""
    for guest in guests:
        text, why = guest.report(answers)
        lost = lost or why
        reports.append(ktap.parse(text.splitlines()))
        guest.log("guest.ktap").write(text)
    report = ktap.merged(reports)
    evidence.take_report(report, lost)
    recordings = {guest.name: guest.recording() for guest in guests}
    seen = [recording for recording in recordings.values() if recording]
    evidence.lost["gdb"] = next(filter(None, (recording.lost for recording in seen)), "")
    _take_steps(evidence, report, seen)
    losses = [guest.losses() for guest in guests]
    for name in ("ledger", "qmp"):
        evidence.lost[name] = next(filter(None, (one[name] for one in losses)), "")
    collect_records(evidence, guests, recordings, ended=ended)
    for guest in guests:
        guest.recorder.save_int3(guest.log("int3.ledger"))
    logs = [log for guest in guests for log in guest.machine.logs]
    evidence.damaged_logs = tuple(log.lost for log in logs if log.lost)
    _resolve_names(evidence, guests)


def _take_steps(
    evidence: Evidence, report: ktap.GuestReport, recordings: Sequence[Recording]
) -> None:
    """Give each step what the guest and GDB saw of it."""
    events = model.by_step([event for one in recordings for event in one.events])
    for index, seen in enumerate(evidence.steps):
        number = seen.step.number
        guest = report.step(number)
        watched = None
        if seen.step.is_watched and not (guest and guest.skip):
            watched = model.follow(events.get(number, []), evidence.cpus)
        evidence.steps[index] = replace(seen, guest=guest, watched=watched)


def collect_records(
    evidence: Evidence,
    guests: Sequence[Guest],
    recordings: Mapping[str, Recording | None],
    *,
    ended: bool,
) -> None:
    """Take the recorder's logs of all guests, and judge every poke in them.

    recordings: what GDB saw, by the name of the guest. ended: as for collect().
    """
    for recorder in (guest.recorder for guest in guests):
        evidence.no_record = recorder.why_not
        if not recorder.why_not and not recorder.ordered:
            evidence.no_record = "QEMU runs several CPUs at once, so the log is in no order"
    evidence.lost["record"] = ""
    if evidence.no_record:
        return
    with ui.step("judging every poke that was recorded"):
        for guest in guests:
            lost = guest.judge_record(recordings[guest.name], ended=ended)
            evidence.lost["record"] = evidence.lost["record"] or lost


def _resolve_names(evidence: Evidence, guests: Sequence[Guest]) -> None:
    """Find names for the addresses that the report shows and for the kernel's own pokers."""
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
    guest = next((guest for guest in guests if guest.watch), None)
    if not addresses or not guest:
        return
    evidence.names = symbols.Symbols([*guest.lines_for(addresses), *guest.module_symbols])
    for poke in pokes:
        callers = [
            name.partition("+")[0]
            for word in poke.first_write["callers"]
            if (name := evidence.names.caller(word))
        ]
        poker = next((name for name in callers if "text_poke" not in name), None)
        if poker:
            evidence.kernel_pokers[poker] += 1


def short(text: str) -> str:
    """The guest's output for a message."""
    return " ".join(text.split())[:500]
