// SPDX-License-Identifier: GPL-2.0
/*
 * Kprobes that count their hits, for scenarios.
 */
#include <linux/errno.h>
#include <linux/kernel.h>
#include <linux/preempt.h>
#include <linux/ptrace.h>
#include <linux/string.h>
#include "compat.h"
#include "kprobe.h"

#define CALLER_SIZE	256	/* bytes of a function, at most */

static int count_hit(struct kprobe *kprobe, struct pt_regs *regs)
{
	struct orch_probe *probe = container_of(kprobe, struct orch_probe, kprobe);

	atomic_inc(&probe->hits);
	if (preemptible())
		atomic_inc(&probe->preemptible);
	if (probe->called_from &&
	    *(unsigned long *)regs->sp - probe->called_from >= CALLER_SIZE)
		atomic_inc(&probe->moved);
	return 0;
}

static void after_step(struct kprobe *kprobe, struct pt_regs *regs, unsigned long flags)
{
}

static int put(struct orch_probe *probe, void *addr, kprobe_post_handler_t post,
	       unsigned long called_from)
{
	memset(probe, 0, sizeof(*probe));
	probe->called_from = called_from;
	probe->kprobe.addr = addr;
	probe->kprobe.pre_handler = count_hit;
	probe->kprobe.post_handler = post;
	return register_kprobe(&probe->kprobe);
}

/**
 * orch_probe_register() - put a kprobe on an instruction, counters at 0
 * @probe: the probe
 * @addr: address of the instruction
 *
 * Return: 0 or a negative errno.
 */
int orch_probe_register(struct orch_probe *probe, void *addr)
{
	return put(probe, addr, NULL, 0);
}

/**
 * orch_probe_register_leaf() - put a kprobe where the return address is on top of the stack
 * @probe: the probe
 * @addr: address of the instruction
 * @called_from: the function that calls the probed one
 *
 * As orch_probe_register(), but the stack that the handler is shown is checked.
 *
 * Return: 0 or a negative errno.
 */
int orch_probe_register_leaf(struct orch_probe *probe, void *addr, unsigned long called_from)
{
	return put(probe, addr, NULL, called_from);
}

/**
 * orch_probe_register_int3() - put a kprobe on an instruction that stays an int3
 * @probe: the probe
 * @addr: address of the instruction
 *
 * As orch_probe_register(), but a kprobe with a post-handler never becomes a
 * jump: the kernel steps over the instruction at each hit.
 *
 * Return: 0 or a negative errno.
 */
int orch_probe_register_int3(struct orch_probe *probe, void *addr)
{
	return put(probe, addr, after_step, 0);
}

/**
 * orch_probe_refused() - report that a kprobe cannot be had
 * @run: the run
 * @error: what orch_probe_register() returned
 * @where: where the probe was to be
 *
 * No kernel promises to take a kprobe on any instruction. Before 4.1, for one,
 * kprobes refuse what is relative to RIP (c80e5c0c23ce).
 */
void orch_probe_refused(struct orch_run *run, int error, const char *where)
{
	if (error == -ENOMEM || error == -EAGAIN)
		orch_miss(run, "no kprobe %s (%d)", where, error);
	else
		orch_skip(run, "this kernel refuses a kprobe %s (%d)", where, error);
}

/**
 * orch_probe_unregister() - remove the kprobe
 * @probe: the probe; its counters stay readable
 */
void orch_probe_unregister(struct orch_probe *probe)
{
	unregister_kprobe(&probe->kprobe);
}

/**
 * orch_probe_compare() - check that a kprobe was hit once per pass
 * @run: the run
 * @probe: a probe that was registered from before the first pass until after
 *	the last one
 * @what: names the probe in the sentence of a failure
 *
 * Its handler is called with preemption disabled, and gets the registers as they
 * were. A kprobe is missed only by a CPU that is in the handler of another one, from
 * which nobody passes here.
 */
void orch_probe_compare(struct orch_run *run, const struct orch_probe *probe, const char *what)
{
	int passes = atomic_read(&probe->passes), hits = atomic_read(&probe->hits);
	unsigned long missed = probe->kprobe.nmissed;

	orch_note("# passes=%d hits=%d missed=%lu\n", passes, hits, missed);
	orch_expect(run, hits == passes && !missed,
		    "%s was hit %d times and missed %lu times in %d passes", what, hits, missed,
		    passes);
	orch_expect(run, !atomic_read(&probe->moved),
		    "%s was shown another stack at %d of %d hits", what,
		    atomic_read(&probe->moved), hits);
	orch_expect(run, !atomic_read(&probe->preemptible),
		    "%s could be preempted in its handler at %d of %d hits", what,
		    atomic_read(&probe->preemptible), hits);
}
