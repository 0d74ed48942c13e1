// SPDX-License-Identifier: GPL-2.0
/* What the functions that can be traced call, and whether ftrace says the same. */
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>

#include "conf.h"
#include "files.h"
#include "guest.h"
#include "switched.h"
#include "traced.h"

#define PAGES		65536
#define PAGE_RECORDS	262144
#define KINDS		32
#define OPS		256
#define TRAMPOLINES	64
#define OPS_WORDS	80	/* of struct ftrace_ops among which `trampoline` is */
#define KERNEL_START	0xffffffff80000000ull
#define TRACED_FLAGS	0xfde7ffffull	/* all but DISABLED, and what was: TOUCHED, MODIFIED */

struct dyn_ftrace {
	uint64_t ip, flags;
};

/* Whether `mov DISTANCE(%rip), %rdx` at this address loads another value. */
static bool loads_other(uint64_t address, uint64_t value)
{
	uint8_t code[7];
	int32_t distance;

	if (!memory(address, code, sizeof(code)) || memcmp(code, "\x48\x8b\x15", 3))
		return false;
	memcpy(&distance, code + 3, sizeof(distance));
	return quad(address + sizeof(code) + distance) != value;
}

/*
 * A trampoline is a copy of ftrace_caller() or ftrace_regs_caller(). It calls
 * what the ops has for a function, and passes the ops.
 */
static void call_in_trampoline(uint64_t trampoline, uint64_t ops)
{
	const uint64_t from[][3] = {
		{ ftrace_caller, ftrace_call, ftrace_ops },
		{ ftrace_regs_caller, ftrace_regs_call, ftrace_regs_ops },
	};

	for (int i = 0; i < 2; i++) {
		uint64_t moved = trampoline - from[i][0];

		if (!from[i][0] || !from[i][1] || quad(trampoline) != quad(from[i][0]) ||
		    quad(trampoline + 8) != quad(from[i][0] + 8))
			continue;
		emit_call(0, quad(ops), from[i][1] + moved,
			  from[i][2] && loads_other(from[i][2] + moved, ops) ? OTHER_OPS : 0);
	}
}

void emit_tracer(unsigned int cpu, uint64_t function)
{
	uint64_t words[3] = { function, 0, ftrace_call };

	if (!function_trace_op)
		return;
	words[1] = quad(quad(function_trace_op));
	emit(TRACER, cpu, 0, 0, words, 3);
}

static uint64_t trampolines[TRAMPOLINES];	/* those that were called */

bool is_known_trampoline(uint64_t address)
{
	for (int i = 0; i < TRAMPOLINES; i++)
		if (trampolines[i] == address)
			return true;
	return false;
}

static void note_trampoline(uint64_t address)
{
	static unsigned int next;

	if (!is_known_trampoline(address))
		trampolines[next++ % TRAMPOLINES] = address;
}

/* Whether a registered ops has this trampoline. */
static bool is_trampoline(uint64_t address)
{
	uint64_t ops = quad(ftrace_ops_list);

	/* struct ftrace_ops: func, next, ...; ftrace_list_end has no next */
	for (int i = 0; i < OPS && ops; i++, ops = quad(ops + 8)) {
		for (int word = 3; word < OPS_WORDS; word++) {
			if (quad(ops + 8 * word) != address)
				continue;
			call_in_trampoline(address, ops);
			note_trampoline(address);
			return true;
		}
	}
	return false;
}

static enum called what_is(uint64_t called)
{
	uint64_t regs_caller = ftrace_regs_caller ? ftrace_regs_caller : ftrace_caller;

	if (!called)
		return 0;
	return (called == ftrace_caller ? CALLS_FTRACE : 0) |
	       (called == regs_caller ? CALLS_FTRACE_REGS : 0) |
	       (is_trampoline(called) ? CALLS_TRAMPOLINE : 0);
}

/* Records that are alike. */
static struct alike {
	uint64_t words[6];
	uint32_t number;
} alike[KINDS];
static int alike_count;

static void emit_alike(void)
{
	for (int i = 0; i < alike_count; i++)
		emit(TRACED, NO_CPU, 0, alike[i].number, alike[i].words, 6);
	alike_count = 0;
}

static bool in_text(uint64_t address)
{
	return text_start <= address && address < text_end;
}

static void traced(const struct dyn_ftrace *record, bool on, bool all)
{
	uint64_t words[6] = { 0, CALLS_GONE, record->ip, record->flags, 0, on };
	const uint64_t low = 0xffffffffffull;	/* five bytes */
	uint8_t code[8];
	int32_t distance;

	if (!memory(record->ip, code, sizeof(code))) {
		if (all)
			emit(TRACED, NO_CPU, 0, 1, words, 6);
		return;
	}
	memcpy(&words[4], code, sizeof(code));
	memcpy(&distance, code + 1, sizeof(distance));
	if (code[0] == 0xe8)
		words[0] = record->ip + 5 + distance;
	for (int i = 0; i < alike_count; i++) {
		const uint64_t *other = alike[i].words;

		if (other[0] == words[0] && other[3] == words[3] &&
		    in_text(other[2]) == in_text(words[2]) &&
		    (words[0] || !((other[4] ^ words[4]) & low))) {
			alike[i].number++;
			return;
		}
	}
	if (alike_count == KINDS)
		emit_alike();
	words[1] = what_is(words[0]);
	memcpy(alike[alike_count].words, words, sizeof(words));
	alike[alike_count++].number = 1;
}

/* Whether the function at `address` was traced at the last look; from now on, it is if `now`. */
static bool was_traced(uint64_t address, bool now)
{
	static uint8_t *seen;	/* a bit for each address */
	uint64_t at = address - KERNEL_START, size = -KERNEL_START / 8;
	bool before;

	if (!seen) {
		seen = mmap(NULL, size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		seen = seen == MAP_FAILED ? NULL : seen;
	}
	if (!seen || at / 8 >= size)
		return true;
	before = seen[at / 8] >> (at % 8) & 1;
	if (before != now)
		seen[at / 8] ^= 1 << (at % 8);
	return before;
}

void look_at_traced(bool all)
{
	static struct dyn_ftrace records[PAGE_RECORDS];
	struct {
		uint64_t next, records;
		uint32_t count, order;
	} page;
	uint64_t at = ftrace_pages ? quad(ftrace_pages) : 0;
	bool on = ftrace_enabled && (uint32_t)quad(ftrace_enabled);

	if (ftrace_disabled && (uint32_t)quad(ftrace_disabled))	/* by a fault of its own */
		return;
	for (int i = 0; i < PAGES && at && memory(at, &page, sizeof(page)); i++, at = page.next) {
		if (page.count > PAGE_RECORDS ||
		    !memory(page.records, records, page.count * sizeof(*records)))
			continue;
		for (uint32_t n = 0; n < page.count; n++) {
			bool now = records[n].flags & TRACED_FLAGS;

			if (was_traced(records[n].ip, now) || now || all)
				traced(&records[n], on, all);
		}
	}
	emit_alike();
}
