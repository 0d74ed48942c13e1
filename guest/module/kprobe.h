/* SPDX-License-Identifier: GPL-2.0 */
/* Kprobes that count their hits, for scenarios. */
#ifndef ORCH_KPROBE_H
#define ORCH_KPROBE_H

#include <linux/atomic.h>
#include <linux/kprobes.h>
#include "scenario.h"

/**
 * struct orch_probe - a kprobe and how often its instruction was executed
 * @kprobe: the kprobe
 * @hits: how often it was hit
 * @passes: how often its instruction was executed; counted by the scenario
 * @called_from: the function that calls the probed one, in which nothing is on
 *	the stack yet; 0 if that is not known
 * @moved: how often another stack was shown to the handler
 * @preemptible: how often it could be preempted
 */
struct orch_probe {
	struct kprobe kprobe;
	atomic_t hits;
	atomic_t passes;
	unsigned long called_from;
	atomic_t moved;
	atomic_t preemptible;
};

int orch_probe_register(struct orch_probe *probe, void *addr);
int orch_probe_register_leaf(struct orch_probe *probe, void *addr, unsigned long called_from);
int orch_probe_register_int3(struct orch_probe *probe, void *addr);
void orch_probe_refused(struct orch_run *run, int error, const char *where);
void orch_probe_unregister(struct orch_probe *probe);
void orch_probe_compare(struct orch_run *run, const struct orch_probe *probe, const char *what);

#endif
