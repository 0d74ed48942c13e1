/* SPDX-License-Identifier: GPL-2.0 */
/* Functions that can be traced. */
#ifndef RECORDER_TRACED_H
#define RECORDER_TRACED_H

#include <stdbool.h>
#include <stdint.h>

/* At those that are traced or were, or at all. */
void look_at_traced(bool all);

/* ftrace_caller() is about to call another function. */
void emit_tracer(unsigned int cpu, uint64_t function);

/* Whether it was seen that a function calls this trampoline. */
bool is_known_trampoline(uint64_t address);

#endif
