// SPDX-License-Identifier: GPL-2.0
/* Text that changes without a write, and text of modules that was executed. */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "conf.h"
#include "files.h"
#include "guest.h"
#include "text.h"

/* -- the kernel's, as it was last translated */

/*
 * For each byte between text_start and text_end: what it was, and what a write
 * that has begun makes of it. Of both only what was touched takes memory.
 */
enum { SEEN = 1, WRITTEN = 2 };
static uint8_t *text_now, *text_next, *text_state;

void shadow_text(void)
{
	static uint64_t start, end;
	size_t size = text_end - text_start;

	if (start == text_start && end == text_end)
		return;
	if (text_now)
		munmap(text_now, 3 * (end - start));
	text_now = NULL;
	start = text_start;
	end = text_end;
	if (end <= start || size > 256 << 20)
		return;
	text_now = mmap(NULL, 3 * size, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (text_now == MAP_FAILED)
		text_now = NULL;
	text_next = text_now + size;
	text_state = text_next + size;
}

void shadow_write(uint64_t address, const uint8_t *bytes, size_t length)
{
	for (size_t i = 0; text_now && i < length; i++) {
		uint64_t at = address + i - text_start;

		if (address + i < text_start || address + i >= text_end)
			continue;
		/* If it is written, that write is over, as writers exclude each other. */
		if (text_state[at] & WRITTEN)
			text_now[at] = text_next[at];
		text_next[at] = bytes[i];
		text_state[at] |= WRITTEN;
	}
}

bool looked;

void shadow_check(uint64_t address, const uint8_t *bytes, size_t length)
{
	uint64_t at = address - text_start, words[5] = { address };
	uint8_t *before = (uint8_t *)&words[1], *now = (uint8_t *)&words[3];
	bool differs = false;

	if (!text_now || address < text_start || address + length > text_end)
		return;
	for (size_t i = 0; i < length; i++, at++) {
		bool same = !(text_state[at] & SEEN) || text_now[at] == bytes[i];

		before[i] = text_now[at];
		now[i] = bytes[i];
		if ((text_state[at] & WRITTEN) && text_next[at] == bytes[i]) {
			text_state[at] &= ~WRITTEN;
			same = true;
		}
		differs |= !same;
		text_now[at] = bytes[i];
		text_state[at] |= SEEN;
	}
	if (differs && looked)
		emit(CODE, NO_CPU, 0, length, words, 5);
}

void look_at_text(void)
{
	uint8_t page[4096];

	for (uint64_t address = text_start; text_now && address < text_end;
	     address += sizeof(page)) {
		size_t size = text_end - address < sizeof(page) ? text_end - address : sizeof(page);

		if (!memory(address, page, size))
			continue;
		for (size_t at = 0; at < size; at += INLINE)
			shadow_check(address + at, page + at,
				     size - at < INLINE ? size - at : INLINE);
	}
	looked = true;
}

/* -- the modules', as far as it was executed */

#define MODULES_START	0xffffffffa0000000ull	/* where it is if nothing moves it */
#define MODULES_SIZE	0x5f000000ull

static uint8_t *executed;	/* a bit for each address at which an instruction begins */

void note_executed(uint64_t address)
{
	uint64_t at = address - MODULES_START;

	if (at >= MODULES_SIZE)
		return;
	if (!executed) {
		executed = mmap(NULL, MODULES_SIZE / 8, PROT_READ | PROT_WRITE,
				MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		executed = executed == MAP_FAILED ? NULL : executed;
	}
	if (executed)
		executed[at / 8] |= 1 << (at % 8);
}

bool was_executed(uint64_t address, uint64_t length)
{
	for (uint64_t at = address - MODULES_START, i = 0; i < length && i < INLINE; i++)
		if (executed && at + i < MODULES_SIZE &&
		    (executed[(at + i) / 8] >> ((at + i) % 8) & 1))
			return true;
	return false;
}

/*
 * Something else may get this place. How much of it is not known, so
 * all that is behind it is forgotten as well.
 */
void forget_executed(uint64_t address)
{
	uint64_t at = address - MODULES_START;

	if (executed && at < MODULES_SIZE)
		madvise(executed + ((at / 8) & ~4095ull), MODULES_SIZE / 8 - ((at / 8) & ~4095ull),
			MADV_DONTNEED);
}
