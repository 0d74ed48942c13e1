# SPDX-License-Identifier: GPL-2.0-only
"""The phase model: one automaton over what was observed of a poke, for every scenario and kernel.

A poke changes a site from `old` to `new` bytes. Judged by what memory holds, it goes through the
phases

    0  old                       1  cc + old tail
    2  cc + new tail             3  new

and each write leads to the next phase. A site of one byte has no tail and goes 0, 1, 3. After each
write every CPU must have run do_sync_core before the next write begins or the poke returns: a
*sync round*. This holds for the protocol of 2013 (v3 of "x86: introduce int3-based instruction
patching") and for the batched one of 5.4 and later alike (arch/x86/kernel/alternative.c,
text_poke_bp_batch(); smp_text_poke_batch_finish() since 6.16).

    window ─> write cc ─> sync × each CPU ─> write tail ─> sync × each CPU
                       ─> write first byte ─> sync × each CPU ─> end

    between write cc and the first-byte write: int3 at the site, which the poke handler
    consumes and resumes at the target

Anything out of this order is a violation and names the claim that it breaks. A gap in the
observation is not a violation: orchestrator/verdict/checks.py decides whether enough was seen for
a pass.

A batch pokes many sites in the same phases at once, and the sites share its sync rounds. So each
site has an automaton of its own, and a sync counts for all of them. Most pokes are announced by
the test module, with their old and new bytes. The kernel's own pokes are recognised by their
writes: int3 somewhere, then a tail behind it. The writes then tell what the site becomes. A lone
int3 belongs to a kprobe and is not judged.

A `hold` marks the moment at which the kernel is about to do the next write of its own accord. The
`write` follows once every CPU has been let through the site. A round must therefore be over at the
hold: by the time of the write, even a round that nobody waited for has come to its end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.text.keys import PhaseCpu, SiteCpu

INT3 = b"\xcc"

Event = Mapping[str, Any]
"""One line of the agent's events; orchestrator/watch/agent.py documents its fields."""

CLAIMS = {
    "writes": "text is written in the order of the protocol: int3, tail, first byte",
    "bytes": "whenever the site is read it holds the bytes of its phase",
    "sync": "after each write every CPU syncs before the next write or the end",
    "int3": "CPUs trap on the site only while int3 is in place",
    "consumed": "the poke handler consumes every int3 of the site and resumes at the poke's target",
    "irqs": "text is written with interrupts enabled",
    "lock": "text is written under text_mutex",
    "stopper": "no poke uses stop_machine()",
}

NAMED = (*CLAIMS, "sites")
"""Checks whose name says what is wrong: the claims, and the one that only the recorder can make."""

INSTRUCTION = 8
"""A write less than this many bytes behind an int3 may belong to the same poke. No instruction that
the kernel pokes is longer."""


def cpu_names(cpus: Collection[int]) -> str:
    """`CPU 1`, or `CPUs 1, 2` for several."""
    return f"CPU{'s' if len(cpus) > 1 else ''} {', '.join(map(str, sorted(cpus)))}"


@dataclass(frozen=True)
class Violation:
    """One departure from the protocol."""

    claim: str
    """The broken claim, a key of CLAIMS."""
    text: str
    """One sentence."""
    event: int
    """Number of the event that showed it."""
    time: float
    """Time of that event, in seconds since the epoch."""
    phase: int
    """Phase of the poke at that moment, by the writes seen so far."""
    cpu: int
    """CPU of that event, -1 for none."""
    actual: bytes | None = None
    """Bytes that the site held, where these are wrong."""
    expected: bytes | None = None
    """Bytes that the site should have held, where these are wrong."""
    cpus: tuple[int, ...] = ()
    """The CPUs that did not sync, where these are missing."""


