# SPDX-License-Identifier: GPL-2.0-only
"""Judges every write to kernel text in the recorder's log, whoever made it.

The log has, in the order of execution, each write, each core that syncs, each int3 and how its CPU
went on (orchestrator/watch/recorder.c). Here the writes to one site are followed until they are
done. docs/phase-model.md draws the protocols:

    a poke        cc, tail, first byte; alone or in a batch with others; a sync round after each
    a kprobe      cc, later the old first byte; a round after each
    an optprobe   a kprobe that becomes a jump like a poke, and is taken back: cc, the old tail

A write that belongs to none of these, and changes text that is live, is a violation. Writes are
compared to what memory held before, so that only bytes that change count: it does not matter in
how many pieces a tail is written, as long as no CPU can execute a mixture.

Nothing here does I/O. What was not recorded, or cannot be decided, is counted as not judged, and
is neither a pass nor a violation.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from orchestrator.text import disasm, semantics
from orchestrator.text.functions import LOCKS, STOPPERS
from orchestrator.verdict.model import Event, cpu_names

WRITE, WRITER, CALLERS, SYNC, SERIALISE, TRAP, RESUME, CODE, PASS, STOPPER, UNLOCK = range(1, 12)
MODE, BRANCH, CALL, TASKS, ORDER, DIES, FLUSH, UNGUARDED, TRACED, STEP, FREED = range(12, 23)
"""enum kind in recorder.c."""
F_IRQS, F_EARLY, F_MEMSET, F_UNREADABLE, F_MAPPED = 1, 2, 4, 8, 16
F_EXECUTED, F_STATE = 32, 64
F_FIRST = 1
"""Of a PASS: the first of that CPU since the last write to the site."""
"""Flags of WRITE; UNLOCK has F_MAPPED, and SYNC has F_STATE."""
SITE_FLIPPED, SITE_TAIL, SITE_INIT, SITE_GONE = 1, 1, 2, 4
"""Flags of BRANCH and CALL: the branch is taken unless the key is on; the call is a jump; the site
is in text that is there only at the beginning; it is in a list of what is no longer there."""
FL_ENABLED, FL_REGS, FL_REGS_EN, FL_TRAMP, FL_TRAMP_EN = (1 << bit for bit in range(31, 26, -1))
FL_DISABLED, FL_DIRECT, FL_DIRECT_EN = (1 << bit for bit in (25, 24, 23))
FL_COUNT = (1 << 19) - 1
"""FTRACE_FL_* in include/linux/ftrace.h, and the number of tracers; since 4.6."""
CALLS_FTRACE, CALLS_FTRACE_REGS, CALLS_TRAMPOLINE = 1, 2, 4
"""enum called in recorder.c."""
S_IN_SYNC, S_ON_PURPOSE = 0x100, 0x200
"""Flags of SERIALISE: within do_sync_core(); by an instruction that is there for nothing else."""
M_KERNEL, M_USER, M_IDLE = range(3)
"""What a CPU is in, by MODE and the sets of CPUs in WRITER and UNLOCK."""
ELSEWHERE = {M_USER: "in user mode", M_IDLE: "idle"}
DEFERS = 0.25
"""A kernel that leaves out this part of the CPUs that are elsewhere does so by design. One that
should not, and does, leaves out CPUs that are in the kernel as well, which nothing excuses."""
H_POKE, H_KPROBE = 2, 4
"""Flags of RESUME: handlers that were entered."""
INLINE = 16
"""Bytes that WRITE has of a write."""
INT3, JUMP, CALLS = 0xCC, 0xE9, 0xE8
MODULES = 0xFFFFFFFFA0000000
"""Where the text of modules begins. What is between it and the kernel's own text is init text."""
PAGE = 4096
LONGEST = 8
"""No instruction that is poked is longer."""
THREAD_SIZE = 0x4000
RESUME_FLAG = 0x10000
"""rflags.RF, which the CPU sets and clears by itself."""
NO_PHASE = -1
"""Of an int3 that no poke had written, as far as the log goes."""
ROW_FACTORS = np.random.default_rng(1).integers(1 << 63, size=9, dtype=np.uint64) | np.uint64(1)
"""Factors of a hash of nine words: of a million rows, two that differ have the same hash once in 30
million logs."""
KEPT = 50
"""Violations of one claim that are kept with their text; the others are counted."""

Records = NDArray[np.void]

OWNERS = (
    ("jump_label", "jump labels"),
    ("static_key", "jump labels"),
    ("static_call", "static calls"),
    ("kprobe", "kprobes"),
    ("ftrace", "ftrace"),
    ("bpf", "BPF"),
)
"""Part of a function's name -> whose pokes it makes."""
TEST_MODULE, OTHERS, SELF_TEST = "test module", "others", "self-test"
BY_PROTOCOL = ("jump labels", "static calls", "ftrace")
"""Owners that change an instruction of live text. The others also fill memory that was freed."""
BEFORE_SMP = "writes while only one CPU was online, which need no int3"
NEW_TEXT = "writes of text that is not known to be live"
OTHER_INT3 = "int3 outside of any poke"
TRACED_BEFORE = "functions that can be traced, in a kernel before 5.5"


@dataclass(frozen=True)
class Surroundings:
    """What the judge must know besides the log."""

    name: Callable[[int], str | None]
    """The function that an address belongs to; None for none."""
    text: tuple[int, int] = (0, 0)
    """Where the kernel's own text begins and ends. It is live from the second CPU on."""
    sites: Mapping[int, frozenset[int]] = field(default_factory=dict)
    """The test module's sites, and where a CPU that traps on one may be sent by the test."""
    module: tuple[int, int] = (0, 0)
    """Where the test module begins and ends."""
    syncs: bool = True
    """Whether the kernel has do_sync_core(), in which each CPU is to serialise."""
    kprobe_syncs: bool = True
    """Whether its kprobes are to sync: since 5.5 (5c02ece81848)."""
    only_writers: bool = True
    """Whether text changes by recorded functions only: ftrace has others before 5.6."""
    rcu_tasks: bool = False
    """Whether kprobes must call synchronize_rcu_tasks() before they write a jump, and after they
    have taken one away, before they free the slot that it went to."""
    preemption: bool = False
    """Whether a task can be preempted in a trampoline of ftrace, which must then wait as well."""
    self_test: Mapping[int, bytes] = field(default_factory=dict)
    """int3 with which the kernel tests its handler, and the instructions that it is to emulate."""


@dataclass(frozen=True)
class Log:
    """Which log is judged."""

    guest: str = ""
    """The name of a branch, empty if there is one guest only."""
    round: int = 1
    """Of a soak run, each round of which begins a log."""

    def place(self, number: int) -> str:
        """What a record is called: PLACE finds it."""
        of = f" of {self.guest}" if self.guest else ""
        return f"record {number}{of}{f', round {self.round}' if self.round > 1 else ''}"


PLACE = re.compile(r"\[record (\d+)(?: of ([\w-]+))?(?:, round \d+)?\]", re.ASCII)
"""A record that a text names: its number and its guest, which is None if there is one only."""


@dataclass(frozen=True)
class RecordViolation:
    """One thing that was wrong."""

    claim: str
    """A key of CLAIMS (orchestrator/verdict/model.py)."""
    text: str
    record: int
    """Number of the record that showed it."""
    site: int
    since: int | None = None
    """Number of the WRITE after which something is missing or wrong, if it is another record."""
    cpus: tuple[int, ...] = ()
    """The CPUs that did not sync, where these are missing, or the one that did something wrong."""
    log: Log = Log()
    """Which log has that record."""

    @property
    def place(self) -> str:
        """Where it is to be seen."""
        return self.log.place(self.record)


