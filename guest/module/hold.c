// SPDX-License-Identifier: GPL-2.0
/*
 * Holding the poker without a debugger: a CPU keeps its interrupts off and so
 * delays the sync round that the poker waits for.
 */
#include <linux/bottom_half.h>
#include <linux/cpu.h>
#include <linux/irqflags.h>
#include <linux/preempt.h>
#include <linux/sched.h>
#include <linux/string.h>
#include <asm/tsc.h>
#include "compat.h"
#include "orch.h"
#include "scenario.h"

/*
 * How often, and how long, to look at memory before giving up on a phase. Both
 * must pass: a host that does not run this CPU makes the time pass, and one that
 * does not run the poker's CPU makes the spins pass.
 */
#define REACH_SPINS	5000000
#define REACH_MS	20000
/* The same to see that nothing changes, and between two chances to sync. */
#define STAY_SPINS	2000
/*
 * The same before the first write. A kernel may sync then, too, but if it does
 * not, a chance to sync could let the first phase pass unseen.
 */
#define FIRST_SPINS	20000
/* By bad luck one chance to sync may be long enough for two rounds. */
#define TRIES		8

static const char was_stuck[] =
	"phase %d was not reached while CPU %d had interrupts off and synced when asked";
static const char slept[] =
	"the poker slept until a thread ran on CPU %d, which interrupts cannot hold off";
static const char went_on[] =
	"in phase %d the kernel went on although CPU %d had interrupts off and had not synced";

/**
 * struct hold - a poke that is held by a CPU
 * @poke: the poke
 * @fn: called in each phase
 * @arg: its argument
 * @ready: the holder has its interrupts off, the poke may begin
 * @returned: the poke has returned
 * @broken: the phase in which the kernel did not wait for the holder;
 *	ORCH_PHASE_OLD if it always did
 * @stuck: the phase @broken was never reached at all
 * @poker: the task that pokes
 * @slept: it was asleep when that was given up: no interrupt is waited for
 */
struct hold {
	const struct orch_poke *poke;
	orch_in_phase_t fn;
	void *arg;
	bool ready;
	bool returned;
	enum orch_phase broken;
	bool stuck;
	struct task_struct *poker;
	bool slept;
};

/*
 * The local APIC's task priority, which blocks interrupts up to that class of
 * vectors. The IPIs of the sync rounds are in the highest class.
 */
#define ALL_BUT_IPIS	14

static unsigned long set_task_priority(unsigned long priority)
{
	unsigned long before;

	asm volatile("movq %%cr8, %0" : "=r" (before));
	asm volatile("movq %0, %%cr8" : : "r" (priority) : "memory");
	return before;
}

static bool site_has(const struct hold *hold, const u8 *bytes)
{
	unsigned int i;

	for (i = 0; i < hold->poke->len; i++)
		if (READ_ONCE(hold->poke->addr[i]) != bytes[i])
			return false;
	return true;
}

/*
 * Wait, with interrupts off, until the site is in @phase. If it is in a later
 * one, the kernel has completed a sync round without this CPU.
 */
static bool reach(struct hold *hold, u8 bytes[][ORCH_MAX_LEN], enum orch_phase phase)
{
	unsigned int patience = phase == ORCH_PHASE_INT3 ? FIRST_SPINS : STAY_SPINS;
	cycles_t begin = get_cycles();
	unsigned int spins, later;

	for (spins = 0; spins < REACH_SPINS ||
	     get_cycles() - begin < (u64)REACH_MS * tsc_khz; spins++) {
		if (site_has(hold, bytes[phase]))
			return true;
		for (later = phase + 1; later <= ORCH_PHASE_NEW; later++)
			if (site_has(hold, bytes[later]))
				return false;
		if (READ_ONCE(hold->returned))
			return false;
		/*
		 * The IPI of the round that ends the preceding phase has been
		 * pending for long, so the first chance usually takes it, and is
		 * too short for the IPI of the next round.
		 */
		if (spins % patience == 0 && (spins || phase != ORCH_PHASE_INT3)) {
			local_irq_enable();
			asm volatile("nop");
			local_irq_disable();
		}
		cpu_relax();
	}
	hold->stuck = true;
	hold->slept = !task_is_running(hold->poker);
	return false;
}

