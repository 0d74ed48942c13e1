"""The phase model: one automaton over what was observed of a poke, the same for every scenario and kernel.

A poke changes a site from `old` to `new` bytes. By what memory holds there are the phases

    0  old                       1  cc + old tail
    2  cc + new tail             3  new

and each write leads to the next; a site of one byte has no tail and goes 0, 1, 3. After each write every CPU must have
run do_sync_core before the next write begins, or before the poke returns: a *sync round*. This holds for the protocol
of 2013 (v3 of "x86: introduce int3-based instruction patching") and for the batched one of 5.4 and later alike
(arch/x86/kernel/alternative.c, text_poke_bp_batch(); smp_text_poke_batch_finish() since 6.16).

    window ─> write cc ─> sync × each CPU ─> write tail ─> sync × each CPU ─> write first byte ─> sync × each CPU ─> end
                         └ int3 at the site: taken by the poke handler, resumed at the target ┘

What is out of this order is a violation, and names the claim that it breaks. What was not observed is none: whether
enough was seen for a pass is judged in orchestrator/verdict/checks.py.

A batch is many sites in the same phases at once, with rounds that they share: so each site has an automaton of its own,
and a sync counts for all of them. Most pokes are announced by the test module, with their old and new bytes. Others are
found: the kernel writes int3 somewhere, then a tail behind it, and what it writes tells what the site is to become. A
lone int3 is no poke but a kprobe's, and goes unjudged.

A `hold` is the moment at which the kernel begins the next write of its own accord; the `write` comes after all CPUs
have been let through the site. So it is at the hold that a round must be over: by the write even a round that nobody
waited for has come to its end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

INT3 = b"\xcc"

Event = Mapping[str, Any]
"""One line of the agent's events (orchestrator/watch/agent.py says what is in it)."""

CLAIMS = {
    "writes": "text is written in the protocol's order: int3, tail, first byte",
    "bytes": "at every observed moment the site holds the bytes of its phase",
    "sync": "after each write every CPU runs do_sync_core before the next write or the end",
    "int3": "a CPU traps on the site only while int3 is in place",
    "consumed": "the poke handler takes every int3 of the site and resumes at the poke's target",
    "irqs": "text is written by a thread with interrupts on",
    "lock": "text is written under text_mutex",
    "stopper": "no poke goes through stop_machine()",
}

INSTRUCTION = 8
"""Bytes from an int3 on within which a write belongs to the same poke: no instruction that is poked is longer."""


@dataclass(frozen=True)
class Violation:
    """claim: a key of CLAIMS. text: one sentence. event: number of the event that showed it; time: of it, in seconds
    since the epoch. phase: by the writes seen so far. cpu: that of the event, -1 for none. seen: the site's bytes, and
    expected: those that it should have held, where it is these that are wrong.
    """

    claim: str
    text: str
    event: int
    time: float
    phase: int
    cpu: int
    seen: bytes | None = None
    expected: bytes | None = None


