// SPDX-License-Identifier: GPL-2.0
/*
 * title: no other handler sees the int3 of a site
 * promise: >-
 *   The poke handler runs before all others and consumes every int3 of the site: no die notifier is
 *   called for any of them. Meanwhile, a kprobe still gets its own int3.
 * order: 220
 */
#include <linux/delay.h>
#include <linux/kdebug.h>
#include <linux/kernel.h>
#include <linux/kprobes.h>
#include <linux/notifier.h>
#include <linux/ptrace.h>
#include <linux/slab.h>
#include <linux/string.h>
#include "compat.h"
#include "scenario.h"

static const struct orch_site *sites[5];
static unsigned int nr_sites;

/**
 * struct count - what one CPU did, and what others were told about it
 * @hits: passes that went to the int3 target
 * @notified: int3 of a site for which the die notifier was called
 * @unpoked: the same for the int3 that is not part of a poke
 * @calls: calls of the probed function
 * @pre: calls of its kprobe's pre-handler
 * @post: calls of its kprobe's post-handler
 */
struct count {
	u64 hits;
	u64 notified;
	u64 unpoked;
	u64 calls;
	u64 pre, post;
};

static struct count *counts;	/* nr_cpu_ids elements */
static const struct orch_site *last_notified;
static bool stop;

static struct count *here(void)
{
	return &counts[raw_smp_processor_id()];
}

/* --- who might be told about an int3 */

extern u8 orch_consumed_unpoked[];

/*
 * Must not be called for the int3 of a site. If it is, it does what the poke
 * handler should have done.
 */
static int notify(struct notifier_block *self, unsigned long event, void *data)
{
	struct die_args *args = data;
	unsigned int i;

	if (event != DIE_INT3 || !args->regs || user_mode(args->regs))
		return NOTIFY_DONE;
	if (args->regs->ip == (unsigned long)orch_consumed_unpoked + 1) {
		here()->unpoked++;
		return NOTIFY_STOP;
	}
	for (i = 0; i < nr_sites; i++)
		if (args->regs->ip == (unsigned long)sites[i]->addr + 1) {
			here()->notified++;
			last_notified = sites[i];
			args->regs->ip = (unsigned long)sites[i]->handler;
			return NOTIFY_STOP;
		}
	return NOTIFY_DONE;
}

/* The poke handler of 2013 is a notifier too, with the highest priority. */
static struct notifier_block notifier = { .notifier_call = notify, .priority = INT_MAX - 1 };

/* Shows that the notifier is registered and works. */
static noinline ORCH_NOCLONE void unpoked_int3(void)
{
	asm volatile(".globl orch_consumed_unpoked\n"
		     "orch_consumed_unpoked:\n\t"
		     "int3" : : : "memory");
}

/* Not traced, or its kprobe would use the call to ftrace instead of an int3. */
static noinline notrace ORCH_NOCLONE void probed(void)
{
	asm volatile("" : : : "memory");
}

static struct kprobe probe;

static int pre(struct kprobe *kprobe, struct pt_regs *regs)
{
	here()->pre++;
	return 0;
}

/* A kprobe with a post-handler is never optimized into a jump: it stays an int3. */
static void post(struct kprobe *kprobe, struct pt_regs *regs, unsigned long flags)
{
	here()->post++;
}

/* --- CPUs that hit it */

static void pass(const struct orch_site *site)
{
	if (site->pass() == ORCH_INT3)
		here()->hits++;
}

static void compare(struct orch_run *run, int cpu, const char *when)
{
	const struct count *count = &counts[cpu];

	orch_expect(run, !count->notified,
		    "%s a die notifier got %llu of %llu int3 on CPU %d, the last one at site %s",
		    when, count->notified, count->hits, cpu,
		    last_notified ? last_notified->name : "?");
	if (!probe.addr)
		return;
	orch_expect(run, count->pre == count->calls && count->post == count->calls,
		    "%s CPU %d called a probed function %llu times, its handlers ran %llu and %llu",
		    when, cpu, count->calls, count->pre, count->post);
}

