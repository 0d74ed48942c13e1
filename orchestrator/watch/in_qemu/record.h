/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The layout of the log. RECORD in recorder.py, and record.py of the verdict,
 * are the same. Little endian.
 */
#ifndef RECORDER_RECORD_H
#define RECORDER_RECORD_H

#include <stdint.h>

#define CPUS	64
#define NO_CPU	255	/* before the per-CPU areas exist */
#define INLINE	16	/* bytes of a write that are kept; of a longer one only a hash */

struct record {
	uint8_t kind;
	uint8_t cpu;
	uint16_t flags;
	uint32_t number;
	uint64_t word[7];
};

enum kind {
	/*
	 * A function that writes text was entered. number: length. words: address;
	 * 16 new bytes, 16 bytes before (of a longer write the FNV-1a hash of both);
	 * rsp; the CPUs online. F_MAPPED: the mapping through which the write before
	 * this one was made is still there. F_EXECUTED: it is in text of a module that
	 * was executed. F_STATE: the poke handler has something to look for, and if
	 * int3 is written, this address. F_PROBED: it is a byte where a kprobe is that
	 * its handler would find.
	 */
	WRITE = 1,
	/*
	 * Follows WRITE, but not while a single CPU boots. words: the first four of
	 * text_mutex; the current task; the CPUs in user mode; those that are idle.
	 */
	WRITER,
	/*
	 * Follows WRITER and FREED, up to twice. number: how many words of the stack
	 * may be return addresses.
	 */
	CALLERS,
	/* do_sync_core() was entered. words: rsp; where it returns to. F_STATE: the poke handler looks for all sites of the poke. */
	SYNC,
	/*
	 * A CPU serialised for the first time since a WRITE, for the first time
	 * within do_sync_core(), or for the first time for its own sake. flags: how.
	 * words: rip.
	 */
	SERIALISE,
	/* int3 is executed. words: address; rsp. */
	TRAP,
	/*
	 * The iret that goes on after a TRAP. flags: bit h: handler h was entered;
	 * RETURNED_*: of the poke handler; CHANGED: another register than rip, rsp and
	 * rflags is not what it was; KEPT: no handler is under way any more, and one
	 * has kept its reference to what it looks at. number: TRAPs of this CPU not gone on yet.
	 * words: address of the int3; rip, rsp and rflags popped; the word at the
	 * lower one of both rsp; rsp and rflags before.
	 */
	RESUME,
	/*
	 * Kernel text is not what it was, and nobody is known to have written it.
	 * Seen when the instruction is translated, or when the host asks for a look
	 * at the whole text. number: length. words: address; 16 bytes before; 16
	 * bytes now.
	 */
	CODE,
	/*
	 * Passes over a site by a CPU. flags: FIRST since a WRITE there, else their
	 * number. words: site; number.
	 */
	PASS,
	/* multi_cpu_stop() was entered. words: rdi. */
	STOPPER,
	/*
	 * text_mutex is released. words: its owner; the CPUs online; in user mode;
	 * idle. flags: F_MAPPED.
	 */
	UNLOCK,
	/*
	 * A CPU that has not serialised for its own sake since a WRITE changes to
	 * user mode, the kernel, or sleep. number: enum mode, what it is from now on.
	 */
	MODE,
	/*
	 * A branch of a static key: when jump_label_mutex is released by whoever
	 * switched the key, and all of them when the host asks for a look. words: the
	 * key; its count; where the branch is; its target; its flags (1: it is taken
	 * unless the key is on; 2: it is in init text; 4: there is none, although the
	 * key has a list of them there; 8: there is none, but whoever asks for it is
	 * about to switch the key, which counts as on already); 8 bytes that are there
	 * now.
	 */
	BRANCH,
	/*
	 * A call of a static call, or its trampoline: when static_call_mutex is
	 * released, or text_mutex if this one was asked for. So is the call of the
	 * tracer in ftrace_caller() and in trampolines. words: the key, 0 for one that
	 * was asked for; the function; where the call is; its flags (1: in tail
	 * position, or a trampoline; 2: in init text; 4: there is none, although the
	 * key has a list of them, whose address it is; 8: the trampoline passes other
	 * ops than those that it belongs to); 8 bytes that are there now.
	 */
	CALL,
	/*
	 * Somebody waits. number: that of the function in `conf`, as in
	 * GRACE_PERIODS of orchestrator/text/functions.py.
	 */
	GRACE,
	/*
	 * A task asks for a lock while it holds another one, for the first time in
	 * this order. number: the lock that it holds, by its number in `conf`. words:
	 * that of the other one; where it is asked for.
	 */
	ORDER,
	/*
	 * oops_begin() or panic() was entered by a CPU that has not gone on after a
	 * TRAP. words: address of the int3.
	 */
	DIES,
	/*
	 * flush_tlb_mm_range() was entered for the mm through which text is written.
	 * words: start and end of the range. flags: F_MAPPED, the text is mapped in it.
	 */
	FLUSH,
	/*
	 * A function was entered without a lock that its caller must have. number:
	 * the lock's in `conf`. words: the function; where it returns to.
	 */
	UNGUARDED,
	/*
	 * Functions that can be traced: when ftrace_lock is released those that are
	 * traced or were, and all when the host asks for a look. Those that are alike
	 * become one record. number: how many. words: what the first one calls, 0 for
	 * nothing; enum called; where that call is, or was; flags of its struct
	 * dyn_ftrace; 8 bytes that are there now; whether the tracer is on.
	 */
	TRACED,
	/*
	 * The next RESUME goes on elsewhere after a kprobe's int3, where it has not
	 * gone on before, or what is there has changed. words: address of the int3;
	 * rip popped; 16 bytes that are there.
	 */
	STEP,
	/*
	 * Code to which other text jumped or called is freed. number: 0: a slot of
	 * kprobes; 1: the trampoline of a tracer; 2: what belongs to a kprobe, with
	 * the address of the probe. words: its address. CALLERS follow.
	 */
	FREED,
	/*
	 * A CPU is about to load the mm through which text is written. flags: F_IRQS.
	 * words: the page table's entries of the text in it, all bits of both.
	 */
	LOADED,
	/*
	 * ftrace_update_ftrace_func() was entered: ftrace_caller() is to call another
	 * function. words: that; the function of the tracer whose ops it is passed; where
	 * the call is.
	 */
	TRACER,
};

/* What the call of a traced function calls. */
enum called { CALLS_FTRACE = 1, CALLS_FTRACE_REGS = 2, CALLS_TRAMPOLINE = 4, CALLS_GONE = 8 };

enum { F_IRQS = 1, F_EARLY = 2, F_MEMSET = 4, F_UNREADABLE = 8, F_MAPPED = 16,
       F_EXECUTED = 32, F_STATE = 64, F_PROBED = 128, F_FIRST = 1 };
enum {
	S_IRET = 1, S_CPUID, S_SERIALIZE, S_CONTROL, S_MSR, S_OTHER,
	S_IN_SYNC = 0x100, S_ON_PURPOSE = 0x200,
};
enum mode { M_KERNEL, M_USER, M_IDLE };
enum { RETURNED_ZERO = 0x100, RETURNED_NONZERO = 0x200, CHANGED = 0x400, KEPT = 0x800 };

#endif