@dataclass
class Poke:
    """One poke as it was observed, and the automaton that judges it."""

    site: int
    """Address of the patched instruction."""
    old: bytes
    new: bytes
    seq: int
    """Number of the poke in the test module, 0 for a poke of the kernel's own."""
    cpus: frozenset[int]
    """CPUs that must take part in each sync round."""
    targets: frozenset[int]
    """Addresses at which a CPU that trapped may resume; empty when they are not known."""
    held_phases: set[int] = field(default_factory=set)
    """Phases in which the poker was held."""
    read_phases: set[int] = field(default_factory=set)
    """Phases in which the site's bytes were read."""
    hits: Counter[PhaseCpu] = field(default_factory=Counter)
    """int3 at the site."""
    late_hits: Counter[int] = field(default_factory=Counter)
    """int3 that reached the handler after the last write, by CPU."""
    returns: Counter[int] = field(default_factory=Counter)
    """Returns of the int3 handler, by CPU."""
    rounds: dict[int, set[int]] = field(default_factory=dict)
    """CPUs seen in each sync round, by the phase that it belongs to."""
    violations: list[Violation] = field(default_factory=list)
    complete: bool = False
    """Whether the end of the poke was seen."""
    announced: bool = True
    """Whether the test module announced the poke."""
    _written: int = 0
    _round_judged: bool = False
    _round_closed: bool = False
    _in_pieces: bool = False
    """Whether a part of the tail is written, so that the site holds a mixture behind int3."""

    # -- the protocol, as data

    @property
    def planned_writes(self) -> list[tuple[int, bytes]]:
        """The writes in order: offset from the site, bytes."""
        if len(self.new) == 1:
            return [(0, INT3), (0, self.new)]
        return [(0, INT3), (1, self.new[1:]), (0, self.new[:1])]

    @property
    def phases(self) -> list[int]:
        """The phase after 0, 1, 2 ... writes."""
        return [0, 1, 3] if len(self.new) == 1 else [0, 1, 2, 3]

    @property
    def trap_phases(self) -> list[int]:
        """The phases in which int3 is in place."""
        return self.phases[1:-1]

    @property
    def phase(self) -> int:
        """The current phase, by the writes seen so far."""
        return self.phases[min(self._written, len(self.planned_writes))]

    @property
    def written(self) -> int:
        """Number of writes to the site seen so far."""
        return self._written

    def traps(self) -> Counter[int]:
        """int3 at the site in any phase, by CPU."""
        traps = Counter(self.late_hits)
        for (_, cpu), count in self.hits.items():
            traps[cpu] += count
        return traps

    def bytes_in(self, phase: int) -> bytes:
        """The bytes that the site must hold in `phase`."""
        return [self.old, INT3 + self.old[1:], INT3 + self.new[1:], self.new][phase]

    # -- the automaton

    def feed(self, event: Event) -> None:
        """Take the next event."""
        kind = event["kind"]
        if handler := getattr(self, f"_on_{kind}", None):
            handler(event)

    def _blame(
        self,
        claim: str,
        event: Event,
        text: str,
        actual: bytes | None = None,
        expected: bytes | None = None,
        cpus: Collection[int] = (),
    ) -> None:
        which = f"poke {self.seq}" if self.announced else "a poke of the kernel's own"
        self.violations.append(
            Violation(
                claim=claim,
                text=f"{text} (site {self.site:x}, {which})",
                event=event["n"],
                time=event["t"],
                phase=self.phase,
                cpu=event["cpu"],
                actual=actual,
                expected=expected,
                cpus=tuple(sorted(cpus)),
            )
        )

    def _check_bytes(self, event: Event) -> None:
        if "bytes" not in event or self._in_pieces:
            return
        actual, expected = event["bytes"], self.bytes_in(self.phase).hex()
        self.read_phases.add(self.phase)
        if actual != expected:
            where = (
                "at the end"
                if event["kind"] == "end"
                else f"at a {event['kind']} on CPU {event['cpu']}"
            )
            text = f"{where} in phase {self.phase} the site held {actual} instead of {expected}"
            self._blame("bytes", event, text, bytes.fromhex(actual), bytes.fromhex(expected))

    def _check_round(self, event: Event, before: str) -> None:
        """The sync round after the last write must be over by now, that is, before `before`."""
        if not self._written or self._round_judged:
            return
        self._round_judged = True
        # Those are judged by the recorder's log, which shows what they did next.
        elsewhere = event.get("elsewhere", ())
        missing = self.cpus - self.rounds.get(self.phase, set()) - set(elsewhere)
        if missing:
            write = ("int3 write", "tail write", "first-byte write")[self.phase - 1]
            who = (
                "no CPU ran"
                if len(missing) == len(self.cpus)
                else f"{cpu_names(missing)} did not run"
            )
            text = f"between the {write} and {before} {who} do_sync_core"
            self._blame("sync", event, text, cpus=missing)

    def _on_hold(self, event: Event) -> None:
        self._check_bytes(event)
        self._check_round(event, "the next write")
        self.held_phases.add(self.phase)

    def _on_piece(self, event: Event) -> None:
        """A part of the tail, which is judged when the tail is complete."""
        if event.get("unchanged"):
            return  # the parts before it happened to make up the whole tail
        if not self._in_pieces:
            self._check_bytes(event)
            self._check_round(event, "the next write")
        self._in_pieces = True

    def _on_write(self, event: Event) -> None:
        if not event["own"]:
            # Another poke has begun, so this one has released text_mutex, and from here on the
            # syncs belong to the other one.
            self._round_closed |= self._written >= len(self.planned_writes)
            return
        self._check_bytes(event)
        self._in_pieces = False
        offset, data = event["addr"] - self.site, bytes.fromhex(event["src"])
        number = self._written + 1
        if self._written < len(self.planned_writes):
            expected = self.planned_writes[self._written]
            self._check_round(event, "the next write")
            if (offset, data) != expected:
                self._blame(
                    "writes",
                    event,
                    f"write {number} puts {data.hex() or 'nothing'} at +{offset} "
                    f"instead of {expected[1].hex()} at +{expected[0]}",
                )
        else:
            self._blame(
                "writes", event, f"{data.hex()} is written at +{offset} after the last write"
            )
        if not event["irqs"]:
            self._blame("irqs", event, f"write {number} runs with interrupts disabled")
        if event.get("owner") == 0:
            self._blame("lock", event, f"write {number} runs while nobody holds text_mutex")
        self._written += 1
        self._round_judged = False
        self.rounds.setdefault(self.phase, set())

    def _on_sync(self, event: Event) -> None:
        self._check_bytes(event)
        if self._written and not self._round_closed:
            self.rounds[self.phase].add(event["cpu"])

    def _phase_of_trap(self, event: Event) -> int:
        """The phase in which a CPU trapped.

        This is the previous phase as long as the write that ends it is still under way.
        """
        if self._written > 1 and not self.rounds[self.phase]:
            previous = self.phases[min(self._written, len(self.planned_writes)) - 1]
            if event.get("bytes") == self.bytes_in(previous).hex():
                return previous
        return self.phase

    def _on_int3(self, event: Event) -> None:
        cpu = event["cpu"]
        if event["ip"] != self.site:
            offset = event["ip"] - self.site
            self._blame("int3", event, f"CPU {cpu} trapped inside the instruction, at +{offset}")
            return
        phase = self._phase_of_trap(event)
        if phase == self.phase:
            self._check_bytes(event)
        if phase in self.trap_phases:
            self.hits[PhaseCpu(phase, cpu)] += 1
        elif self.phase == 0:
            self._blame("int3", event, f"CPU {cpu} trapped before int3 was written")
        else:  # legal: it trapped in time and reached the handler after the last write
            self.late_hits[cpu] += 1

    def _on_return(self, event: Event) -> None:
        if event["trap"] != self.site:
            return
        self.returns[event["cpu"]] += 1
        self._judge_return(event)

    def _judge_return(self, event: Event) -> None:
        cpu = event["cpu"]
        if not event["value"]:
            self._blame("consumed", event, f"the handler did not consume the int3 of CPU {cpu}")
        elif self.targets and event["ip"] not in self.targets:
            expected = " or ".join(f"{target:x}" for target in sorted(self.targets))
            self._blame(
                "consumed", event, f"CPU {cpu} resumed at {event['ip']:x} instead of {expected}"
            )

    def _on_stopper(self, event: Event) -> None:
        if event["own"]:
            self._blame("stopper", event, f"CPU {event['cpu']} ran stop_machine() for the poke")

    def _on_end(self, event: Event) -> None:
        self.complete = True
        planned = len(self.planned_writes)
        if self._written < planned:
            self._blame(
                "writes", event, f"the poke ended after {self._written} of {planned} writes"
            )
        else:
            self._check_round(event, "the end")
        self._check_bytes(event)