@dataclass
class Poke:
    """One poke as it was seen. `phase` is the current one, by the writes seen so far.

    cpus: those that must take part in a sync round. targets: where a CPU that trapped may be resumed, empty when that
    is not known. held: phases in which the poker was held. looked: phases in which the site's bytes were read.
    hits: int3 at the site by (phase, cpu). late: by cpu, those that reached the handler after the last write.
    returns: of the handler, by cpu. rounds: CPUs of each finished or current sync round, by the phase it belongs to.
    complete: its end was seen. announced: by the test module; else it was found, and `new` is what was seen of it.
    """

    site: int
    old: bytes
    new: bytes
    seq: int
    cpus: frozenset[int]
    targets: frozenset[int]
    held: set[int] = field(default_factory=set)
    looked: set[int] = field(default_factory=set)
    hits: Counter[tuple[int, int]] = field(default_factory=Counter)
    late: Counter[int] = field(default_factory=Counter)
    returns: Counter[int] = field(default_factory=Counter)
    rounds: dict[int, set[int]] = field(default_factory=dict)
    violations: list[Violation] = field(default_factory=list)
    complete: bool = False
    announced: bool = True
    _written: int = 0
    _round_judged: bool = False
    _round_closed: bool = False

    # -- the protocol, as data

    @property
    def plan(self) -> list[tuple[int, bytes]]:
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
        return self.phases[1:-1]

    @property
    def phase(self) -> int:
        return self.phases[min(self._written, len(self.plan))]

    @property
    def written(self) -> int:
        """How many writes to the site were seen."""
        return self._written

    def traps(self) -> Counter[int]:
        """int3 at the site by cpu, in whatever phase."""
        traps = Counter(self.late)
        for (_, cpu), count in self.hits.items():
            traps[cpu] += count
        return traps

    def bytes_in(self, phase: int) -> bytes:
        return [self.old, INT3 + self.old[1:], INT3 + self.new[1:], self.new][phase]

    # -- the automaton

    def feed(self, event: Event) -> None:
        kind = event["kind"]
        if handler := getattr(self, f"_on_{kind}", None):
            handler(event)

    def _blame(
        self,
        claim: str,
        event: Event,
        text: str,
        seen: bytes | None = None,
        expected: bytes | None = None,
    ) -> None:
        whose = f"poke {self.seq}" if self.announced else "a poke of the kernel's own"
        at = event["n"], event["t"], self.phase, event["cpu"]
        self.violations.append(
            Violation(claim, f"{text} (site {self.site:x}, {whose})", *at, seen, expected)
        )

    def _check_bytes(self, event: Event) -> None:
        if "bytes" not in event:
            return
        seen, expected = event["bytes"], self.bytes_in(self.phase).hex()
        self.looked.add(self.phase)
        if seen != expected:
            where = (
                "at the end"
                if event["kind"] == "end"
                else f"at a {event['kind']} on CPU {event['cpu']}"
            )
            text = f"{where} in phase {self.phase} the site held {seen}, not {expected}"
            self._blame("bytes", event, text, bytes.fromhex(seen), bytes.fromhex(expected))

    def _check_round(self, event: Event, before: str) -> None:
        """The round that belongs to the write before this moment must be over."""
        if not self._written or self._round_judged:
            return
        self._round_judged = True
        missing = sorted(self.cpus - self.rounds.get(self.phase, set()))
        if missing:
            write = ("int3 write", "tail write", "first-byte write")[self.phase - 1]
            who = (
                "no CPU"
                if len(missing) == len(self.cpus)
                else f"CPU {', '.join(map(str, missing))} had not"
            )
            ran = "had run do_sync_core" if who == "no CPU" else "run do_sync_core"
            self._blame("sync", event, f"between the {write} and {before} {who} {ran}")

    def _on_hold(self, event: Event) -> None:
        self._check_bytes(event)
        self._check_round(event, "the next write")
        self.held.add(self.phase)

    def _on_write(self, event: Event) -> None:
        if not event["own"]:
            # Another poke, so ours has let go of text_mutex, and the syncs from here on are not its own.
            self._round_closed |= self._written >= len(self.plan)
            return
        self._check_bytes(event)
        offset, data = event["addr"] - self.site, bytes.fromhex(event["src"])
        if self._written < len(self.plan):
            wanted = self.plan[self._written]
            self._check_round(event, "the next write")
            if (offset, data) != wanted:
                self._blame(
                    "writes",
                    event,
                    f"write {self._written + 1} puts {data.hex() or 'nothing'} at +{offset}, "
                    f"not {wanted[1].hex()} at +{wanted[0]}",
                )
        else:
            self._blame(
                "writes", event, f"a write of {data.hex()} at +{offset} follows the last one"
            )
        if not event["irqs"]:
            self._blame("irqs", event, f"write {self._written + 1} runs with interrupts off")
        if event.get("owner") == 0:
            self._blame(
                "lock", event, f"write {self._written + 1} is done while nobody holds text_mutex"
            )
        self._written += 1
        self._round_judged = False
        self.rounds.setdefault(self.phase, set())

    def _on_sync(self, event: Event) -> None:
        self._check_bytes(event)
        if self._written and not self._round_closed:
            self.rounds[self.phase].add(event["cpu"])

    def _phase_of_trap(self, event: Event) -> int:
        """The phase in which a CPU trapped: the one before, while the write that ends it is still under way."""
        if self._written > 1 and not self.rounds[self.phase]:
            before = self.phases[min(self._written, len(self.plan)) - 1]
            if event.get("bytes") == self.bytes_in(before).hex():
                return before
        return self.phase

    def _on_int3(self, event: Event) -> None:
        if event["ip"] != self.site:
            self._blame(
                "int3",
                event,
                f"CPU {event['cpu']} trapped inside the instruction, at +{event['ip'] - self.site}",
            )
            return
        phase = self._phase_of_trap(event)
        if phase == self.phase:
            self._check_bytes(event)
        if phase in self.trap_phases:
            self.hits[phase, event["cpu"]] += 1
        elif self.phase == 0:
            self._blame("int3", event, f"CPU {event['cpu']} trapped before int3 was written")
        else:  # legal: it trapped in time and reached the handler after the last write
            self.late[event["cpu"]] += 1

    def _on_return(self, event: Event) -> None:
        if event["trap"] != self.site:
            return
        self.returns[event["cpu"]] += 1
        self._judge_return(event)

    def _judge_return(self, event: Event) -> None:
        if not event["value"]:
            self._blame(
                "consumed", event, f"the handler did not take the int3 of CPU {event['cpu']}"
            )
        elif self.targets and event["ip"] not in self.targets:
            wanted = " or ".join(f"{target:x}" for target in sorted(self.targets))
            self._blame(
                "consumed",
                event,
                f"CPU {event['cpu']} was resumed at {event['ip']:x}, not at {wanted}",
            )

    def _on_stopper(self, event: Event) -> None:
        if event["own"]:
            self._blame("stopper", event, f"CPU {event['cpu']} ran stop_machine() for the poke")

    def _on_end(self, event: Event) -> None:
        self.complete = True
        if self._written < len(self.plan):
            self._blame(
                "writes", event, f"the poke ended after {self._written} of {len(self.plan)} writes"
            )
        else:
            self._check_round(event, "the end")
        self._check_bytes(event)


