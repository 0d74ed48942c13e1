/* SPDX-License-Identifier: GPL-2.0 */
/* int3, and how its CPU goes on. */
#ifndef RECORDER_TRAPS_H
#define RECORDER_TRAPS_H

#include <stdbool.h>

#include "watched.h"

/* The callback before an int3. data: its slot in the ledger. */
void executes_int3(unsigned int vcpu, void *data);

/*
 * A handler is entered: with pt_regs in rdi, or as a die notifier:
 * (block, DIE_INT3, struct die_args *).
 */
void on_handler(unsigned int cpu, enum point point, bool notifier);

void on_return(unsigned int cpu, enum point handler);

/* At an iret: whether it is the one by which this CPU goes on after an int3. */
void resume(unsigned int cpu);

/* The kernel dies. */
void on_death(unsigned int cpu);

#endif
