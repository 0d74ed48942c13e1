/* SPDX-License-Identifier: GPL-2.0 */
/* How often the CPUs execute the sites of the test module. */
#ifndef RECORDER_SITES_H
#define RECORDER_SITES_H

#include <stdint.h>

#include "watched.h"

void note_site(struct watched *site);
void forget_sites(void);

void on_site(struct watched *site, unsigned int cpu);

/* These bytes are written to: emit the passes so far. */
void flush_passes(uint64_t address, uint64_t length);

#endif
