/* SPDX-License-Identifier: GPL-2.0 */
/* Watched functions that are entered, and sites that are passed. */
#ifndef RECORDER_POINTS_H
#define RECORDER_POINTS_H

#include <stddef.h>
#include <stdint.h>

#include "watched.h"

/* The callback before an instruction that is watched. data: its struct watched. */
void passes(unsigned int vcpu, void *data);

/* An instruction that is watched is translated: if a function begins there, watch the next, too. */
void watch_second(struct watched *first, const uint8_t *code, size_t length);

/*
 * A block begins shortly behind a watched function's first instruction, which
 * was never translated because GDB has a breakpoint there: then it begins with
 * the second.
 */
void find_second(uint64_t start);

#endif
