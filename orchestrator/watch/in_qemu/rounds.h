/* SPDX-License-Identifier: GPL-2.0 */
/* What each CPU has done since the last write to text: synced, serialised, slept. */
#ifndef RECORDER_ROUNDS_H
#define RECORDER_ROUNDS_H

#include <stddef.h>
#include <stdint.h>

extern uint64_t round_number;	/* WRITEs so far, but for those to text that is not live yet */
extern uint64_t sync_count;	/* SYNCs so far */
extern uint64_t in_user, in_idle;	/* CPUs; see set_mode() */

/* do_sync_core() is entered. */
void on_sync(unsigned int cpu, uint64_t rsp);

/*
 * How the instruction serialises, 0 if it does not. Of those that Intel's SDM
 * and AMD's APM both name.
 */
unsigned int how_serialising(const uint8_t *code, size_t length);

/* The callback before it. The pointer has the address in its lower 48 bits, and above them how. */
void serialises(unsigned int vcpu, void *data);

enum { SWAPGS = 1, SLEEP };

/* Whether the instruction is one that changes_mode() is for. */
int how_changing_mode(const uint8_t *code, size_t length);

/* The callback before it. */
void changes_mode(unsigned int vcpu, void *sleeps);

#endif
