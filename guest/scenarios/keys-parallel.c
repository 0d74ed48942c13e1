// SPDX-License-Identifier: GPL-2.0
/*
 * title: static keys changed by all CPUs at once
 * promise: >-
 *   However many CPUs change a static key at once, its branches are enabled exactly as long as at
 *   least one of them holds the key enabled.
 * order: 310
 */
#include <linux/delay.h>
#include <linux/jump_label.h>
#include "compat.h"
#include "scenario.h"

#ifdef CONFIG_JUMP_LABEL

static ORCH_DEFINE_KEY(counted);
static ORCH_DEFINE_KEY(shared);

static noinline notrace bool counted_is_on(void)
{
	return orch_key_branch(&counted);
}

static noinline notrace bool shared_is_on(void)
{
	return orch_key_branch(&shared);
}

/*
 * The model: how many hold it on. Incremented after orch_key_inc() has returned,
 * decremented before orch_key_dec() begins.
 */
static atomic_t holders;

/*
 * All that a thread knows without a lock is that a key that it holds itself is
 * on. The last holder that releases it and the first one that takes it race here
 * over and over.
 */
static int take_and_release(struct orch_run *run, int cpu, void *arg)
{
	unsigned int rounds = 0, i;

	do {
		orch_key_inc(&counted);
		atomic_inc(&holders);
		for (i = 0; i < 8; i++)
			orch_expect(run, counted_is_on(), "CPU %d holds a key that is off", cpu);
		if (cpu & 1)
			usleep_range(20, 60);
		atomic_dec(&holders);
		orch_key_dec(&counted);
		rounds++;
	} while (orch_time_left(run) || rounds < 4);
	return 0;
}

#if ORCH_KEY_ENABLES
/*
 * All CPUs switch it the same way at once. A CPU that finds the key off may return
 * while another is still switching it off (static_key_disable_cpuslocked() reads
 * the count without the lock). A CPU that finds it on must not return early.
 */
static int switch_shared(struct orch_run *run, int cpu, void *arg)
{
	bool on = *(bool *)arg;

	orch_key_set(&shared, on);
	if (on)
		orch_expect(run, shared_is_on(), "CPU %d switched a key on, and it is off", cpu);
	return 0;
}

static void switch_all(struct orch_run *run)
{
	bool on;
	int i;

	for (i = 0; i < 6; i++) {
		on = !(i & 1);
		orch_parallel(run, cpu_online_mask, switch_shared, &on);
		orch_expect(run, shared_is_on() == on, "a key that all CPUs switched %s is not",
			    on ? "on" : "off");
	}
}
#else
static void switch_all(struct orch_run *run)
{
	orch_key_set(&shared, true);
	orch_expect(run, shared_is_on(), "a key that was switched on is off");
	orch_key_set(&shared, false);
	orch_expect(run, !shared_is_on(), "a key that was switched off is on");
}
#endif

ORCH_SCENARIO(keys_parallel)
{
	atomic_set(&holders, 0);
	orch_parallel(run, cpu_online_mask, take_and_release, NULL);
	orch_expect(run, !counted_is_on(), "a key is on that nobody holds");
	orch_expect(run, !atomic_read(&holders), "the number of holders of the key is off by %d",
		    atomic_read(&holders));
	switch_all(run);
}

#else

ORCH_SCENARIO(keys_parallel)
{
	orch_skip(run, "CONFIG_JUMP_LABEL is not set");
}

#endif
