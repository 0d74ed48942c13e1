# SPDX-License-Identifier: GPL-2.0-only
"""Copies of probed instructions, and trampolines: how CPUs go through them, and when they go."""

from __future__ import annotations

import numpy as np

from orchestrator.text import disasm
from orchestrator.verdict.recorded.reading import Reading
from orchestrator.verdict.recorded.record import FREED, RESUME, STEP, TASKS
from orchestrator.verdict.recorded.sites import Finished
from orchestrator.verdict.recorded.traps import OTHER_INT3


def judge_steps(log: Reading, finished: dict[int, list[Finished]]) -> None:
    """A CPU that met a kprobe's int3 executes the probed instruction: in a copy, which ends with
    another int3 where the kernel does not step by its debug trap. Then it goes on behind the
    original.

    finished: the pokes of each site.
    """
    if not log.around.kprobe_syncs:  # up to 4.14 jprobes send a CPU wherever they like
        return
    copies: dict[int, list[tuple[int, int]]] = {}
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
        copies.setdefault(to + size, []).append((at, site + size))
    for end, steps in copies.items():
        _judge_ends(log, end, steps)


def _judge_ends(log: Reading, end: int, steps: list[tuple[int, int]]) -> None:
    """The int3 at the end of a copy.

    steps: the records by which CPUs went to the copy, and where each has to go on afterwards.
    """
    resumes = np.flatnonzero((log.kinds == RESUME) & (log.words[:, 0] == end))
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


def judge_freed(log: Reading, left: dict[int, list[int]]) -> None:
    """A task may be preempted in a slot of kprobes or a trampoline of ftrace. So who takes the last
    jump to it away waits for all tasks before it is freed.

    left: numbers of the WRITEs by which a jump or call was taken away, by where it went.
    """
    tasks = log.of_kind(TASKS)
    for at in log.of_kind(FREED).tolist():
        address, is_trampoline = int(log.words[at][0]), bool(log.numbers[at])
        last = max((write for write in left.get(address, ()) if write < at), default=-1)
        if last < 0 or not log.around.rcu_tasks:
            continue
        # When a kprobe is disabled it loses its jump at once, and nobody waits for tasks.
        by_optimizer = any("kprobe_optimizer" in name for name in log.names_at(at + 1))
        if not (log.around.preemption if is_trampoline else by_optimizer):
            continue
        if not np.any((tasks > last) & (tasks < at)):
            what = "the trampoline of a tracer" if is_trampoline else "a slot of kprobes"
            since = f"since it had last been {'called' if is_trampoline else 'jumped to'}"
            text = f"{what} was freed, and nobody had called synchronize_rcu_tasks() {since}"
            log.blame("sync", text, at, address, last)
