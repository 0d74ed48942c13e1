// SPDX-License-Identifier: GPL-2.0
/*
 * title: operations on static keys from all CPUs at once
 * promise: >-
 *   However many CPUs change a static key at once, its branches are on exactly while somebody has it on.
 * order: 310
 */
#include <linux/delay.h>
#include <linux/jump_label.h>
#include "compat.h"
#include "scenario.h"

#ifdef CONFIG_JUMP_LABEL

#ifdef DEFINE_STATIC_KEY_FALSE
static DEFINE_STATIC_KEY_FALSE(counted);
static DEFINE_STATIC_KEY_FALSE(shared);
#define taken(key)	static_branch_unlikely(&key)
#define inc(key)	static_branch_inc(&key)
#define dec(key)	static_branch_dec(&key)
#else
static struct static_key counted = STATIC_KEY_INIT_FALSE;
static struct static_key shared = STATIC_KEY_INIT_FALSE;
#define taken(key)	static_key_false(&key)
#define inc(key)	static_key_slow_inc(&key)
#define dec(key)	static_key_slow_dec(&key)
#endif

static noinline notrace bool counted_is_on(void)
{
	return taken(counted);
}

static noinline notrace bool shared_is_on(void)
{
	return taken(shared);
}

/* The model: how many have it on. Raised after an inc() returned, lowered before a dec() begins. */
static atomic_t holders;

/*
 * What a thread may know without a lock: a key that it holds itself is on. The
 * last to let go and the first to take meet here over and over.
 */
static int take_and_let_go(struct orch_run *run, int cpu, void *arg)
{
	unsigned int rounds = 0, i;

	do {
		inc(counted);
		atomic_inc(&holders);
		for (i = 0; i < 8; i++)
			orch_expect(run, counted_is_on(), "CPU %d holds a key that is off", cpu);
		if (cpu & 1)
			usleep_range(20, 60);
		atomic_dec(&holders);
		dec(counted);
		rounds++;
	} while (orch_go_on(run) || rounds < 4);
	return 0;
}

#ifdef DEFINE_STATIC_KEY_FALSE
/*
 * All switch it the same way at once. One that finds it off may return while
 * another is still at switching it off (static_key_disable_cpuslocked() asks
 * for the count without the lock); one that finds it on may not.
 */
static int switch_it(struct orch_run *run, int cpu, void *arg)
{
	if (*(bool *)arg) {
		static_branch_enable(&shared);
		orch_expect(run, shared_is_on(), "CPU %d has switched a key on that is off", cpu);
	} else {
		static_branch_disable(&shared);
	}
	return 0;
}

static void switch_all(struct orch_run *run)
{
	bool on;
	int i;

	for (i = 0; i < 6; i++) {
		on = !(i & 1);
		orch_parallel(run, cpu_online_mask, switch_it, &on);
		orch_expect(run, shared_is_on() == on, "a key that all CPUs have switched %s is not",
			    on ? "on" : "off");
	}
}
#else
static void switch_all(struct orch_run *run)
{
	inc(shared);
	orch_expect(run, shared_is_on(), "a key that was switched on is off");
	dec(shared);
	orch_expect(run, !shared_is_on(), "a key that was switched off is on");
}
#endif

ORCH_SCENARIO(keys_parallel)
{
	atomic_set(&holders, 0);
	orch_parallel(run, cpu_online_mask, take_and_let_go, NULL);
	orch_expect(run, !counted_is_on(), "a key is on that everybody has let go of");
	orch_expect(run, !atomic_read(&holders), "the count of those who hold the key is off by %d",
		    atomic_read(&holders));
	switch_all(run);
}

#else

ORCH_SCENARIO(keys_parallel)
{
	orch_skip(run, "CONFIG_JUMP_LABEL is not set");
}

#endif
