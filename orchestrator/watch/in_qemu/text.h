/* SPDX-License-Identifier: GPL-2.0 */
/* The kernel's text as it was last seen, and the modules' as far as it was executed. */
#ifndef RECORDER_TEXT_H
#define RECORDER_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

extern bool looked;	/* at the whole text, once it was settled: before that it is the boot's */

/* When text_start and text_end are known. */
void shadow_text(void);

/* A write begins. */
void shadow_write(uint64_t address, const uint8_t *bytes, size_t length);

/* Text as it is now, a few bytes. Those that nobody has written become a CODE. */
void shadow_check(uint64_t address, const uint8_t *bytes, size_t length);

void look_at_text(void);

/* An instruction of a module begins here. */
void note_executed(uint64_t address);

bool was_executed(uint64_t address, uint64_t length);

/* What was here is freed. */
void forget_executed(uint64_t address);

#endif
