/* SPDX-License-Identifier: GPL-2.0 */
/* The files of the recorder, and what is in them; plugin.c names them. */
#ifndef RECORDER_FILES_H
#define RECORDER_FILES_H

#include <stdbool.h>
#include <stdint.h>

#include "record.h"

struct control {
	/* the host's wishes: a new number is a new wish */
	uint32_t reload, turn, look;
	/* the number of the last one that was fulfilled */
	uint32_t reloaded, turned, looked;
	uint64_t records;
	uint64_t lost;	/* events since there was no room for a record; none follows */
	uint64_t previous;	/* records in the other file */
	/* nonzero while GDB has breakpoints: see passes() */
	uint64_t gdb;
	/* The host wants the guest to wait once there are so many records: see wait_for_host(). */
	uint64_t wait_at;
	uint64_t waits;		/* how often it has waited, or waits for the first time, ... */
	uint64_t let_go;	/* ... and how often the host let it go on */
	uint64_t hold;		/* nonzero: the guest also waits where it says so: see holds() */
	uint64_t single;	/* nonzero: `steps` are counted from now on */
	/* instructions that began after the last wait, as far as they count */
	uint64_t steps;
};

struct slot {
	uint64_t address;
	uint64_t count[CPUS];
};

extern struct control *control;
extern const char *conf_path;

/* Remember what an argument of the plugin says. */
void take_argument(const char *argument);

/* Returns whether all can be written to. */
bool open_files(void);

void emit(enum kind kind, unsigned int cpu, unsigned int flags, uint32_t number,
	  const uint64_t *words, int count);

/* Go on in the other file, so that the host can have this one and its disk space. */
void turn_log(void);

/* Have the guest stand still until the host lets it go on. */
void wait_for_host(void);

/* The slot of an int3 in the ledger, or one that is not in it when that is full. */
struct slot *slot_of(uint64_t address);

#endif