@dataclass
class Site:
    """What is known of the text at one address, by the writes to it."""

    address: int
    original: bytes
    """Eight bytes, before the int3 that a kprobe or poke began with."""
    begun: int = -1
    """Number of the WRITE that began the poke under way; -1 if none is."""
    last: int = -1
    """Number of the last WRITE of it."""
    tailed: bool = False
    """Whether a tail was written."""
    stages: list[int] = field(default_factory=list)
    """Numbers of the WRITEs by which the poke under way came into phase 1, 2 and 3."""
    memory: bytearray = field(default_factory=bytearray)
    """Eight bytes, by all writes so far."""
    kprobe: bytes = b""
    """Eight bytes, as they were before a kprobe was armed; empty if there is none. It may be a jump
    by now."""
    armed: int = -1
    """Number of the WRITE that armed the kprobe; -1 if that is in an earlier log."""

    @property
    def is_armed(self) -> bool:
        """Whether it has a kprobe's int3."""
        return bool(self.kprobe) and self.memory[0] == INT3


@dataclass
class Finished:
    """A poke, for the int3 that were met meanwhile."""

    begun: int
    """Record that it began with."""
    old: bytes
    new: bytes
    """Empty if it was not finished."""
    kprobe: bool
    """Whether int3 is the kprobe's own, for it to handle."""
    owner: str
    stages: tuple[int, ...] = ()
    """As in Site."""
    probed: bytes = b""
    """Eight bytes that begin with the instruction of the kprobe; empty if int3 is not known to be
    one's."""


@dataclass(frozen=True)
class LeftOut:
    """A CPU that a sync round left out while it was in user mode or idle."""

    cpu: int
    mode: int
    """What it was in."""
    site: Site
    since: int
    """Record of the write that the round followed."""
    until: int
    """Record by which the round was over."""
    text: str
    """What to say if that was wrong."""


@dataclass
class Judgement:
    """What the log shows."""

    violations: list[RecordViolation] = field(default_factory=list)
    broken: Counter[str] = field(default_factory=Counter)
    """Number of violations by claim."""
    judged: Counter[str] = field(default_factory=Counter)
    """Pokes that were judged, by their owner."""
    not_judged: Counter[str] = field(default_factory=Counter)
    """Writes and int3 that were not, by the reason."""
    int3: int = 0
    """int3 of judged pokes and kprobes that were judged."""
    rounds: int = 0
    """Sync rounds that were judged."""
    sites_looked_at: int = 0
    """Sites of keys and static calls that were compared to what these are set to."""
    inline_syncs: int = 0
    """How often a CPU synced in a round otherwise than by do_sync_core()."""
    deferred: Counter[str] = field(default_factory=Counter)
    """CPUs that a round left out and that serialised later, by what they were in."""
    interrupted: Counter[str] = field(default_factory=Counter)
    """CPUs that synced in a round and were in user mode or idle before, by that."""
    left_out: Counter[str] = field(default_factory=Counter)
    """CPUs that did not, by the same."""
    met: Counter[tuple[int, int, int]] = field(default_factory=Counter)
    """int3 of pokes by CPU, phase when it was executed, and phase when the CPU went on."""
    batches: Counter[int] = field(default_factory=Counter)
    """How many times so many sites were poked before text_mutex was released."""
    orders: dict[tuple[int, int], str] = field(default_factory=dict)
    """Who took the second lock while it held the first, by their numbers in LOCKS."""
    disagreements: list[str] = field(default_factory=list)
    """Where the log and what GDB saw differ, of the last window."""
    sites: dict[int, Site] = field(default_factory=dict)
    """All sites with int3 at some time, as the log leaves them."""
    module_text: dict[int, int] = field(default_factory=dict)
    """Bytes of the test module's text, by address, where something was written."""

    def violations_of(self, claim: str) -> list[RecordViolation]:
        return [violation for violation in self.violations if violation.claim == claim]

    log: Log = Log()
    """The one that is judged."""

    def blame(self, violation: RecordViolation) -> None:
        self.broken[violation.claim] += 1
        if self.broken[violation.claim] <= KEPT:
            self.violations.append(replace(violation, log=self.log))


def judge(
    records: Records,
    around: Surroundings,
    previous: Judgement | None = None,
    log: Log | None = None,
) -> Judgement:
    """Judge a log.

    previous: of the log that this one goes on with. It is added to, and returned.
    log: which one it is; None for the only one.
    """
    result = previous or Judgement()
    result.log = log or Log()
    return _Judge(records, around, result).judge()