@dataclass
class UnannouncedPoke(Poke):
    """A poke of the kernel's own, which begins with an int3 write and becomes certain with a tail.

    `old` starts as the eight bytes before the int3 write and shrinks once the tail tells the length
    of the instruction; `new` is what the writes so far have made of it. The outcome of each int3 is
    judged at the last write, which shows what the instruction becomes. Until then it may still be
    an optimised kprobe whose jump is taken back: that leaves int3 in place, for the kprobe.
    """

    announced: bool = False
    first_write: Event = field(default_factory=dict)
    """The int3 write."""
    has_tail: bool = False
    """Whether a tail was written, so that this is a poke for certain."""
    early_int3: list[Event] = field(default_factory=list)
    """int3 before the tail, which could still be a kprobe's."""
    _returned: list[Event] = field(default_factory=list)
    _end: int = 1
    """Where the instruction ends, by its tail so far."""

    def __post_init__(self) -> None:
        self._before, self._after = self.old, bytearray(self.old)

    def continues(self, event: Event) -> bool:
        """Whether this write continues the poke: a tail, or the last write after it."""
        offset, data = event["addr"] - self.site, bytes.fromhex(event["src"])
        if data[:1] == INT3 or self._written > 2:
            return False
        if offset == 0:
            return self.has_tail
        return bool(data) and offset + len(data) <= INSTRUCTION

    def _on_write(self, event: Event) -> None:
        offset, data = event["addr"] - self.site, bytes.fromhex(event["src"])
        before = bytes.fromhex(event["before"])
        if offset:
            self._end = max(self._end, offset + len(data))
            self._after[offset : offset + len(data)] = data
            self.old = self._before[: self._end]
            self.new = self.old[:1] + bytes(self._after[1 : self._end])
            if self.has_tail:
                return  # another piece of it
            self.has_tail = True
            event = {**event, "addr": self.site + 1, "src": self.new[1:].hex()}
            before = bytes([*INT3, *self._before[1:offset], *before])  # the event has the rest
        elif self._written == 2:
            self.new = data[:1] + self.new[1:]
            self.targets = frozenset(resume_targets(self.site, self.new))
            for earlier in self._returned:
                self._judge_return(earlier)
        super()._on_write({**event, "own": True, "bytes": before[: len(self.new)].hex()})

    def _on_return(self, event: Event) -> None:
        if self.returns[event["cpu"]] == self.traps()[event["cpu"]]:
            return  # its int3 trapped before this poke began
        self.returns[event["cpu"]] += 1
        if self._written < 3:
            self._returned.append(event)
        else:
            self._judge_return(event)

    def end_by_next_poke(self, event: Event) -> None:
        """Another poke begins, so this one has released text_mutex: its last round must be over."""
        if self._written == len(self.planned_writes):
            self._check_round(event, "the next poke")
            self._round_closed = True

    def _on_hold(self, event: Event) -> None:
        """A hold belongs to the announced poke."""

    def _on_end(self, event: Event) -> None:
        """An end belongs to the announced poke."""


