/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What kernels of a decade name differently. Found by looking at the headers
 * (Kbuild), never by the version.
 */
#ifndef ORCH_COMPAT_H
#define ORCH_COMPAT_H

#include <linux/compiler.h>
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

/* Since 5.5 a CPU that meets int3 has an instruction emulated; before it is sent to an address. */
#if defined(ORCH_SMP_TEXT_POKE) || defined(ORCH_EMULATE)
#define ORCH_EMULATES	1
#else
#define ORCH_EMULATES	0
#endif

/* An asm that calls must come after the frame is set up. */
#ifndef ASM_CALL_CONSTRAINT	/* before 4.14 */
register unsigned long orch_stack_pointer asm("rsp");
#define ASM_CALL_CONSTRAINT	"+r" (orch_stack_pointer)
#endif

static inline void orch_set_fifo(struct task_struct *task)
{
#ifdef ORCH_SCHED_SET_FIFO	/* 5.9 took sched_setscheduler() from modules */
	sched_set_fifo(task);
#else
	struct sched_param param = { .sched_priority = 50 };

	sched_setscheduler(task, SCHED_FIFO, &param);
#endif
}

#endif
