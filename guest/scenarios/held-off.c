// SPDX-License-Identifier: GPL-2.0
/*
 * title: a CPU with interrupts off through each sync
 * promise: >-
 *   Each sync round waits for every CPU: one that keeps its interrupts off holds the poke, the last round included,
 *   and meanwhile runs through the site as its phase demands.
 * order: 200
 */
#include "scenario.h"

static void pass(struct orch_run *run, enum orch_phase phase, void *arg)
{
	const struct orch_site *site = arg;
	enum orch_result result = site->pass();

	if (phase == ORCH_PHASE_NEW)
		orch_expect(run, result != ORCH_INT3 && result != ORCH_TORN,
			    "with the new bytes of %s in place a CPU went another way", site->name);
	else
		orch_expect(run, result == ORCH_INT3,
			    "with int3 on %s in phase %d a CPU did not go to its target", site->name, phase);
}

ORCH_SCENARIO(held_off)
{
	static const char *const names[] = { "nop5", "nop2", "one", "page" };
	const struct orch_site *site;
	struct orch_poke poke;
	int cpu, i = 0;
	bool on;

	do {
		for_each_online_cpu(cpu) {
			site = orch_site(names[i++ % ARRAY_SIZE(names)]);
			if (!site->len)
				continue;
			for (on = true; ; on = false) {
				poke = orch_poke_of(site, on);
				if (!orch_poke_held(run, &poke, cpu, pass, (void *)site))
					return;
				if (!on)
					break;
			}
		}
	} while (orch_go_on(run));
}
