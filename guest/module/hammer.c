// SPDX-License-Identifier: GPL-2.0
/*
 * The hammers: a thread on each CPU, bound to it, that executes the site and
 * counts the results of its passes.
 *
 * Free-running hammers sleep after each burst. Hammers that spin on every CPU
 * starve the poker: each sync round waits until the host has scheduled every
 * virtual CPU, and with eight spinning ones on two cores that takes tens of
 * milliseconds.
 *
 * At the gate they spin for a while before they sleep. There a debugger stops
 * the machine all the time, and after each stop QEMU must translate whatever
 * runs next again. A wake-up by way of interrupt, scheduler and idle loop takes
 * many times as much of that as a small loop.
 */
#include <linux/atomic.h>
#include <linux/cpu.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/hardirq.h>
#include <linux/kthread.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/wait.h>
#include "compat.h"
#include "orch.h"

/* A long time for a guest, but the host may be busy with something else. */
#define GATE_SECONDS	30
/* How often a hammer polls the gate before it sleeps: about a second under TCG. */
#define GATE_SPINS	100000

static struct orch_hammer *hammers;	/* nr_cpu_ids elements */
static struct orch_hammer_spec spec;

static u64 epoch;

static DECLARE_WAIT_QUEUE_HEAD(gate_hammers);
static DECLARE_WAIT_QUEUE_HEAD(gate_poker);
static u64 gate_round;
static enum orch_phase gate_phase;
static unsigned int gate_holds;
static atomic_t gate_left;
struct cpumask orch_gate_stuck;

/**
 * orch_epoch_reset() - no poke is under way and the site holds its old bytes
 */
void orch_epoch_reset(void)
{
	WRITE_ONCE(epoch, 0);
}

/**
 * orch_epoch_next() - a poke begins or ends
 */
void orch_epoch_next(void)
{
	/*
	 * The writes of a poke that has ended before the even epoch. Pairs with
	 * the reader, who reads the epoch before the site: orch_pass_is_stale().
	 */
	smp_mb();
	WRITE_ONCE(epoch, epoch + 1);
	/*
	 * The odd epoch before the writes of a poke that begins. Pairs with the
	 * reader, who reads the epoch again after the site.
	 */
	smp_mb();
}

/**
 * orch_epoch() - read the epoch
 *
 * Return: a number that is odd while a poke is under way. When it is even, bit 1
 * is set if the site holds its new bytes.
 */
u64 orch_epoch(void)
{
	return READ_ONCE(epoch);
}

/**
 * orch_pass_is_stale() - check a pass against the bytes last written
 * @before: orch_epoch() before the pass
 * @after: orch_epoch() after the pass
 * @result: what the pass turned out to be
 *
 * A pass that began and ended in the same even epoch ran with no poke under way.
 * The last sync round of the preceding poke ran on this CPU before the epoch
 * became even, so the pass must have executed the bytes last written. No barrier
 * is needed around the pass: x86 keeps loads in program order, and that sync
 * round has discarded what this CPU had fetched before.
 *
 * Return: true if the pass executed other bytes.
 */
bool orch_pass_is_stale(u64 before, u64 after, enum orch_result result)
{
	return before == after && !(before & 1) && result != (before & 2 ? ORCH_NEW : ORCH_OLD);
}

static void hammer_burst(struct orch_hammer *hammer)
{
	unsigned int i, passes = spec.burst - orch_dice_throw(&hammer->dice, spec.burst);

	for (i = 0; i < passes; i++) {
		u64 before = orch_epoch();
		enum orch_result result = spec.site->pass();
		u64 after = orch_epoch();

		hammer->count[ORCH_FREE][result]++;
		if (orch_pass_is_stale(before, after, result))
			hammer->stale++;
	}
}

static void hammer_round(struct orch_hammer *hammer, u64 round)
{
	enum orch_phase phase = READ_ONCE(gate_phase);
	unsigned int i;

	for (i = 0; i < spec.passes; i++)
		hammer->count[phase][spec.site->pass()]++;
	/*
	 * The counters before the round. Pairs with complete() in do_job():
	 * gate_passed() has seen the round by then, and the counters are read
	 * after that completion.
	 */
	smp_mb();
	WRITE_ONCE(hammer->round, round);
	/*
	 * Fully ordered, the round before the wake-up. Pairs with the barrier in
	 * wait_event_timeout(), between queueing and gate_passed().
	 */
	if (atomic_dec_and_test(&gate_left))
		wake_up(&gate_poker);
}

static bool gate_calls(const struct orch_hammer *hammer)
{
	return kthread_should_stop() || READ_ONCE(gate_round) != hammer->round;
}

static void wait_at_gate(struct orch_hammer *hammer)
{
	unsigned int spins;

	for (spins = 0; spins < GATE_SPINS && !gate_calls(hammer); spins++) {
		cpu_relax();
		cond_resched();
	}
	wait_event_interruptible(gate_hammers, gate_calls(hammer));
	/*
	 * The new gate_round before gate_phase, the spec and the site's bytes.
	 * Pairs with smp_mb() in orch_gate_round().
	 */
	smp_mb();
}

static int run_hammer(void *data)
{
	struct orch_hammer *hammer = data;

	while (!kthread_should_stop()) {
		if (spec.gated) {
			wait_at_gate(hammer);
			if (READ_ONCE(gate_round) != hammer->round)
				hammer_round(hammer, READ_ONCE(gate_round));
		} else {
			hammer_burst(hammer);
			usleep_range(spec.pause_us, spec.pause_us + spec.pause_us / 2);
		}
	}
	return 0;
}

