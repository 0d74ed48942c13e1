// SPDX-License-Identifier: GPL-2.0
/* Each function and site of the configuration that a CPU executes: who is to look at it. */
#include <pthread.h>
#include <stdbool.h>
#include <string.h>

#include "conf.h"
#include "files.h"
#include "guest.h"
#include "locks.h"
#include "mapping.h"
#include "patching.h"
#include "points.h"
#include "rounds.h"
#include "sites.h"
#include "switched.h"
#include "text.h"
#include "traced.h"
#include "traps.h"
#include "wishes.h"
#include "writes.h"

static void emit_freed(unsigned int cpu, uint64_t address, uint32_t what, uint64_t rsp)
{
	emit(FREED, cpu, 0, what, &address, 1);
	emit_callers(cpu, rsp);
}

/* rsp: as it was when the function was entered. */
static void at_point(struct watched *here, unsigned int cpu, uint64_t rsp)
{
	static bool ended;
	uint64_t argument;

	switch (here->point) {
	case P_NONE:
		break;
	case P_WRITE:
	case P_EARLY:
		on_write(cpu, rsp, here->point == P_EARLY);
		break;
	case P_SYNC:
		on_sync(cpu, rsp);
		break;
	case P_STOPPER:
		argument = reg(RDI);
		emit(STOPPER, cpu, 0, 0, &argument, 1);
		break;
	case P_UNLOCK:
		on_released(reg(RDI));
		on_unlock(number_of_lock(reg(RDI)));
		if (reg(RDI) == text_mutex)
			on_text_unlock(cpu);
		break;
	case P_GUARDED:
		on_guarded(cpu, here, rsp);
		break;
	case P_KEY:
		on_guarded(cpu, here, rsp);
		if (here->number & KEY_IS_OFF)
			key_is_switched(reg(RDI), quad(rsp));
		ask_for(P_KEY, reg(RDI), 0, 0);
		break;
	case P_STATIC_CALL:	/* now, as the kernel may die of what is no longer there */
		calls_gone(reg(RDI));
		ask_for(here->point, reg(RDI), 0, 0);
		break;
	case P_TRANSFORM:	/* (site, tramp, func, tail) */
		on_guarded(cpu, here, rsp);
		if (reg(RSI))
			ask_for(P_TRANSFORM, reg(RSI), reg(RDX), 1);
		if (reg(RDI) && call_sites_end)
			ask_for(P_TRANSFORM, reg(RDI), reg(RDX), reg(RCX) & 1);
		break;
	case P_TRACER:	/* (function) */
		emit_tracer(cpu, reg(RDI));
		if (ftrace_call)
			ask_for(P_TRANSFORM, ftrace_call, reg(RDI), 0);
		if (ftrace_regs_call)
			ask_for(P_TRANSFORM, ftrace_regs_call, reg(RDI), 0);
		break;
	case P_END:	/* the guest resets the machine: nobody can ask for a look any more */
		if (!ended && look()) {
			control->looked = ++control->look;
			ended = true;
		}
		break;
	case P_DIES:
		on_death(cpu);
		break;
	case P_FLUSH:
		on_flush(cpu);
		break;
	case P_GRACE:
		emit(GRACE, cpu, 0, here->number, NULL, 0);
		break;
	case P_REMOVED:	/* (kprobe) */
		emit_freed(cpu, quad(reg(RDI) + KP_ADDRESS), 2, rsp);
		break;
	case P_LOAD:
		on_load(cpu);
		break;
	case P_FREED:
		forget_executed(reg(RDI));
		if (reg(RDI) && is_known_trampoline(reg(RDI)))
			emit_freed(cpu, reg(RDI), 1, rsp);
		break;
	case P_SLOT:	/* (cache, slot, dirty) */
		emit_freed(cpu, reg(RSI), 0, rsp);
		break;
	case P_LOCK:
		on_lock(cpu, number_of_lock(reg(RDI)), rsp);
		break;
	case P_CPUS_LOCK:
		on_lock(cpu, HOTPLUG, rsp);
		break;
	case P_CPUS_TRY:
		on_hotplug_tried(rsp);
		break;
	case P_CPUS_UNLOCK:
		on_unlock(HOTPLUG);
		break;
	case P_SITE:
		on_site(here, cpu);
		break;
	case P_RETURN:
		on_return(cpu, here->number);
		break;
	default:
		on_handler(cpu, here->point, here->number);
	}
}

/*
 * GDB's agent sends a CPU that stops at a breakpoint on to the next
 * instruction, so that QEMU does not execute the first. So there are callbacks
 * on both, and the second one counts if the first was left out. rsp is other
 * only if the first is a push.
 */
void passes(unsigned int vcpu, void *data)
{
	struct watched *here = data, *first = here->point == P_SECOND ? here->first : here;
	unsigned int cpu;
	uint64_t bit;

	(void)vcpu;
	if (here->point == P_SECOND && !control->gdb && !first->entered)
		return;
	/* Both are called for every other mutex as well. */
	if ((first->point == P_UNLOCK || first->point == P_LOCK) &&
	    number_of_lock(reg(RDI)) == LOCKS)
		return;
	pthread_mutex_lock(&recorder_lock);
	heed();
	cpu = cpu_now();
	bit = 1ull << (cpu % CPUS);
	if (here == first) {
		/* GDB steps a CPU once more if another one stopped meanwhile. */
		if (!control->gdb || !(here->entered & bit))
			at_point(here, cpu, reg(RSP));
		here->entered = control->gdb ? here->entered | bit : here->entered & ~bit;
	} else {
		if (!(first->entered & bit) && control->gdb)
			at_point(first, cpu, reg(RSP) + here->number);
		first->entered &= ~bit;
	}
	pthread_mutex_unlock(&recorder_lock);
}

/* Whether this is a function, whose second instruction is watched as well. */
static bool has_entry(const struct watched *point)
{
	return point->point != P_SITE && point->point < P_RETURN;
}

void watch_second(struct watched *first, const uint8_t *code, size_t length)
{
	uint64_t next = first->address + length;
	bool push = (length == 1 && (code[0] & 0xf8) == 0x50) ||
		    (length == 2 && code[0] == 0x41 && (code[1] & 0xf8) == 0x50);
	struct watched *second;
	int32_t distance;

	if (first->has_second || !has_entry(first))
		return;
	first->has_second = true;
	if (code[0] == 0xe9 && length == 5) {
		memcpy(&distance, code + 1, 4);
		next += distance;
	} else if (code[0] == 0xeb && length == 2) {
		next += (int8_t)code[1];
	}
	if (watched_at(next))
		return;
	second = watch(next, P_SECOND, push ? 8 : 0);
	if (second)
		second->first = first;
}

void find_second(uint64_t start)
{
	uint8_t code[INLINE];

	for (size_t length = 1; length < INLINE; length++) {
		struct watched *first = watched_at(start - length);

		if (first && memory(first->address, code, length))
			watch_second(first, code, length);
	}
}