@dataclass
class FoundPoke(Poke):
    """A poke that nobody announced, begun by an int3 write.

    begun: the event of that. early: the int3 met before the tail, when it could still be a kprobe's. old: the eight
    bytes before it; shortened when the tail tells how long the instruction is. tailed: a tail was written, so that it
    is a poke for certain. What became of an int3 is judged when the last write has shown what the instruction becomes,
    and that it is not a kprobe's jump which is taken back: that leaves int3 in place, and the kprobe handles it.
    """

    announced: bool = False
    tailed: bool = False
    begun: Event = field(default_factory=dict)
    early: list[Event] = field(default_factory=list)
    _returned: list[Event] = field(default_factory=list)

    def continues(self, event: Event) -> bool:
        """Whether this write goes on with the poke: a tail, or the last write after it."""
        offset, data = event["addr"] - self.site, bytes.fromhex(event["src"])
        if not self.tailed:
            return offset == 1 and 0 < len(data) < INSTRUCTION
        return offset == 0 and self._written == 2 and data[:1] != INT3

    def _on_write(self, event: Event) -> None:
        data, before = bytes.fromhex(event["src"]), bytes.fromhex(event["before"])
        if self._written == 1:
            self.tailed = True
            self.old = self.old[: 1 + len(data)]
            self.new = self.old[:1] + data
            before = INT3 + before  # the event has the bytes from the tail on
        elif self._written == 2:
            self.new = data[:1] + self.new[1:]
            self.targets = frozenset(ways_on(self.site, self.new))
            for earlier in self._returned:
                self._judge_return(earlier)
        super()._on_write({**event, "own": True, "bytes": before[: len(self.new)].hex()})

    def _on_return(self, event: Event) -> None:
        if self.returns[event["cpu"]] == self.traps()[event["cpu"]]:
            return  # of an int3 that trapped before this poke began
        self.returns[event["cpu"]] += 1
        if self._written < 3:
            self._returned.append(event)
        else:
            self._judge_return(event)

    def over(self, event: Event) -> None:
        """Another poke begins, so that this one has let go of text_mutex: its last round must be over."""
        if self._written == len(self.plan):
            self._check_round(event, "the next poke")
            self._round_closed = True

    def _on_hold(self, event: Event) -> None:
        """That of the announced poke."""

    def _on_end(self, event: Event) -> None:
        """That of the announced poke."""


