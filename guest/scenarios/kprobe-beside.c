// SPDX-License-Identifier: GPL-2.0
/*
 * title: a kprobe next to a site; kprobes on a site are refused
 * promise: >-
 *   A kprobe next to a site being poked is hit as often as its instruction runs. A kprobe on a
 *   jump label, on a static call or inside an instruction is refused.
 * order: 400
 * weight: 2
 */
#include <linux/delay.h>
#include <linux/kprobes.h>
#include <linux/string.h>
#include "compat.h"
#include "scenario.h"

#ifdef CONFIG_KPROBES
#include "kprobe.h"

static struct orch_probe probe;
static bool hammering;

static int hammer(struct orch_run *run, int cpu, void *arg)
{
	const struct orch_site *site = arg;
	enum orch_result result;
	u64 since;

	while (READ_ONCE(hammering)) {
		since = orch_now();
		result = site->pass();
		orch_expect(run, result != ORCH_TORN, "CPU %d executed a torn instruction at %s",
			    cpu, site->name);
		atomic_inc(&probe.passes);
		orch_rest(since, 20);
	}
	return 0;
}

static void poke(struct orch_run *run, const struct orch_site *site)
{
	unsigned int i = 0;

	do {
		orch_poke_site(site, true);
		orch_poke_site(site, false);
		usleep_range(50, 100);
	} while (orch_time_left(run) || i++ < 4);
}

/* The probe is on the first instruction of the site's function: each pass executes both. */
static void probe_beside(struct orch_run *run, const struct orch_site *site)
{
	struct orch_workers *hammers;
	int error;

	if (!site->len)
		return orch_skip(run, "%s", site->why_not);
	error = orch_probe_register(&probe, site->pass);
	if (error)
		return orch_probe_refused(run, error, "on the function with the site");
	hammering = true;
	hammers = orch_workers_start(run, cpu_online_mask, hammer, (void *)site);
	poke(run, site);
	WRITE_ONCE(hammering, false);
	orch_workers_join(hammers);
	orch_probe_unregister(&probe);
	orch_probe_compare(run, &probe, "a kprobe next to the site");
}

static void expect_refusal(struct orch_run *run, u8 *addr, const char *where)
{
	int error = orch_probe_register(&probe, addr);

	if (!error) {
		orch_probe_unregister(&probe);
		orch_fail(run, "a kprobe %s is accepted", where);
	} else if (error == -ENOMEM) {
		orch_miss(run, "no kprobe %s (%d)", where, error);
	}
}

ORCH_SCENARIO(kprobe_beside)
{
	const struct orch_site *key = &orch_sites[ORCH_SITE_KEY];
	const struct orch_site *call = &orch_sites[ORCH_SITE_STATIC_CALL];

	if (key->len) {
		expect_refusal(run, key->addr, "on a jump label");
		key->set(true);
		expect_refusal(run, key->addr, "on a jump label that is on");
		key->set(false);
	}
#ifdef CONFIG_HAVE_STATIC_CALL_INLINE
	if (call->len)
		expect_refusal(run, call->addr, "on a static call");
#else
	(void)call;
#endif
	expect_refusal(run, orch_sites[ORCH_SITE_CALL].addr + 2, "inside an instruction");
	probe_beside(run, &orch_sites[ORCH_SITE_NOP5]);
}

#else

ORCH_SCENARIO(kprobe_beside)
{
	orch_skip(run, "CONFIG_KPROBES is not set");
}

#endif
