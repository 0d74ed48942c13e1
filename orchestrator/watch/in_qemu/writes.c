// SPDX-License-Identifier: GPL-2.0
/* Each write to text: what is written where, by whom, and in which state the other CPUs are. */
#include <string.h>

#include "conf.h"
#include "files.h"
#include "guest.h"
#include "mapping.h"
#include "patching.h"
#include "rounds.h"
#include "sites.h"
#include "text.h"
#include "writes.h"

#define LONGEST		4096	/* of a write that is read */
#define STACK_WORDS	64
#define CALLERS_KEPT	7

void emit_callers(unsigned int cpu, uint64_t rsp)
{
	uint64_t stack[STACK_WORDS], found[2 * CALLERS_KEPT];
	int count = 0, words = STACK_WORDS;

	if (!memory(rsp, stack, sizeof(stack))) {	/* its top may be nearer */
		words = (0x1000 - (rsp & 0xfff)) / 8;
		words = words < STACK_WORDS ? words : STACK_WORDS;
		if (!memory(rsp, stack, words * 8))
			return;
	}
	for (int i = 0; i < words && count < 2 * CALLERS_KEPT; i++)
		if (behind_call(stack[i]))
			found[count++] = stack[i];
	for (int i = 0; i < count; i += CALLERS_KEPT) {
		int part = count - i < CALLERS_KEPT ? count - i : CALLERS_KEPT;

		emit(CALLERS, cpu, 0, part, &found[i], part);
	}
}

/*
 * Whether this is the last write once more: a CPU that GDB had stopped enters
 * the function twice. Nothing was written in between, and nobody has synced.
 */
static bool same_write(unsigned int cpu, uint64_t length, const uint64_t *words, bool early)
{
	static struct { uint64_t round, syncs, cpu, length, words[6]; } last;
	bool same = control->gdb && last.round == round_number && last.syncs == sync_count &&
		    last.cpu == cpu && last.length == length &&
		    !memcmp(last.words, words, sizeof(last.words));

	if (!same) {
		last.round = round_number + !early;
		last.syncs = sync_count;
		last.cpu = cpu;
		last.length = length;
		memcpy(last.words, words, sizeof(last.words));
	}
	return same;
}

/*
 * (address, source, length), and before them, in __text_poke() since 6.1, a
 * function that copies: text_poke_memcpy() or text_poke_memset(). The third
 * argument tells, as a length is no pointer.
 */
void on_write(unsigned int cpu, uint64_t rsp, bool early)
{
	static uint8_t bytes[LONGEST];
	uint64_t arg[4] = { reg(RDI), reg(RSI), reg(RDX), reg(RCX) };
	bool with_function = arg[2] >> 63;
	uint64_t address = arg[with_function], source = arg[1 + with_function];
	uint64_t length = arg[2 + with_function];
	uint64_t words[7] = { address, 0, 0, 0, 0, rsp, 0 };
	size_t kept = length < LONGEST ? length : LONGEST;
	unsigned int flags = (reg(EFLAGS) & EFLAGS_IF ? F_IRQS : 0) | (early ? F_EARLY : 0) |
			     (still_mapped() ? F_MAPPED : 0) |
			     (was_executed(address, length) ? F_EXECUTED : 0);
	uint64_t gs = reg(GS_BASE), mutex[7] = { 0 };

	/* What follows the write as well: a tail that is written later is compared to it. */
	if (length > INLINE)
		words[3] = memory(address, bytes, kept) ? fnv1a(bytes, kept) : 0;
	else if (!memory(address, &words[3], INLINE))
		memory(address, &words[3], length);
	if (with_function && arg[0] == memset_function) {
		flags |= F_MEMSET;
		if (memory(source, bytes, 1))
			memset(bytes, bytes[0], kept);
		else
			flags |= F_UNREADABLE;
	} else if (!memory(source, bytes, kept)) {
		flags |= F_UNREADABLE;
	}
	if (length <= INLINE)
		memcpy(&words[1], bytes, flags & F_UNREADABLE ? 0 : kept);
	else
		words[1] = fnv1a(bytes, kept);
	if (is_patching_here(address, bytes, length))
		flags |= F_STATE;
	if (length == 1 && is_probed(address))
		flags |= F_PROBED;
	words[6] = cpus_online();
	if (same_write(cpu, length, words, early))
		return;
	flush_passes(address, length);
	if (!(flags & F_UNREADABLE))
		shadow_write(address, bytes, kept);
	emit(WRITE, cpu, flags, length, words, 7);
	/* A module that is loaded meanwhile does not end the round of a poke. */
	if (!early)
		round_number++;
	if (!(words[6] & (words[6] - 1)) && !looked)	/* boot; nobody else could execute it */
		return;
	if (text_mutex)
		memory(text_mutex, mutex, 4 * sizeof(*mutex));
	mutex[4] = current_task && gs >> 63 ? quad(gs + current_task) : 0;
	mutex[5] = in_user;
	mutex[6] = in_idle;
	emit(WRITER, cpu, 0, 0, mutex, 7);
	emit_callers(cpu, rsp);
}

void on_text_unlock(unsigned int cpu)
{
	uint64_t words[4] = { quad(text_mutex), cpus_online(), in_user, in_idle };

	poke_is_over();
	emit(UNLOCK, cpu, still_mapped() ? F_MAPPED : 0, 0, words, 4);
}
