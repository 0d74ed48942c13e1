// SPDX-License-Identifier: GPL-2.0
/*
 * title: a static key that is disabled some time later
 * promise: >-
 *   The branches of a deferred key are switched off when its time is up or it is flushed, not
 *   before, and not at all if somebody enables it again until then.
 * order: 315
 */
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/jump_label.h>
#include <linux/jump_label_ratelimit.h>
#include "compat.h"
#include "scenario.h"

#if defined(CONFIG_JUMP_LABEL) && defined(ORCH_KEY_FLUSH)

#define DELAY	(HZ / 20)
#define SECONDS	10

static struct static_key_deferred deferred;

static noinline notrace bool is_on(void)
{
	return static_key_false(&deferred.key);
}

struct expected {
	bool on;
	const char *when;
};

static int check_branch(struct orch_run *run, int cpu, void *arg)
{
	const struct expected *expected = arg;

	orch_expect(run, is_on() == expected->on, "CPU %d goes the wrong way %s", cpu,
		    expected->when);
	return 0;
}

/* What each CPU finds. */
static void expect(struct orch_run *run, bool on, const char *when)
{
	struct expected expected = { on, when };

	orch_parallel(run, cpu_online_mask, check_branch, &expected);
}

static void disable_later(struct orch_run *run)
{
	unsigned long since;
	bool on;

	static_key_slow_inc(&deferred.key);
	expect(run, true, "when a deferred key was enabled");
	since = jiffies;
	static_key_slow_dec_deferred(&deferred);
	on = is_on();
	if (time_before(jiffies, since + DELAY))	/* or it may have been up */
		orch_expect(run, on, "a deferred key is off at once when it is disabled");

	/* It is needed again, and then no more. */
	static_key_slow_inc(&deferred.key);
	expect(run, true, "when a deferred key was enabled again");
	msleep(2 * jiffies_to_msecs(DELAY));
	expect(run, true, "when the time of a deferred key is up, which was enabled again");
}

ORCH_SCENARIO(keys_deferred)
{
	jump_label_rate_limit(&deferred, DELAY);
	do {
		disable_later(run);
		static_key_slow_dec_deferred(&deferred);
		static_key_deferred_flush(&deferred);
		/* At once, before the thread can run that has the rest to do. */
		orch_expect(run, !is_on(), "a deferred key is on after it was flushed");
		expect(run, false, "when a deferred key was flushed");

		static_key_slow_inc(&deferred.key);
		static_key_slow_dec_deferred(&deferred);
		orch_expect(run, orch_wait_until(!is_on(), SECONDS),
			    "a deferred key is on although its time is up");
		/* The branch may be off before the work that switched it off is done. */
		static_key_deferred_flush(&deferred);
	} while (orch_time_left(run));
}

#else

ORCH_SCENARIO(keys_deferred)
{
	orch_skip(run, "this kernel has no deferred static keys that can be flushed");
}

#endif