def ways_on(address: int, code: bytes) -> set[int]:
    """Where a CPU may be resumed that met int3 on an instruction that becomes `code`: behind it, or where it leads.

    Empty when it leads somewhere that the bytes alone do not tell (a return).
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
    """What the agent saw of one step: its pokes, and what was not theirs.

    pokes: announced. found: those of others, with a tail. foreign_writes: what belongs to neither (kprobes' lone int3,
    text of modules). foreign_int3: at no site of a poke under way. int3: all of them, by (address, cpu).
    looks: at where the CPUs were (events of the kind `cpus`). owners: whether it was seen who held text_mutex.
    """

    pokes: list[Poke] = field(default_factory=list)
    found: list[FoundPoke] = field(default_factory=list)
    foreign_writes: list[Event] = field(default_factory=list)
    foreign_int3: list[Event] = field(default_factory=list)
    cpu_snapshots: list[Event] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    int3: Counter[tuple[int, int]] = field(default_factory=Counter)
    owners: bool = False

    @property
    def all_pokes(self) -> list[Poke]:
        return [*self.pokes, *self.found]


class Follower:
    """Runs the automata over the events of one step."""

    def __init__(self, cpus: Iterable[int]) -> None:
        self.watched = WatchedStep()
        self._cpus = frozenset(cpus)
        self._poke: Poke | None = None
        self._found: dict[int, FoundPoke] = {}  # by site, those that may still go on

    def feed(self, event: Event) -> None:
        kind = event["kind"]
        self.watched.owners |= "owner" in event
        if kind == "error":
            self.watched.errors.append(event["what"])
        elif kind == "cpus":
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
            self.watched.pokes.append(self._poke)
        elif kind == "write" and not event["own"]:
            self._write_of_another(event)
        elif kind == "write":
            self._let_go(event)
            if self._poke:
                self._poke.feed(event)
        elif kind in ("int3", "return"):
            self._trap(event)
        else:
            if self._poke:
                self._poke.feed(event)
            # The bytes in an event are those of the announced site.
            aside = {key: value for key, value in event.items() if key != "bytes"}
            for found in self._found.values():
                found.feed(aside)
            if kind == "end":
                self._poke = None

    def _let_go(self, event: Event) -> None:
        """An int3 write begins a poke, or a batch of which no other site is further: those before it are over."""
        if bytes.fromhex(event["src"]) == INT3:
            for found in self._found.values():
                if found.tailed:
                    found.over(event)

    def _write_of_another(self, event: Event) -> None:
        self._let_go(event)
        if self._poke:
            self._poke.feed(event)
        for site in range(event["addr"] - 1, event["addr"] + 1):
            if (found := self._found.get(site)) and found.continues(event):
                if not found.tailed:
                    self.watched.found.append(found)
                    self.watched.foreign_writes.remove(found.begun)
                    for early in found.early:
                        self.watched.foreign_int3.remove(early)
                found.feed(event)
                return
        if bytes.fromhex(event["src"]) == INT3:
            found = FoundPoke(
                site=event["addr"],
                old=bytes.fromhex(event["before"]),
                new=bytes.fromhex(event["before"]),
                seq=0,
                cpus=self._cpus,
                targets=frozenset(),
                begun=event,
            )
            self._found[event["addr"]] = found
            found.feed(event)
        else:
            self._found.pop(event["addr"], None)  # a kprobe that is taken away
        self.watched.foreign_writes.append(event)

    def _trap(self, event: Event) -> None:
        ip = event["ip"] if event["kind"] == "int3" else event["trap"]
        if event["kind"] == "int3":
            self.watched.int3[ip, event["cpu"]] += 1
        if self._poke and 0 <= ip - self._poke.site < len(self._poke.new):
            self._poke.feed(event)
            return
        found = self._found.get(ip)
        if found:
            found.feed({key: value for key, value in event.items() if key != "bytes"})
        if event["kind"] == "int3" and not (found and found.tailed):
            self.watched.foreign_int3.append(event)
            if found:
                found.early.append(event)


def follow(events: Iterable[Event], cpus: Iterable[int]) -> WatchedStep:
    """Run the automata over the events of one step. cpus: those online, which must take part in each round."""
    follower = Follower(cpus)
    for event in events:
        follower.feed(event)
    return follower.watched


def by_step(events: Iterable[Event]) -> dict[int, list[Event]]:
    """The events of each step, by its number; 0 has what came before the first."""
    parts: dict[int, list[Event]] = {}
    for event in events:
        parts.setdefault(event["step"], []).append(event)
    return parts
