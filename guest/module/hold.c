// SPDX-License-Identifier: GPL-2.0
/*
 * Holding the poker without a debugger: by a CPU that keeps its interrupts off,
 * and so out of the sync round that the poker waits for.
 */
#include <linux/bottom_half.h>
#include <linux/cpu.h>
#include <linux/irqflags.h>
#include <linux/string.h>
#include "compat.h"
#include "orch.h"
#include "scenario.h"

/* Looks at memory, of 1 us and more each, before something is taken not to happen any more. */
#define FOR_EVER	5000000
/* The same, for what must not happen; and between two chances to sync. */
#define FOR_A_WHILE	2000
/* One chance to sync may by bad luck be long enough for two rounds. */
#define TRIES		3

struct hold {
	const struct orch_poke *poke;
	void (*fn)(struct orch_run *run, enum orch_phase phase, void *arg);
	void *arg;
	bool ready;
	bool returned;
	enum orch_phase went_on;	/* in which the kernel did so; ORCH_PHASE_OLD: none */
	bool stuck;
};

/*
 * The task priority of the local APIC, which holds back interrupts up to that
 * class of vectors. The rounds' interrupts are of the highest one.
 */
#define ALL_BUT_IPIS	14

static unsigned long task_priority(unsigned long priority)
{
	unsigned long before;

	asm volatile("movq %%cr8, %0" : "=r" (before));
	asm volatile("movq %0, %%cr8" : : "r" (priority) : "memory");
	return before;
}

static bool holds(const struct hold *hold, const u8 *bytes)
{
	unsigned int i;

	for (i = 0; i < hold->poke->len; i++)
		if (READ_ONCE(hold->poke->addr[i]) != bytes[i])
			return false;
	return true;
}

/*
 * Wait, with interrupts off, until the site is in @phase. A later one means that
 * this one is over, though we have not taken part in its round.
 */
static bool reach(struct hold *hold, u8 bytes[][ORCH_MAX_LEN], enum orch_phase phase)
{
	bool sync = phase != ORCH_PHASE_INT3;
	unsigned int spins, later;

	for (spins = 0; spins < FOR_EVER; spins++) {
		if (holds(hold, bytes[phase]))
			return true;
		for (later = phase + 1; later <= ORCH_PHASE_NEW; later++)
			if (holds(hold, bytes[later]))
				return false;
		if (READ_ONCE(hold->returned))
			return false;
		/*
		 * The round's interrupt was on its way long ago, so the first
		 * chance mostly takes it, and is too short for the next one.
		 */
		if (sync && spins % FOR_A_WHILE == 0) {
			local_irq_enable();
			asm volatile("nop");
			local_irq_disable();
		}
		cpu_relax();
	}
	hold->stuck = true;
	return false;
}

static bool stays(const struct hold *hold, const u8 *bytes)
{
	unsigned int spins;

	for (spins = 0; spins < FOR_A_WHILE; spins++) {
		if (!holds(hold, bytes) || READ_ONCE(hold->returned))
			return false;
		cpu_relax();
	}
	return true;
}

static int hold_off(struct orch_run *run, int cpu, void *arg)
{
	struct hold *hold = arg;
	const struct orch_poke *poke = hold->poke;
	u8 bytes[4][ORCH_MAX_LEN];
	enum orch_phase phase;
	unsigned long priority;

	memcpy(bytes[ORCH_PHASE_INT3], poke->from, poke->len);
	memcpy(bytes[ORCH_PHASE_TAIL], poke->to, poke->len);
	memcpy(bytes[ORCH_PHASE_NEW], poke->to, poke->len);
	bytes[ORCH_PHASE_INT3][0] = 0xcc;
	bytes[ORCH_PHASE_TAIL][0] = 0xcc;

	/* no softirq when the round's interrupt ends, nor a timer's: each would take too long */
	local_bh_disable();
	local_irq_disable();
	priority = task_priority(ALL_BUT_IPIS);
	WRITE_ONCE(hold->ready, true);
	for (phase = ORCH_PHASE_INT3; phase <= ORCH_PHASE_NEW; phase++) {
		if (phase == ORCH_PHASE_TAIL && poke->len == 1)
			continue;
		if (!reach(hold, bytes, phase)) {
			hold->went_on = phase;
			break;
		}
		if (hold->fn)
			hold->fn(run, phase, hold->arg);
		if (!stays(hold, bytes[phase])) {
			hold->went_on = phase;
			break;
		}
	}
	task_priority(priority);
	local_irq_enable();
	local_bh_enable();
	return 0;
}

/* The thread that calls us must not run where interrupts are to be off. */
static bool elsewhere(int cpu)
{
	int other;

	for_each_online_cpu(other)
		if (other != cpu)
			return !set_cpus_allowed_ptr(current, cpumask_of(other));
	return false;
}

bool orch_poke_held(struct orch_run *run, const struct orch_poke *poke, int cpu,
		    void (*fn)(struct orch_run *run, enum orch_phase phase, void *arg), void *arg)
{
	struct hold hold = { .poke = poke, .fn = fn, .arg = arg };
	struct orch_poke back = *poke;
	struct orch_workers *workers;
	int try;

	memcpy(back.from, poke->to, ORCH_MAX_LEN);
	memcpy(back.to, poke->from, ORCH_MAX_LEN);
	/* what was there before may be nothing that a kernel emulates */
	back.emulate = poke->emulate ? poke->emulate : poke->to;
	if (!elsewhere(cpu)) {
		orch_skip(run, "one CPU cannot hold another");
		return false;
	}
	for (try = 0; try < TRIES; try++) {
		hold.ready = false;
		hold.returned = false;
		hold.went_on = ORCH_PHASE_OLD;
		workers = orch_workers_start(run, cpumask_of(cpu), hold_off, &hold);
		if (!workers)
			break;
		while (!READ_ONCE(hold.ready))
			cond_resched();
		orch_poke(poke);
		WRITE_ONCE(hold.returned, true);
		orch_workers_join(workers);
		if (!hold.went_on) {
			set_cpus_allowed_ptr(current, cpu_possible_mask);
			return true;
		}
		if (hold.stuck)
			break;
		if (try < TRIES - 1)
			orch_poke(&back);
	}
	set_cpus_allowed_ptr(current, cpu_possible_mask);
	if (hold.stuck)
		orch_fail(run, "phase %d was not reached while CPU %d had interrupts off and synced when asked",
			  hold.went_on, cpu);
	else
		orch_fail(run, "in phase %d the kernel went on although CPU %d had interrupts off and had not synced",
			  hold.went_on, cpu);
	return false;
}
