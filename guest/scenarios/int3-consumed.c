// SPDX-License-Identifier: GPL-2.0
/*
 * title: nobody else hears of the int3 of a site
 * promise: >-
 *   The poke handler comes before everybody else and takes every int3 of the site: no die notifier is called for one,
 *   and a kprobe's own int3 reaches the kprobe meanwhile.
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

/* What one CPU did, and what others heard of it. */
struct count {
	u64 met;		/* passes by way of the int3 target */
	u64 heard;		/* of these by our notifier */
	u64 own;		/* of int3 of our own by our notifier */
	u64 calls;		/* of the probed function */
	u64 pre, post;		/* of its kprobe */
};

static struct count *counts;	/* nr_cpu_ids of them */
static const struct orch_site *heard_of;
static bool stop;

static struct count *here(void)
{
	return &counts[raw_smp_processor_id()];
}

/* --- those who might hear of it */

extern u8 orch_consumed_own[];

/* Not called for the int3 of a site; if it is, it does what the poke handler should have done. */
static int notify(struct notifier_block *self, unsigned long event, void *data)
{
	struct die_args *args = data;
	unsigned int i;

	if (event != DIE_INT3 || !args->regs || user_mode(args->regs))
		return NOTIFY_DONE;
	if (args->regs->ip == (unsigned long)orch_consumed_own + 1) {
		here()->own++;
		return NOTIFY_STOP;
	}
	for (i = 0; i < nr_sites; i++)
		if (args->regs->ip == (unsigned long)sites[i]->addr + 1) {
			here()->heard++;
			heard_of = sites[i];
			args->regs->ip = (unsigned long)sites[i]->handler;
			return NOTIFY_STOP;
		}
	return NOTIFY_DONE;
}

/* Second to one: the poke handler of 2013 is a notifier of the highest priority. */
static struct notifier_block notifier = { .notifier_call = notify, .priority = INT_MAX - 1 };

/* That the notifier is there and would hear. */
static noinline __attribute__((noclone)) void own_int3(void)
{
	asm volatile(".globl orch_consumed_own\n"
		     "orch_consumed_own:\n\t"
		     "int3" : : : "memory");
}

/* Not traced, or its kprobe would go by way of ftrace's call and be no int3. */
static noinline notrace __attribute__((noclone)) void probed(void)
{
	asm volatile("" : : : "memory");
}

static struct kprobe probe;

static int pre(struct kprobe *kprobe, struct pt_regs *regs)
{
	here()->pre++;
	return 0;
}

/* With it the kprobe is never made a jump: it stays an int3. */
static void post(struct kprobe *kprobe, struct pt_regs *regs, unsigned long flags)
{
	here()->post++;
}

/* --- those who meet it */

static void pass(const struct orch_site *site)
{
	if (site->pass() == ORCH_INT3)
		here()->met++;
}

static void compare(struct orch_run *run, int cpu, const char *when)
{
	const struct count *count = &counts[cpu];

	orch_expect(run, !count->heard,
		    "%s a die notifier was called for %llu of %llu int3 on CPU %d, the last one of site %s",
		    when, count->heard, count->met, cpu, heard_of ? heard_of->name : "?");
	if (!probe.addr)
		return;
	orch_expect(run, count->pre == count->calls && count->post == count->calls,
		    "%s CPU %d called a probed function %llu times, its kprobe ran %llu and %llu times",
		    when, cpu, count->calls, count->pre, count->post);
}

static void in_phase(struct orch_run *run, enum orch_phase phase, void *arg)
{
	struct count *count = here();
	u64 met = count->met;
	char when[40];
	int i;

	for (i = 0; i < 8; i++)
		pass(arg);
	/* with interrupts off, as int3 and its handlers can be met */
	probed();
	count->calls++;
	scnprintf(when, sizeof(when), "in phase %d of a poke", phase);
	if (phase != ORCH_PHASE_NEW)
		orch_expect(run, count->met == met + 8,
			    "%s %llu of 8 passes of CPU %d went to the int3 target", when,
			    count->met - met, raw_smp_processor_id());
	compare(run, raw_smp_processor_id(), when);
}

static int hear_own(struct orch_run *run, int cpu, void *arg)
{
	u64 own = here()->own;

	own_int3();
	orch_expect(run, here()->own == own + 1,
		    "an int3 that nobody pokes did not reach our die notifier on CPU %d", cpu);
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

static bool held(struct orch_run *run)
{
	struct orch_poke poke;
	unsigned int i = 0;
	int cpu;
	bool on;

	for_each_online_cpu(cpu) {
		const struct orch_site *site = sites[i++ % nr_sites];

		for (on = true; ; on = false) {
			poke = orch_poke_of(site, on);
			if (!orch_poke_held(run, &poke, cpu, in_phase, (void *)site)) {
				if (!memcmp(site->addr, site->new, site->len))
					orch_poke_site(site, false);
				return false;
			}
			if (!on)
				break;
		}
	}
	return true;
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
		/* the poker's own CPU hardly meets an int3 */
		cpu = cpumask_next(cpu, cpu_online_mask);
		if (cpu >= nr_cpu_ids)
			cpu = cpumask_first(cpu_online_mask);
		set_cpus_allowed_ptr(current, cpumask_of(cpu));
		usleep_range(100, 150);
	} while (orch_go_on(run) || !on);
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
	u64 met = 0, calls = 0;
	int cpu;

	counts = kcalloc(nr_cpu_ids, sizeof(*counts), GFP_KERNEL);
	if (!counts)
		return orch_skip(run, "the guest has no memory left");
	heard_of = NULL;
	find_sites();
	/* a kernel without kprobes refuses; its notifiers are still to be heard */
	memset(&probe, 0, sizeof(probe));
	probe.addr = (kprobe_opcode_t *)probed;
	probe.pre_handler = pre;
	probe.post_handler = post;
	if (register_kprobe(&probe))
		probe.addr = NULL;
	register_die_notifier(&notifier);
	orch_parallel(run, cpu_online_mask, hear_own, NULL);
	if (num_online_cpus() == 1 || held(run))
		poke_free(run);
	unregister_die_notifier(&notifier);
	for_each_online_cpu(cpu) {
		compare(run, cpu, "beside pokes");
		met += counts[cpu].met;
		calls += counts[cpu].calls;
	}
	if (probe.addr)
		unregister_kprobe(&probe);
	orch_note("# consumed=%llu kprobe=%llu\n", met, probe.addr ? calls : 0);
	kfree(counts);
}
