/* SPDX-License-Identifier: GPL-2.0 */
/* Who writes text, and for how long. */
#ifndef RECORDER_WRITES_H
#define RECORDER_WRITES_H

#include <stdbool.h>
#include <stdint.h>

/* rsp: as it was when the function was entered. */
void on_write(unsigned int cpu, uint64_t rsp, bool early);

/* text_mutex is released. */
void on_text_unlock(unsigned int cpu);

void emit_callers(unsigned int cpu, uint64_t rsp);

#endif
