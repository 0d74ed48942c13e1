# SPDX-License-Identifier: GPL-2.0-only
"""What is judged, and what came of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from orchestrator.text.keys import SiteCpu
from orchestrator.text.semantics import INT3

KEPT = 50
"""Violations of one claim that are kept with their text; the others are counted."""


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
    waits_for_each_cpu: bool = False
    """Whether the kernel can wait for each CPU, also one that is idle in a trampoline."""
    counts_handlers: bool = False
    """Whether a poke also waits for the handlers that look at it, of which it has a count: since
    5.10."""
    self_test: Mapping[int, bytes] = field(default_factory=dict)
    """int3 with which the kernel tests its handler, and the instructions that it is to emulate."""


@dataclass(frozen=True)
class LogName:
    """Which log it is."""

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
    log: LogName = LogName()
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
class Judgement:
    """What the log shows."""

    log: LogName = LogName()
    """The one that is judged."""
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
    went_back: Counter[SiteCpu] = field(default_factory=Counter)
    """int3 after which a CPU executed the site again, since the int3 was gone by then."""
    batches: Counter[int] = field(default_factory=Counter)
    """How many times so many sites were poked before text_mutex was released."""
    while_offline: int = 0
    """Writes while a CPU was offline that had been online, or came to be."""
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

    def blame(self, violation: RecordViolation) -> None:
        self.broken[violation.claim] += 1
        if self.broken[violation.claim] <= KEPT:
            self.violations.append(replace(violation, log=self.log))
