# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's functions and data for patching live text, under all names they have had.

This is the only table of them. In each row the newest name comes first. Most of them are in
arch/x86/kernel/alternative.c.
"""

from __future__ import annotations

POKE_ONE = ("smp_text_poke_single", "text_poke_bp")
"""Pokes one site; renamed in 6.16."""
POKE_BATCH = ("smp_text_poke_batch_add", "text_poke_queue")
"""Adds a site to a batch; renamed in 6.16."""
WRITERS = ("__text_poke", "text_poke")
"""Writes bytes to kernel text; text_poke() itself before 4.20."""
HANDLERS = {
    "smp_text_poke_int3_handler": "rdi",
    "poke_int3_handler": "rdi",
    "int3_notify": "die_args",
}
"""Takes the int3 of a poke. The value says where its pt_regs are: in an argument register, or in
the struct die_args of a die notifier (the v3 series of 2013)."""
SYNC = "do_sync_core"
"""Serialises one CPU. Runs on every CPU in a sync round."""
STOPPERS = ("multi_cpu_stop", "stop_machine_cpu_stop")
"""Runs on every CPU that stop_machine() stops. The second name was used up to 3.12."""
LOCK = "text_mutex"
"""The mutex under which text is written."""
PATCHERS = {
    "arch_jump_label_transform": "jump labels",
    "arch_static_call_transform": "static calls",
    "arch_optimize_kprobes": "optimized kprobes",
    "ftrace_replace_code": "ftrace",
    "bpf_arch_text_poke": "BPF programs",
}
"""Function, and what it patches through int3."""
