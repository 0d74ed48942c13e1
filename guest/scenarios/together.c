// SPDX-License-Identifier: GPL-2.0
/*
 * title: ftrace, kprobes and keys at once
 * promise: >-
 *   Whoever patches text, and however many at once, gets what they asked for: the probe is hit at each pass, the key is
 *   as it was left, and the tracer can be switched on and off.
 * order: 610
 * weight: 3
 * companion: |
 *   for tracing in /sys/kernel/tracing /sys/kernel/debug/tracing; do
 *           [ -e $tracing/current_tracer ] && break
 *   done
 *   [ -e $tracing/current_tracer ] || { echo "this kernel has no tracefs"; exit 4; }
 *   grep -qw function $tracing/available_tracers || { echo "this kernel has no function tracer"; exit 4; }
 *   cd $tracing || exit 4
 *   echo 'vfs_* kmem_cache_* mutex_*' >set_ftrace_filter || { echo "set_ftrace_filter takes no filter"; exit 1; }
 *   rounds=0
 *   while [ -e /run/companion ] || [ $rounds -eq 0 ]; do
 *           echo function >current_tracer || { echo "the function tracer cannot be switched on"; exit 1; }
 *           [ "$(cat current_tracer)" = function ] || { echo "the function tracer is not on"; exit 1; }
 *           echo nop >current_tracer || { echo "the function tracer cannot be switched off"; exit 1; }
 *           rounds=$((rounds + 1))
 *   done
 *   echo >set_ftrace_filter
 *   echo "rounds=$rounds"
 */
#include <linux/delay.h>
#include <linux/kprobes.h>
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
	const struct orch_site *probed = &orch_sites[ORCH_SITE_NOP2], *key = &orch_sites[ORCH_SITE_KEY];

	while (READ_ONCE(hammering)) {
		orch_expect(run, probed->pass() != ORCH_TORN, "CPU %d executed a torn instruction", cpu);
		atomic_inc(&passes);
		if (key->len)
			orch_expect(run, key->pass() != ORCH_TORN, "CPU %d executed a torn jump label", cpu);
		usleep_range(20, 40);
	}
	return 0;
}

ORCH_SCENARIO(together)
{
	const struct orch_site *probed = &orch_sites[ORCH_SITE_NOP2], *key = &orch_sites[ORCH_SITE_KEY];
	struct kprobe probe = { .addr = (kprobe_opcode_t *)probed->pass, .pre_handler = count };
	struct orch_workers *hammers;
	int error = register_kprobe(&probe);

	if (error)
		return orch_fail(run, "a kprobe is refused (%d)", error);
	atomic_set(&passes, 0);
	atomic_set(&hits, 0);
	hammering = true;
	hammers = orch_workers_start(run, cpu_online_mask, hammer, NULL);
	do {
		orch_poke_site(probed, true);
		if (key->len)
			key->set(true);
		orch_poke_site(probed, false);
		if (key->len)
			key->set(false);
		usleep_range(100, 200);
	} while (orch_go_on(run));
	WRITE_ONCE(hammering, false);
	orch_workers_join(hammers);
	unregister_kprobe(&probe);
	orch_note("# passes=%d hits=%d missed=%lu\n", atomic_read(&passes), atomic_read(&hits),
		  probe.nmissed);
	orch_expect(run, atomic_read(&hits) + (int)probe.nmissed == atomic_read(&passes),
		    "a kprobe was hit %d times and missed %lu in %d passes", atomic_read(&hits),
		    probe.nmissed, atomic_read(&passes));
	if (key->len)
		orch_expect(run, key->pass() == ORCH_OLD, "a key that was switched off last is on");
}

#else

ORCH_SCENARIO(together)
{
	orch_skip(run, "CONFIG_KPROBES is not set");
}

#endif
