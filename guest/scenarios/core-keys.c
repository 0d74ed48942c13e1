// SPDX-License-Identifier: GPL-2.0
/*
 * title: a static key of the scheduler
 * promise: >-
 *   Keys of the core kernel are flipped by the same protocol while every CPU executes their
 *   branches.
 * order: 330
 * symbols: [sched_schedstats]
 */
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/jump_label.h>
#include "compat.h"
#include "scenario.h"

#ifdef ORCH_WRITE_AT_POINTER
#define write_at(file, value, pos)	kernel_write(file, value, 1, &(pos))
#else		/* before 4.14 */
#define write_at(file, value, pos)	kernel_write(file, value, 1, pos)
#endif

#define KNOB	"/proc/sys/kernel/sched_schedstats"

/* Returns 0 or a negative errno. */
static int write_knob(char value)
{
	struct file *file = filp_open(KNOB, O_WRONLY, 0);
	loff_t pos = 0;
	ssize_t done;

	if (IS_ERR(file))
		return PTR_ERR(file);
	done = write_at(file, &value, pos);
	fput(file);
	return done < 0 ? done : 0;
}

/* Sleep and wake up: each time through the scheduler. */
static int busy(struct orch_run *run, int cpu, void *arg)
{
	while (READ_ONCE(*(bool *)arg))
		usleep_range(20, 50);
	return 0;
}

ORCH_SCENARIO(core_keys)
{
	struct static_key *key = (struct static_key *)orch_symbol("sched_schedstats");
	struct orch_workers *workers;
	bool running = true, was;
	unsigned int flips = 0;
	int error;

	if (!key)
		return orch_skip(run, "this kernel lacks the key: CONFIG_SCHEDSTATS is not set");
	was = static_key_enabled(key);
	/* To the value that it has, to see whether it can be written at all. */
	error = write_knob(was ? '1' : '0');
	if (error == -ENOENT)
		return orch_skip(run, "this kernel lacks " KNOB);
	workers = orch_workers_start(run, cpu_online_mask, busy, &running);
	do {
		error = write_knob(was ? '0' : '1');
		if (error)
			break;
		orch_expect(run, static_key_enabled(key) != was,
			    "the key did not change with " KNOB);
		error = write_knob(was ? '1' : '0');
		if (error)
			break;
		orch_expect(run, static_key_enabled(key) == was,
			    "the key did not change back with " KNOB);
		flips += 2;
	} while (orch_time_left(run));
	if (error)
		orch_miss(run, KNOB " cannot be written (%d)", error);
	WRITE_ONCE(running, false);
	orch_workers_join(workers);
	orch_note("# flips=%u\n", flips);
}
