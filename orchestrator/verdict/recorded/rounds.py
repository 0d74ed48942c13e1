# SPDX-License-Identifier: GPL-2.0-only
"""Sync rounds: between two writes of a poke, and after the last, every CPU serialises."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from orchestrator.verdict.model import cpu_names
from orchestrator.verdict.recorded.reading import Reading
from orchestrator.verdict.recorded.record import (
    F_FIRST,
    M_IDLE,
    M_KERNEL,
    M_USER,
    MODE,
    PASS,
    S_IN_SYNC,
    S_ON_PURPOSE,
    SERIALISE,
    SYNC,
    TRAP,
    UNLOCK,
    WRITE,
    WRITER,
    written,
)

ELSEWHERE = {M_USER: "in user mode", M_IDLE: "idle"}
DEFERS = 0.25
"""A kernel that leaves out this part of the CPUs that are elsewhere does so by design. One that
should not, and does, leaves out CPUs that are in the kernel as well, which nothing excuses."""


@dataclass(frozen=True)
class LeftOut:
    """A CPU that a sync round left out while it was in user mode or idle."""

    cpu: int
    mode: int
    """What it was in."""
    site: int
    since: int
    """Record of the write that the round followed."""
    until: int
    """Record by which the round was over."""
    text: str
    """What to say if that was wrong."""


class Rounds:
    """Judges sync rounds: each one when it is asked to, and at the end those that left CPUs out."""

    def __init__(self, log: Reading) -> None:
        self._log = log
        serialises = log.kinds == SERIALISE
        on_purpose = serialises & (log.flags & S_ON_PURPOSE != 0)
        self._synced = self._last_before(log.kinds == SYNC)
        self._serialised_inside = self._last_before(serialises & (log.flags & S_IN_SYNC != 0))
        # Where a kernel has no do_sync_core(), nobody knows which instruction is its sync.
        self._serialised = self._last_before(on_purpose if log.around.syncs else serialises)
        self._changed_mode = self._last_before(log.kinds == MODE)
        self._left_out: list[LeftOut] = []
        self._interrupted: Counter[int] = Counter()
        """How often a CPU that was in a mode did sync in a round."""

    def _last_before(self, wanted: NDArray[np.bool_]) -> NDArray[np.int32]:
        """For each moment and CPU, the last such record before it; -1 for none."""
        moments = self._log.moments
        last = np.full((len(moments), self._log.cpus), -1, np.int32)
        for cpu in range(self._log.cpus):
            at = np.flatnonzero(wanted & (self._log.cpu == cpu))
            if len(at):
                index = np.searchsorted(at, moments) - 1
                last[:, cpu] = np.where(index >= 0, at[np.maximum(index, 0)], -1)
        return last

    def check(self, site: int, since: int, moment: int, until: str) -> None:
        """Every CPU that was online must have synced since a write.

        since: number of the WRITE.
        moment: of the one that may only come afterwards; `until` names it.
        """
        log = self._log
        at = int(log.moments[moment])
        log.result.rounds += 1
        online = int(log.words[since][6])
        online &= int(log.words[at][6 if log.kinds[at] == WRITE else 1])
        user, idle = self._elsewhere(since)
        missing, quiet, left_out = [], [], []
        synced = self._synced[moment].tolist()
        serialised = self._serialised[moment].tolist()
        inside = self._serialised_inside[moment].tolist()
        for cpu in (cpu for cpu in range(online.bit_length()) if online >> cpu & 1):
            if cpu < log.cpus and synced[cpu] > since:
                for mode, cpus in ((M_USER, user), (M_IDLE, idle)):
                    self._interrupted[mode] += cpus >> cpu & 1
                if inside[cpu] < since:
                    quiet.append(cpu)
            elif cpu < log.cpus and serialised[cpu] > since:
                log.result.inline_syncs += 1  # in whatever function that was
            elif mode := self._mode_in(cpu, moment, since):
                left_out.append((cpu, mode))
            else:
                missing.append(cpu)
        data, offset = written(log.records, since).hex(), int(log.words[since][0]) - site
        between = f"between the write of {data} at +{offset} and {until}"
        to_sync = "run do_sync_core" if log.around.syncs else "serialise"
        for cpu, mode in left_out:
            text = f"{between} {cpu_names([cpu])} was {ELSEWHERE[mode]} and did not {to_sync}"
            self._left_out.append(LeftOut(cpu, mode, site, since, at, text))
        if missing:
            did = "ran do_sync_core" if log.around.syncs else "serialised"
            nobody = len(missing) == online.bit_count()
            who = f"no CPU {did}" if nobody else f"{cpu_names(missing)} did not {to_sync}"
            log.blame("sync", f"{between} {who}", at, site, since, missing)
        elif quiet:
            text = f"do_sync_core on {cpu_names(quiet)} executed no instruction that serialises"
            log.blame("sync", text, at, site, since, quiet)

    # -- CPUs that a round may leave out

    def _elsewhere(self, at: int) -> tuple[int, int]:
        """The CPUs in user mode, and those that are idle, at a WRITE or UNLOCK."""
        log = self._log
        if log.kinds[at] == UNLOCK:
            return int(log.words[at][2]), int(log.words[at][3])
        if log.kinds[at + 1 : at + 2].tolist() == [WRITER]:
            return int(log.words[at + 1][5]), int(log.words[at + 1][6])
        return 0, 0

    def _mode_in(self, cpu: int, moment: int, since: int) -> int:
        """Where a CPU was between a write and a moment.

        M_KERNEL if it was in the kernel all the time: then nothing excuses it. If it was in user
        mode and idle, it is idle, which it was later. A kernel that defers syncs takes a CPU for
        idle from a little before it sleeps until a little after, or although it does not sleep
        after all, so what it does next counts as well: sleep, or sync by itself.
        """
        log = self._log
        at = int(log.moments[moment])
        found = {
            mode
            for when in (since, at)
            for mode, cpus in zip((M_USER, M_IDLE), self._elsewhere(when), strict=True)
            if cpus >> cpu & 1
        }
        change = int(self._changed_mode[moment, cpu]) if cpu < log.cpus else -1
        if change > since:
            found.add(int(log.numbers[change]) or self._mode_before(cpu, change))
        after = log.next_of_cpu(MODE, cpu, at)
        if after is not None and not log.has_between(SERIALISE, cpu, at, after):
            found.add(int(log.numbers[after]))
        if not found and self._syncs_by_itself(cpu, at):
            found.add(M_IDLE)
        return max(found, default=M_KERNEL)

    def _syncs_by_itself(self, cpu: int, at: int) -> bool:
        """Whether the CPU syncs after record `at`, and not in do_sync_core() or another round."""
        flags = self._log.flags[self._log.of_cpu(SERIALISE, cpu, at)[:4]]
        on_purpose = flags[flags & S_ON_PURPOSE != 0][:1]
        return bool(len(on_purpose)) and not on_purpose[0] & S_IN_SYNC

    def _mode_before(self, cpu: int, change: int) -> int:
        """Where a CPU came from that was in the kernel from record `change` on.

        Before the first record of a branch most are idle.
        """
        changes = self._log.of_cpu(MODE, cpu)
        before = int(np.searchsorted(changes, change)) - 1
        return int(self._log.numbers[changes[before]]) if before >= 0 else M_IDLE

    def judge_left_out(self) -> None:
        """A kernel may leave a CPU out that executes none of its text, if that CPU serialises
        before it does.

        A kernel that does so often, in all logs of the run so far, does so by design. It interrupts
        some such CPUs as well: they sleep a little later than the kernel takes them for idle, or
        wake up by themselves.
        """
        result = self._log.result
        seen, left = result.interrupted, result.left_out
        seen.update({ELSEWHERE[mode]: count for mode, count in self._interrupted.items()})
        left.update(ELSEWHERE[one.mode] for one in self._left_out)
        for one in self._left_out:
            where = ELSEWHERE[one.mode]
            if left[where] < DEFERS * (left[where] + seen[where]):
                why: str | None = one.text
            else:
                result.deferred[where] += 1
                why = self._not_made_up(one)
            if why:
                self._log.blame("sync", why, one.until, one.site, one.since, [one.cpu])

    def _not_made_up(self, one: LeftOut) -> str | None:
        """What a CPU that was left out did without having serialised; None if it did nothing."""
        log, place = self._log, self._log.result.log.place
        names = f"{cpu_names([one.cpu])}, which was {ELSEWHERE[one.mode]} at its last sync round,"
        for kind in (PASS, TRAP):
            at = log.of_cpu(kind, one.cpu, one.until)
            at = at[log.words[at, 0] == one.site]
            if kind == PASS:  # the others are a sum, and not of that moment
                at = at[log.flags[at] & F_FIRST != 0]
            at = at[:1]
            if len(at) and not log.has_between(SERIALISE, one.cpu, one.since, int(at[0])):
                return f"{names} executed the site [{place(int(at[0]))}] and had not serialised"
        modes = log.of_cpu(MODE, one.cpu, one.until)
        kinds = log.numbers[modes].tolist()
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
        at = self._log.of_cpu(SERIALISE, cpu, since)
        return bool(np.any(self._log.flags[at[at < before]] & S_ON_PURPOSE))
