/* SPDX-License-Identifier: GPL-2.0 */
/* The mapping through which text is written, since 5.1 (use_temporary_mm()). */
#ifndef RECORDER_MAPPING_H
#define RECORDER_MAPPING_H

#include <stdbool.h>

/* Whether the mapping of the last write is there. */
bool still_mapped(void);

/* An mm is about to be loaded: (previous, next, task). */
void on_load(unsigned int cpu);

/* flush_tlb_mm_range(): (mm, start, end, ...). */
void on_flush(unsigned int cpu);

#endif
