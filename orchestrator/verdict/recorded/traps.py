# SPDX-License-Identifier: GPL-2.0-only
"""How each CPU went on that met the int3 of a poke or kprobe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.text import disasm, semantics
from orchestrator.text.keys import SiteCpu
from orchestrator.verdict.recorded.reading import OTHERS, TEST_MODULE, Reading
from orchestrator.verdict.recorded.record import (
    DIES,
    H_KPROBE,
    H_POKE,
    R_CHANGED,
    R_KEPT,
    RESUME,
    SYNC,
    TRAP,
)
from orchestrator.verdict.recorded.sites import Finished

OTHER_INT3 = "int3 outside of any poke"
RESUME_FLAG = 0x10000
"""rflags.RF, which the CPU sets and clears by itself."""
LOOPS = (b"\xe0", b"\xe1", b"\xe2")
POPF = b"\x9d"
OTHER_REGISTER = "went on with another register changed than rip and rsp"
WORD = (1 << 64) - 1
DETOUR = 1 << 12
"""More bytes than the code has to which the jump of a kprobe leads."""
OVER = 3
"""The phase in which the new instruction is there."""
NO_PHASE = -1
"""Of an int3 that no poke had written, as far as the log goes."""
ROW_FACTORS = np.random.default_rng(1).integers(1 << 63, size=10, dtype=np.uint64) | np.uint64(1)
"""Factors of a hash of ten words: of a million rows, two that differ have the same hash once in 30
million logs."""


class Resumed(NamedTuple):
    """How CPUs went on after one int3; signed words, as numpy has them."""

    site: int
    poke: int
    """Which of the site's pokes had written the int3; negative for none that is known."""
    ip: int
    stack: int
    """By how many bytes the stack pointer moved."""
    pushed: int
    """The word on the stack, if it grew."""
    returns: int
    """Whether it went on at the word on the stack."""
    changed: int
    """Bits of rflags."""
    handlers: int
    """Flags of RESUME, of those that matter here."""
    conditions: int
    """Bits of rflags that conditional jumps depend on."""
    phase: int
    """Of the poke, when the CPU went on."""


def judge_int3(log: Reading, finished: dict[int, list[Finished]]) -> None:
    """Each CPU went on as the instruction that the poke replaces, or the new one, would.

    finished: the pokes of each site.
    """
    _judge_references(log)
    trap, resume = _pairs(log, finished)
    log.result.int3 += len(resume)
    if not len(resume):
        return
    site = log.words[resume, 0]
    which = np.zeros(len(resume), np.int64)
    phases = np.full((2, len(resume)), NO_PHASE, np.int64)
    by_site = np.argsort(site, kind="stable")
    for mine in np.split(by_site, np.flatnonzero(np.diff(site[by_site])) + 1):
        pokes = finished[int(site[mine[0]])]
        which[mine] = np.searchsorted([one.begun for one in pokes], trap[mine]) - 1
        phases[:, mine] = _phases(pokes, trap[mine], resume[mine])
    _count_phases(log, log.cpu[resume], phases)
    _count_going_back(log, resume, phases[1])
    _judge_interrupts(log, trap, resume)
    for row, first, count in _kinds_of(log, resume, which, phases[1]):
        if row.poke < 0:
            log.result.not_judged[OTHER_INT3] += count
            continue
        if why := _wrong(log, finished[row.site & WORD][row.poke], row):
            cpu, at = int(log.cpu[resume[first]]), int(resume[first])
            log.blame("consumed", f"CPU {cpu} {why}", at, row.site & WORD, cpus=[cpu])


def _judge_references(log: Reading) -> None:
    """Each handler gives its reference back, or the poke waits for ever."""
    for at in np.flatnonzero((log.kinds == RESUME) & (log.flags & R_KEPT != 0))[:1].tolist():
        cpu = int(log.cpu[at])
        text = f"CPU {cpu} went on after int3, and a handler kept its reference to the poke"
        log.blame("consumed", text, at, int(log.words[at][0]), cpus=[cpu])


