// SPDX-License-Identifier: GPL-2.0
/* Each int3 that is executed, from the trap past the handlers to where its CPU goes on. */
#include <pthread.h>
#include <string.h>

#include "files.h"
#include "guest.h"
#include "patching.h"
#include "traps.h"
#include "wishes.h"

#define DEPTH		8
#define STEPS		256	/* that are remembered */
#define DIE_INT3	2	/* enum die_val in arch/x86/include/asm/kdebug.h */
enum { PT_IP = 0x80, PT_FLAGS = 0x90, PT_SP = 0x98 };	/* struct pt_regs, the same since 2.6 */

struct trap {
	uint64_t address, regs, sp, flags;
	uint64_t registers;	/* a hash of all but rsp */
	unsigned int seen;	/* the flags of RESUME */
};

static struct {
	struct trap trap[DEPTH];
	int depth;
} trapped[CPUS];

static uint64_t registers(void)
{
	uint64_t all[GENERAL];

	for (int which = 0; which < GENERAL; which++)
		all[which] = reg(which);
	return fnv1a((uint8_t *)all, sizeof(all));
}

void executes_int3(unsigned int vcpu, void *data)
{
	struct slot *slot = data;
	uint64_t words[2] = { slot->address };
	unsigned int cpu;

	(void)vcpu;
	pthread_mutex_lock(&recorder_lock);
	heed();
	cpu = cpu_now();
	words[1] = reg(RSP);
	__atomic_fetch_add(&slot->count[cpu < CPUS ? cpu : 0], 1, __ATOMIC_RELAXED);
	emit(TRAP, cpu, reg(EFLAGS) & EFLAGS_IF ? F_IRQS : 0, 0, words, 2);
	if (cpu < CPUS) {
		if (trapped[cpu].depth == DEPTH) {	/* those at the bottom never came back */
			memmove(&trapped[cpu].trap[0], &trapped[cpu].trap[1],
				(DEPTH - 1) * sizeof(struct trap));
			trapped[cpu].depth--;
		}
		trapped[cpu].trap[trapped[cpu].depth++] = (struct trap){
			.address = slot->address,
			.registers = registers(),
		};
	}
	pthread_mutex_unlock(&recorder_lock);
}

void on_handler(unsigned int cpu, enum point point, bool notifier)
{
	struct trap *top;
	uint64_t regs;

	if (cpu >= CPUS || !trapped[cpu].depth || (notifier && reg(RSI) != DIE_INT3))
		return;
	regs = notifier ? quad(reg(RDX)) : reg(RDI);
	top = &trapped[cpu].trap[trapped[cpu].depth - 1];
	if (!top->regs) {
		if (quad(regs + PT_IP) != top->address + 1)
			return;
		top->regs = regs;
		top->sp = quad(regs + PT_SP);
		top->flags = quad(regs + PT_FLAGS);
	}
	if (top->regs == regs)
		top->seen |= 1 << (point - P_ENTRY);
}

void on_return(unsigned int cpu, enum point handler)
{
	if (cpu < CPUS && trapped[cpu].depth && handler == P_POKE)
		trapped[cpu].trap[trapped[cpu].depth - 1].seen |=
			(uint32_t)reg(RAX) ? RETURNED_NONZERO : RETURNED_ZERO;
}

/* Where a CPU goes on after the int3 of a kprobe: most often in a copy of the instruction. */
static void steps_to(unsigned int cpu, uint64_t probe, uint64_t to)
{
	static uint64_t seen[STEPS][4];
	uint64_t words[4] = { probe, to };
	uint64_t *last = seen[fnv1a((uint8_t *)words, 2 * sizeof(*words)) % STEPS];

	if (to - probe < INLINE || !memory(to, &words[2], INLINE) ||
	    !memcmp(last, words, sizeof(words)))
		return;
	memcpy(last, words, sizeof(words));
	emit(STEP, cpu, 0, 0, words, 4);
}

static bool handlers_under_way(void)
{
	for (int cpu = 0; cpu < CPUS; cpu++)
		if (trapped[cpu].depth)
			return true;
	return false;
}

void resume(unsigned int cpu)
{
	uint64_t frame[5], rsp;
	int at = trapped[cpu].depth - 1;

	if (at < 0)
		return;
	rsp = reg(RSP);
	while (at >= 0 && trapped[cpu].trap[at].regs + PT_IP != rsp)
		at--;
	if (at < 0 || !memory(rsp, frame, sizeof(frame)))
		return;
	struct trap *trap = &trapped[cpu].trap[at];
	uint64_t lower = frame[3] < trap->sp ? frame[3] : trap->sp;
	uint64_t words[7] = {
		trap->address, frame[0], frame[3], frame[2], quad(lower), trap->sp, trap->flags,
	};

	trapped[cpu].depth = at;
	if (trap->registers != registers())
		trap->seen |= CHANGED;
	if (is_reference_kept(at, handlers_under_way()))
		trap->seen |= KEPT;
	if (trap->seen & 1 << (P_KPROBE - P_ENTRY))
		steps_to(cpu, trap->address, frame[0]);
	emit(RESUME, cpu, trap->seen, at, words, 7);
}

void on_death(unsigned int cpu)
{
	if (cpu < CPUS && trapped[cpu].depth)
		emit(DIES, cpu, 0, 0, &trapped[cpu].trap[trapped[cpu].depth - 1].address, 1);
}
