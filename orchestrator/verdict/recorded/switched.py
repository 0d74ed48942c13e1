# SPDX-License-Identifier: GPL-2.0-only
"""What keys, static calls and tracers are set to, and what their sites are then."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from orchestrator.text import semantics
from orchestrator.text.functions import FTRACE, FTRACE_LIST
from orchestrator.text.symbols import plain
from orchestrator.verdict.recorded.judgement import RecordViolation
from orchestrator.verdict.recorded.reading import Reading
from orchestrator.verdict.recorded.record import (
    BRANCH,
    CALL,
    CALLS_FTRACE,
    CALLS_FTRACE_REGS,
    CALLS_GONE,
    CALLS_TRAMPOLINE,
    KEY_EARLY,
    OTHER_OPS,
    SITE_FLIPPED,
    SITE_GONE,
    SITE_INIT,
    SITE_TAIL,
    TRACED,
    TRACER,
    UNLOCK,
    WRITE,
)

FL_ENABLED, FL_REGS, FL_REGS_EN, FL_TRAMP, FL_TRAMP_EN = (1 << bit for bit in range(31, 26, -1))
FL_DISABLED, FL_DIRECT, FL_DIRECT_EN = (1 << bit for bit in (25, 24, 23))
FL_COUNT = (1 << 19) - 1
"""FTRACE_FL_* in include/linux/ftrace.h, and the number of tracers; since 4.6."""
JUMPS, JCC = (semantics.JUMP, 0xEB), 0x0F
BRANCH_SIZES = (2, 5)
"""Bytes of a branch: those of its jump."""
MODULES = 0xFFFFFFFFA0000000
"""Where the text of modules begins. What is between it and the kernel's own text is init text."""
FOR_ANY_TRACER = ("ftrace_", "arch_ftrace_")
"""How the functions of ftrace begin that any tracer's ops may be passed."""
TRACED_BEFORE = "functions that can be traced, in a kernel before 5.5"


def judge_sites(log: Reading) -> None:
    """Each branch, call and function that the recorder looked at is what it should be."""
    checks: list[tuple[int, Callable[..., str | None]]] = [
        (BRANCH, _wrong_branch),
        (CALL, _wrong_call),
    ]
    if log.around.kprobe_syncs:  # since 5.5; the flags have been these since 4.6
        checks += [(TRACED, _wrong_trace), (TRACER, _wrong_tracer)]
    elif traced := int(log.numbers[log.kinds == TRACED].sum()):
        log.result.not_judged[TRACED_BEFORE] += traced
    for kind, wrong in checks:
        numbers = log.of_kind(kind)
        # A TRACED is of several functions that are alike, and says of how many.
        log.result.sites_looked_at += int(np.maximum(log.numbers[numbers], 1).sum())
        rows, first = np.unique(log.words[numbers, :6], axis=0, return_index=True)
        for row, at in zip(rows.tolist(), numbers[first].tolist(), strict=True):
            if why := wrong(log, *row):
                text = f"{why} (site {log.place(row[2])})"
                log.result.blame(RecordViolation("sites", text, at, row[2]))


def judge_tracers(log: Reading) -> None:
    """Where ftrace_caller() is to call another function, it calls the one that looks at the filters
    of all tracers from before the first call of a function changes.

    See ftrace_modify_all_code() in kernel/trace/ftrace.c.
    """
    if not log.around.kprobe_syncs:
        return
    before, unlocks = "", log.of_kind(UNLOCK)
    for at in log.of_kind(TRACER).tolist():
        function, _, site = log.words[at][:3].tolist()
        name = plain(log.function(function))
        if before and not {before, name} & set(FTRACE_LIST):
            text = f"{before}() was called by the tracer's entry until {name}() was"
            log.blame("sites", text, at, site)
        elif name in FTRACE_LIST and _changes_before(log, at, unlocks[unlocks < at]):
            text = f"calls of functions were switched before {name}() was called"
            log.blame("sites", text, at, site)
        before = name


def _changes_before(log: Reading, at: int, unlocks: NDArray[np.int64]) -> bool:
    """Whether calls of functions have been poked since text_mutex was taken.

    unlocks: its releases until then.
    """
    if not len(unlocks):
        return False
    writes = unlocks[-1] + np.flatnonzero(log.kinds[unlocks[-1] : at] == WRITE)
    return any(FTRACE in log.callers(write) for write in writes.tolist())


def _is_judged(log: Reading, site: int, flags: int) -> bool:
    """Whether a site is in text that stays."""
    return not flags & SITE_INIT and (log.in_text(site) or site >= MODULES)


def _wrong_branch(
    log: Reading, key: int, count: int, site: int, target: int, flags: int, memory: int
) -> str | None:
    """What is wrong with a branch of a static key."""
    name = log.place(key)
    if flags & SITE_GONE:
        return f"a key ({name}) has branches of a module that is gone"
    if flags & KEY_EARLY:
        return f"a key ({name}) counts as on before its branches are switched"
    if not _is_judged(log, site, flags):
        return None
    code = memory.to_bytes(8, "little")
    effect, jumps = semantics.effect(site, code, 0), code[0] in JUMPS
    size = semantics.length(code)
    of = f"{code[:5].hex()} is left at a branch of a key ({name}) that is"
    if bool(count) != bool(flags & SITE_FLIPPED):
        if not jumps or effect is None or effect.ip != target:
            return f"{of} {'on' if count else 'off'}, where a jump to {target:x} is due"
    elif effect is None or jumps or effect.ip != site + size or size not in BRANCH_SIZES:
        return f"{of} {'on' if count else 'off'}, where a NOP is due"
    return None


