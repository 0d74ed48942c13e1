// SPDX-License-Identifier: GPL-2.0
/*
 * title: a CPU keeps its interrupts off through each sync round
 * promise: >-
 *   Each sync round, the last one included, waits for every CPU. A CPU that keeps its interrupts
 *   off holds the poke; meanwhile, it executes the site as the phase demands.
 * order: 200
 */
#include <linux/cpumask.h>
#include "scenario.h"

static void pass(struct orch_run *run, enum orch_phase phase, void *arg)
{
	const struct orch_site *site = arg;
	enum orch_result result = site->pass();

	if (phase == ORCH_PHASE_NEW)
		orch_expect(run, result != ORCH_INT3 && result != ORCH_TORN,
			    "with the new bytes of %s in place a CPU did not execute them",
			    site->name);
	else
		orch_expect(run, result == ORCH_INT3,
			    "with int3 on %s in phase %d a CPU did not go to the int3 target",
			    site->name, phase);
}

ORCH_SCENARIO(held_off)
{
	const struct orch_site *sites[] = {
		&orch_sites[ORCH_SITE_NOP5], &orch_sites[ORCH_SITE_NOP2],
		&orch_sites[ORCH_SITE_ONE], &orch_sites[ORCH_SITE_PAGE],
	};
	unsigned int first = 0;

	do {
		if (!orch_hold_on_each_cpu(run, sites, ARRAY_SIZE(sites), first, pass))
			return;
		first += num_online_cpus();
	} while (orch_time_left(run));
}
