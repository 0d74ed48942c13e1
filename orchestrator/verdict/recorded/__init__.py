# SPDX-License-Identifier: GPL-2.0-only
"""Judges every write to kernel text in the recorder's log, whoever made it.

The log has, in the order of execution, each write, each core that syncs, each int3 and how its CPU
went on (orchestrator/watch/in_qemu/). docs/phase-model.md draws the protocols:

    a poke        cc, tail, first byte; alone or in a batch with others; a sync round after each
    a kprobe      cc, later the old first byte; a round after each
    an optprobe   a kprobe that becomes a jump like a poke, and is taken back: cc, the old tail

`judge.py` is the way in. `sites.py` follows the writes to each site until they are done, and asks
`rounds.py` whether every CPU has synced in between. What these two find out is then compared with
what CPUs did that met int3 (`traps.py`, `copies.py`), with what keys, calls and tracers are set to
(`switched.py`), and with locks (`locks.py`) and memory (`memory.py`). `agreement.py` compares the
log with what GDB saw.

Nothing here does I/O. What was not recorded, or cannot be decided, is counted as not judged, and
is neither a pass nor a violation.
"""
