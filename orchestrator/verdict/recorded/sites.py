# SPDX-License-Identifier: GPL-2.0-only
"""Follows the writes to each site, from the int3 to the release of text_mutex.

Writes are compared to what memory held before, so that only bytes that change count: it does not
matter in how many pieces a tail is written, as long as no CPU can execute a mixture. A write that
belongs to no protocol, and changes text that is live, is a violation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from orchestrator.text import semantics
from orchestrator.text.functions import FOR_TASKS, HANDLERS
from orchestrator.text.semantics import CALL, INT3, JUMP
from orchestrator.verdict.recorded import locks
from orchestrator.verdict.recorded.judgement import Site
from orchestrator.verdict.recorded.reading import LONGEST, Reading
from orchestrator.verdict.recorded.record import (
    F_EARLY,
    F_PROBED,
    F_STATE,
    F_UNREADABLE,
    GRACE,
    INLINE,
    S_ON_PURPOSE,
    SERIALISE,
    SYNC,
    UNLOCK,
    WRITE,
)
from orchestrator.verdict.recorded.rounds import Rounds

CC = bytes([INT3])
BRANCH = 5
"""Bytes of a jump or a call."""
THREAD_SIZE = 0x4000
SELF_TEST = "self-test"
"""The owner of int3 that the kernel is built with."""
LOCK, NO_LOCK = bytes([0xF0]), bytes([0x3E])
"""The prefix that makes an instruction atomic, and what is there in its place with one CPU."""
BEFORE_SMP = "writes while only one CPU was online, which need no int3"
NEW_TEXT = "writes of text that is not known to be live"


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


class Sites:
    """The sites of a log.

    - finished: the pokes of each site, in their order, by its address.
    - left: numbers of the WRITEs by which a jump or call was taken away, by where it went.
    """

    def __init__(self, log: Reading, rounds: Rounds) -> None:
        self.finished = {
            site.address: [Finished(-1, site.kprobe, site.kprobe, True, "kprobes")]
            for site in log.result.sites.values()
            if site.kprobe
        }
        for address, code in log.around.self_test.items():
            self.finished[address] = [Finished(-1, code, code, False, SELF_TEST)]
        self.left: dict[int, list[int]] = {}
        self._log = log
        self._rounds = rounds
        self._known = log.result.sites
        for site in self._known.values():
            site.armed = -1
        self._open: dict[int, Site] = {}
        """Those of a poke that is under way, by address."""
        self._ending: list[tuple[Site, int]] = []
        """Sites whose last round is not judged yet, and the record of the last write."""
        self._owner_word = locks.owner_word(log)
        self._syncs = log.of_kind(SYNC)
        on_purpose = (log.kinds == SERIALISE) & (log.flags & S_ON_PURPOSE != 0)
        self._serialised = np.flatnonzero(on_purpose | (log.kinds == SYNC))
        self._looks = log.flags & F_STATE != 0
        waits = log.of_kind(GRACE)
        self._tasks = waits[log.numbers[waits] == FOR_TASKS]
        self._knows_probes = bool(np.any(log.flags[log.writes] & F_PROBED))

    def follow(self) -> None:
        """Go through the whole log."""
        for moment, at in enumerate(self._log.moments.tolist()):
            kind = self._log.kinds[at]
            if kind == WRITE:
                self._on_write(moment, at)
            elif kind == UNLOCK:
                self._on_unlock(moment, at)
            else:
                self._on_stopper(at)
        self._count_while_offline()

    def _count_while_offline(self) -> None:
        online = self._log.words[self._log.writes, 6]
        booted = np.flatnonzero(online & (online - np.uint64(1)))[:1]
        if len(booted):
            online = online[booted[0] :]
            missing = online != np.bitwise_or.reduce(online)
            self._log.result.while_offline += int(np.count_nonzero(missing))

    def add_unfinished(self) -> None:
        """Pokes that are under way where the log ends, as it does when a kernel dies of one."""
        for site in self._open.values():
            kprobe = bool(site.kprobe) or self._log.by_kprobes(site.begun)
            owner, stages = self._log.owner(site.begun), tuple(site.stages)
            poke = Finished(site.begun, site.original, b"", kprobe, owner, stages)
            self.finished.setdefault(site.address, []).append(poke)

    # -- a write

    def _on_write(self, moment: int, at: int) -> None:
        log = self._log
        words = log.words[at]
        address, length = int(words[0]), int(log.numbers[at])
        before = words[3:5].tobytes()
        if log.flags[at] & F_UNREADABLE:
            log.result.not_judged["writes whose bytes could not be read"] += 1
            return
        if length > INLINE:
            self._on_long_write(at, address, length)
            return
        new = words[1:3].tobytes()[:length]
        change = f"{before[:length].hex()} became {new.hex()}"
        self._check_module_text(at, address, new, before)
        if site := self._site_of(at, address, new):
            self._go_on(site, moment, at, new, before)
        elif new == CC:
            self._begin(self._known_or_new(address, before), moment, at, before)
        elif before[:length] == new:
            return
        elif (before[:length], new) == (LOCK, NO_LOCK) and not log.is_alone(at):
            text = "the prefix of an atomic instruction was taken away, with several CPUs online"
            log.blame("writes", text, at, address)
            return
        elif self._may_change_at_once(at, address, change):
            return
        elif (known := self._known.get(address)) and known.is_armed and length == 1:
            self._disarm(known, moment, at, new)
        elif armed := self._armed_before(at, address):
            self._begin_with_own_int3(armed, at)
            self._go_on(armed, moment, at, new, before)
        else:
            log.blame("writes", f"{change} without int3", at, address)
            return
        locks.check_writer(log, self._owner_word, at, address)

    def _known_or_new(self, address: int, before: bytes) -> Site:
        known = self._known.get(address)
        if known is None or known.memory[:1] != before[:1]:
            known = self._known[address] = Site(address, before[:LONGEST])
        return known

    def _may_change_at_once(self, at: int, address: int, change: str) -> bool:
        """Whether text may change without int3, as far as this function does not blame it."""
        log = self._log
        if log.is_alone(at):
            log.result.not_judged[BEFORE_SMP] += 1
        elif not log.is_live(address, at):
            log.result.not_judged[NEW_TEXT] += 1
            self._check_shared_mapping(at, address)
        elif not log.in_stop_machine(at):
            return False
        elif log.around.kprobe_syncs:
            log.blame("stopper", f"{change} in stop_machine()", at, address)
        else:  # jump labels before 3.12, kprobes before 3.13
            log.result.not_judged["writes while the machine was stopped"] += 1
        return True

    def _on_long_write(self, at: int, address: int, length: int) -> None:
        """A write of which only a hash is kept: not one of the protocol."""
        log = self._log
        words = log.words[at]
        inside = [site for site in self._known if address <= site < address + length]
        live = log.in_text(address) or (
            at >= log.module_live
            and any(address <= site < address + length for site in log.around.sites)
        )
        if log.is_alone(at):
            log.result.not_judged[BEFORE_SMP] += 1
        elif live and not log.in_stop_machine(at):
            if words[1] != words[3]:
                text = f"{length} bytes of live text were written at once, without int3"
                log.blame("writes", text, at, inside[0] if inside else address)
        else:
            log.result.not_judged[NEW_TEXT] += 1
            self._check_shared_mapping(at, address)
        for site in inside:
            del self._known[site]
            self._open.pop(site, None)

    def _check_shared_mapping(self, at: int, address: int) -> None:
        """New text, too, is written under text_mutex, if that goes the same way as a poke."""
        if self._log.around.kprobe_syncs and not self._log.flags[at] & F_EARLY:
            locks.check_writer(self._log, self._owner_word, at, address, live=False)

    def _check_module_text(self, at: int, address: int, new: bytes, before: bytes) -> None:
        """The test module's text around a site is what the writes so far have made of it.

        Of the kernel's own text the recorder sees each change (CODE).
        """
        log = self._log
        if not log.in_module(address) or at < log.module_live:
            return
        known = log.result.module_text
        for offset, byte in enumerate(before[:LONGEST]):
            if known.get(address + offset, byte) != byte:
                text = f"{byte:02x} is at +{offset} of a write, where {known[address + offset]:02x}"
                log.blame("bytes", f"{text} was, and nobody wrote it", at, address)
            known[address + offset] = byte
        known.update(enumerate(new, address))

    # -- a poke

    def _site_of(self, at: int, address: int, new: bytes) -> Site | None:
        """The open site that a write belongs to."""
        near = range(address, address - LONGEST, -1)
        start = next((start for start in near if start in self._open), None)
        if start is None:
            return None
        site = self._open[start]
        if new == CC and address > start:
            # A probe may begin where another one's jump has just been taken back.
            if self._log.by_kprobes(at) or start + self._poked_length(site) <= address:
                return None
            # In a batch, all int3 are written before the first sync: later it is part of a tail.
            first, last = np.searchsorted(self._serialised, (site.begun, at))
            if address > start + 1 and first == last:
                return None
        return site

    def _poked_length(self, site: Site) -> int:
        """Bytes of the instruction that the open poke of a site changes, as far as it is known.

        A jump of kprobes covers several; a return is padded to the length of a jump.
        """
        if self._log.by_kprobes(site.begun) or site.original[0] == semantics.RET:
            return LONGEST
        return semantics.length(site.original) or LONGEST

    def _begin(self, site: Site, moment: int, at: int, before: bytes) -> None:
        """int3 is written where no poke is under way."""
        if not self._log.has_unlock:
            self._end_rounds(moment)
        site.original = before[:LONGEST]
        site.memory = bytearray(CC + before[1:LONGEST])
        site.begun = site.last = at
        site.tailed = False
        site.stages = [at]
        self._open[site.address] = site
        self._check_not_inside(site.address, at, before)
        if (name := self._log.function(site.address)) in HANDLERS and not self._log.is_alone(at):
            text = f"int3 was written into {name}(), which is to handle it"
            self._log.blame("consumed", text, at, site.address)

    def _armed_before(self, at: int, address: int) -> Site | None:
        """The kprobe whose int3 is in front of what kprobes write: its instruction becomes a jump,
        and has its int3 already."""
        if not self._log.by_kprobes(at):
            return None
        near = (self._known.get(start) for start in range(address - 1, address - BRANCH, -1))
        return next((site for site in near if site and site.is_armed), None)

    def _begin_with_own_int3(self, site: Site, at: int) -> None:
        """A poke begins that writes no int3, since the kprobe's is there and was synced with."""
        site.original = bytes(site.memory)
        site.begun, site.last = at, site.armed
        site.tailed = False
        site.stages = [at]
        self._open[site.address] = site

    def _check_not_inside(self, address: int, at: int, before: bytes) -> None:
        """int3 is not written into another instruction, as far as that was poked."""
        for start in range(address - 1, address - BRANCH, -1):
            other, inside = self._known.get(start), address - start
            if other is None or other.memory[:1] not in (bytes([JUMP]), bytes([CALL])):
                continue
            if other.memory[inside:BRANCH] == before[: BRANCH - inside]:
                text = f"int3 was written into another instruction, at +{inside} of it"
                self._log.blame("writes", text, at, start)

    def _go_on(self, site: Site, moment: int, at: int, new: bytes, before: bytes) -> None:
        """A write to a site that has int3."""
        log = self._log
        offset = int(log.words[at][0]) - site.address
        if offset == 0 and new == CC:
            self._finish_with_int3(site, at)
            return
        expected = bytes(site.memory[offset : offset + len(new)])
        seen = before[: len(expected)]
        if seen != expected:
            text = f"memory held {seen.hex()}, not {expected.hex()}"
            log.blame("bytes", text, at, site.address)
        first = offset == 0 and new[0] != INT3
        changes = new[1:] != before[1 : len(new)] if offset == 0 else new != seen
        self._check_no_probe_lost(site, at, offset, new, seen)
        if changes and first:
            log.blame("writes", f"{new.hex()} was written over int3 at once", at, site.address)
        # What was written in an earlier log was judged there.
        if site.last >= 0 and ((changes and not first and not site.tailed) or first):
            self._rounds.check(site.address, site.last, moment, "the next write")
        site.memory[offset : offset + len(new)] = new
        del site.memory[LONGEST:]
        if changes or first:
            site.last = at
        if first or (changes and not site.tailed):
            site.stages += [at] * (1 if site.tailed or not first else 2)  # without a tail: 1, 3
        site.tailed |= bool(changes)
        if first:
            self._finish(site, at)

    def _check_no_probe_lost(
        self, site: Site, at: int, offset: int, new: bytes, seen: bytes
    ) -> None:
        """A write behind int3 leaves the int3 of other kprobes alone."""
        for number, (before, after) in enumerate(zip(seen, new, strict=False), offset):
            other = self._known.get(site.address + number) if number else None
            if other and before == INT3 != after and self._is_probed(other):
                text = f"the int3 of another kprobe was overwritten, at +{number}"
                self._log.blame("writes", text, at, site.address)

    def _is_probed(self, site: Site) -> bool:
        """Whether it has a kprobe's int3, and not one that is part of another instruction."""
        pokes = self.finished.get(site.address, ())
        return site.is_armed and bool(pokes and pokes[-1].probed)

    def _finish(self, site: Site, at: int) -> None:
        """The first byte was written."""
        new, begun = bytes(site.memory), site.begun
        if site.kprobe:
            self._check_probe_is_known(site, at, "went when its handler did not know it any more")
        self._close(site, at, kprobe=bool(site.kprobe))
        if self._log.around.rcu_tasks and site.kprobe and site.tailed and new[0] == JUMP:
            tasks = self._tasks[(self._tasks > site.armed) & (self._tasks < begun)]
            if site.armed >= 0 and not len(tasks):
                text = "a kprobe became a jump, and nobody had called synchronize_rcu_tasks()"
                self._log.blame("sync", text, at, site.address, begun)
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
        log = self._log
        del self._open[site.address]
        owner = log.owner(site.begun)
        stages = tuple(site.stages)
        probed = (site.kprobe or site.original) if kprobe and log.by_kprobes(site.begun) else b""
        poke = Finished(
            site.begun, site.original, bytes(site.memory), kprobe, owner, stages, probed
        )
        self.finished.setdefault(site.address, []).append(poke)
        log.result.judged[owner] += 1
        if site.original[0] in (CALL, JUMP):
            effect = semantics.effect(site.address, site.original, 0)
            if effect and effect.ip is not None:
                self.left.setdefault(effect.ip, []).append(site.begun)
        if not kprobe and len(stages) == len("123"):
            self._check_state(site, stages)
        site.begun = -1
        self._ending.append((site, at))

    def _check_state(self, site: Site, stages: tuple[int, ...]) -> None:
        """The poke handler must look for the site before int3 is there, and until the last round is
        over: a CPU that met it may have been slow to get to the handler.

        Whether it does is known where the state is that it looks at: not if it never shows. Before
        5.5 some pokes were another handler's.
        """
        log = self._log
        looks = self._looks
        first, last = np.searchsorted(self._syncs, (stages[0], stages[-1]))
        end = np.searchsorted(log.moments, stages[-1], side="right")
        shows = (
            looks[self._syncs] if self._has_one_handler(site) else looks[self._syncs[first:last]]
        )
        if end == len(log.moments) or not np.any(shows):
            return
        if not looks[stages[0]]:
            text = "int3 was written before the handler was to look for it"
            log.blame("consumed", text, stages[0], site.address)
        synced: set[int] = set()
        for at in self._syncs[last : np.searchsorted(self._syncs, log.moments[end])].tolist():
            cpu = int(log.cpu[at])
            if cpu not in synced and not looks[at]:
                text = f"the handler no longer looked for int3 when CPU {cpu} came to the last sync"
                log.blame("consumed", text, at, site.address, stages[-1])
                return
            synced.add(cpu)

    def _has_one_handler(self, site: Site) -> bool:
        """Whether nobody but the poke handler is to take int3 at this site."""
        own = self._log.in_module(site.address) and site.address not in self._log.around.sites
        return self._log.around.kprobe_syncs and not own

    # -- a kprobe

    def _disarm(self, site: Site, moment: int, at: int, new: bytes) -> None:
        """The first byte of a kprobe's site is written."""
        if not self._log.has_unlock:
            self._end_rounds(moment)
        if new[0] != site.kprobe[0]:
            self._blame_disarm(site, at, new)
        self._check_probe_is_known(site, at, "went when its handler did not know it any more")
        site.memory[:1] = new
        self._check_restored(site, at)
        site.original, site.begun = bytes(site.memory), at
        self._open[site.address], site.stages = site, []
        self._close(site, at, kprobe=False)
        site.kprobe = b""

    def _check_probe_is_known(self, site: Site, at: int, wrong: str) -> None:
        """The handler of kprobes finds the probe, as long as its int3 can be met."""
        if not self._knows_probes or not self._log.by_kprobes(at):
            return
        if not self._log.flags[at] & F_PROBED:
            self._log.blame("consumed", f"the int3 of a kprobe {wrong}", at, site.address)

    def _check_restored(self, site: Site, at: int) -> None:
        """A kprobe is gone: it may have been a jump."""
        now, before = bytes(site.memory[:5]), site.kprobe[:5]
        if now[0] == before[0] != JUMP and now != before:
            text = f"a kprobe left {now.hex()} behind, not {before.hex()}"
            self._log.blame("writes", text, at, site.address)

    def _blame_disarm(self, site: Site, at: int, new: bytes) -> None:
        text = f"a kprobe's int3 became {new[:1].hex()}, not {site.kprobe[:1].hex()}"
        self._log.blame("writes", text, at, site.address)

    # -- the end of pokes

    def _on_unlock(self, moment: int, at: int) -> None:
        for site in list(self._open.values()):
            self._left_with_int3(site, at)
        self._end_rounds(moment)

    def _left_with_int3(self, site: Site, at: int) -> None:
        """text_mutex is released while a site has int3: a kprobe's, or a poke was not finished."""
        log = self._log
        if site.kprobe:
            fine = not site.tailed or bytes(site.memory[1:5]) == site.kprobe[1:5]
        else:
            # The test module has int3 of its own, which it pokes into its own text.
            own = log.in_module(site.address) and site.address not in log.around.sites
            fine = not site.tailed and (own or log.by_kprobes(site.begun))
            fine |= not log.is_live(site.address, at) or not log.callers(site.begun)
        if not fine:
            text = f"the poke ended with int3 in place ({bytes(site.memory).hex()})"
            log.blame("writes", text, at, site.address, site.begun)
        begun = site.begun
        self._check_probe_is_known(site, begun, "was written before its handler knew it")
        self._close(site, site.last, kprobe=True)
        if not site.kprobe:
            site.kprobe, site.armed = site.original, begun

    def _end_rounds(self, moment: int) -> None:
        """The last rounds of all pokes so far must be over."""
        log = self._log
        if self._ending:
            log.result.batches[len(self._ending)] += 1
        for site, last in self._ending:
            if log.around.kprobe_syncs or not log.by_kprobes(last):
                self._rounds.check(site.address, last, moment, "the release of text_mutex")
        self._ending.clear()

    def _on_stopper(self, at: int) -> None:
        """A task stops the machine. Its argument tells whose stack it has."""
        log = self._log
        data = int(log.words[at][0])
        pokes = [(site, site.last) for site in self._open.values()]
        if log.around.kprobe_syncs:  # before, a task may go on with something else
            pokes += self._ending
        for site, last in pokes:
            if abs(data - int(log.words[last][5])) < THREAD_SIZE:
                log.blame("stopper", "stop_machine() ran for a poke", at, site.address)
                return
