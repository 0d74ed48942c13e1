# SPDX-License-Identifier: GPL-2.0-only
"""Copies of probed instructions, and trampolines: how CPUs go through them, and when they go."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orchestrator.text import disasm, semantics
from orchestrator.text.functions import EACH_CPU, FOR_EACH_CPU, FOR_TASKS, TASKS, TASKS_LATER
from orchestrator.verdict.recorded.reading import Reading
from orchestrator.verdict.recorded.record import (
    A_PROBE,
    A_TRAMPOLINE,
    FREED,
    GRACE,
    R_CHANGED,
    RESUME,
    STEP,
)
from orchestrator.verdict.recorded.sites import Finished
from orchestrator.verdict.recorded.traps import OTHER_INT3, OTHER_REGISTER

INTERRUPTS = np.uint64(0x200)
"""rflags.IF."""


def judge_steps(log: Reading, finished: dict[int, list[Finished]]) -> None:
    """A CPU that met a kprobe's int3 executes the probed instruction: in a copy, which ends with
    another int3 where the kernel does not step by its debug trap. Then it goes on behind the
    original.

    finished: the pokes of each site.
    """
    if not log.around.kprobe_syncs:  # up to 4.14 jprobes send a CPU wherever they like
        return
    copies: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for at in log.of_kind(STEP).tolist():
        site, to = (int(word) for word in log.words[at][:2])
        pokes = [poke for poke in finished.get(site, ()) if poke.begun < at]
        probed = next((poke.probed for poke in reversed(pokes) if poke.probed), b"")
        name = log.around.name(to) or ""
        # Where a kprobe makes a function return an error, it sends the CPU there.
        if not probed or name.startswith("just_return_func"):
            continue
        code = log.words[at][2:4].tobytes()
        if disasm.executes(probed, site, code, to) is False:
            cpu = int(log.cpu[at])
            there = f"{name or f'{to:x}'} ({disasm.disassemble(code, to)})"
            text = f"CPU {cpu} went on at {there}, which is no copy of the probed instruction"
            log.blame("consumed", text, at, site, cpus=[cpu])
        size = disasm.length(probed)
        copies.setdefault((to, size), []).append((at, site + size))
    for (to, size), steps in copies.items():
        _judge_ends(log, to, size, steps)


def _judge_ends(log: Reading, copy: int, size: int, steps: list[tuple[int, int]]) -> None:
    """The int3 at the end of a copy.

    steps: the records by which CPUs went to the copy, and where each has to go on afterwards.
    """
    resumes = np.flatnonzero((log.kinds == RESUME) & (log.words[:, 0] == copy + size))
    which = np.searchsorted([at for at, _ in steps], resumes) - 1
    due = np.array([after for _, after in steps], np.uint64)[np.maximum(which, 0)]
    judged = int(np.count_nonzero(which >= 0))
    log.result.int3 += judged
    log.result.not_judged[OTHER_INT3] -= judged
    wrong = (which >= 0) & (log.words[resumes, 1] != due)
    for at, after in zip(resumes[wrong][:1].tolist(), due[wrong].tolist(), strict=False):
        cpu = int(log.cpu[at])
        text = f"CPU {cpu} went on at {int(log.words[at][1]):x} after a kprobe's step"
        log.blame("consumed", f"{text}, not at {after:x}", at, after, cpus=[cpu])
    changed = resumes[(which >= 0) & (log.flags[resumes] & R_CHANGED != 0)]
    for at in changed[:1].tolist():
        cpu = int(log.cpu[at])
        text = f"CPU {cpu} {OTHER_REGISTER}, after a kprobe's step"
        log.blame("consumed", text, at, int(log.words[at][1]), cpus=[cpu])
    _judge_flags(log, resumes[which >= 0], copy)


def _judge_flags(log: Reading, resumes: NDArray[np.int64], copy: int) -> None:
    """After a step interrupts are enabled if they were before: during it they are not. The other
    flags are what the step has made of them.

    resumes: by which CPUs went on behind the original.
    copy: where it begins, to which CPUs went by another one.
    """
    lost = (log.words[resumes, 3] ^ log.words[resumes, 6]) & np.uint64(semantics.STATUS) != 0
    for at in resumes[lost][:1].tolist():
        cpu, flags = int(log.cpu[at]), int(log.words[at][3] ^ log.words[at][6]) & semantics.STATUS
        text = f"CPU {cpu} went on with other flags after a kprobe's step (they differ in"
        text = f"{text} {flags:#x})"
        log.blame("consumed", text, at, int(log.words[at][1]), cpus=[cpu])
    begun = np.flatnonzero((log.kinds == RESUME) & (log.words[:, 1] == copy))
    for cpu in range(log.cpus):
        first, last = begun[log.cpu[begun] == cpu], resumes[log.cpu[resumes] == cpu]
        which = np.searchsorted(first, last) - 1
        first, last = first[which[which >= 0]], last[which >= 0]
        enabled = first[log.words[first, 3] & INTERRUPTS != 0].tolist()
        if enabled:
            text = f"CPU {cpu} was sent to the copy of a probed instruction with interrupts enabled"
            site = int(log.words[enabled[0]][0])
            log.blame("consumed", text, enabled[0], site, cpus=[cpu])
        wrong = last[(log.words[first, 6] ^ log.words[last, 3]) & INTERRUPTS != 0].tolist()
        if wrong:
            text = (
                f"CPU {cpu} went on with interrupts {{}}abled after a kprobe's step, unlike before"
            )
            text = text.format("en" if log.words[wrong[0]][3] & INTERRUPTS else "dis")
            log.blame("consumed", text, wrong[0], int(log.words[wrong[0]][1]), cpus=[cpu])


def judge_freed(log: Reading, left: dict[int, list[int]]) -> None:
    """A task may be preempted in a slot of kprobes or a trampoline of ftrace. So who takes the last
    jump to it away waits for all tasks before it is freed. An idle CPU may be in a trampoline, too,
    and is waited for in a way of its own.

    left: numbers of the WRITEs by which a jump or call was taken away, by where it went.
    """
    waits = log.of_kind(GRACE)
    for at in log.of_kind(FREED).tolist():
        address, is_trampoline = int(log.words[at][0]), log.numbers[at] == A_TRAMPOLINE
        if log.numbers[at] == A_PROBE:
            continue
        last = max((write for write in left.get(address, ()) if write < at), default=-1)
        if last < 0:
            continue
        callers = log.names_at(at + 1)
        waited_for = set(log.numbers[waits[(waits > last) & (waits < at)]].tolist())
        if any("rcu_tasks" in name for name in callers):  # this is what was to be done later
            waited_for.add(FOR_TASKS)
        # When a kprobe is disabled it loses its jump at once, and nobody waits for tasks.
        by_optimizer = any("kprobe_optimizer" in name for name in callers)
        due = {
            FOR_TASKS: log.around.rcu_tasks
            and (log.around.preemption if is_trampoline else by_optimizer),
            FOR_EACH_CPU: log.around.waits_for_each_cpu and is_trampoline,
        }
        for number in (number for number in due if due[number] and number not in waited_for):
            what = "the trampoline of a tracer" if is_trampoline else "a slot of kprobes"
            since = f"since it had last been {'called' if is_trampoline else 'jumped to'}"
            wait = TASKS if number == FOR_TASKS else EACH_CPU
            text = f"{what} was freed, and nobody had called {wait}() {since}"
            log.blame("sync", text, at, address, last)


def judge_removed(log: Reading, finished: dict[int, list[Finished]]) -> None:
    """A CPU may be in the handler of a kprobe, or step through its copy. So who takes its int3 away
    waits for all CPUs before it frees what belongs to it.

    Kprobes that became jumps are given up by their optimizer, which waits for all tasks.
    """
    waits = log.of_kind(GRACE)
    waits = waits[log.numbers[waits] != TASKS_LATER]
    for at in log.of_kind(FREED).tolist():
        address = int(log.words[at][0])
        pokes = [poke for poke in finished.get(address, ()) if 0 <= poke.begun < at]
        if log.numbers[at] != A_PROBE or not pokes or not log.around.kprobe_syncs:
            continue
        begun = pokes[-1].begun
        taken_away = pokes[-1].owner == "kprobes" and not pokes[-1].kprobe
        if taken_away and not np.any((waits > begun) & (waits < at)):
            text = "a kprobe was freed, and nobody had called synchronize_rcu() since its int3 went"
            log.blame("sync", text, at, address, begun)