static bool stays(const struct hold *hold, const u8 *bytes)
{
	unsigned int spins;

	for (spins = 0; spins < STAY_SPINS; spins++) {
		if (!site_has(hold, bytes) || READ_ONCE(hold->returned))
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

	/*
	 * A chance to sync is for IPIs only. A softirq behind the IPI, a timer
	 * interrupt or another task would make it long enough for more than one
	 * round. With PREEMPT_RT, to disable softirqs leaves preemption enabled.
	 */
	local_bh_disable();
	preempt_disable();
	local_irq_disable();
	priority = set_task_priority(ALL_BUT_IPIS);
	WRITE_ONCE(hold->ready, true);
	for (phase = ORCH_PHASE_INT3; phase <= ORCH_PHASE_NEW; phase++) {
		if (phase == ORCH_PHASE_TAIL && poke->len == 1)
			continue;
		/* First see that it stays: what @fn finds wrong in another phase counts, too. */
		if (!reach(hold, bytes, phase) || !stays(hold, bytes[phase])) {
			hold->broken = phase;
			break;
		}
		if (hold->fn)
			hold->fn(run, phase, hold->arg);
		if (!stays(hold, bytes[phase])) {
			hold->broken = phase;
			break;
		}
	}
	set_task_priority(priority);
	local_irq_enable();
	preempt_enable();
	local_bh_enable();
	return 0;
}

/* The thread that pokes must not run on the CPU that holds it. */
static bool move_away_from(int cpu)
{
	int other;

	for_each_online_cpu(other)
		if (other != cpu)
			return !set_cpus_allowed_ptr(current, cpumask_of(other));
	return false;
}

/**
 * orch_poke_held() - poke while a CPU holds the poker by keeping interrupts off
 * @run: the run
 * @poke: what to poke
 * @cpu: the CPU that holds the poker
 * @fn: called on @cpu, with interrupts off, in phases 1, 2 and 3 of the poke;
 *	may be NULL
 * @arg: the last argument of @fn
 *
 * A sync round waits for every CPU. So a CPU that keeps its interrupts off holds
 * the poker between two writes, and can execute the site in exactly that phase.
 * This relies on nothing but the kernel's own promise: a kernel that does not
 * wait for this CPU is caught.
 *
 * Return: false after orch_fail() if the kernel did not wait, after orch_skip()
 * if there is only one CPU or the kernel waits for a thread of each CPU, and
 * after orch_miss() if there is no holder.
 */
bool orch_poke_held(struct orch_run *run, const struct orch_poke *poke, int cpu,
		    orch_in_phase_t fn, void *arg)
{
	struct hold hold = { .poke = poke, .fn = fn, .arg = arg, .poker = current };
	struct orch_poke back = *poke;
	struct orch_workers *workers;
	int try;

	memcpy(back.from, poke->to, ORCH_MAX_LEN);
	memcpy(back.to, poke->from, ORCH_MAX_LEN);
	/* The kernel may not be able to emulate the old instruction. */
	back.emulate = poke->emulate ? poke->emulate : poke->to;
	if (num_online_cpus() == 1) {
		orch_skip(run, "one CPU cannot hold another");
		return false;
	}
	if (!move_away_from(cpu)) {
		orch_miss(run, "the thread that pokes cannot leave CPU %d", cpu);
		return false;
	}
	for (try = 0; try < TRIES; try++) {
		hold.ready = false;
		hold.returned = false;
		hold.broken = ORCH_PHASE_OLD;
		workers = orch_workers_start(run, cpumask_of(cpu), hold_off, &hold);
		if (!workers) {
			set_cpus_allowed_ptr(current, cpu_possible_mask);
			return false;
		}
		while (!READ_ONCE(hold.ready))
			cond_resched();
		orch_poke(poke);
		WRITE_ONCE(hold.returned, true);
		orch_workers_join(workers);
		if (!hold.broken) {
			set_cpus_allowed_ptr(current, cpu_possible_mask);
			return true;
		}
		if (hold.stuck)
			break;
		if (try < TRIES - 1)
			orch_poke(&back);
	}
	set_cpus_allowed_ptr(current, cpu_possible_mask);
	if (hold.slept)
		orch_skip(run, slept, cpu);
	else
		orch_fail(run, hold.stuck ? was_stuck : went_on, hold.broken, cpu);
	return false;
}

static bool hold_site(struct orch_run *run, const struct orch_site *site, bool on, int cpu,
		      orch_in_phase_t fn)
{
	struct orch_poke poke = orch_make_poke(site, on);

	return orch_poke_held(run, &poke, cpu, fn, (void *)site);
}

/**
 * orch_hold_on_each_cpu() - poke a site there and back, held by each CPU in turn
 * @run: the run
 * @sites: the CPUs take these sites in turn; a site that this kernel lacks is
 *	left out, and so is the CPU whose turn it is
 * @count: number of @sites
 * @first: index of the first CPU's site, taken modulo @count
 * @fn: see orch_poke_held(); its argument is the site
 *
 * Return: false when orch_poke_held() does, with the site back at its old bytes.
 */
bool orch_hold_on_each_cpu(struct orch_run *run, const struct orch_site *const *sites,
			   unsigned int count, unsigned int first, orch_in_phase_t fn)
{
	const struct orch_site *site;
	int cpu;

	for_each_online_cpu(cpu) {
		site = sites[first++ % count];
		if (!site->len)
			continue;
		if (hold_site(run, site, true, cpu, fn) && hold_site(run, site, false, cpu, fn))
			continue;
		if (!memcmp(site->addr, site->new, site->len))
			orch_poke_site(site, false);
		return false;
	}
	return true;
}
