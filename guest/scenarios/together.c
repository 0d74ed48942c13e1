// SPDX-License-Identifier: GPL-2.0
/*
 * title: tracing, kprobes and static keys at the same time
 * promise: >-
 *   All users of text patching get what they asked for, however many patch at the same time: the
 *   probe is hit at each pass, the key stays as it was set, and the tracer (or without one the
 *   events of the scheduler) can be switched on and off.
 * order: 610
 * weight: 3
 * companion: |
 *   for tracing in /sys/kernel/tracing /sys/kernel/debug/tracing; do
 *           [ -e $tracing/current_tracer ] && break
 *   done
 *   lacks() {
 *           echo "this kernel has no $1"
 *           exit 4
 *   }
 *   fails() {
 *           echo "$1"
 *           exit 1
 *   }
 *   misses() {
 *           echo "$1"
 *           exit 3
 *   }
 *   [ -e $tracing/current_tracer ] || lacks tracefs
 *   cd $tracing || misses "$tracing cannot be entered"
 *   # The function tracer changes calls; events change the keys and static calls of tracepoints.
 *   set_tracer() {
 *           echo $2 >$1/current_tracer || misses "the tracer $2 cannot be switched on"
 *           now=$(cat $1/current_tracer) || misses "current_tracer cannot be read"
 *           [ "$now" = $2 ] || fails "the tracer is $now after $2 was switched on"
 *   }
 *   # With a second tracer of the same functions each call becomes another one, and back.
 *   switch_tracer() {
 *           set_tracer . $1
 *           [ -z "$second" ] || set_tracer $second $1
 *   }
 *   switch_events() {
 *           echo $1 >events/sched/enable || misses "the events of sched cannot be set to $1"
 *           now=$(cat events/sched/enable) || misses "events/sched/enable cannot be read"
 *           [ "$now" = $1 ] || fails "the events of sched are $now after they were set to $1"
 *   }
 *   if grep -qw function available_tracers && [ -e set_ftrace_filter ]; then
 *           second=instances/orch
 *           mkdir $second 2>/dev/null
 *           [ -e $second/set_ftrace_filter ] &&
 *                   grep -qw function $second/available_tracers || second=
 *           # A write fails if a pattern matches no function: one is enough. Each CPU enters and
 *           # exits an interrupt in each sync of these calls, and meets their int3.
 *           for pattern in 'vfs_*' 'kmem_cache_*' 'mutex_*' 'irq_enter*' 'irq_exit*'; do
 *                   for tracer in . $second; do
 *                           echo "$pattern" >>$tracer/set_ftrace_filter
 *                   done
 *           done
 *           grep -q '^[^#]' set_ftrace_filter || lacks "function that the tracer can trace"
 *           with=tracer on=function off=nop
 *   else
 *           [ -e events/sched/enable ] || lacks "function tracer and no events of the scheduler"
 *           with=events on=1 off=0
 *   fi
 *   # Whoever is traced already is among them, too.
 *   compare_filter() {
 *           [ -e enabled_functions ] || return
 *           named=$(grep -c '^[^#]' set_ftrace_filter)
 *           called=$(grep -c . enabled_functions)
 *           [ $called -ge $named ] ||
 *                   fails "the filter names $named functions, and the tracer is called by $called"
 *   }
 *   rounds=0
 *   while [ -e /run/companion ] || [ $rounds -eq 0 ]; do
 *           switch_$with $on
 *           [ $with = events -o $rounds -gt 0 ] || compare_filter
 *           switch_$with $off
 *           rounds=$((rounds + 1))
 *   done
 *   [ $with = events ] || echo >set_ftrace_filter
 *   [ -z "$second" ] || rmdir $second
 *   echo "rounds=$rounds"
 */
#include <linux/delay.h>
#include <linux/kprobes.h>
#include "compat.h"
#include "scenario.h"

#ifdef CONFIG_KPROBES
#include "kprobe.h"

static struct orch_probe probe;
static bool hammering;

static int hammer(struct orch_run *run, int cpu, void *arg)
{
	const struct orch_site *probed = &orch_sites[ORCH_SITE_NOP2];
	const struct orch_site *key = &orch_sites[ORCH_SITE_KEY];
	u64 since;

	while (READ_ONCE(hammering)) {
		since = orch_now();
		orch_expect(run, probed->pass() != ORCH_TORN, "CPU %d executed a torn instruction",
			    cpu);
		atomic_inc(&probe.passes);
		if (key->len)
			orch_expect(run, key->pass() != ORCH_TORN,
				    "CPU %d executed a torn jump label", cpu);
		orch_rest(since, 20);
	}
	return 0;
}

ORCH_SCENARIO(together)
{
	const struct orch_site *probed = &orch_sites[ORCH_SITE_NOP2];
	const struct orch_site *key = &orch_sites[ORCH_SITE_KEY];
	struct orch_workers *hammers;
	int error;

	if (!probed->len)
		return orch_skip(run, "%s", probed->why_not);
	error = orch_probe_register_int3(&probe, probed->pass);
	if (error)
		return orch_probe_refused(run, error, "on the function with the site");
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
	} while (orch_time_left(run));
	WRITE_ONCE(hammering, false);
	orch_workers_join(hammers);
	orch_probe_unregister(&probe);
	orch_probe_compare(run, &probe, "a kprobe");
	if (key->len)
		orch_expect(run, key->pass() == ORCH_OLD,
			    "a key is on although it was last switched off");
}

#else

ORCH_SCENARIO(together)
{
	orch_skip(run, "CONFIG_KPROBES is not set");
}

#endif
