/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Differences between kernels of the last ten years. Kbuild finds them by
 * looking at the kernel's headers, never at its version.
 */
#ifndef ORCH_COMPAT_H
#define ORCH_COMPAT_H

#include <linux/compiler.h>
#include <linux/jump_label.h>
#include <linux/sched.h>
#ifdef ORCH_SCHED_SIGNAL_H
#include <linux/sched/signal.h>
#endif
#include <asm/asm.h>
#ifdef ORCH_SCHED_TYPES_H
#include <uapi/linux/sched/types.h>
#endif

#ifndef READ_ONCE		/* before 3.19 */
#define READ_ONCE(x)		ACCESS_ONCE(x)
#define WRITE_ONCE(x, v)	(ACCESS_ONCE(x) = (v))
#endif

#ifndef task_is_running		/* before 5.14 */
#define task_is_running(task)	(READ_ONCE((task)->state) == TASK_RUNNING)
#endif

/*
 * What the kernel calls __noclone says more than that in 4.4 to 4.9, and clang
 * makes no clones.
 */
#ifdef __clang__
#define ORCH_NOCLONE
#else
#define ORCH_NOCLONE		__attribute__((noclone))
#endif

/*
 * Since 5.5 the int3 handler emulates an instruction for a CPU that hits int3.
 * Older kernels send the CPU to an address.
 */
#if defined(ORCH_SMP_TEXT_POKE) || defined(ORCH_EMULATE)
#define ORCH_EMULATES	1
#else
#define ORCH_EMULATES	0
#endif

/* Keeps an asm that contains a call behind the setup of the stack frame. */
#ifndef ASM_CALL_CONSTRAINT	/* before 4.14 */
register unsigned long orch_stack_pointer asm("rsp");
#define ASM_CALL_CONSTRAINT	"+r" (orch_stack_pointer)
#endif

/*
 * Static keys, off when defined. ORCH_KEY_ENABLES tells whether the kernel has
 * static_branch_enable(), which any number of CPUs may call. On kernels without
 * it orch_key_set() counts, so enabling and disabling must alternate.
 */
#ifdef DEFINE_STATIC_KEY_FALSE
typedef struct static_key_false orch_key_t;
#define ORCH_DEFINE_KEY(name)	DEFINE_STATIC_KEY_FALSE(name)
#define ORCH_KEY_ENABLES	1
#define orch_key_struct(k)	(&(k)->key)
#define orch_key_branch(k)	static_branch_unlikely(k)
#define orch_key_inc(k)		static_branch_inc(k)
#define orch_key_dec(k)		static_branch_dec(k)
#define orch_key_set(k, on)	((on) ? static_branch_enable(k) : static_branch_disable(k))
#else				/* before 4.3 */
typedef struct static_key orch_key_t;
#define ORCH_DEFINE_KEY(name)	struct static_key name = STATIC_KEY_INIT_FALSE
#define ORCH_KEY_ENABLES	0
#define orch_key_struct(k)	(k)
#define orch_key_branch(k)	static_key_false(k)
#define orch_key_inc(k)		static_key_slow_inc(k)
#define orch_key_dec(k)		static_key_slow_dec(k)
#define orch_key_set(k, on)	((on) ? static_key_slow_inc(k) : static_key_slow_dec(k))
#endif

static inline void orch_set_fifo(struct task_struct *task)
{
#ifdef ORCH_SCHED_SET_FIFO	/* 5.9 took sched_setscheduler() away from modules */
	sched_set_fifo(task);
#else
	struct sched_param param = { .sched_priority = 50 };

	sched_setscheduler(task, SCHED_FIFO, &param);
#endif
}

#endif