class _Judge:
    def __init__(self, records: Records, around: Surroundings, result: Judgement) -> None:
        self.records = records
        self.around = around
        self.result = result
        self.kinds = records["kind"]
        self.words = records["word"]
        self.writes = np.flatnonzero(self.kinds == WRITE)
        self.sites = result.sites
        self.open: dict[int, Site] = {}
        """Those of a poke that is under way, by address."""
        self.ending: list[tuple[Site, int]] = []
        """Sites whose last round is not judged yet, and the record of the last write."""
        self.finished = {
            site.address: [Finished(-1, site.kprobe, site.kprobe, True, "kprobes")]
            for site in self.sites.values()
            if site.kprobe
        }
        for address, code in around.self_test.items():
            self.finished[address] = [Finished(-1, code, code, False, SELF_TEST)]
        self.has_unlock = bool(np.any(self.kinds == UNLOCK))
        cpus = records["cpu"]
        used = cpus[np.isin(self.kinds, (SYNC, SERIALISE, MODE)) & (cpus < 64)]
        self.cpus = int(used.max()) + 1 if len(used) else 1
        self.moments = np.flatnonzero(np.isin(self.kinds, (WRITE, UNLOCK, STOPPER)))
        self.synced = self._last_before(self.kinds == SYNC)
        serialises, flags = self.kinds == SERIALISE, records["flags"]
        self.serialised_inside = self._last_before(serialises & (flags & S_IN_SYNC != 0))
        # Where a kernel has no do_sync_core(), nobody knows which instruction is its sync.
        wanted = serialises & (flags & S_ON_PURPOSE != 0) if around.syncs else serialises
        self.serialised = self._last_before(wanted)
        self.changed_mode = self._last_before(self.kinds == MODE)
        self.left_out: list[LeftOut] = []
        self.interrupted: Counter[int] = Counter()
        """How often a CPU that was in a mode did sync in a round."""
        self.owner_at = self._owner_word()
        self.syncs = np.flatnonzero(self.kinds == SYNC)
        self.patching = records["flags"] & F_STATE != 0
        self.tasks = np.flatnonzero(self.kinds == TASKS)
        self.left: dict[int, list[int]] = {}
        """Numbers of the WRITEs by which a jump or call was taken away, by where it went."""
        begin, end = around.module
        passed = records["word"][:, 0][self.kinds == PASS]
        first = np.flatnonzero(self.kinds == PASS)[(passed >= begin) & (passed < end)][:1]
        self.module_live = int(first[0]) if len(first) else len(records)
        """Record from which on CPUs are known to execute the test module."""
        if result.judged:  # in an earlier log
            self.module_live = -1
        for site in self.sites.values():
            site.armed = -1

    def _last_before(self, wanted: NDArray[np.bool_]) -> NDArray[np.int32]:
        """For each moment and CPU, the last such record before it; -1 for none."""
        last = np.full((len(self.moments), self.cpus), -1, np.int32)
        cpus = self.records["cpu"]
        for cpu in range(self.cpus):
            at = np.flatnonzero(wanted & (cpus == cpu))
            if len(at):
                index = np.searchsorted(at, self.moments) - 1
                last[:, cpu] = np.where(index >= 0, at[np.maximum(index, 0)], -1)
        return last

    def _owner_word(self) -> int | None:
        """Which of text_mutex' words has its owner: that which is most often the current task."""
        if not len(self.writes):
            return None
        after = self.writes[:-1] + 1
        writers = self.words[after[self.kinds[after] == WRITER]]
        current = writers[:, 4]
        hits = [
            int(np.count_nonzero((writers[:, at] & ~np.uint64(7) == current) & (current != 0)))
            for at in range(4)
        ]
        best = max(range(4), key=hits.__getitem__)
        return best if hits[best] else None

    # -- the writes, in their order

    def judge(self) -> Judgement:
        for number, at in enumerate(self.moments.tolist()):
            kind = self.kinds[at]
            if kind == WRITE:
                self._on_write(number, at)
            elif kind == UNLOCK:
                self._on_unlock(number, at)
            else:
                self._on_stopper(at)
        self._judge_left_out()
        self._judge_mappings()
        self._judge_flushes()
        self._judge_guards()
        self._judge_orders()
        self._judge_sites()
        self._judge_code()
        self._add_unfinished()
        self._judge_int3()
        self._judge_steps()
        self._judge_freed()
        self._judge_dying()
        return self.result

    def _on_write(self, number: int, at: int) -> None:
        record = self.records[at]
        words = record["word"]
        address, length, flags = int(words[0]), int(record["number"]), int(record["flags"])
        before = words[3:5].tobytes()
        if flags & F_UNREADABLE:
            self.result.not_judged["writes whose bytes could not be read"] += 1
            return
        if length > INLINE:
            self._on_long_write(at, address, length)
            return
        new = words[1:3].tobytes()[:length]
        self._check_module_text(at, address, new, before)
        site = self._site_of(at, address, new)
        online = int(words[6])
        if site is None and new[:1] == b"\xcc" and length == 1:
            known = self.sites.get(address)
            if known is None or known.memory[:1] != before[:1]:
                known = self.sites[address] = Site(address, before[:LONGEST])
            self._begin(known, number, at, before)
            self._check_writer(at, address)
        elif site is not None:
            self._go_on(site, number, at, address, new, before)
            self._check_writer(at, address)
        elif before[:length] == new:
            pass  # nothing changes
        elif online & (online - 1) == 0:
            self.result.not_judged[BEFORE_SMP] += 1
        elif not self._is_live(address, at):
            self.result.not_judged[NEW_TEXT] += 1
        elif self._in_stop_machine(at):
            if self.around.kprobe_syncs:
                text = f"{before[:length].hex()} became {new.hex()} in stop_machine()"
                self._blame("stopper", text, at, address)
            else:  # jump labels before 3.12, kprobes before 3.13
                self.result.not_judged["writes while the machine was stopped"] += 1
        elif (known := self.sites.get(address)) and known.is_armed and length == 1:
            self._disarm(known, number, at, new)
            self._check_writer(at, address)
        else:
            text = f"{before[:length].hex()} became {new.hex()} without int3"
            self._blame("writes", text, at, address)

    def _check_module_text(self, at: int, address: int, new: bytes, before: bytes) -> None:
        """The test module's text around a site is what the writes so far have made of it.

        Of the kernel's own text the recorder sees each change (CODE).
        """
        if not self._in_module(address) or at < self.module_live:
            return
        known = self.result.module_text
        for offset, byte in enumerate(before[:LONGEST]):
            if known.get(address + offset, byte) != byte:
                text = f"{byte:02x} is at +{offset} of a write, where {known[address + offset]:02x}"
                self._blame("bytes", f"{text} was, and nobody wrote it", at, address)
            known[address + offset] = byte
        known.update(enumerate(new, address))

    def _is_live(self, address: int, at: int) -> bool:
        """Whether CPUs may execute this address at record `at`, as far as we know.

        Text of modules is when some of it was executed, and what bpf_arch_text_poke() changes is
        then. What is not text of a module, like the slots of kprobes and new programs of BPF, is
        used again without int3.
        """
        if self._in_text(address):
            return True
        if self.records["flags"][at] & F_EXECUTED:
            owner = self._owner(at)
            if owner == "BPF" and any("bpf_arch_text_poke" in name for name in self._callers(at)):
                return True
            if owner in BY_PROTOCOL or (owner == "kprobes" and self._in_module(address)):
                return True
        if at < self.module_live:
            return False
        near = range(address, address - LONGEST, -1)
        return any(start in self.around.sites for start in near) or (
            self._in_module(address) and any(start in self.sites for start in near)
        )

    def _on_long_write(self, at: int, address: int, length: int) -> None:
        """A write of which only a hash is kept: not one of the protocol."""
        words = self.words[at]
        inside = [site for site in self.sites if address <= site < address + length]
        live = self._in_text(address) or (
            at >= self.module_live
            and any(address <= site < address + length for site in self.around.sites)
        )
        online = int(words[6])
        if online & (online - 1) == 0:
            self.result.not_judged[BEFORE_SMP] += 1
        elif live and not self._in_stop_machine(at):
            if words[1] != words[3]:
                text = f"{length} bytes of live text were written at once, without int3"
                self._blame("writes", text, at, inside[0] if inside else address)
        else:
            self.result.not_judged[NEW_TEXT] += 1
        for site in inside:
            del self.sites[site]
            self.open.pop(site, None)

    def _site_of(self, at: int, address: int, new: bytes) -> Site | None:
        """The open site that a write belongs to."""
        for start in range(address, address - LONGEST, -1):
            if site := self.open.get(start):
                break
        else:
            return None
        # A probe may begin where another one's jump has just been taken back.
        if new == b"\xcc" and (address > start + 1 or (address > start and self._by_kprobes(at))):
            return None
        return site

    def _begin(self, site: Site, number: int, at: int, before: bytes) -> None:
        """int3 is written where no poke is under way."""
        if not self.has_unlock:
            self._end_round(number, at)
        site.original = before[:LONGEST]
        site.memory = bytearray(b"\xcc" + before[1:LONGEST])
        site.begun = site.last = at
        site.tailed = False
        site.stages = [at]
        self.open[site.address] = site

    def _go_on(
        self, site: Site, number: int, at: int, address: int, new: bytes, before: bytes
    ) -> None:
        """A write to a site that has int3."""
        offset = address - site.address
        if offset == 0 and new == b"\xcc":
            self._finish_with_int3(site, at)
            return
        expected = bytes(site.memory[offset : offset + len(new)])
        seen = before[: len(expected)]
        if seen != expected:
            self._blame(
                "bytes", f"memory held {seen.hex()}, not {expected.hex()}", at, site.address
            )
        first = offset == 0 and new[0] != INT3
        changes = new[1:] != before[1 : len(new)] if offset == 0 else new != seen
        if changes and first:
            text = f"{new.hex()} was written over int3 at once"
            self._blame("writes", text, at, site.address)
        if (changes and not first and not site.tailed) or first:
            self._check_round(site, number, at, "the next write")
        site.memory[offset : offset + len(new)] = new
        del site.memory[LONGEST:]
        if changes or first:
            site.last = at
        if first or (changes and not site.tailed):
            site.stages += [at] * (1 if site.tailed or not first else 2)  # without a tail: 1, 3
        site.tailed |= bool(changes)
        if first:
            self._finish(site, at)

    def _finish(self, site: Site, at: int) -> None:
        """The first byte was written."""
        new = bytes(site.memory)
        begun = site.begun
        self._close(site, at, kprobe=bool(site.kprobe))
        if self.around.rcu_tasks and site.kprobe and site.tailed and new[0] == JUMP:
            tasks = self.tasks[(self.tasks > site.armed) & (self.tasks < begun)]
            if site.armed >= 0 and not len(tasks):
                text = "a kprobe became a jump, and nobody had called synchronize_rcu_tasks()"
                self._blame("sync", text, at, site.address, begun)
        if site.kprobe and new[0] != site.kprobe[0] and not site.tailed:
            self._blame_disarm(site, at, new)
        elif site.kprobe:
            self._check_restored(site, at)
        if not site.tailed or new[:5] == site.kprobe[:5]:
            site.kprobe = b""

    def _finish_with_int3(self, site: Site, at: int) -> None:
        """int3 was written as the first byte of the new instruction."""
        self._close(site, at, kprobe=True)
        if not site.kprobe:
            site.kprobe = site.original

    def _close(self, site: Site, at: int, *, kprobe: bool) -> None:
        """The last write of a poke was done."""
        del self.open[site.address]
        owner = self._owner(site.begun)
        stages = tuple(site.stages)
        probed = (site.kprobe or site.original) if kprobe and self._by_kprobes(site.begun) else b""
        poke = Finished(
            site.begun, site.original, bytes(site.memory), kprobe, owner, stages, probed
        )
        self.finished.setdefault(site.address, []).append(poke)
        self.result.judged[owner] += 1
        if site.original[0] in (CALLS, JUMP):
            effect = semantics.effect(site.address, site.original, 0)
            if effect and effect.ip is not None:
                self.left.setdefault(effect.ip, []).append(site.begun)
        if not kprobe and len(stages) == len("123"):
            self._check_state(site, stages)
        site.begun = -1
        self.ending.append((site, at))

    def _check_state(self, site: Site, stages: tuple[int, ...]) -> None:
        """The poke handler must look for the site before int3 is there, and until the last round is
        over: a CPU that met it may have been slow to get to the handler.

        Whether it does is known where the state is that it looks at: not if it never shows.
        """
        flags = self.patching
        first, last = np.searchsorted(self.syncs, (stages[0], stages[-1]))
        end = np.searchsorted(self.moments, stages[-1], side="right")
        if end == len(self.moments) or not np.any(flags[self.syncs[first:last]]):
            return
        if not flags[stages[0]]:
            text = "int3 was written before the handler was to look for it"
            self._blame("consumed", text, stages[0], site.address)
        synced: set[int] = set()
        for at in self.syncs[last : np.searchsorted(self.syncs, self.moments[end])].tolist():
            cpu = int(self.records["cpu"][at])
            if cpu not in synced and not flags[at]:
                text = f"the handler no longer looked for int3 when CPU {cpu} came to the last sync"
                self._blame("consumed", text, at, site.address, stages[-1])
                return
            synced.add(cpu)

    def _disarm(self, site: Site, number: int, at: int, new: bytes) -> None:
        """The first byte of a kprobe's site is written."""
        if not self.has_unlock:
            self._end_round(number, at)
        if new[0] != site.kprobe[0]:
            self._blame_disarm(site, at, new)
        site.memory[:1] = new
        self._check_restored(site, at)
        site.original, site.begun = bytes(site.memory), at
        self.open[site.address], site.stages = site, []
        self._close(site, at, kprobe=False)
        site.kprobe = b""

    def _check_restored(self, site: Site, at: int) -> None:
        """A kprobe is gone: it may have been a jump."""
        now, before = bytes(site.memory[:5]), site.kprobe[:5]
        if now[0] == before[0] != JUMP and now != before:
            text = f"a kprobe left {now.hex()} behind, not {before.hex()}"
            self._blame("writes", text, at, site.address)

    def _blame_disarm(self, site: Site, at: int, new: bytes) -> None:
        text = f"a kprobe's int3 became {new[:1].hex()}, not {site.kprobe[:1].hex()}"
        self._blame("writes", text, at, site.address)

    # -- the end of a poke

    def _on_unlock(self, number: int, at: int) -> None:
        for site in list(self.open.values()):
            self._left_with_int3(site, at)
        self._end_round(number, at)

    def _left_with_int3(self, site: Site, at: int) -> None:
        """text_mutex is released while a site has int3: a kprobe's, or a poke was not finished."""
        if site.kprobe:
            fine = not site.tailed or bytes(site.memory[1:5]) == site.kprobe[1:5]
        else:
            # The test module has int3 of its own, which it pokes into its own text.
            own = self._in_module(site.address) and site.address not in self.around.sites
            fine = not site.tailed and (own or self._by_kprobes(site.begun))
            fine |= not self._is_live(site.address, at) or not self._callers(site.begun)
        if not fine:
            left = bytes(site.memory).hex()
            text = f"the poke ended with int3 in place ({left})"
            self._blame("writes", text, at, site.address, site.begun)
        begun = site.begun
        self._close(site, site.last, kprobe=True)
        if not site.kprobe:
            site.kprobe, site.armed = site.original, begun

    def _end_round(self, number: int, at: int) -> None:
        """The last rounds of all pokes so far must be over."""
        if self.ending:
            self.result.batches[len(self.ending)] += 1
        for site, last in self.ending:
            if self.around.kprobe_syncs or not self._by_kprobes(last):
                self._check_round(site, number, at, "the release of text_mutex", last)
        self.ending.clear()

    # -- what must hold at a write

    def _check_round(
        self, site: Site, number: int, at: int, until: str, since: int | None = None
    ) -> None:
        """Every CPU that was online must have synced since the last write."""
        since = site.last if since is None else since
        self.result.rounds += 1
        online = int(self.words[since][6])
        online &= int(self.words[at][6 if self.kinds[at] == WRITE else 1])
        user, idle = self._elsewhere(since)
        missing, quiet, left_out = [], [], []
        synced = self.synced[number].tolist()
        serialised = self.serialised[number].tolist()
        inside = self.serialised_inside[number].tolist()
        for cpu in (cpu for cpu in range(online.bit_length()) if online >> cpu & 1):
            if cpu < self.cpus and synced[cpu] > since:
                for mode, cpus in ((M_USER, user), (M_IDLE, idle)):
                    self.interrupted[mode] += cpus >> cpu & 1
                if inside[cpu] < since:
                    quiet.append(cpu)
            elif cpu < self.cpus and serialised[cpu] > since:
                self.result.inline_syncs += 1  # in whatever function that was
            elif mode := self._mode_in(cpu, number, since, at):
                left_out.append((cpu, mode))
            else:
                missing.append(cpu)
        written = f"between the write of {self._written(since, site)} and {until}"
        for cpu, mode in left_out:
            text = f"{written} {cpu_names([cpu])} was {ELSEWHERE[mode]} and did not {self._to_sync}"
            self.left_out.append(LeftOut(cpu, mode, site, since, at, text))
        if missing:
            all_missing = len(missing) == online.bit_count()
            did = "ran do_sync_core" if self.around.syncs else "serialised"
            who = (
                f"no CPU {did}" if all_missing else f"{cpu_names(missing)} did not {self._to_sync}"
            )
            self._blame("sync", f"{written} {who}", at, site.address, since, missing)
        elif quiet:
            text = f"do_sync_core on {cpu_names(quiet)} executed no instruction that serialises"
            self._blame("sync", text, at, site.address, since, quiet)

    @property
    def _to_sync(self) -> str:
        return "run do_sync_core" if self.around.syncs else "serialise"

    # -- CPUs that a round may leave out

    def _elsewhere(self, at: int) -> tuple[int, int]:
        """The CPUs in user mode, and those that are idle, at a WRITE or UNLOCK."""
        if self.kinds[at] == UNLOCK:
            return int(self.words[at][2]), int(self.words[at][3])
        if self.kinds[at + 1 : at + 2].tolist() == [WRITER]:
            return int(self.words[at + 1][5]), int(self.words[at + 1][6])
        return 0, 0

    def _mode_in(self, cpu: int, number: int, since: int, at: int) -> int:
        """Where a CPU was between a write and moment `number`, which is record `at`.

        M_KERNEL if it was in the kernel all the time: then nothing excuses it. If it was in user
        mode and idle, it is idle, which it was later. A kernel that defers syncs takes a CPU for
        idle from a little before it sleeps until a little after, or although it does not sleep
        after all, so what it does next counts as well: sleep, or sync by itself.
        """
        found = {
            mode
            for moment in (since, at)
            for mode, cpus in zip((M_USER, M_IDLE), self._elsewhere(moment), strict=True)
            if cpus >> cpu & 1
        }
        change = int(self.changed_mode[number, cpu]) if cpu < self.cpus else -1
        if change > since:
            found.add(int(self.records["number"][change]) or self._mode_before(cpu, change))
        after = self._next(MODE, cpu, at)
        if after is not None and not self._next_before(SERIALISE, cpu, at, after):
            found.add(int(self.records["number"][after]))
        if not found and self._syncs_by_itself(cpu, at):
            found.add(M_IDLE)
        return max(found, default=M_KERNEL)

    def _syncs_by_itself(self, cpu: int, at: int) -> bool:
        """Whether the CPU syncs after record `at`, and not in do_sync_core() or another round."""
        after = self._by_cpu.get((SERIALISE, cpu), np.zeros(0, np.int64))
        after = after[np.searchsorted(after, at, side="right") :]
        flags = self.records["flags"][after[:4]]
        on_purpose = flags[(flags & S_ON_PURPOSE) != 0][:1]
        return bool(len(on_purpose)) and not on_purpose[0] & S_IN_SYNC

    def _mode_before(self, cpu: int, change: int) -> int:
        """Where a CPU came from that was in the kernel from record `change` on.

        Before the first record of a branch most are idle.
        """
        changes = self._by_cpu.get((MODE, cpu), np.zeros(0, np.int64))
        before = int(np.searchsorted(changes, change)) - 1
        return int(self.records["number"][changes[before]]) if before >= 0 else M_IDLE

    @cached_property
    def _by_cpu(self) -> dict[tuple[int, int], NDArray[np.int64]]:
        """Numbers of the records by kind and CPU, of the kinds that follow a CPU."""
        cpus = self.records["cpu"]
        return {
            (kind, cpu): np.flatnonzero((self.kinds == kind) & (cpus == cpu))
            for kind in (MODE, SERIALISE, PASS, TRAP)
            for cpu in range(self.cpus)
        }

    def _next(self, kind: int, cpu: int, after: int) -> int | None:
        """The next record of a kind by this CPU."""
        at = self._by_cpu.get((kind, cpu), np.zeros(0, np.int64))
        index = int(np.searchsorted(at, after, side="right"))
        return int(at[index]) if index < len(at) else None

    def _next_before(self, kind: int, cpu: int, after: int, before: int) -> bool:
        """Whether there is one between two others."""
        found = self._next(kind, cpu, after)
        return found is not None and found < before

    def _judge_left_out(self) -> None:
        """A kernel may leave a CPU out that executes none of its text, if that CPU serialises
        before it does.

        A kernel that does so often, in all logs of the run so far, does so by design. It interrupts
        some such CPUs as well: they sleep a little later than the kernel takes them for idle, or
        wake up by themselves.
        """
        seen, left = self.result.interrupted, self.result.left_out
        seen.update({ELSEWHERE[mode]: count for mode, count in self.interrupted.items()})
        left.update(ELSEWHERE[one.mode] for one in self.left_out)
        for one in self.left_out:
            where = ELSEWHERE[one.mode]
            if left[where] < DEFERS * (left[where] + seen[where]):
                why: str | None = one.text
            else:
                self.result.deferred[where] += 1
                why = self._not_made_up(one)
            if why:
                self._blame("sync", why, one.until, one.site.address, one.since, [one.cpu])

    def _not_made_up(self, one: LeftOut) -> str | None:
        """What a CPU that was left out did without having serialised; None if it did nothing."""
        place = self.result.log.place
        names = f"{cpu_names([one.cpu])}, which was {ELSEWHERE[one.mode]} at its last sync round,"
        for kind in (PASS, TRAP):
            at = self._by_cpu.get((kind, one.cpu), np.zeros(0, np.int64))
            at = at[at > one.until]
            at = at[self.words[at, 0] == one.site.address]
            if kind == PASS:  # the others are a sum, and not of that moment
                at = at[self.records["flags"][at] & F_FIRST != 0]
            at = at[:1]
            if len(at) and not self._next_before(SERIALISE, one.cpu, one.since, int(at[0])):
                return f"{names} executed the site [{place(int(at[0]))}] and had not serialised"
        modes = self._by_cpu.get((MODE, one.cpu), np.zeros(0, np.int64))
        modes = modes[modes > one.until]
        kinds = self.records["number"][modes].tolist()
        for number, (came, went) in enumerate(itertools.pairwise(kinds)):
            if came == M_KERNEL and went != M_KERNEL:
                if self._serialised_on_purpose(one.cpu, one.since, int(modes[number + 1])):
                    return None
                return (
                    f"{names} came back to the kernel [{place(int(modes[number]))}] and left "
                    f"it again [{place(int(modes[number + 1]))}], and had not serialised"
                )
        return None

    def _serialised_on_purpose(self, cpu: int, since: int, before: int) -> bool:
        at = self._by_cpu.get((SERIALISE, cpu), np.zeros(0, np.int64))
        at = at[(at > since) & (at < before)]
        return bool(np.any(self.records["flags"][at] & S_ON_PURPOSE))

    def _written(self, at: int, site: Site) -> str:
        words = self.words[at]
        data = words[1:3].tobytes()[: int(self.records[at]["number"])]
        offset = int(words[0]) - site.address
        return f"{data.hex()} at +{offset}"

    def _check_writer(self, at: int, site: int) -> None:
        """Interrupts and text_mutex, at a write of a poke."""
        if self.kinds[at + 1 : at + 2].tolist() != [WRITER]:
            return
        record, writer = self.records[at], self.words[at + 1]
        if not record["flags"] & F_IRQS and not self._in_stop_machine(at):
            self._blame("irqs", "text was written with interrupts disabled", at, site)
        if self.owner_at is None:
            return
        owner, current = int(writer[self.owner_at]) & ~7, int(writer[4])
        if not owner:
            self._blame("lock", "text was written while nobody held text_mutex", at, site)
        elif current and owner != current and not self._in_stop_machine(at):
            text = "text was written by a task that does not hold text_mutex"
            self._blame("lock", text, at, site)

    def _on_stopper(self, at: int) -> None:
        """A task stops the machine. Its argument tells whose stack it has."""
        data = int(self.words[at][0])
        pokes = [(site, site.last) for site in self.open.values()]
        if self.around.kprobe_syncs:  # before, a task may go on with something else
            pokes += self.ending
        for site, last in pokes:
            if abs(data - int(self.words[last][5])) < THREAD_SIZE:
                text = "stop_machine() ran for a poke"
                self._blame("stopper", text, at, site.address)
                return

    # -- what a key or static call is set to, and what its sites are

    def _judge_sites(self) -> None:
        checks: list[tuple[int, Callable[..., str | None]]] = [
            (BRANCH, self._wrong_branch),
            (CALL, self._wrong_call),
        ]
        if self.around.kprobe_syncs:  # since 5.5; the flags have been these since 4.6
            checks.append((TRACED, self._wrong_trace))
        elif traced := int(self.records["number"][self.kinds == TRACED].sum()):
            self.result.not_judged[TRACED_BEFORE] += traced
        for kind, wrong in checks:
            numbers = np.flatnonzero(self.kinds == kind)
            # A TRACED is of several functions that are alike, and says of how many.
            many = np.maximum(self.records["number"][numbers], 1)
            self.result.sites_looked_at += int(many.sum())
            rows, first = np.unique(self.words[numbers, :6], axis=0, return_index=True)
            for row, at in zip(rows.tolist(), numbers[first].tolist(), strict=True):
                if why := wrong(*row):
                    where = self.around.name(row[2]) or f"{row[2]:x}"
                    text = f"{why} (site {where})"
                    self.result.blame(RecordViolation("sites", text, at, row[2]))

    def _wrong_branch(
        self, key: int, count: int, site: int, target: int, flags: int, memory: int
    ) -> str | None:
        """What is wrong with a branch of a static key."""
        if flags & SITE_GONE:
            name = self.around.name(key) or f"{key:x}"
            return f"a key ({name}) has branches of a module that is gone"
        code = memory.to_bytes(8, "little")
        if flags & SITE_INIT or not (self._in_text(site) or site >= MODULES):
            return None
        effect, jumps = semantics.effect(site, code, 0), code[0] in (0xE9, 0xEB)
        name = self.around.name(key) or f"{key:x}"
        of = f"{code[:5].hex()} is left at a branch of a key ({name}) that is"
        if bool(count) != bool(flags & SITE_FLIPPED):
            if not jumps or effect is None or effect.ip != target:
                return f"{of} {'on' if count else 'off'}, where a jump to {target:x} is due"
        elif effect is None or jumps or effect.ip != site + semantics.length(code):
            return f"{of} {'on' if count else 'off'}, where a NOP is due"
        return None

    def _wrong_call(
        self, key: int, function: int, site: int, flags: int, memory: int, _: int
    ) -> str | None:
        """What is wrong with a call of a static call or a tracer, or with a trampoline."""
        if flags & SITE_GONE:
            name = self.around.name(key) or f"{key:x}"
            return f"a static call ({name}) has sites of a module that is gone"
        code = memory.to_bytes(8, "little")
        if flags & SITE_INIT or not (self._in_text(site) or site >= MODULES):
            return None
        effect = semantics.effect(site, code, 0)
        if effect is None and code[0] != INT3:
            return None  # what the function does, in place of a call of it (pv_ops since 7.x)
        ip = effect.ip if effect else 0
        if not function:
            if flags & SITE_TAIL:  # RET, or a jump to the thunk that returns
                fine = code[0] == 0xC3 or "return_thunk" in (self.around.name(ip or 0) or "")
            else:
                fine = ip == site + 5 and code[0] not in (0xE8, 0xE9)
            due = "nothing is to be called"
        else:
            name = self.around.name(function) or ""
            opcodes = (0xE9, 0x0F) if flags & SITE_TAIL else (0xE8,)
            # Some kernels call what is behind a function's ENDBR.
            fine = code[0] in opcodes and (ip in (function, function + 4) or code[0] == 0x0F)
            fine |= name.startswith("__static_call_return0") and code[:5] in semantics.RETURN_0
            # In place of a tracer that does not look after its recursion itself.
            fine |= (self.around.name(ip or 0) or "").startswith("ftrace_ops_assist_func")
            due = f"{name or f'{function:x}'} is to be called"
        return None if fine else f"{code[:5].hex()} is left at a call, where {due}"

    def _wrong_trace(
        self, called: int, what: int, site: int, flags: int, memory: int, on: int
    ) -> str | None:
        """What is wrong with the call at the beginning of a function that can be traced."""
        code = memory.to_bytes(8, "little")
        if flags & FL_DISABLED:  # of a module that is not ready, or no function after all
            return None
        users = flags & FL_COUNT if on else 0
        enabled = bool(flags & FL_ENABLED)
        if enabled != bool(users):
            state = "is traced" if enabled else "is not traced"
            return f"a function {state}, and it has {users or 'no'} tracers"
        left = f"{code[:5].hex()} is left at a function that is"
        if not enabled:
            effect = semantics.effect(site, code, 0)
            fine = effect == semantics.Effect(site + 5, 0) and code[0] != JUMP
            return None if fine else f"{left} not traced, where a NOP is due"
        direct = flags & FL_DIRECT if users == 1 else 0
        for wanted, done, whom in (
            (direct, FL_DIRECT_EN, "its direct call"),
            (flags & FL_TRAMP, FL_TRAMP_EN, "the trampoline of its only tracer"),
            (flags & FL_REGS, FL_REGS_EN, "ftrace_regs_caller"),
        ):
            if bool(wanted) != bool(flags & done):
                return f"a function {'still calls' if flags & done else 'does not call'} {whom}"
        if flags & FL_DIRECT_EN:
            fine, due = code[0] in (CALLS, JUMP), "its direct call"
        elif flags & FL_TRAMP_EN:
            fine, due = bool(what & CALLS_TRAMPOLINE), "the trampoline of a tracer"
        elif flags & FL_REGS_EN:
            fine, due = bool(what & CALLS_FTRACE_REGS), "ftrace_regs_caller"
        else:
            fine, due = bool(what & CALLS_FTRACE), "ftrace_caller"
        return None if fine else f"{left} traced, where a call of {due} is due"

    def _judge_mappings(self) -> None:
        mapped = self.records["flags"] & F_MAPPED != 0
        for at in np.flatnonzero(mapped & np.isin(self.kinds, (WRITE, UNLOCK))).tolist():
            text = "the mapping through which text is written was still there afterwards"
            before = self.writes[np.searchsorted(self.writes, at) - 1]
            self._blame("writes", text, at, int(self.words[before][0]), int(before))

    def _judge_flushes(self) -> None:
        """Where a kernel flushes the mapping through which it writes, it does so after each write,
        all of it: otherwise a later write may go to where an earlier one did."""
        flushes = np.flatnonzero(self.kinds == FLUSH)
        if not len(flushes):
            return
        ends = np.append(self.moments[self.kinds[self.moments] != STOPPER], len(self.kinds))
        for at in self.writes[self.records["flags"][self.writes] & F_EARLY == 0].tolist():
            end = int(ends[np.searchsorted(ends, at, side="right")])
            if end == len(self.kinds):
                return  # the log ends before it may be there
            first, last = np.searchsorted(flushes, (at, end))
            address, length = int(self.words[at][0]), int(self.records["number"][at])
            pages = ((address & (PAGE - 1)) + length - 1) // PAGE + 1
            ranges = self.words[flushes[first:last]].tolist()
            if not any(stop - start >= pages * PAGE for start, stop, *_ in ranges):
                much = "only a part of it was" if ranges else "it was not"
                text = f"the mapping through which text was written is to be flushed, and {much}"
                self._blame("writes", text, at, address)

    def _judge_guards(self) -> None:
        """Whoever switches keys and the like has the lock of what it switches."""
        for at in np.flatnonzero(self.kinds == UNGUARDED).tolist():
            function, caller = (
                (self.around.name(int(word)) or f"{int(word):x}").partition("+")[0]
                for word in self.words[at][:2]
            )
            lock = LOCKS[int(self.records["number"][at])]
            text = f"{function}() was called by {caller}(), which did not hold {lock}"
            self.result.blame(RecordViolation("lock", text, at, 0))

    def _judge_orders(self) -> None:
        """No two locks are taken in both orders, nor more of them in a circle."""
        orders = self.result.orders
        for at in np.flatnonzero(self.kinds == ORDER).tolist():
            held, wanted = int(self.records["number"][at]), int(self.words[at][0])
            where = self.around.name(int(self.words[at][1])) or f"{int(self.words[at][1]):x}"
            orders.setdefault((held, wanted), where)
            if path := _path(orders, wanted, held):
                others = ", ".join(
                    f"{LOCKS[b]} while {LOCKS[a]} was held by {orders[a, b]}"
                    for a, b in itertools.pairwise(path)
                )
                text = f"{LOCKS[wanted]} was taken while {LOCKS[held]} was held by {where}"
                self.result.blame(RecordViolation("lock", f"{text}, and {others}", at, 0))

    # -- text that nobody has written

    def _judge_code(self) -> None:
        changes = np.flatnonzero(self.kinds == CODE).tolist()
        if not self.around.only_writers:
            self.result.not_judged["changes of text by unknown functions"] += len(changes)
            return
        for at in changes:
            words, length = self.words[at], int(self.records[at]["number"])
            address = int(words[0])
            before, now = words[1:3].tobytes()[:length], words[3:5].tobytes()[:length]
            text = f"{before.hex()} became {now.hex()}, and no function that writes text did it"
            self._blame("bytes", text, at, address)

    # -- int3

    def _add_unfinished(self) -> None:
        """Pokes that are under way where the log ends, as it does when a kernel dies of one."""
        for site in self.open.values():
            kprobe = bool(site.kprobe) or self._by_kprobes(site.begun)
            owner, stages = self._owner(site.begun), tuple(site.stages)
            poke = Finished(site.begun, site.original, b"", kprobe, owner, stages)
            self.finished.setdefault(site.address, []).append(poke)

    def _judge_int3(self) -> None:
        """How each CPU went on that met int3 of a poke or kprobe."""
        records, result = self.records, self.result
        traps = np.flatnonzero(np.isin(self.kinds, (TRAP, RESUME)))
        sites = self.words[traps, 0]
        wanted = np.isin(sites, np.array(sorted(self.finished), np.uint64))
        result.not_judged[OTHER_INT3] += int(
            np.count_nonzero(~wanted & (self.kinds[traps] == TRAP))
        )
        traps = traps[wanted]
        order = np.lexsort((traps, self.words[traps, 0], records["cpu"][traps]))
        traps = traps[order]
        # A RESUME follows its TRAP, among those of one CPU and site.
        pair = np.flatnonzero(
            (self.kinds[traps[1:]] == RESUME)
            & (self.kinds[traps[:-1]] == TRAP)
            & (self.words[traps[1:], 0] == self.words[traps[:-1], 0])
            & (records["cpu"][traps[1:]] == records["cpu"][traps[:-1]])
        )
        trap, resume = traps[pair], traps[pair + 1]
        result.int3 += len(resume)
        if not len(resume):
            return
        words = self.words[resume]
        site, ip, sp, flags, word, old_sp, old_flags = (words[:, i] for i in range(7))
        which = np.zeros(len(resume), np.int64)
        phases = np.full((2, len(resume)), NO_PHASE, np.int64)
        by_site = np.argsort(site, kind="stable")
        for mine in np.split(by_site, np.flatnonzero(np.diff(site[by_site])) + 1):
            pokes = self.finished[int(site[mine[0]])]
            which[mine] = np.searchsorted([one.begun for one in pokes], trap[mine]) - 1
            phases[:, mine] = _phases(pokes, trap[mine], resume[mine])
        self._count_phases(records["cpu"][resume], phases)
        stack = (sp - old_sp).astype(np.int64)
        rows = np.stack(
            [
                site.astype(np.int64),
                which,
                ip.astype(np.int64),
                stack,
                np.where(stack < 0, word, 0).astype(np.int64),
                (ip == word).astype(np.int64),
                ((flags ^ old_flags) & ~np.uint64(RESUME_FLAG)).astype(np.int64),
                (records["flags"][resume] & (H_POKE | H_KPROBE)).astype(np.int64),
                (old_flags & np.uint64(semantics.CONDITIONS)).astype(np.int64),
            ],
            axis=1,
        )
        # Sorting whole rows takes ten times as long as sorting numbers that stand for them.
        stands_for = (rows.view(np.uint64) * ROW_FACTORS).sum(axis=1, dtype=np.uint64)
        _, first, count = np.unique(stands_for, return_index=True, return_counts=True)
        kinds_of = rows[first]
        mask = (1 << 64) - 1
        for row, where, many in zip(kinds_of.tolist(), first.tolist(), count.tolist(), strict=True):
            address, number, to = row[0] & mask, row[1], row[2] & mask
            if number < 0:
                result.not_judged[OTHER_INT3] += many
                continue
            why = self._wrong(self.finished[address][number], address, to, *row[3:])
            if why:
                cpu = int(records["cpu"][resume[where]])
                at = int(resume[where])
                self._blame("consumed", f"CPU {cpu} {why}", at, address, cpus=[cpu])

    def _judge_steps(self) -> None:
        """A CPU that met a kprobe's int3 executes the probed instruction: in a copy, which ends
        with another int3 where the kernel does not step by its debug trap. Then it goes on behind
        the original.
        """
        copies: dict[int, list[tuple[int, int]]] = {}
        if not self.around.kprobe_syncs:  # up to 4.14 jprobes send a CPU wherever they like
            return
        for at in np.flatnonzero(self.kinds == STEP).tolist():
            site, to = (int(word) for word in self.words[at][:2])
            pokes = [poke for poke in self.finished.get(site, ()) if poke.begun < at]
            probed = next((poke.probed for poke in reversed(pokes) if poke.probed), b"")
            name = self.around.name(to) or ""
            # Where a kprobe makes a function return an error, it sends the CPU there.
            if not probed or name.startswith("just_return_func"):
                continue
            code = self.words[at][2:4].tobytes()
            if disasm.executes(probed, site, code, to) is False:
                cpu = int(self.records["cpu"][at])
                there = f"{name or f'{to:x}'} ({disasm.disassemble(code, to)})"
                text = f"CPU {cpu} went on at {there}, which is no copy of the probed instruction"
                self._blame("consumed", text, at, site, cpus=[cpu])
            size = disasm.length(probed)
            copies.setdefault(to + size, []).append((at, site + size))
        for end, steps in copies.items():
            resumes = np.flatnonzero((self.kinds == RESUME) & (self.words[:, 0] == end))
            which = np.searchsorted([at for at, _ in steps], resumes) - 1
            due = np.array([after for _, after in steps], np.uint64)[np.maximum(which, 0)]
            judged = int(np.count_nonzero(which >= 0))
            self.result.int3 += judged
            self.result.not_judged[OTHER_INT3] -= judged
            wrong = (which >= 0) & (self.words[resumes, 1] != due)
            for at, after in zip(resumes[wrong][:1].tolist(), due[wrong].tolist(), strict=False):
                cpu = int(self.records["cpu"][at])
                text = f"CPU {cpu} went on at {int(self.words[at][1]):x} after a kprobe's step"
                self._blame("consumed", f"{text}, not at {after:x}", at, after, cpus=[cpu])

    def _judge_freed(self) -> None:
        """A task may be preempted in a slot of kprobes or a trampoline of ftrace. So who takes the
        last jump to it away waits for all tasks before it is freed.
        """
        for at in np.flatnonzero(self.kinds == FREED).tolist():
            address, is_trampoline = int(self.words[at][0]), bool(self.records["number"][at])
            last = max((left for left in self.left.get(address, ()) if left < at), default=-1)
            if last < 0 or not self.around.rcu_tasks:
                continue
            # When a kprobe is disabled it loses its jump at once, and nobody waits for tasks.
            if not is_trampoline and not any("kprobe_optimizer" in n for n in self._names(at + 1)):
                continue
            if is_trampoline and not self.around.preemption:
                continue
            if not np.any((self.tasks > last) & (self.tasks < at)):
                what = "the trampoline of a tracer" if is_trampoline else "a slot of kprobes"
                since = f"since it had last been {'called' if is_trampoline else 'jumped to'}"
                text = f"{what} was freed, and nobody had called synchronize_rcu_tasks() {since}"
                self._blame("sync", text, at, address, last)

    def _judge_dying(self) -> None:
        """A CPU that met the int3 of a poke or kprobe goes on: its kernel does not die of it."""
        traps = np.flatnonzero(self.kinds == TRAP)
        judged = set()
        for at in np.flatnonzero(self.kinds == DIES).tolist():
            address, cpu = int(self.words[at][0]), int(self.records["cpu"][at])
            mine = (self.words[traps, 0] == address) & (self.records["cpu"][traps] == cpu)
            trap = max(traps[mine & (traps < at)].tolist(), default=-1)
            known = any(poke.begun < trap for poke in self.finished.get(address, ()))
            if known and trap not in judged:
                judged.add(trap)
                text = f"CPU {cpu} met int3, no handler took it, and the kernel died"
                self._blame("consumed", text, at, address, trap, [cpu])

    def _count_phases(self, cpus: NDArray[np.uint8], phases: NDArray[np.int64]) -> None:
        """In which phases int3 was executed, and its CPU went on, of all that were met."""
        known = phases[0] != NO_PHASE
        met, handled = phases[:, known]
        counts = np.bincount(cpus[known].astype(np.int64) << 4 | met << 2 | handled)
        for number in np.flatnonzero(counts).tolist():
            key = number >> 4, number >> 2 & 3, number & 3
            self.result.met[key] += int(counts[number])

    def _wrong(
        self,
        poke: Finished,
        address: int,
        to: int,
        stack: int,
        pushed: int,
        returns: int,
        changed: int,
        handlers: int,
        conditions: int,
    ) -> str | None:
        """What is wrong with how a CPU went on after an int3."""
        if handlers & H_KPROBE and poke.kprobe:
            size = disasm.length(poke.probed or poke.old)
            if address < to < address + size:
                return f"went on inside the probed instruction, at +{to - address} of {size} bytes"
            # What has moved the stack was emulated.
            if to == address + size and not stack and disasm.needs_execution(poke.probed):
                return "went on behind the probed instruction, which nobody had executed"
            return None
        if stack not in (-8, 0, 8):
            return f"went on with rsp {stack:+d}, which no instruction that is poked does"
        if to in self.around.sites.get(address, ()):
            return None
        if changed:
            return f"went on with other flags (they differ in {changed:#x})"
        name = (self.around.name(to) or "").partition("+0x0")[0]
        unknown = False
        for code in (poke.old, poke.new):
            effect = semantics.effect(address, code, conditions)
            if code[:5] in semantics.RETURN_0:  # as a call, for no handler clears rax
                if name == "__static_call_return0":
                    effect = semantics.Effect(to, -8, address + 5)
                else:
                    continue
            elif code[:1] == b"\xc3" and name == "__static_call_return" and not stack:
                return None  # to a function that does nothing but return, as 6.1-int3 does it
            unknown |= effect is None
            if effect is None or effect.stack != stack:
                continue
            if effect.ip is None and returns:
                return None
            if effect.ip == to and (
                effect.pushed is None or effect.pushed == pushed & (1 << 64) - 1
            ):
                return None
        if to == address:
            return "met int3, and no handler took it"
        if not poke.new:
            moved = stack and poke.owner == "jump labels"
            return f"went on with rsp {stack:+d}, and branches leave it alone" if moved else None
        # Where the test sends CPUs by pokes of its own, only the test knows.
        own = poke.owner in (TEST_MODULE, OTHERS) and self._in_module(address)
        if unknown or (own and address not in self.around.sites):
            return None
        return (
            f"went on at {to:x} (rsp {stack:+d}), which neither {poke.old[:5].hex()} "
            f"nor {poke.new[:5].hex()} does"
        )

    # -- names

    def _callers(self, at: int) -> list[str]:
        """The functions that may have called the write, innermost first."""
        return self._names(at + 2)

    def _names(self, at: int) -> list[str]:
        """The functions in the CALLERS at record `at`."""
        names = []
        for record in self.records[at : at + 2]:
            if record["kind"] != CALLERS:
                break
            for word in record["word"][: record["number"]].tolist():
                if name := self.around.name(word):
                    names.append(name.partition("+")[0])
        return names

    def _in_text(self, address: int) -> bool:
        begin, end = self.around.text
        return begin <= address < end

    def _in_module(self, address: int) -> bool:
        begin, end = self.around.module
        return begin <= address < end

    def _in_stop_machine(self, at: int) -> bool:
        return any(name in STOPPERS for name in self._callers(at))

    def _by_kprobes(self, at: int) -> bool:
        return any("kprobe" in name for name in self._callers(at)[:4])

    def _owner(self, at: int) -> str:
        """Whose write it is."""
        for record in self.records[at + 2 : at + 4]:
            if record["kind"] != CALLERS:
                break
            for word in record["word"][: record["number"]].tolist():
                name = (self.around.name(word) or "").partition("+")[0]
                for part, owner in OWNERS:
                    if part in name:
                        return owner
                if self._in_module(word):
                    return TEST_MODULE
        return OTHERS

    def _blame(
        self,
        claim: str,
        text: str,
        at: int,
        site: int,
        since: int | None = None,
        cpus: Sequence[int] = (),
    ) -> None:
        """since: the WRITE whose caller is to be named, if it is not record `at`."""
        where = self.around.name(site) or f"{site:x}"
        write = at if since is None else since
        names = self._callers(write) if self.kinds[write] == WRITE else []
        callers = [name for name in names if "text_poke" not in name]
        by = f", by {callers[0]}" if callers else ""
        text = f"{text} (site {where}{by})"
        self.result.blame(RecordViolation(claim, text, at, site, since, tuple(cpus)))