/*
 * The hammers of a gated step stay for the next one, since starting and stopping
 * them takes longer than the step. They wait at the gate, so the spec can change.
 */
static bool reuse(const struct orch_hammer_spec *requested)
{
	int cpu;

	if (!hammers || !spec.gated || !requested->gated)
		return false;
	for_each_possible_cpu(cpu) {
		if (!hammers[cpu].task != !cpu_online(cpu))
			return false;
		memset(hammers[cpu].count, 0, sizeof(hammers[cpu].count));
		hammers[cpu].stale = 0;
	}
	spec = *requested;
	return true;
}

/**
 * orch_hammers_start() - start a hammer on each online CPU, counters at 0
 * @requested: what the hammers do
 *
 * Hammers that wait at the gate are reused.
 *
 * Return: 0 or a negative errno.
 */
int orch_hammers_start(const struct orch_hammer_spec *requested)
{
	int cpu;

	if (reuse(requested))
		return 0;
	orch_hammers_free();
	hammers = kcalloc(nr_cpu_ids, sizeof(*hammers), GFP_KERNEL);
	if (!hammers)
		return -ENOMEM;
	spec = *requested;
	gate_round = 0;
	for_each_online_cpu(cpu) {
		struct task_struct *task = kthread_create(run_hammer, &hammers[cpu],
							  "orch_hammer/%d", cpu);

		if (IS_ERR(task)) {
			orch_hammers_free();
			return PTR_ERR(task);
		}
		kthread_bind(task, cpu);
		hammers[cpu].task = task;
		hammers[cpu].dice = orch_dice();
		wake_up_process(task);
	}
	return 0;
}

/**
 * orch_hammers_stop() - stop the hammers
 *
 * The counters stay readable until orch_hammers_free().
 */
void orch_hammers_stop(void)
{
	int cpu;

	for (cpu = 0; hammers && cpu < nr_cpu_ids; cpu++) {
		if (hammers[cpu].task)
			kthread_stop(hammers[cpu].task);
		hammers[cpu].task = NULL;
	}
}

/**
 * orch_hammers_free() - stop the hammers and free their counters
 */
void orch_hammers_free(void)
{
	orch_hammers_stop();
	kfree(hammers);
	hammers = NULL;
}

/**
 * orch_hammer() - counters of one CPU's hammer
 * @cpu: the CPU
 *
 * Return: the counters, or NULL if there are no hammers.
 */
const struct orch_hammer *orch_hammer(int cpu)
{
	return hammers ? &hammers[cpu] : NULL;
}

static bool gate_passed(struct cpumask *missing)
{
	int cpu;

	cpumask_clear(missing);
	for (cpu = 0; cpu < nr_cpu_ids; cpu++)
		if (hammers[cpu].task && READ_ONCE(hammers[cpu].round) != gate_round)
			cpumask_set_cpu(cpu, missing);
	return cpumask_empty(missing);
}

/**
 * orch_gate_round() - let every CPU go through the site and wait until all have
 * @phase: where their passes are counted
 *
 * The time limit is in guest time, which stands still while a debugger holds the
 * machine. It is a number of short waits, as in orch_wait_until(): the clock may
 * leap. Spins if called with interrupts off: a kernel that pokes like that must
 * be caught for doing so, not for sleeping in this function.
 *
 * Return: false when a CPU did not go through in time. orch_gate_stuck has those
 * CPUs.
 */
bool orch_gate_round(enum orch_phase phase)
{
	static struct cpumask missing;
	unsigned long spins, limit = 3 * GATE_SPINS;
	int cpu, tries, count = 0;

	for (cpu = 0; cpu < nr_cpu_ids; cpu++)
		count += !!hammers[cpu].task;
	atomic_set(&gate_left, count);
	WRITE_ONCE(gate_phase, phase);
	/*
	 * gate_left, gate_phase and the site's bytes before the new round. Pairs
	 * with smp_mb() in wait_at_gate().
	 */
	smp_mb();
	WRITE_ONCE(gate_round, gate_round + 1);
	wake_up_all(&gate_hammers);
	if (irqs_disabled() || in_atomic()) {
		/*
		 * The hammer of this CPU cannot run. It is enough to wait for
		 * that once.
		 */
		if (!cpumask_empty(&orch_gate_stuck))
			limit = GATE_SPINS / 100;
		for (spins = 0; !gate_passed(&missing) && spins < limit; spins++)
			cpu_relax();
	} else {
		for (tries = 0; tries < 10 * GATE_SECONDS; tries++)
			if (wait_event_timeout(gate_poker, gate_passed(&missing), HZ / 10))
				break;
	}
	if (gate_passed(&missing))
		return true;
	cpumask_or(&orch_gate_stuck, &orch_gate_stuck, &missing);
	return false;
}

/**
 * orch_gate_begin() - a gated poke is about to begin
 */
void orch_gate_begin(void)
{
	gate_holds = 0;
	cpumask_clear(&orch_gate_stuck);
}

/**
 * orch_gate_holds() - how often the poker was held
 *
 * Return: the number of holds since orch_gate_begin(), 2 when the poker was held
 * in phases 1 and 2.
 */
unsigned int orch_gate_holds(void)
{
	return gate_holds;
}

/* Called by the gate's stub, in the poker between two writes of its poke. */
asmlinkage void orch_gate_hold(void);
asmlinkage void orch_gate_hold(void)
{
	orch_gate_round(gate_holds++ ? ORCH_PHASE_TAIL : ORCH_PHASE_INT3);
}
