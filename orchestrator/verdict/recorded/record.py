# SPDX-License-Identifier: GPL-2.0-only
"""The records of a log, as orchestrator/watch/in_qemu/ writes them: kinds, flags and words."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Records = NDArray[np.void]
"""A log: RECORD in orchestrator/watch/recorder.py is the type of its elements."""

WRITE, WRITER, CALLERS, SYNC, SERIALISE, TRAP, RESUME, CODE, PASS, STOPPER, UNLOCK = range(1, 12)
MODE, BRANCH, CALL, GRACE, ORDER, DIES, FLUSH, UNGUARDED, TRACED, STEP, FREED = range(12, 23)
LOADED, TRACER = 23, 24
"""enum kind in record.h."""
INLINE = 16
"""Bytes that WRITE has of a write."""

F_IRQS, F_EARLY, F_MEMSET, F_UNREADABLE, F_MAPPED = 1, 2, 4, 8, 16
F_EXECUTED, F_STATE, F_PROBED = 32, 64, 128
"""Flags of WRITE; UNLOCK and FLUSH have F_MAPPED, SYNC has F_STATE, and LOADED has F_IRQS."""
F_FIRST = 1
"""Of a PASS: the first of that CPU since the last write to the site."""
S_IN_SYNC, S_ON_PURPOSE = 0x100, 0x200
"""Flags of SERIALISE: within do_sync_core(); by an instruction that is there for nothing else."""
H_POKE, H_KPROBE, R_CHANGED, R_KEPT = 2, 4, 0x400, 0x800
"""Flags of RESUME: handlers that were entered; a register is not what it was; no handler is under
way, and a reference to what the poke handler looks at is there that is not the poke's."""
M_KERNEL, M_USER, M_IDLE = range(3)
"""What a CPU is in, by MODE and the sets of CPUs in WRITER and UNLOCK."""
SITE_FLIPPED, SITE_TAIL, SITE_INIT, SITE_GONE, KEY_EARLY, OTHER_OPS = 1, 1, 2, 4, 8, 8
"""Flags of BRANCH and CALL: the branch is taken unless the key is on; the call is a jump; the site
is in text that is there only at the beginning; it is in a list of what is no longer there; the key
counts as on before it is switched; a trampoline passes the ops of another tracer."""
CALLS_FTRACE, CALLS_FTRACE_REGS, CALLS_TRAMPOLINE, CALLS_GONE = 1, 2, 4, 8
"""enum called in record.h, of TRACED."""
A_SLOT, A_TRAMPOLINE, A_PROBE = range(3)
"""Numbers of FREED: a slot of kprobes, the trampoline of a tracer, what belongs to a kprobe."""


def written(log: Records, at: int) -> bytes:
    """What a WRITE of at most INLINE bytes writes."""
    entry = log[at]
    return bytes(entry["word"][1:3].tobytes()[: int(entry["number"])])
