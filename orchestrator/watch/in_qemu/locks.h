/* SPDX-License-Identifier: GPL-2.0 */
/* The locks of the configuration, by their numbers in it. */
#ifndef RECORDER_LOCKS_H
#define RECORDER_LOCKS_H

#include <stdint.h>

#include "watched.h"

#define LOCKS	16
#define HOTPLUG	0	/* the number of the lock of CPU hotplug, which is no mutex */
/* What else may be demanded where a function is entered, above the locks. */
#define KEY_IS_OFF		(1u << LOCKS)
#define CPUS_ARE_WRITTEN	(1u << (LOCKS + 1))

void watch_mutex(unsigned int number, uint64_t address);
void forget_mutexes(void);

/* LOCKS if it is none of those. */
unsigned int number_of_lock(uint64_t mutex);

/* rsp: as it was when the function that is called here was entered. */
void on_lock(unsigned int cpu, unsigned int lock, uint64_t rsp);
/* One does not wait for the lock of CPU hotplug, so order does not matter. It is taken for got. */
void on_hotplug_tried(uint64_t rsp);
void on_unlock(unsigned int lock);
void on_guarded(unsigned int cpu, const struct watched *here, uint64_t rsp);

#endif