def _wrong_call(
    log: Reading, key: int, function: int, site: int, flags: int, memory: int, _: int
) -> str | None:
    """What is wrong with a call of a static call or a tracer, or with a trampoline."""
    if flags & SITE_GONE:
        return f"a static call ({log.place(key)}) has sites of a module that is gone"
    if flags & OTHER_OPS and not key:
        return "the trampoline of a tracer passes the ops of another one"
    if not _is_judged(log, site, flags):
        return None
    code = memory.to_bytes(8, "little")
    effect = semantics.effect(site, code, 0)
    if effect is None and code[0] != semantics.INT3:
        return None  # what the function does, in place of a call of it (pv_ops since 7.x)
    ip = (effect.ip if effect else 0) or 0
    if function:
        fine = _calls(log, function, code, ip, tail=bool(flags & SITE_TAIL))
        due = f"{log.place(function)} is to be called"
    else:
        fine = _calls_nothing(log, site, code, ip, tail=bool(flags & SITE_TAIL))
        due = "nothing is to be called"
    return None if fine else f"{code[:5].hex()} is left at a call, where {due}"


def _calls(log: Reading, function: int, code: bytes, ip: int, *, tail: bool) -> bool:
    """Whether an instruction calls a function, or does what the function would."""
    if code[0] in ((semantics.JUMP, JCC) if tail else (semantics.CALL,)) and (
        # Some kernels call what is behind a function's ENDBR.
        ip in (function, function + 4) or code[0] == JCC
    ):
        return True
    name = log.around.name(function) or ""
    if name.startswith("__static_call_return0") and code[:5] in semantics.RETURN_0:
        return True
    # In place of a tracer that does not look after its recursion itself.
    return (log.around.name(ip) or "").startswith("ftrace_ops_assist_func")


def _calls_nothing(log: Reading, site: int, code: bytes, ip: int, *, tail: bool) -> bool:
    if tail:  # RET, or a jump to the thunk that returns
        return code[0] == semantics.RET or "return_thunk" in (log.around.name(ip) or "")
    return ip == site + 5 and code[0] not in (semantics.CALL, semantics.JUMP)


def _wrong_tracer(log: Reading, function: int, passed: int, *_: int) -> str | None:
    """What is wrong with the function that ftrace_caller() is about to call: with several tracers
    that is one of ftrace, else the tracer, or what looks after its recursion."""
    if log.function(function).startswith(FOR_ANY_TRACER) or passed == function:
        return None
    called, other = log.place(function), log.place(passed)
    return f"{called} is about to be called with the ops of another tracer ({other})"


def _wrong_trace(
    log: Reading, called: int, what: int, site: int, flags: int, memory: int, on: int
) -> str | None:
    """What is wrong with the call at the beginning of a function that can be traced."""
    if what & CALLS_GONE:
        return "there are records of functions of a module that is gone"
    code = memory.to_bytes(8, "little")
    if flags & FL_DISABLED:  # of a module that is not ready, or no function after all
        live = log.in_module(site) and log.module_live < 0  # since before this log
        return "a function of a module that runs cannot be traced" if live else None
    users = flags & FL_COUNT if on else 0
    enabled = bool(flags & FL_ENABLED)
    if enabled != bool(users):
        state = "is traced" if enabled else "is not traced"
        return f"a function {state}, and it has {users or 'no'} tracers"
    left = f"{code[:5].hex()} is left at a function that is"
    if not enabled:
        effect = semantics.effect(site, code, 0)
        fine = effect == semantics.Effect(site + 5, 0) and code[0] != semantics.JUMP
        return None if fine else f"{left} not traced, where a NOP is due"
    direct = flags & FL_DIRECT if users == 1 else 0
    for wanted, done, whom in (
        (direct, FL_DIRECT_EN, "its direct call"),
        (flags & FL_TRAMP, FL_TRAMP_EN, "the trampoline of its only tracer"),
        (flags & FL_REGS, FL_REGS_EN, "ftrace_regs_caller"),
    ):
        if bool(wanted) != bool(flags & done):
            return f"a function {'still calls' if flags & done else 'does not call'} {whom}"
    if flags & FL_DIRECT_EN:
        fine, due = code[0] in (semantics.CALL, semantics.JUMP), "its direct call"
    elif flags & FL_TRAMP_EN:
        fine, due = bool(what & CALLS_TRAMPOLINE), "the trampoline of a tracer"
    elif flags & FL_REGS_EN:
        fine, due = bool(what & CALLS_FTRACE_REGS), "ftrace_regs_caller"
    else:
        fine, due = bool(what & CALLS_FTRACE), "ftrace_caller"
    return None if fine else f"{left} traced, where a call of {due} is due"
