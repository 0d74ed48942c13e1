// SPDX-License-Identifier: GPL-2.0
/*
 * title: kprobes beside a site, and refused on one
 * promise: >-
 *   A kprobe beside a site that is poked is hit as often as its instruction runs; on a jump label, on a static call and
 *   inside an instruction there can be none.
 * order: 400
 * weight: 2
 */
#include <linux/delay.h>
#include <linux/kprobes.h>
#include <linux/string.h>
#include "compat.h"
#include "scenario.h"

#ifdef CONFIG_KPROBES

static atomic_t passes, hits;
static bool hammering;

static int count(struct kprobe *probe, struct pt_regs *regs)
{
	atomic_inc(&hits);
	return 0;
}

static int hammer(struct orch_run *run, int cpu, void *arg)
{
	const struct orch_site *site = arg;
	enum orch_result result;

	while (READ_ONCE(hammering)) {
		result = site->pass();
		orch_expect(run, result != ORCH_TORN, "CPU %d executed a torn instruction at %s", cpu,
			    site->name);
		atomic_inc(&passes);
		usleep_range(20, 40);
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
	} while (orch_go_on(run) || i++ < 4);
}

/* On the first instruction of the function with the site: each pass goes through both. */
static void beside(struct orch_run *run, const struct orch_site *site)
{
	struct kprobe probe = { .addr = (kprobe_opcode_t *)site->pass, .pre_handler = count };
	struct orch_workers *hammers;
	int error = register_kprobe(&probe);

	if (error) {	/* before 4.1 with each instruction that is relative to RIP (c80e5c0c23ce) */
		orch_skip(run, "this kernel refuses a kprobe at the function with the site");
		return;
	}
	atomic_set(&passes, 0);
	atomic_set(&hits, 0);
	hammering = true;
	hammers = orch_workers_start(run, cpu_online_mask, hammer, (void *)site);
	poke(run, site);
	WRITE_ONCE(hammering, false);
	orch_workers_join(hammers);
	unregister_kprobe(&probe);
	orch_note("# passes=%d hits=%d missed=%lu\n", atomic_read(&passes), atomic_read(&hits),
		  probe.nmissed);
	orch_expect(run, atomic_read(&hits) + (int)probe.nmissed == atomic_read(&passes),
		    "a kprobe beside the site was hit %d times and missed %lu in %d passes",
		    atomic_read(&hits), probe.nmissed, atomic_read(&passes));
}

static void refused(struct orch_run *run, u8 *addr, const char *what)
{
	struct kprobe probe = { .addr = (kprobe_opcode_t *)addr, .pre_handler = count };

	if (!register_kprobe(&probe)) {
		unregister_kprobe(&probe);
		orch_fail(run, "a kprobe %s is accepted", what);
	}
}

ORCH_SCENARIO(kprobe_beside)
{
	const struct orch_site *key = &orch_sites[ORCH_SITE_KEY];
	const struct orch_site *call = &orch_sites[ORCH_SITE_STATIC_CALL];

	if (key->len) {
		refused(run, key->addr, "on a jump label");
		key->set(true);
		refused(run, key->addr, "on a jump label that is on");
		key->set(false);
	}
#ifdef CONFIG_HAVE_STATIC_CALL_INLINE
	if (call->len)
		refused(run, call->addr, "on a static call");
#else
	(void)call;
#endif
	refused(run, orch_sites[ORCH_SITE_CALL].addr + 2, "inside an instruction");
	beside(run, &orch_sites[ORCH_SITE_NOP5]);
}

#else

ORCH_SCENARIO(kprobe_beside)
{
	orch_skip(run, "CONFIG_KPROBES is not set");
}

#endif
