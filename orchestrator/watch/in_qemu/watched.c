// SPDX-License-Identifier: GPL-2.0
/* Which instructions are watched, and as what. */
#include <stdlib.h>

#include "watched.h"

#define TABLE	4096	/* power of two */
static struct watched *table[TABLE];
static int watched_count;

static struct watched **place_of(uint64_t address)
{
	unsigned int at = (address * 0x9e3779b97f4a7c15ull) >> 52;

	while (table[at] && table[at]->address != address)
		at = (at + 1) % TABLE;
	return &table[at];
}

struct watched *watched_at(uint64_t address)
{
	struct watched *here = *place_of(address);

	return here && here->point != P_NONE ? here : NULL;
}

struct watched *watch(uint64_t address, enum point point, uint64_t number)
{
	struct watched **place = place_of(address);

	if (!*place && watched_count < TABLE / 2) {
		*place = calloc(1, sizeof(**place));
		if (*place)
			watched_count++;
	}
	if (*place)
		**place = (struct watched){ .address = address, .point = point, .number = number };
	return *place;
}

void forget_watched(void)
{
	for (size_t i = 0; i < TABLE; i++)
		if (table[i])	/* code that is translated already may still point to it */
			table[i]->point = P_NONE;
}
