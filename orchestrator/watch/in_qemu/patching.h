/* SPDX-License-Identifier: GPL-2.0 */
/* What the kernel's handlers of int3 look for. */
#ifndef RECORDER_PATCHING_H
#define RECORDER_PATCHING_H

#include <stdbool.h>
#include <stdint.h>

enum { KP_ADDRESS = 40 };	/* struct kprobe: hlist, list, nmissed, addr */

/* Whether the poke handler looks for anything. */
bool is_patching(void);

/*
 * Whether a reference to what it looks for is kept although no handler is under
 * way: by_this_cpu, by_any_cpu: whether one is.
 */
bool is_reference_kept(bool by_this_cpu, bool by_any_cpu);

/* Whether it does so for what is written here. */
bool is_patching_here(uint64_t address, const uint8_t *bytes, uint64_t length);

/* text_mutex is released. */
void poke_is_over(void);

/* Whether it does so for all sites of the poke under way, from their int3 to the next poke's. */
bool is_patching_all(void);

/* Whether a kprobe's handler would find one at this address. */
bool is_probed(uint64_t address);

#endif
