# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's functions and data for patching live text, under all names they have had.

This is the only table of them. In each row the newest name comes first. Most of them are in
arch/x86/kernel/alternative.c.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

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
KPROBE_SYNC = ("smp_text_poke_sync_each_cpu", "text_poke_sync")
"""Does a sync round. There since kprobes wait for one, in 5.5 (5c02ece81848); renamed in 6.16."""
FTRACE = "ftrace_replace_code"
"""Patches the calls of the function tracer. It uses text_poke_bp() since kprobes sync."""
FTRACE_LIST = ("arch_ftrace_ops_list_func", "ftrace_ops_list_func")
"""Calls each tracer whose filter has a function."""
STOPPERS = ("multi_cpu_stop", "stop_machine_cpu_stop")
"""Runs on every CPU that stop_machine() stops. The second name was used up to 3.12."""
KEY_SWITCHES = (
    "static_key_slow_inc",
    "static_key_slow_inc_cpuslocked",
    "static_key_slow_dec",
    "static_key_slow_dec_cpuslocked",
    "__static_key_slow_dec",
    "__static_key_slow_dec_cpuslocked",
    "static_key_enable",
    "static_key_enable_cpuslocked",
    "static_key_disable",
    "static_key_disable_cpuslocked",
    "jump_label_update",
    "__jump_label_update",
    "__jump_label_mod_update",
)
"""Switch a static key, their first argument, or the branches of one."""
KEY_UPDATE = "jump_label_update"
"""Switches all branches of a key, which has not got its new count yet."""
TASKS = "synchronize_rcu_tasks"
"""Waits until no task is preempted within a few instructions. Kprobes call it before they replace
some by a jump, in a kernel with preemption."""
EACH_CPU = "synchronize_rcu_tasks_rude"
"""Waits until each CPU has run another task, also one that is idle. Ftrace calls it before it frees
a trampoline."""
FOR_TASKS, FOR_CPUS, TASKS_LATER, FOR_EACH_CPU = range(4)
GRACE_PERIODS = {
    TASKS: FOR_TASKS,
    "call_rcu_tasks": TASKS_LATER,
    "synchronize_rcu": FOR_CPUS,
    "synchronize_rcu_expedited": FOR_CPUS,
    "synchronize_sched": FOR_CPUS,
    "synchronize_sched_expedited": FOR_CPUS,
    EACH_CPU: FOR_EACH_CPU,
    "schedule_on_each_cpu": FOR_EACH_CPU,
}
"""Function, and for what it waits. Of CPUs, until each has left what it executes without
preemption, such as a handler of int3; RCU leaves out those that are idle, whatever they execute
then. The two of sched did that up to 4.20, and the last one for ftrace up to 5.7. call_rcu_tasks()
does not wait, but has something done when TASKS would return."""
REMOVED = "arch_remove_kprobe"
"""Frees what belongs to a kprobe, its argument."""
LOAD_MM = "switch_mm_irqs_off"
"""Loads an mm, its second argument."""
DYING = ("oops_begin", "panic")
"""What a CPU enters that does not go on."""
FLUSH = "flush_tlb_mm_range"
"""Flushes the mapping through which text is written, since that is one of an mm of its own."""
LOCK = "text_mutex"
"""The mutex under which text is written."""
LOCKS = (
    "cpu_hotplug_lock",
    LOCK,
    "jump_label_mutex",
    "static_call_mutex",
    "kprobe_mutex",
    "ftrace_lock",
    "tracepoints_mutex",
    "module_mutex",
)
"""Locks that are held while text is written. The first one is no mutex."""
TRANSFORM = "arch_static_call_transform"
"""Makes one site of a static call call something else."""
GUARDS = {
    **dict.fromkeys(
        ("jump_label_update", "__jump_label_update", "__jump_label_mod_update"),
        ("cpu_hotplug_lock", "jump_label_mutex"),
    ),
    TRANSFORM: ("cpu_hotplug_lock", "static_call_mutex"),
    **dict.fromkeys(
        ("jump_label_add_module", "jump_label_del_module"),
        ("cpu_hotplug_lock", "jump_label_mutex"),
    ),
    **dict.fromkeys(
        ("static_call_add_module", "static_call_del_module"),
        ("cpu_hotplug_lock", "static_call_mutex"),
    ),
    **dict.fromkeys(POKE_BATCH, (LOCK,)),
    **dict.fromkeys(("arch_arm_kprobe", "arch_disarm_kprobe"), ("kprobe_mutex",)),
    **dict.fromkeys(
        ("arch_optimize_kprobes", "arch_unoptimize_kprobe", "arch_unoptimize_kprobes"),
        ("cpu_hotplug_lock", "kprobe_mutex"),
    ),
    "ftrace_replace_code": ("ftrace_lock",),
}
"""Function, and the locks that whoever calls it has since 5.5, apart from text_mutex, without which
nobody writes text. Who queues a poke has it, too."""
CPU_COMES_OR_GOES = ("bringup_cpu", "takedown_cpu")
"""Brings a CPU up, or takes it down, while nobody else may hold the lock of CPU hotplug."""
PATCHERS = {
    "arch_jump_label_transform": "jump labels",
    "arch_static_call_transform": "static calls",
    "arch_optimize_kprobes": "optimized kprobes",
    "ftrace_replace_code": "ftrace",
    "bpf_arch_text_poke": "BPF programs",
}
"""Function, and what it patches through int3."""

