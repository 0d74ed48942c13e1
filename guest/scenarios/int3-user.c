// SPDX-License-Identifier: GPL-2.0
/*
 * title: int3 of user programs beside pokes
 * promise: >-
 *   The poke handler never takes an int3 of user mode, whatever its address: a program on each CPU gets a SIGTRAP for
 *   every int3 that it executes while the kernel is poked.
 * order: 240
 * symbols: [poke_int3_handler, smp_text_poke_int3_handler, int3_notify]
 * companion: |
 *   exec trapper /run/companion
 */
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/kdebug.h>
#include <linux/kernel.h>
#include <linux/notifier.h>
#include <linux/ptrace.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <asm/segment.h>
#include "compat.h"
#include "scenario.h"

/* Until the programs have begun. */
#define SECONDS		20

static u64 *from_user;		/* int3 of user mode, nr_cpu_ids of them */
static bool stop;

static int notify(struct notifier_block *self, unsigned long event, void *data)
{
	struct die_args *args = data;

	if (event == DIE_INT3 && args->regs && user_mode(args->regs))
		from_user[raw_smp_processor_id()]++;
	return NOTIFY_DONE;
}

static struct notifier_block notifier = { .notifier_call = notify };

/* A CPU without a program on it, or -1. */
static int idle(void)
{
	int cpu;

	for_each_online_cpu(cpu)
		if (!READ_ONCE(from_user[cpu]))
			return cpu;
	return -1;
}

/* --- an int3 of user mode at the address of the site, which no program can have */

/* What the kernel's int3 entry would ask first. Whether it took the int3. */
static bool ask(struct pt_regs *regs)
{
	int (*handler)(struct pt_regs *regs) = (void *)(orch_symbol("poke_int3_handler") ?:
							orch_symbol("smp_text_poke_int3_handler"));
	notifier_fn_t notified = (void *)orch_symbol("int3_notify");
	struct die_args args = { .regs = regs, .str = "int3", .trapnr = 3 };

	return handler ? handler(regs) : notified(NULL, DIE_INT3, &args) == NOTIFY_STOP;
}

static bool can_ask(void)
{
	return orch_symbol("poke_int3_handler") || orch_symbol("smp_text_poke_int3_handler") ||
	       orch_symbol("int3_notify");
}

static void in_phase(struct orch_run *run, enum orch_phase phase, void *arg)
{
	const struct orch_site *site = arg;
	unsigned long ip = (unsigned long)site->addr + 1;
	struct pt_regs regs;
	bool took;

	if (phase == ORCH_PHASE_NEW)
		return;
	memset(&regs, 0, sizeof(regs));
	regs.cs = __USER_CS;
	regs.ss = __USER_DS;
	regs.ip = ip;
	took = ask(&regs);
	orch_expect(run, !took && regs.ip == ip,
		    "in phase %d the poke handler took an int3 of user mode at site %s on CPU %d", phase,
		    site->name, raw_smp_processor_id());
	/* that it was asked at all */
	regs.cs = __KERNEL_CS;
	regs.ss = __KERNEL_DS;
	regs.ip = ip;
	took = ask(&regs);
	orch_expect(run, took && regs.ip == (unsigned long)site->target,
		    "in phase %d the poke handler did not take an int3 of the kernel's at site %s on CPU %d",
		    phase, site->name, raw_smp_processor_id());
}

/* NOPs that become jumps: for a call or a return the handler would want a stack. */
static const char *const names[] = { "nop5", "nop2", "page", "line" };

static bool held(struct orch_run *run)
{
	const struct orch_site *site;
	struct orch_poke poke;
	int cpu, i = 0;
	bool on;

	for_each_online_cpu(cpu) {
		site = orch_site(names[i++ % ARRAY_SIZE(names)]);
		if (!site->len)
			continue;
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

/* --- int3 of both modes at a time */

static int hammer(struct orch_run *run, int cpu, void *arg)
{
	int i;

	while (!READ_ONCE(stop)) {
		for (i = 0; i < 16; i++)
			orch_site(names[0])->pass();
		usleep_range(200, 300);
	}
	return 0;
}

static void poke_free(struct orch_run *run)
{
	/* not orch_go_on(): the programs took their time to begin */
	unsigned long end = jiffies + msecs_to_jiffies(run->ms);
	struct orch_workers *workers;
	unsigned int i;
	bool on = true;

	WRITE_ONCE(stop, false);
	workers = orch_workers_start(run, cpu_online_mask, hammer, NULL);
	do {
		for (i = 0; i < ARRAY_SIZE(names); i++)
			if (orch_site(names[i])->len)
				orch_poke_site(orch_site(names[i]), on);
		on = !on;
		usleep_range(100, 150);
	} while ((time_before(jiffies, end) && !signal_pending(current)) || !on);
	WRITE_ONCE(stop, true);
	orch_workers_join(workers);
}

static void run_beside(struct orch_run *run)
{
	unsigned long end = jiffies + SECONDS * HZ;

	while (idle() >= 0 && time_before(jiffies, end))
		msleep(10);
	if (idle() >= 0)
		return orch_skip(run, "no int3 of user mode came from CPU %d within %d seconds",
				 idle(), SECONDS);
	if (num_online_cpus() == 1 || !can_ask() || held(run))
		poke_free(run);
}

ORCH_SCENARIO(int3_user)
{
	u64 all = 0;
	int cpu;

	from_user = kcalloc(nr_cpu_ids, sizeof(*from_user), GFP_KERNEL);
	if (!from_user)
		return orch_skip(run, "the guest has no memory left");
	register_die_notifier(&notifier);
	run_beside(run);
	unregister_die_notifier(&notifier);
	for_each_online_cpu(cpu)
		all += from_user[cpu];
	orch_note("# user_int3=%llu asked=%d\n", all, can_ask());
	kfree(from_user);
}
