/* SPDX-License-Identifier: GPL-2.0 */
/* The instructions that are watched: a table by address. */
#ifndef RECORDER_WATCHED_H
#define RECORDER_WATCHED_H

#include <stdbool.h>
#include <stdint.h>

#include "record.h"

enum point {
	P_NONE, P_WRITE, P_EARLY, P_SYNC, P_STOPPER, P_UNLOCK, P_SITE,
	P_KEY, P_STATIC_CALL, P_TRANSFORM, P_TRACER, P_GRACE, P_FREED, P_SLOT, P_LOCK,
	P_CPUS_LOCK, P_CPUS_TRY, P_CPUS_UNLOCK, P_END, P_DIES, P_FLUSH, P_GUARDED,
	P_REMOVED, P_LOAD,
	P_ENTRY, P_POKE, P_KPROBE, P_FTRACE,	/* handlers: bit 0, 1, 2, 3 of RESUME */
	P_RETURN, P_SECOND,
};

struct watched {
	uint64_t address;
	enum point point;
	uint64_t number;
	uint64_t passes[CPUS];	/* of a site, by CPU, since the last write to it */
	uint64_t entered;	/* CPUs that have executed this, but not yet what follows */
	struct watched *first;	/* P_SECOND: what it follows */
	bool has_second;
};

/* Watch an instruction. Returns NULL if there is no room. */
struct watched *watch(uint64_t address, enum point point, uint64_t number);

/* NULL if it is not watched. */
struct watched *watched_at(uint64_t address);

void forget_watched(void);

#endif
