// SPDX-License-Identifier: GPL-2.0
/* Whether the sites of a static key or static call are what it says, once it was switched. */
#include <stdbool.h>

#include "conf.h"
#include "files.h"
#include "guest.h"
#include "switched.h"
#include "traced.h"

#define ENTRIES		8192	/* of one key, at most; and links of its list */
enum { DIRECT = 1, INIT = 2, GONE = 4 };

/* -- branches of static keys */

#define LINKS		64
enum { LINKED = 2, EARLY = 8 };

/* struct jump_entry with relative addresses, since 4.19. Returns whether it belongs to the key. */
static bool branch(uint64_t entry, uint64_t key, bool all)
{
	uint64_t words[6] = { 0 };
	struct {
		int32_t code, target;
		int64_t key;
	} raw;

	if (!memory(entry, &raw, sizeof(raw)))
		return false;
	words[0] = entry + 8 + raw.key;
	words[4] = words[0] & 3;
	words[0] &= ~3ull;
	if (!all && words[0] != key)
		return false;
	words[1] = (uint32_t)quad(words[0]);
	words[2] = entry + raw.code;
	words[3] = entry + 4 + raw.target;
	if (!memory(words[2], &words[5], 8))
		words[4] |= INIT;	/* freed */
	emit(BRANCH, NO_CPU, 0, 0, words, 6);
	return true;
}

/* Whether the table is one of such entries: all of its code is near the kernel's text. */
static bool has_branches(void)
{
	int32_t raw[4];

	if (!jump_table || jump_table_end <= jump_table || !text_start)
		return false;
	for (uint64_t entry = jump_table;
	     entry < jump_table_end && entry < jump_table + 8 * 16; entry += 16)
		if (!memory(entry, raw, 16) || entry + raw[0] - text_start > 64 << 20 ||
		    entry + 4 + raw[1] - text_start > 64 << 20)
			return false;
	return true;
}

void look_at_branches(void)
{
	if (has_branches())
		for (uint64_t entry = jump_table; entry < jump_table_end; entry += 16)
			branch(entry, 0, true);
}

static void branches_of(uint64_t entry, uint64_t key, bool known)
{
	uint64_t words[6] = { key, 0, entry, 0, GONE, 0 };

	/* The first one is the key's, or it belongs to a module that is no longer there. */
	if (entry && (known || !branch(entry, key, false)))
		emit(BRANCH, NO_CPU, 0, 0, words, 6);
	else
		for (int i = 1; i < ENTRIES && entry && entry + 16 * i != jump_table_end; i++)
			if (!branch(entry + 16 * i, key, false))
				return;
}

static void key_was_switched(uint64_t key)
{
	uint64_t type = quad(key + 8), link[2], seen[LINKS] = { 0 };

	if (!has_branches())
		return;
	if (!(type & LINKED)) {
		branches_of(type & ~3ull, key, false);
		return;
	}
	type &= ~3ull;
	/* struct static_key_mod: next, entries, mod */
	for (int i = 0; i < LINKS && type && memory(type, link, sizeof(link));
	     i++, type = link[0]) {
		bool known = false;

		for (int earlier = 0; earlier < i; earlier++)
			known |= link[1] && seen[earlier] == link[1];
		seen[i] = link[1];
		branches_of(link[1], key, known);
	}
}

void key_is_switched(uint64_t key, uint64_t caller)
{
	uint64_t words[6] = { key, (uint32_t)quad(key), caller, 0, EARLY, 0 };

	if ((int32_t)words[1] > 0)
		emit(BRANCH, NO_CPU, 0, 0, words, 6);
}

/* -- static calls */

void emit_call(uint64_t key, uint64_t function, uint64_t site, unsigned int flags)
{
	uint64_t words[5] = { key, function, site, flags };

	if (memory(site, &words[4], 8))
		emit(CALL, NO_CPU, 0, 0, words, 5);
}

/* struct static_call_site: both members relative. */
static void calls_of(uint64_t entry, uint64_t key, uint64_t function)
{
	int32_t raw[2];

	for (int i = 0; i < ENTRIES && entry && entry != call_sites_end; i++, entry += 8) {
		if (!memory(entry, raw, sizeof(raw)) || ((entry + 4 + raw[1]) & ~3ull) != key)
			return;
		emit_call(key, function, entry + raw[0], (entry + 4 + raw[1]) & 3);
	}
}

/* Whether the first of these calls of a key, which lie side by side, is the key's. */
static bool is_call_of(uint64_t entry, uint64_t key)
{
	int32_t raw[2];

	return memory(entry, raw, sizeof(raw)) && ((entry + 4 + raw[1]) & ~3ull) == key;
}

void calls_gone(uint64_t key)
{
	uint64_t at = quad(key + 8), link[3];	/* struct static_call_mod: next, mod, sites */

	if (at & DIRECT)
		return;
	for (int i = 0; i < ENTRIES && at && memory(at, link, sizeof(link)); i++, at = link[0]) {
		uint64_t words[5] = { key, 0, link[2], GONE, 0 };

		if (link[1] && link[2] && !is_call_of(link[2], key))
			emit(CALL, NO_CPU, 0, 0, words, 5);
	}
}

void look_at_calls(void)
{
	uint64_t last = 0;
	int32_t raw[2];

	for (uint64_t entry = call_sites; entry && entry < call_sites_end; entry += 8) {
		uint64_t key = entry + 4;

		if (!memory(entry, raw, sizeof(raw)))
			continue;
		key = (key + raw[1]) & ~3ull;
		emit_call(key, quad(key), entry + raw[0], (entry + 4 + raw[1]) & 3);
		if (key != last)
			calls_gone(last = key);
	}
}

static void call_was_switched(uint64_t key)
{
	uint64_t words[2], link[3];

	if (!memory(key, words, sizeof(words)))
		return;
	if (words[1] & DIRECT) {
		calls_of(words[1] & ~1ull, key, words[0]);
		return;
	}
	/* struct static_call_mod: next, mod, sites */
	for (int i = 0; i < ENTRIES && words[1] && memory(words[1], link, sizeof(link)); i++) {
		calls_of(link[2], key, words[0]);
		words[1] = link[0];
	}
}

/* -- who has asked for it */

#define PENDING		64

/* What a task has asked for, until it releases the mutex. */
static struct pending {
	uint64_t what, task, function;
	enum point point;
	unsigned int flags;
} pending[PENDING];

void ask_for(enum point point, uint64_t what, uint64_t function, unsigned int flags)
{
	uint64_t task = task_now();
	struct pending *free = NULL;

	for (int i = 0; i < PENDING; i++) {
		struct pending *one = &pending[i];

		/* A task switches one thing at a time; what it had nothing to do for is over. */
		if (one->point == point && one->task == task &&
		    (point != P_TRANSFORM || one->what == what))
			*one = (struct pending){ 0 };
		if (!one->point && !free)
			free = one;
	}
	if (free)
		*free = (struct pending){ what, task, function, point, flags };
}

void on_released(uint64_t mutex)
{
	uint64_t task = task_now();

	if (mutex == ftrace_lock)
		look_at_traced(false);
	for (int i = 0; i < PENDING; i++) {
		struct pending one = pending[i];

		if (!one.point || one.task != task)
			continue;
		if (one.point == P_KEY && mutex == jump_label_mutex)
			key_was_switched(one.what);
		else if (one.point == P_STATIC_CALL && mutex == static_call_mutex)
			call_was_switched(one.what);
		else if (one.point == P_TRANSFORM && mutex == text_mutex)
			emit_call(0, one.function, one.what, one.flags);
		else
			continue;
		pending[i].point = P_NONE;
	}
}