def _pairs(
    log: Reading, finished: dict[int, list[Finished]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The TRAPs at sites of pokes, and how each CPU went on after it."""
    traps = log.of_kind(TRAP, RESUME)
    wanted = np.isin(log.words[traps, 0], np.array(sorted(finished), np.uint64))
    others = int(np.count_nonzero(~wanted & (log.kinds[traps] == TRAP)))
    log.result.not_judged[OTHER_INT3] += others
    traps = traps[wanted]
    traps = traps[np.lexsort((traps, log.words[traps, 0], log.cpu[traps]))]
    before, after = traps[:-1], traps[1:]
    # A RESUME follows its TRAP, among those of one CPU and site.
    pair = (
        (log.kinds[after] == RESUME)
        & (log.kinds[before] == TRAP)
        & (log.words[after, 0] == log.words[before, 0])
        & (log.cpu[after] == log.cpu[before])
    )
    return before[pair], after[pair]


def _count_going_back(log: Reading, resume: NDArray[np.int64], phase: NDArray[np.int64]) -> None:
    """A handler may send a CPU back to where the int3 was, if that is gone by then."""
    back = resume[(log.words[resume, 0] == log.words[resume, 1]) & (phase == OVER)]
    log.result.went_back.update(
        SiteCpu(int(log.words[at][0]), int(log.cpu[at])) for at in back.tolist()
    )


def _judge_interrupts(log: Reading, trap: NDArray[np.int64], resume: NDArray[np.int64]) -> None:
    """No interrupt comes between int3 and the iret, or a sync says that this CPU is done with an
    int3 that it has not looked up yet."""
    if log.around.counts_handlers:
        return
    for cpu in range(log.cpus):
        mine = log.cpu[trap] == cpu
        syncs = np.flatnonzero((log.kinds == SYNC) & (log.cpu == cpu))
        before, after = (np.searchsorted(syncs, at[mine]) for at in (trap, resume))
        came = before != after
        for begun, at in zip(trap[mine][came].tolist(), syncs[before[came]].tolist(), strict=True):
            text = f"CPU {cpu} synced while it handled an int3"
            log.blame("consumed", text, at, int(log.words[begun][0]), cpus=[cpu])


def _phases(
    pokes: Sequence[Finished], trap: NDArray[np.int64], resume: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The phases of the pokes of one site in which int3 was executed, and its CPU went on."""
    writes = [(at, phase) for one in pokes for phase, at in enumerate(one.stages, 1)]
    if not writes:
        return np.full((2, len(trap)), NO_PHASE, np.int64)
    numbers, phases = np.array([at for at, _ in writes]), np.array([0, *(p for _, p in writes)])
    return phases[np.searchsorted(numbers, np.stack([trap, resume]))]


def _count_phases(log: Reading, cpus: NDArray[np.uint8], phases: NDArray[np.int64]) -> None:
    """In which phases int3 was executed, and its CPU went on, of all that were met."""
    known = phases[0] != NO_PHASE
    met, handled = phases[:, known]
    counts = np.bincount(cpus[known].astype(np.int64) << 4 | met << 2 | handled)
    for number in np.flatnonzero(counts).tolist():
        key = number >> 4, number >> 2 & 3, number & 3
        log.result.met[key] += int(counts[number])


def _kinds_of(
    log: Reading, resume: NDArray[np.int64], which: NDArray[np.int64], phase: NDArray[np.int64]
) -> list[tuple[Resumed, int, int]]:
    """The different ways in which CPUs went on: each, which of `resume` was the first, how many."""
    words = log.words[resume]
    site, ip, sp, flags, word, old_sp, old_flags = (words[:, i] for i in range(7))
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
            (log.flags[resume] & (H_POKE | H_KPROBE | R_CHANGED)).astype(np.int64),
            (old_flags & np.uint64(semantics.CONDITIONS)).astype(np.int64),
            phase,
        ],
        axis=1,
    )  # as the fields of Resumed
    # Sorting whole rows takes ten times as long as sorting numbers that stand for them.
    stands_for = (rows.view(np.uint64) * ROW_FACTORS).sum(axis=1, dtype=np.uint64)
    _, first, count = np.unique(stands_for, return_index=True, return_counts=True)
    kinds = [Resumed(*row) for row in rows[first].tolist()]
    return list(zip(kinds, first.tolist(), count.tolist(), strict=True))


