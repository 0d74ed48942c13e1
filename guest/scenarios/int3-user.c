// SPDX-License-Identifier: GPL-2.0
/*
 * title: user programs execute int3 during pokes
 * promise: >-
 *   The poke handler never consumes an int3 of user mode, whatever its address. A program on each CPU
 *   gets a SIGTRAP for every int3 that it executes while the kernel is poked.
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

/* How long to wait until each program has begun, as the host may be busy. */
#define SECONDS		40

static u64 *from_user;		/* int3 of user mode on each CPU, nr_cpu_ids elements */
static bool stop;

static int notify(struct notifier_block *self, unsigned long event, void *data)
{
	struct die_args *args = data;

	if (event == DIE_INT3 && args->regs && user_mode(args->regs))
		from_user[raw_smp_processor_id()]++;
	return NOTIFY_DONE;
}

static struct notifier_block notifier = { .notifier_call = notify };

/* A CPU on which no program has begun, or -1. */
static int cpu_without_program(void)
{
	int cpu;

	for_each_online_cpu(cpu)
		if (!READ_ONCE(from_user[cpu]))
			return cpu;
	return -1;
}

/*
 * --- an int3 of user mode at the address of the site
 *
 * No program can have code there, so the poke handler is called with made-up
 * registers.
 */

/* Call what the kernel's int3 entry calls first. Returns whether it took the int3. */
static bool call_handler(struct pt_regs *regs)
{
	int (*handler)(struct pt_regs *regs) = (void *)(orch_symbol("poke_int3_handler") ?:
							orch_symbol("smp_text_poke_int3_handler"));
	notifier_fn_t notifier_fn = (void *)orch_symbol("int3_notify");
	struct die_args args = { .regs = regs, .str = "int3", .trapnr = 3 };

	return handler ? handler(regs) : notifier_fn(NULL, DIE_INT3, &args) == NOTIFY_STOP;
}

static bool has_handler(void)
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
	took = call_handler(&regs);
	orch_expect(run, !took && regs.ip == ip,
		    "in phase %d the poke handler consumed a user-mode int3 at %s on CPU %d",
		    phase, site->name, raw_smp_processor_id());
	/* The same for kernel mode, to show that this was the handler at all. */
	regs.cs = __KERNEL_CS;
	regs.ss = __KERNEL_DS;
	regs.ip = ip;
	took = call_handler(&regs);
	orch_expect(run, took && regs.ip == (unsigned long)site->target,
		    "in phase %d the poke handler missed a kernel-mode int3 at %s on CPU %d",
		    phase, site->name, raw_smp_processor_id());
}

/* NOPs that become jumps. To emulate a call or a return, the handler would need a stack. */
static const struct orch_site *const sites[] = {
	&orch_sites[ORCH_SITE_NOP5], &orch_sites[ORCH_SITE_NOP2],
	&orch_sites[ORCH_SITE_PAGE], &orch_sites[ORCH_SITE_LINE],
};

/* --- int3 of both modes at the same time */

static int hammer(struct orch_run *run, int cpu, void *arg)
{
	int i;

	while (!READ_ONCE(stop)) {
		for (i = 0; i < 16; i++)
			sites[0]->pass();
		usleep_range(200, 300);
	}
	return 0;
}

static void poke_free(struct orch_run *run)
{
	/* Not orch_time_left(): part of the time has passed until the programs began. */
	unsigned long end = jiffies + msecs_to_jiffies(run->ms);
	struct orch_workers *workers;
	unsigned int i;
	bool on = true;

	WRITE_ONCE(stop, false);
	workers = orch_workers_start(run, cpu_online_mask, hammer, NULL);
	do {
		for (i = 0; i < ARRAY_SIZE(sites); i++)
			if (sites[i]->len)
				orch_poke_site(sites[i], on);
		on = !on;
		usleep_range(100, 150);
	} while ((time_before(jiffies, end) && !signal_pending(current)) || !on);
	WRITE_ONCE(stop, true);
	orch_workers_join(workers);
}

static void run_both(struct orch_run *run)
{
	if (!orch_wait_until(cpu_without_program() < 0, SECONDS))
		return orch_miss(run, "no int3 of user mode came from CPU %d",
				 cpu_without_program());
	if (num_online_cpus() == 1 || !has_handler() ||
	    orch_hold_on_each_cpu(run, sites, ARRAY_SIZE(sites), 0, in_phase))
		poke_free(run);
}

ORCH_SCENARIO(int3_user)
{
	u64 total = 0;
	int cpu;

	from_user = kcalloc(nr_cpu_ids, sizeof(*from_user), GFP_KERNEL);
	if (!from_user)
		return orch_miss(run, "the guest is out of memory");
	register_die_notifier(&notifier);
	run_both(run);
	unregister_die_notifier(&notifier);
	for_each_online_cpu(cpu)
		total += from_user[cpu];
	orch_note("# user_int3=%llu asked=%d\n", total, has_handler());
	kfree(from_user);
}
