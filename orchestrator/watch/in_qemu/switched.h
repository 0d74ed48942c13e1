/* SPDX-License-Identifier: GPL-2.0 */
/* Keys and static calls that are switched, and all of their sites. */
#ifndef RECORDER_SWITCHED_H
#define RECORDER_SWITCHED_H

#include <stdint.h>

#include "watched.h"

/* Flags of CALL. The first is the only one of calls that belong to no key. */
enum { OTHER_OPS = 8 };

/* A task asks for something to be switched, which is so when it releases the mutex. */
void ask_for(enum point point, uint64_t what, uint64_t function, unsigned int flags);

/* A mutex is about to be released: what did its owner switch? */
void on_released(uint64_t mutex);

/* The branches of a key are about to be switched: until then it counts as off, or as neither. */
void key_is_switched(uint64_t key, uint64_t caller);

/* Calls that a key still has, of a module that is no longer there. */
void calls_gone(uint64_t key);

void emit_call(uint64_t key, uint64_t function, uint64_t site, unsigned int flags);

void look_at_branches(void);

/* Of all calls of the kernel itself. */
void look_at_calls(void);

#endif