def resume_targets(address: int, code: bytes) -> set[int]:
    """Where a CPU may resume after int3 at `address`, whose instruction becomes `code`.

    These are the next instruction and the target of a branch. Empty where the bytes alone do not
    tell (a return).
    """
    end = address + len(code)
    if code[:1] in (b"\xe9", b"\xe8") and len(code) == 5:
        return {end, end + int.from_bytes(code[1:], "little", signed=True)}
    if code[:1] == b"\xeb" and len(code) == 2:
        return {end, end + int.from_bytes(code[1:], "little", signed=True)}
    if code[:1] == b"\x0f" and code[1:2] >= b"\x80" and code[1:2] <= b"\x8f" and len(code) == 6:
        return {end, end + int.from_bytes(code[2:], "little", signed=True)}
    if code[:1] in (b"\x0f", b"\x66", b"\x90"):
        return {end}
    return set()


@dataclass
class WatchedStep:
    """What the agent in GDB saw of one step."""

    announced: list[Poke] = field(default_factory=list)
    """Pokes that the test module announced."""
    unannounced: list[UnannouncedPoke] = field(default_factory=list)
    """Pokes of the kernel's own, with a tail."""
    foreign_writes: list[Event] = field(default_factory=list)
    """Writes that belong to no poke: a kprobe's lone int3, the text of a module."""
    foreign_int3: list[Event] = field(default_factory=list)
    """int3 at no site of a poke under way."""
    cpu_snapshots: list[Event] = field(default_factory=list)
    """Events of the kind `cpus`: where each CPU was when a violation was seen."""
    int3: Counter[SiteCpu] = field(default_factory=Counter)
    """All int3, foreign ones included."""
    has_lock_owners: bool = False
    """Whether the events tell who held text_mutex."""

    @property
    def all_pokes(self) -> list[Poke]:
        return [*self.announced, *self.unannounced]