static void in_phase(struct orch_run *run, enum orch_phase phase, void *arg)
{
	struct count *count = here();
	u64 hits = count->hits;
	char when[40];
	int i;

	for (i = 0; i < 8; i++)
		pass(arg);
	/* With interrupts off, as an int3 and its handlers may run. */
	probed();
	count->calls++;
	scnprintf(when, sizeof(when), "in phase %d of a poke", phase);
	if (phase != ORCH_PHASE_NEW)
		orch_expect(run, count->hits == hits + 8,
			    "%s %llu of 8 passes of CPU %d went to the int3 target", when,
			    count->hits - hits, raw_smp_processor_id());
	compare(run, raw_smp_processor_id(), when);
}

static int check_notifier(struct orch_run *run, int cpu, void *arg)
{
	u64 unpoked = here()->unpoked;

	unpoked_int3();
	orch_expect(run, here()->unpoked == unpoked + 1,
		    "an int3 outside of any poke did not reach the die notifier on CPU %d", cpu);
	return 0;
}

static int hammer(struct orch_run *run, int cpu, void *arg)
{
	int i;

	while (!READ_ONCE(stop)) {
		for (i = 0; i < 16; i++)
			pass(sites[i % nr_sites]);
		probed();
		here()->calls++;
		usleep_range(200, 300);
	}
	return 0;
}

static void poke_free(struct orch_run *run)
{
	struct orch_workers *workers;
	unsigned int i;
	bool on = true;
	int cpu = -1;

	WRITE_ONCE(stop, false);
	workers = orch_workers_start(run, cpu_online_mask, hammer, NULL);
	do {
		for (i = 0; i < nr_sites; i++)
			orch_poke_site(sites[i], on);
		on = !on;
		/* The poker's own CPU hardly ever hits int3. */
		cpu = orch_next_cpu(cpu);
		set_cpus_allowed_ptr(current, cpumask_of(cpu));
		usleep_range(100, 150);
	} while (orch_time_left(run) || !on);
	set_cpus_allowed_ptr(current, cpu_possible_mask);
	WRITE_ONCE(stop, true);
	orch_workers_join(workers);
}

static void find_sites(void)
{
	static const char *const names[] = { "nop5", "nop2", "page", "one", "call" };
	int i;

	nr_sites = 0;
	for (i = 0; i < ARRAY_SIZE(names); i++)
		if (orch_site(names[i])->len)
			sites[nr_sites++] = orch_site(names[i]);
}

ORCH_SCENARIO(int3_consumed)
{
	u64 hits = 0, calls = 0;
	int cpu, error;

	counts = kcalloc(nr_cpu_ids, sizeof(*counts), GFP_KERNEL);
	if (!counts)
		return orch_miss(run, "the guest is out of memory");
	last_notified = NULL;
	find_sites();
	/* Without kprobes this fails, and only the notifier is tested. */
	memset(&probe, 0, sizeof(probe));
	probe.addr = (kprobe_opcode_t *)probed;
	probe.pre_handler = pre;
	probe.post_handler = post;
	error = register_kprobe(&probe);
	if (error)
		probe.addr = NULL;
	if (error == -ENOMEM)
		orch_miss(run, "the guest is out of memory");
	register_die_notifier(&notifier);
	orch_parallel(run, cpu_online_mask, check_notifier, NULL);
	if (num_online_cpus() == 1 || orch_hold_on_each_cpu(run, sites, nr_sites, 0, in_phase))
		poke_free(run);
	unregister_die_notifier(&notifier);
	for_each_online_cpu(cpu) {
		compare(run, cpu, "during pokes");
		hits += counts[cpu].hits;
		calls += counts[cpu].calls;
	}
	if (probe.addr)
		unregister_kprobe(&probe);
	orch_note("# consumed=%llu kprobe=%llu\n", hits, probe.addr ? calls : 0);
	kfree(counts);
}