# What is patched, or by what, and the functions that do it in 3.10 to 7.3. A fault in one of them,
# or below one of them in the call trace, is a fault of text patching. Functions that merely run
# because of it are not here: stop_machine(), and the trampolines that ftrace leaves behind.
_PATCHING = {
    "kernel text": r"(__|smp_)*text_poke\w*|__?poke_vmalloc_pages|poking_init|do_sync_core"
    r"|stop_machine_text_poke",
    "the int3 of a patched instruction": r"(smp_text_)?poke_int3_handler|int3_notify|int3_self\w*"
    r"|(asm_|xen)?(exc_)?int3|do_int3|ftrace_int3_handler|kprobe_int3_handler",
    "jump labels": r"(__|arch_)?jump_label_\w+|(__)?static_key_(slow_|enable|disable)\w*",
    "static calls": r"(__|arch_)?static_call_(init|update|transform|fixup|validate|add_module"
    r"|module_notify|force_reinit)\w*",
    "ftrace": r"ftrace_(replace_code|modify_\w+|make_(nop|call)|init(_nop)?|nop_initialize|mod_jmp"
    r"|verify_code|update_(code|ftrace_func)|run_update_code|process_locs|module_(enable|init)|bug"
    r"|write|code_disable|arch_code_modify_\w+)|(arch_ftrace_)?update_ftrace_func|run_sync"
    r"|arch_ftrace_update_\w+|add_(break\w*|brk_on_call|brk_on_nop|update(_call|_code|_nop)?)"
    r"|remove_breakpoint|finish_update(_call|_nop)?",
    "kprobes": r"(__)?(dis)?arm_(all_)?kprobe\w*|arch_(dis)?arm_kprobe|arch_(un)?optimize_kprobes?"
    r"|do_(un)?optimize_kprobes|kprobe_optimizer\w*|(force_)?(un)?optimize_kprobe",
    "alternatives": r"(__)?apply_(alternatives|paravirt|retpolines|returns|seal_endbr|ibt_endbr"
    r"|fineibt|relocation)|alternative_instructions|alternatives_\w+|optimize_nops\w*"
    r"|callthunks_patch_\w+|patch_(site|call|dest|retpoline|return|cmp)|cfi_(re|rand_|en|dis)\w+"
    r"|its_(init|alloc)\w*",
    "BPF programs": r"(__)?bpf_arch_text_(poke|copy|invalidate)",
}
_PATCHING_MESSAGES = {
    "the int3 of a patched instruction": r"(Oops: )?int3: ",
    "jump labels": r"(jump_label: Fatal kernel bug, u|U)nexpected op at ",
    "static calls": r"unexpected static_call insn ",
    "kprobes": r"Kprobe smoke test: ",
    "kernel text": r"(WARNING|[Kk]ernel BUG)\b.{0,300}[ /]((arch/x86/)?kernel/(alternative"
    r"|jump_label|static_call(_inline)?|callthunks|kprobes/\w+)|arch/x86/kernel/ftrace)\.c:\d",
}


def text_patching(message: str, places: Iterable[str] = ()) -> str:
    """What was being patched by a report of the kernel, such as "jump labels"; empty if nothing.

    message: its first line. places: functions of its instruction pointer and call trace, innermost
    first. Suffixes of the compiler, as in `do_sync_core.llvm.88`, do not matter.
    """
    for place in places:
        name = place.partition(".")[0]
        for patched, functions in _PATCHING.items():
            if re.fullmatch(functions, name):
                return patched
    told = (patched for patched, text in _PATCHING_MESSAGES.items() if re.match(text, message))
    return next(told, "")