class Follower:
    """Runs the automata over the events of one step."""

    def __init__(self, cpus: Iterable[int]) -> None:
        self.watched = WatchedStep()
        self._cpus = frozenset(cpus)
        self._poke: Poke | None = None
        self._unannounced: dict[int, UnannouncedPoke] = {}  # by site, those that may continue

    def feed(self, event: Event) -> None:
        """Take the next event."""
        kind = event["kind"]
        self.watched.has_lock_owners |= "owner" in event
        if kind == "cpus":
            self.watched.cpu_snapshots.append(event)
        elif kind == "window":
            self._poke = Poke(
                site=event["site"],
                old=bytes.fromhex(event["from"]),
                new=bytes.fromhex(event["to"]),
                seq=event["seq"],
                cpus=self._cpus,
                targets=frozenset(event["targets"]),
            )
            self.watched.announced.append(self._poke)
        elif kind == "write" and not event["own"]:
            self._feed_foreign_write(event)
        elif kind == "write":
            self._end_earlier_pokes(event)
            if self._poke:
                self._poke.feed(event)
        elif kind in ("int3", "return"):
            self._feed_trap(event)
        else:
            if self._poke:
                self._poke.feed(event)
            for poke in self._unannounced.values():
                poke.feed(_without_bytes(event))
            if kind == "end":
                self._poke = None

    def _end_earlier_pokes(self, event: Event) -> None:
        """An int3 write begins a poke, or a batch in which no other site is further.

        Either way the pokes before it are over.
        """
        if bytes.fromhex(event["src"]) == INT3:
            for poke in self._unannounced.values():
                if poke.has_tail:
                    poke.end_by_next_poke(event)

    def _feed_foreign_write(self, event: Event) -> None:
        self._end_earlier_pokes(event)
        if self._poke:
            self._poke.feed(event)
        for site in range(event["addr"], event["addr"] - INSTRUCTION, -1):
            if (poke := self._unannounced.get(site)) and poke.continues(event):
                if not poke.has_tail:
                    self.watched.unannounced.append(poke)
                    self.watched.foreign_writes.remove(poke.first_write)
                    for early in poke.early_int3:
                        self.watched.foreign_int3.remove(early)
                poke.feed(event)
                return
        if bytes.fromhex(event["src"]) == INT3:
            poke = UnannouncedPoke(
                site=event["addr"],
                old=bytes.fromhex(event["before"]),
                new=bytes.fromhex(event["before"]),
                seq=0,
                cpus=self._cpus,
                targets=frozenset(),
                first_write=event,
            )
            self._unannounced[event["addr"]] = poke
            poke.feed(event)
        else:
            self._unannounced.pop(event["addr"], None)  # a kprobe is removed
        self.watched.foreign_writes.append(event)

    def _feed_trap(self, event: Event) -> None:
        ip = event["ip"] if event["kind"] == "int3" else event["trap"]
        if event["kind"] == "int3":
            self.watched.int3[SiteCpu(ip, event["cpu"])] += 1
        if self._poke and 0 <= ip - self._poke.site < len(self._poke.new):
            self._poke.feed(event)
            return
        poke = self._unannounced.get(ip)
        if poke:
            poke.feed(_without_bytes(event))
        if event["kind"] == "int3" and not (poke and poke.has_tail):
            self.watched.foreign_int3.append(event)
            if poke:
                poke.early_int3.append(event)


def _without_bytes(event: Event) -> Event:
    """The event for an unannounced poke: the bytes in it are those of the announced site."""
    return {key: value for key, value in event.items() if key != "bytes"}


def follow(events: Iterable[Event], cpus: Iterable[int]) -> WatchedStep:
    """Run the automata over the events of one step.

    cpus: the online CPUs, which must take part in each sync round.
    """
    follower = Follower(cpus)
    for event in events:
        follower.feed(event)
    return follower.watched


def by_step(events: Iterable[Event]) -> dict[int, list[Event]]:
    """Group events by the number of their step; 0 has the events before the first step."""
    groups: dict[int, list[Event]] = {}
    for event in events:
        groups.setdefault(event["step"], []).append(event)
    return groups
