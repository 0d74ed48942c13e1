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
    "irqs": "text is written by a thread with interrupts on, never inside stop_machine()",
}


@dataclass(frozen=True)
class Violation:
    """claim: a key of CLAIMS. text: one sentence. event: number of the event that showed it."""

    claim: str
    text: str
    event: int


@dataclass
class Poke:
    """One poke as it was seen. `phase` is the current one, by the writes seen so far.

    cpus: those that must take part in a sync round. targets: where a CPU that trapped may be resumed, empty when that
    is not known. held: phases in which the poker was held. looked: phases in which the site's bytes were read.
    hits: int3 at the site by (phase, cpu). late: by cpu, those that reached the handler after the last write.
    returns: of the handler, by cpu. rounds: CPUs of each finished or current sync round, by the phase it belongs to.
    complete: its end was seen.
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

    def _blame(self, claim: str, event: Event, text: str) -> None:
        self.violations.append(Violation(claim, f"{text} (site {self.site:x}, poke {self.seq})", event["n"]))

    def _check_bytes(self, event: Event) -> None:
        if "bytes" not in event:
            return
        seen, expected = event["bytes"], self.bytes_in(self.phase).hex()
        self.looked.add(self.phase)
        if seen != expected:
            where = "at the end" if event["kind"] == "end" else f"at a {event['kind']} on CPU {event['cpu']}"
            self._blame("bytes", event, f"{where} in phase {self.phase} the site held {seen}, not {expected}")

    def _check_round(self, event: Event, before: str) -> None:
        """The round that belongs to the write before this moment must be over."""
        if not self._written or self._round_judged:
            return
        self._round_judged = True
        missing = sorted(self.cpus - self.rounds.get(self.phase, set()))
        if missing:
            write = ("int3 write", "tail write", "first-byte write")[self.phase - 1]
            who = "no CPU" if len(missing) == len(self.cpus) else f"CPU {', '.join(map(str, missing))} had not"
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
            self._blame("writes", event, f"a write of {data.hex()} at +{offset} follows the last one")
        if not event["irqs"]:
            self._blame("irqs", event, f"write {self._written + 1} runs with interrupts off")
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
                "int3", event, f"CPU {event['cpu']} trapped inside the instruction, at +{event['ip'] - self.site}"
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
        if not event["value"]:
            self._blame("consumed", event, f"the handler did not take the int3 of CPU {event['cpu']}")
        elif self.targets and event["ip"] not in self.targets:
            wanted = " or ".join(f"{target:x}" for target in sorted(self.targets))
            self._blame("consumed", event, f"CPU {event['cpu']} was resumed at {event['ip']:x}, not at {wanted}")

    def _on_stopper(self, event: Event) -> None:
        if event["own"]:
            self._blame("irqs", event, f"CPU {event['cpu']} ran stop_machine() for the poke")

    def _on_end(self, event: Event) -> None:
        self.complete = True
        if self._written < len(self.plan):
            self._blame("writes", event, f"the poke ended after {self._written} of {len(self.plan)} writes")
        else:
            self._check_round(event, "the end")
        self._check_bytes(event)


@dataclass
class Watched:
    """What the agent saw of one step: its pokes, and what was not theirs."""

    pokes: list[Poke]
    foreign_writes: list[Event]
    foreign_int3: list[Event]
    errors: list[str]


def follow(events: Iterable[Event], cpus: Iterable[int], targets: Iterable[int]) -> Watched:
    """Run the automaton over the events of one step."""
    watched = Watched([], [], [], [])
    poke: Poke | None = None
    for event in events:
        if event["kind"] == "error":
            watched.errors.append(event["what"])
        elif event["kind"] == "window":
            poke = Poke(
                site=event["site"],
                old=bytes.fromhex(event["from"]),
                new=bytes.fromhex(event["to"]),
                seq=event["seq"],
                cpus=frozenset(cpus),
                targets=frozenset(targets),
            )
            watched.pokes.append(poke)
        elif event["kind"] == "int3" and (poke is None or not 0 <= event["ip"] - poke.site < len(poke.new)):
            watched.foreign_int3.append(event)
        elif poke is None and event["kind"] == "write":
            watched.foreign_writes.append(event)
        elif poke is not None:
            if event["kind"] == "write" and not event["own"]:
                watched.foreign_writes.append(event)
            poke.feed(event)
            if event["kind"] == "end":
                poke = None
    return watched


def by_poke(events: Iterable[Event]) -> dict[int, list[Event]]:
    """The events of each poke, by its sequence number: from its window to the next, or to its end.

    What came before the first window is under 0.
    """
    parts: dict[int, list[Event]] = {0: []}
    seq = 0
    for event in events:
        if event["kind"] == "window":
            seq = event["seq"]
        parts.setdefault(seq, []).append(event)
    return parts