def _phases(
    pokes: Sequence[Finished], trap: NDArray[np.int64], resume: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The phases of the pokes of one site in which int3 was executed, and its CPU went on."""
    writes = [(at, phase) for one in pokes for phase, at in enumerate(one.stages, 1)]
    if not writes:
        return np.full((2, len(trap)), NO_PHASE, np.int64)
    numbers, phases = np.array([at for at, _ in writes]), np.array([0, *(p for _, p in writes)])
    return phases[np.searchsorted(numbers, np.stack([trap, resume]))]


def _path(orders: Iterable[tuple[int, int]], start: int, end: int) -> list[int]:
    """Locks of which each was held while the next one was taken; empty if there is no such way."""
    ways = [[start]]
    seen = {start}
    for way in ways:
        for held, wanted in list(orders):
            if held == way[-1] and wanted == end:
                return [*way, end]
            if held == way[-1] and wanted not in seen:
                seen.add(wanted)
                ways.append([*way, wanted])
    return []


# -- GDB's events and the log


def disagreements(records: Records, events: Iterable[Event], log: Log | None = None) -> list[str]:
    """Where the log and what GDB saw of the same time differ: in the writes, and the syncs between.

    log: as for judge().
    events: those of a whole window (orchestrator/watch/agent.py), in which GDB stops at each write
    and each sync. The log is of the whole run, so first the writes of the window are looked for.
    """
    theirs: list[_Write] = []
    syncs: list[Counter[int]] = []
    for event in events:
        if event["kind"] in ("write", "piece"):
            address, length, data = event.get(
                "written", (event["addr"], event["len"], event["src"])
            )
            theirs.append((address, length, data))
            syncs.append(Counter())
        elif event["kind"] == "sync" and syncs:
            syncs[-1][event["cpu"]] += 1
    if not theirs:
        return []
    numbers = np.flatnonzero((records["kind"] == WRITE) & (records["flags"] & F_EARLY == 0))
    ours = [_written(records[number]) for number in numbers.tolist()]
    size = len(theirs)
    places = [
        at
        for at in range(len(ours) - size + 1)
        if ours[at] == theirs[0] and ours[at : at + size] == theirs
    ]
    if not places:
        return [f"the {size} writes that GDB saw are not in the recorder's log in this order"]
    found = (_other_syncs(records, numbers[at : at + size], syncs, log or Log()) for at in places)
    return min(found, key=len)


_Write = tuple[int, int, str]
"""Address, length, and the bytes in hexadecimal if they are few."""


def _written(record: np.void) -> _Write:
    address, length = int(record["word"][0]), int(record["number"])
    data = record["word"][1:3].tobytes()[:length].hex() if length <= INLINE else ""
    return address, length, data


def _other_syncs(
    records: Records, writes: NDArray[np.int64], theirs: Sequence[Counter[int]], log: Log
) -> list[str]:
    """Between which writes GDB saw other syncs than the log has."""
    differ = []
    for number, (start, end) in enumerate(itertools.pairwise(writes.tolist())):
        part = records[start:end]
        ours = Counter(part["cpu"][part["kind"] == SYNC].tolist())
        if ours != theirs[number]:
            differ.append(
                f"between two writes GDB saw {theirs[number].total()} syncs, the recorder "
                f"{ours.total()} [{log.place(start)}]"
            )
    return differ
