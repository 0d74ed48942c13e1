// SPDX-License-Identifier: GPL-2.0
/*
 * title: static keys with 1, 2, 8, 255, 256, 257 and 600 branches
 * promise: >-
 *   Flipping a static key flips all of its branches, however many there are: once the flip has
 *   returned, every CPU takes each of them in the new direction.
 * order: 300
 * watched: true
 * weight: 3
 * symbols: [text_poke_queue, smp_text_poke_batch_add]
 */
#include <linux/delay.h>
#include <linux/jump_label.h>
#include <linux/string.h>
#include "compat.h"
#include "scenario.h"

#ifdef CONFIG_JUMP_LABEL

/* One function for each branch, so that each can be executed by itself. */
#define BRANCH(key, id)							\
	static noinline notrace bool key##_##id(void) { return orch_key_branch(&key); }
#define ADDRESS(key, id)	key##_##id,

#define TIMES5(what, key, id)	what(key, id##0) what(key, id##1) what(key, id##2)	\
				what(key, id##3) what(key, id##4)
#define TIMES10(what, key, id)	TIMES5(what, key, id) what(key, id##5) what(key, id##6)	\
				what(key, id##7) what(key, id##8) what(key, id##9)
#define TIMES50(what, key, id)	TIMES10(what, key, id##0) TIMES10(what, key, id##1)	\
				TIMES10(what, key, id##2) TIMES10(what, key, id##3)	\
				TIMES10(what, key, id##4)
#define TIMES100(what, key, id)	TIMES50(what, key, id)					\
				TIMES10(what, key, id##5) TIMES10(what, key, id##6)	\
				TIMES10(what, key, id##7) TIMES10(what, key, id##8)	\
				TIMES10(what, key, id##9)
#define TIMES255(what, key)	TIMES100(what, key, a) TIMES100(what, key, b)		\
				TIMES50(what, key, c) TIMES5(what, key, d)

#define BRANCHES1(what, key)	what(key, a)
#define BRANCHES2(what, key)	what(key, a) what(key, b)
#define BRANCHES8(what, key)	TIMES5(what, key, a) what(key, b) what(key, c) what(key, d)
#define BRANCHES255(what, key)	TIMES255(what, key)
#define BRANCHES256(what, key)	TIMES255(what, key) what(key, e)
#define BRANCHES257(what, key)	TIMES255(what, key) what(key, e) what(key, f)
#define BRANCHES600(what, key)	TIMES100(what, key, g) TIMES100(what, key, h)		\
				TIMES100(what, key, i) TIMES100(what, key, j)		\
				TIMES100(what, key, k) TIMES100(what, key, l)

#define DEFINE(count)							\
	static ORCH_DEFINE_KEY(key##count);				\
	BRANCHES##count(BRANCH, key##count)				\
	static bool (*const branches##count[])(void) = { BRANCHES##count(ADDRESS, key##count) };

DEFINE(1)
DEFINE(2)
DEFINE(8)
DEFINE(255)
DEFINE(256)
DEFINE(257)
DEFINE(600)

struct many {
	orch_key_t *key;
	bool (*const *branch)(void);
	unsigned int count;
};

#define MANY(count)	{ &key##count, branches##count, ARRAY_SIZE(branches##count) }

static const struct many all[] = {
	MANY(1), MANY(2), MANY(8), MANY(255), MANY(256), MANY(257), MANY(600),
};
static const struct many few[] = { MANY(2), MANY(8) };

static bool hammering;

/* While the key is flipped either way is right. The call must return, that is all. */
static int hammer(struct orch_run *run, int cpu, void *arg)
{
	const struct many *many = arg;
	unsigned int i;
	u64 since;

	while (READ_ONCE(hammering)) {
		since = orch_now();
		for (i = 0; i < many->count && READ_ONCE(hammering); i++)
			many->branch[i]();
		orch_rest(since, 100);
	}
	return 0;
}

struct expected {
	const struct many *many;
	bool on;
};

/* With whoever else enables the key no CPU may return before its last branch is on. */
static bool all_enable(const struct expected *expected)
{
	return ORCH_KEY_ENABLES && expected->on;
}

static int check_branches(struct orch_run *run, int cpu, void *arg)
{
	const struct expected *expected = arg;
	const struct many *many = expected->many;
	unsigned int i, wrong = 0;

	if (all_enable(expected))
		orch_key_set(many->key, true);
	for (i = 0; i < many->count; i++)
		wrong += many->branch[i]() != expected->on;
	orch_expect(run, !wrong,
		    "after a key was %s CPU %d goes the wrong way at %u of its %u branches",
		    expected->on ? "enabled" : "disabled", cpu, wrong, many->count);
	return 0;
}

static void flip(struct orch_run *run, const struct many *many, bool on)
{
	struct expected expected = { many, on };

	if (!all_enable(&expected))
		orch_key_set(many->key, on);
	orch_parallel(run, cpu_online_mask, check_branches, &expected);
}

static void flip_hammered(struct orch_run *run, const struct many *many)
{
	struct orch_workers *hammers;

	hammering = true;
	hammers = orch_workers_start(run, cpu_online_mask, hammer, (void *)many);
	flip(run, many, true);
	flip(run, many, false);
	WRITE_ONCE(hammering, false);
	orch_workers_join(hammers);
}

static bool has_batches(void)
{
	return orch_symbol("text_poke_queue") || orch_symbol("smp_text_poke_batch_add");
}

static void flip_watched(struct orch_run *run)
{
	unsigned int i;

	for (i = 0; i < (has_batches() ? 2 : 1); i++) {
		orch_key_set(few[i].key, true);
		orch_key_set(few[i].key, false);
	}
}

/*
 * Without batches each branch is poked by itself, and for each the hammers keep
 * every CPU busy in three sync rounds. So hundreds of them show nothing that a
 * few do not show, and take half a minute. Without hammers, one key of hundreds
 * will do.
 */
static void flip_one_by_one(struct orch_run *run)
{
	const struct many last = MANY(257);
	unsigned int i;

	for (i = 0; all[i].count <= ARRAY_SIZE(branches8); i++)
		flip_hammered(run, &all[i]);
	flip(run, &last, true);
	flip(run, &last, false);
}

static void flip_in_batches(struct orch_run *run)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(all); i++)
		flip_hammered(run, &all[i]);
}

ORCH_SCENARIO(keys_many)
{
	unsigned int rounds = 0;

	if (run->watched) {
		flip_watched(run);
		return;
	}
	do {
		if (has_batches())
			flip_in_batches(run);
		else
			flip_one_by_one(run);
		rounds++;
	} while (orch_time_left(run));
	orch_note("# rounds=%u\n", rounds);
}

#else

ORCH_SCENARIO(keys_many)
{
	orch_skip(run, "CONFIG_JUMP_LABEL is not set");
}

#endif