def _wrong(log: Reading, poke: Finished, cpu: Resumed) -> str | None:
    """What is wrong with how a CPU went on after an int3."""
    address, ip = cpu.site & WORD, cpu.ip & WORD
    if cpu.handlers & H_KPROBE and poke.kprobe:
        if log.around.kprobe_syncs and not _leaves_jump_alone(poke, address, ip, cpu.phase):
            return f"went on at {ip:x}, in front of a part of the jump that a kprobe was"
        return _wrong_after_kprobe(poke, address, ip, cpu)
    if cpu.handlers & R_CHANGED:
        return OTHER_REGISTER
    if cpu.stack not in (-8, 0, 8):
        return f"went on with rsp {cpu.stack:+d}, which no instruction that is poked does"
    if ip in log.around.sites.get(address, ()):
        return None
    if cpu.changed:
        return f"went on with other flags (they differ in {cpu.changed:#x})"
    name = (log.around.name(ip) or "").partition("+0x0")[0]
    does = [_does(poke.old, name, cpu), _does(poke.new, name, cpu)]
    if True in does:
        return None
    if ip == address:
        # The int3 may be gone by then: it executes the new instruction.
        return "met int3, and no handler took it" if cpu.phase != OVER else None
    if not poke.new:
        moved = cpu.stack and poke.owner == "jump labels"
        return f"went on with rsp {cpu.stack:+d}, and branches leave it alone" if moved else None
    # Where the test sends CPUs by pokes of its own, only the test knows.
    own = poke.owner in (TEST_MODULE, OTHERS) and log.in_module(address)
    if None in does or (own and address not in log.around.sites):
        return None
    return (
        f"went on at {ip:x} (rsp {cpu.stack:+d}), which neither {poke.old[:5].hex()} "
        f"nor {poke.new[:5].hex()} does"
    )


def _leaves_jump_alone(poke: Finished, address: int, ip: int, phase: int) -> bool:
    """Whether a CPU takes the detour while the tail of the jump to it is in the way: until the old
    tail is back, or from the new one on."""
    if phase == 1 and poke.probed and poke.old[1:5] != poke.probed[1:5]:
        jump = bytes([semantics.JUMP]) + poke.old[1:]  # in front of it there may be an int3
    elif phase == 2 and poke.new[:1] == bytes([semantics.JUMP]):
        jump = poke.new
    else:
        return True
    target = semantics.effect(address, jump, 0)
    return not target or target.ip is None or 0 <= ip - target.ip < DETOUR


def _wrong_after_kprobe(poke: Finished, address: int, ip: int, cpu: Resumed) -> str | None:
    size, stack = disasm.length(poke.probed or poke.old), cpu.stack
    if cpu.changed & semantics.STATUS and poke.probed[:1] != POPF:
        return f"went on with other flags (they differ in {cpu.changed & semantics.STATUS:#x})"
    # What counts down rcx is emulated.
    if cpu.handlers & R_CHANGED and poke.probed[:1] not in LOOPS:
        return OTHER_REGISTER
    if address < ip < address + size:
        return f"went on inside the probed instruction, at +{ip - address} of {size} bytes"
    # What has moved the stack was emulated.
    if ip == address + size and not stack and disasm.needs_execution(poke.probed):
        return "went on behind the probed instruction, which nobody had executed"
    return None


def _does(code: bytes, name: str, cpu: Resumed) -> bool | None:
    """Whether an instruction does what a CPU did; None if that is not known.

    name: of the function that begins where the CPU went on.
    """
    address, ip = cpu.site & WORD, cpu.ip & WORD
    effect = semantics.effect(address, code, cpu.conditions)
    if code[:5] in semantics.RETURN_0:  # as a call, for no handler clears rax
        if name != "__static_call_return0":
            return False
        effect = semantics.Effect(ip, -8, address + 5)
    elif code[:1] == bytes([semantics.RET]) and name == "__static_call_return" and not cpu.stack:
        return True  # to a function that does nothing but return, as 6.1-int3 does it
    if effect is None:
        return None
    if effect.stack != cpu.stack:
        return False
    if effect.ip is None and cpu.returns:
        return True
    return effect.ip == ip and effect.pushed in (None, cpu.pushed & WORD)


def judge_dying(log: Reading, finished: dict[int, list[Finished]]) -> None:
    """A CPU that met the int3 of a poke or kprobe goes on: its kernel does not die of it."""
    traps = log.of_kind(TRAP)
    judged = set()
    for at in log.of_kind(DIES).tolist():
        address, cpu = int(log.words[at][0]), int(log.cpu[at])
        mine = (log.words[traps, 0] == address) & (log.cpu[traps] == cpu)
        trap = max(traps[mine & (traps < at)].tolist(), default=-1)
        known = any(poke.begun < trap for poke in finished.get(address, ()))
        if known and trap not in judged:
            judged.add(trap)
            text = f"CPU {cpu} met int3, no handler took it, and the kernel died"
            log.blame("consumed", text, at, address, trap, [cpu])
