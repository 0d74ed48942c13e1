// SPDX-License-Identifier: GPL-2.0
/*
 * The hammers: one thread a CPU, bound to it, that executes the site and counts
 * how each pass went.
 *
 * Running free they sleep after each burst. Hammers that spin on every CPU
 * starve the poker: each sync round has to wait until the host has scheduled
 * every virtual CPU, and with eight spinning ones on two cores that takes tens
 * of milliseconds.
 *
 * At the gate they spin for a while before they sleep. There a debugger stops
 * the machine all the time, and each stop makes QEMU translate anew whatever
 * runs next: a loop of ours is a fraction of a wake-up by way of interrupt,
 * scheduler and idle loop.
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

/* Long for a guest; a host with other things to do may need some of it. */
#define GATE_SECONDS	30
/* Looks at the gate before a hammer sleeps: under TCG about a second. */
#define GATE_SPINS	100000

static struct orch_cpu *hammers;	/* nr_cpu_ids of them */
static struct orch_hammer_spec spec;

static u64 epoch;

static DECLARE_WAIT_QUEUE_HEAD(gate_hammers);
static DECLARE_WAIT_QUEUE_HEAD(gate_poker);
static u64 gate_round;
static enum orch_phase gate_phase;
static unsigned int gate_holds;
static atomic_t gate_left;
struct cpumask orch_gate_stuck;

void orch_epoch_reset(void)
{
	WRITE_ONCE(epoch, 0);
}

/*
 * Ordered after the stores of a poke that ended, and before those of one that
 * begins.
 */
void orch_epoch_next(void)
{
	smp_mb();
	WRITE_ONCE(epoch, epoch + 1);
	smp_mb();
}

/*
 * A pass that began and ended in the same even epoch ran with no poke under
 * way. The last sync round of the poke before it ran on this CPU before the
 * epoch became even, so it must have gone the way of the bytes written.
 */
static void hammer_burst(struct orch_cpu *cpu)
{
	unsigned int i;

	for (i = 0; i < spec.burst; i++) {
		u64 before = READ_ONCE(epoch);
		enum orch_result result = spec.site->pass();
		u64 after = READ_ONCE(epoch);

		cpu->count[ORCH_FREE][result]++;
		if (before == after && !(before & 1) &&
		    result != (before & 2 ? ORCH_NEW : ORCH_OLD))
			cpu->stale++;
	}
}

static void hammer_round(struct orch_cpu *cpu, u64 round)
{
	enum orch_phase phase = READ_ONCE(gate_phase);
	unsigned int i;

	for (i = 0; i < spec.passes; i++)
		cpu->count[phase][spec.site->pass()]++;
	smp_mb();
	WRITE_ONCE(cpu->round, round);
	if (atomic_dec_and_test(&gate_left))
		wake_up(&gate_poker);
}

static bool gate_calls(const struct orch_cpu *cpu)
{
	return kthread_should_stop() || READ_ONCE(gate_round) != cpu->round;
}

static void wait_at_gate(struct orch_cpu *cpu)
{
	unsigned int spins;

	for (spins = 0; spins < GATE_SPINS && !gate_calls(cpu); spins++) {
		cpu_relax();
		cond_resched();
	}
	wait_event_interruptible(gate_hammers, gate_calls(cpu));
	smp_mb();
}

static int hammer(void *data)
{
	struct orch_cpu *cpu = data;

	while (!kthread_should_stop()) {
		if (spec.gated) {
			wait_at_gate(cpu);
			if (READ_ONCE(gate_round) != cpu->round)
				hammer_round(cpu, READ_ONCE(gate_round));
		} else {
			hammer_burst(cpu);
			usleep_range(spec.pause_us, spec.pause_us + spec.pause_us / 2);
		}
	}
	return 0;
}

/* From one gated step to the next they stay, and wait: starting and stopping them takes longer than the step. */
static bool keep(const struct orch_hammer_spec *wanted)
{
	int cpu;

	if (!hammers || !spec.gated || !wanted->gated)
		return false;
	for_each_possible_cpu(cpu) {
		if (!hammers[cpu].task != !cpu_online(cpu))
			return false;
		memset(hammers[cpu].count, 0, sizeof(hammers[cpu].count));
		hammers[cpu].stale = 0;
	}
	spec = *wanted;
	return true;
}

int orch_hammers_start(const struct orch_hammer_spec *wanted)
{
	int cpu;

	if (keep(wanted))
		return 0;
	orch_hammers_stop();
	hammers = kcalloc(nr_cpu_ids, sizeof(*hammers), GFP_KERNEL);
	if (!hammers)
		return -ENOMEM;
	spec = *wanted;
	gate_round = 0;
	for_each_online_cpu(cpu) {
		struct task_struct *task = kthread_create(hammer, &hammers[cpu], "orch_hammer/%d", cpu);

		if (IS_ERR(task)) {
			orch_hammers_stop();
			return PTR_ERR(task);
		}
		kthread_bind(task, cpu);
		hammers[cpu].task = task;
		wake_up_process(task);
	}
	return 0;
}

/* The counters stay readable until orch_hammers_stop(). */
void orch_hammers_rest(void)
{
	int cpu;

	for (cpu = 0; hammers && cpu < nr_cpu_ids; cpu++) {
		if (hammers[cpu].task)
			kthread_stop(hammers[cpu].task);
		hammers[cpu].task = NULL;
	}
}

void orch_hammers_stop(void)
{
	orch_hammers_rest();
	kfree(hammers);
	hammers = NULL;
}

/* NULL where no hammer ran. */
const struct orch_cpu *orch_hammer(int cpu)
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

/*
 * The time limit is the guest's: it stands still while a debugger holds the
 * machine. A kernel that pokes with interrupts off makes us spin instead, so
 * that it is caught for what it did and not for sleeping in our code.
 */
bool orch_gate_round(enum orch_phase phase)
{
	static struct cpumask missing;
	unsigned long spins, limit = 3 * GATE_SPINS;
	int cpu, count = 0;

	for (cpu = 0; cpu < nr_cpu_ids; cpu++)
		count += !!hammers[cpu].task;
	atomic_set(&gate_left, count);
	gate_phase = phase;
	smp_mb();
	WRITE_ONCE(gate_round, gate_round + 1);
	wake_up_all(&gate_hammers);
	if (irqs_disabled() || in_atomic()) {
		/* our own CPU's hammer cannot run; once is enough to know */
		if (!cpumask_empty(&orch_gate_stuck))
			limit = GATE_SPINS / 100;
		for (spins = 0; !gate_passed(&missing) && spins < limit; spins++)
			cpu_relax();
	} else {
		wait_event_timeout(gate_poker, gate_passed(&missing), GATE_SECONDS * HZ);
	}
	if (gate_passed(&missing))
		return true;
	cpumask_or(&orch_gate_stuck, &orch_gate_stuck, &missing);
	return false;
}

void orch_gate_begin(void)
{
	gate_holds = 0;
	cpumask_clear(&orch_gate_stuck);
}

unsigned int orch_gate_holds(void)
{
	return gate_holds;
}

/* Where the gate's stub lands: the poker, between two writes of its poke. */
asmlinkage void orch_gate_hold(void);
asmlinkage void orch_gate_hold(void)
{
	orch_gate_round(gate_holds++ ? ORCH_PHASE_TAIL : ORCH_PHASE_INT3);
}
