# SPDX-License-Identifier: GPL-2.0-only
"""A log, with what its judges look up in it: callers, what is live, what a CPU does next."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from orchestrator.text.functions import STOPPERS
from orchestrator.verdict.recorded.judgement import Judgement, RecordViolation, Surroundings
from orchestrator.verdict.recorded.record import (
    CALLERS,
    F_EXECUTED,
    MODE,
    PASS,
    SERIALISE,
    STOPPER,
    SYNC,
    TRAP,
    UNLOCK,
    WRITE,
    Records,
)

LONGEST = 8
"""No instruction that is poked is longer."""
OWNERS = (
    ("jump_label", "jump labels"),
    ("static_key", "jump labels"),
    ("static_call", "static calls"),
    ("kprobe", "kprobes"),
    ("ftrace", "ftrace"),
    ("bpf", "BPF"),
)
"""Part of a function's name -> whose pokes it makes."""
TEST_MODULE, OTHERS = "test module", "others"
BY_PROTOCOL = ("jump labels", "static calls", "ftrace")
"""Owners that change an instruction of live text. The others also fill memory that was freed."""


class Reading:
    """One log, and the judgement that comes of it."""

    def __init__(self, records: Records, around: Surroundings, result: Judgement) -> None:
        self.records = records
        self.around = around
        self.result = result
        self.kinds = records["kind"]
        self.cpu = records["cpu"]
        self.flags = records["flags"]
        self.numbers = records["number"]
        self.words = records["word"]
        self.writes = self.of_kind(WRITE)
        self.moments = self.of_kind(WRITE, UNLOCK, STOPPER)
        """The records at which the state of sites changes, in their order."""
        used = self.cpu[self.of_kind(SYNC, SERIALISE, MODE)]
        self.cpus = int(used.max(initial=0, where=used < 64)) + 1
        self.has_unlock = bool(np.any(self.kinds == UNLOCK))
        self.module_live = self._first_pass() if not result.judged else -1
        """Record from which on CPUs are known to execute the test module; before the first one, if
        it was in an earlier log."""

    def of_kind(self, *kinds: int) -> NDArray[np.int64]:
        """Numbers of the records of some kinds."""
        return np.flatnonzero(np.isin(self.kinds, kinds))

    def _first_pass(self) -> int:
        begin, end = self.around.module
        passes = self.of_kind(PASS)
        sites = self.words[passes, 0]
        first = passes[(sites >= begin) & (sites < end)][:1]
        return int(first[0]) if len(first) else len(self.records)

    # -- what a CPU does

    @cached_property
    def _by_cpu(self) -> dict[tuple[int, int], NDArray[np.int64]]:
        return {
            (kind, cpu): np.flatnonzero((self.kinds == kind) & (self.cpu == cpu))
            for kind in (MODE, SERIALISE, PASS, TRAP)
            for cpu in range(self.cpus)
        }

    def of_cpu(self, kind: int, cpu: int, after: int = -1) -> NDArray[np.int64]:
        """Numbers of a CPU's records of a kind: MODE, SERIALISE, PASS or TRAP."""
        at = self._by_cpu.get((kind, cpu), np.zeros(0, np.int64))
        return at[np.searchsorted(at, after, side="right") :]

    def next_of_cpu(self, kind: int, cpu: int, after: int) -> int | None:
        """The next such record; None if there is none."""
        found = self.of_cpu(kind, cpu, after)[:1].tolist()
        return found[0] if found else None

    def has_between(self, kind: int, cpu: int, after: int, before: int) -> bool:
        """Whether there is such a record between two others."""
        found = self.next_of_cpu(kind, cpu, after)
        return found is not None and found < before

    # -- who did it

    def names_at(self, at: int) -> list[str]:
        """The functions in the CALLERS at record `at`, innermost first."""
        return [name for word in self._callers_at(at) if (name := self.function(word))]

    def callers(self, write: int) -> list[str]:
        """The functions that may have called a WRITE."""
        return self.names_at(write + 2)

    def _callers_at(self, at: int) -> list[int]:
        words: list[int] = []
        for record in self.records[at : at + 2]:
            if record["kind"] != CALLERS:
                break
            words += record["word"][: record["number"]].tolist()
        return words

    def function(self, address: int) -> str:
        """The function that an address belongs to; empty for none."""
        return (self.around.name(address) or "").partition("+")[0]

    def place(self, address: int) -> str:
        """An address for people: with its function, if it has one."""
        return self.around.name(address) or f"{address:x}"

    def owner(self, write: int) -> str:
        """Whose write it is: that of the first caller that is known."""
        for word in self._callers_at(write + 2):
            name = self.function(word)
            for part, owner in OWNERS:
                if part in name:
                    return owner
            if self.in_module(word):
                return TEST_MODULE
        return OTHERS

    def by_kprobes(self, write: int) -> bool:
        return any("kprobe" in name for name in self.callers(write)[:4])

    def in_stop_machine(self, write: int) -> bool:
        return any(name in STOPPERS for name in self.callers(write))

    # -- what is live

    def in_text(self, address: int) -> bool:
        begin, end = self.around.text
        return begin <= address < end

    def in_module(self, address: int) -> bool:
        begin, end = self.around.module
        return begin <= address < end

    def is_alone(self, write: int) -> bool:
        """Whether only one CPU was online."""
        online = int(self.words[write][6])
        return online & (online - 1) == 0

    def is_live(self, address: int, write: int) -> bool:
        """Whether CPUs may execute this address at a write, as far as we know.

        Text of modules is when some of it was executed, and what bpf_arch_text_poke() changes is
        then. What is not text of a module, like the slots of kprobes and new programs of BPF, is
        used again without int3.
        """
        if self.in_text(address):
            return True
        if self.flags[write] & F_EXECUTED:
            owner = self.owner(write)
            if owner == "BPF" and any("bpf_arch_text_poke" in name for name in self.callers(write)):
                return True
            if owner in BY_PROTOCOL or (owner == "kprobes" and self.in_module(address)):
                return True
        if write < self.module_live:
            return False
        near = range(address, address - LONGEST, -1)
        return any(start in self.around.sites for start in near) or (
            self.in_module(address) and any(start in self.result.sites for start in near)
        )

    # -- what was wrong

    def blame(
        self,
        claim: str,
        text: str,
        at: int,
        site: int,
        since: int | None = None,
        cpus: Sequence[int] = (),
    ) -> None:
        """Note a violation that record `at` shows, with the site's name and who wrote there.

        since: the WRITE after which something is missing, whose caller is to be named.
        """
        write = at if since is None else since
        names = self.callers(write) if self.kinds[write] == WRITE else []
        callers = [name for name in names if "text_poke" not in name]
        by = f", by {callers[0]}" if callers else ""
        text = f"{text} (site {self.place(site)}{by})"
        self.result.blame(RecordViolation(claim, text, at, site, since, tuple(cpus)))
