/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What a scenario in code has to hand. One is one file, guest/scenarios/NAME.c:
 * a comment that says in YAML what it is (orchestrator/scenario.py has the
 * fields), and
 *
 *	ORCH_SCENARIO(name)
 *	{
 *		if (the kernel lacks something)
 *			return orch_skip(run, "this kernel has no ...");
 *		while (orch_go_on(run))
 *			orch_expect(run, what is promised, "what does not hold");
 *	}
 *
 * with the dashes of NAME as underscores. It runs in a process of its own, may
 * sleep, and cleans up behind itself whatever happens. Failures are sentences
 * for people; figures are notes of the form "# key=value key=value\n".
 */
#ifndef ORCH_SCENARIO_H
#define ORCH_SCENARIO_H

#include <linux/atomic.h>
#include <linux/completion.h>
#include <linux/kernel.h>
#include <linux/cpumask.h>
#include <linux/types.h>
#include "orch.h"

/**
 * struct orch_run - one run of a scenario
 * @ms: for how long, at least one round of whatever it does
 * @cpu: where to poke from, if it matters
 * @watched: a debugger stops at each write, sync and int3, each of which takes
 *	milliseconds: do each thing once, and do not hammer
 * @arg: what the scenario's file says in `arg`
 */
struct orch_run {
	unsigned int ms;
	int cpu;
	bool watched;
	unsigned int arg;
	/* private */
	unsigned long end;
	u64 dice;
	atomic_t failures;
	char skip[120];
};

#define ORCH_SCENARIO(id)						\
	void orch_scenario_##id(struct orch_run *run);			\
	void orch_scenario_##id(struct orch_run *run)

/* A promise that is not kept: one sentence. The scenario goes on. Any context. */
__printf(2, 3) void orch_fail(struct orch_run *run, const char *fmt, ...);
/* What the kernel (or the machine) lacks for this: one sentence. */
__printf(2, 3) void orch_skip(struct orch_run *run, const char *fmt, ...);

#define orch_expect(run, holds, ...)					\
	({								\
		bool __holds = (holds);					\
									\
		if (!__holds)						\
			orch_fail(run, __VA_ARGS__);			\
		__holds;						\
	})

/* Whether there is time left. */
bool orch_go_on(const struct orch_run *run);
/* A number below @below; the same ones for the same --seed. */
u32 orch_random(struct orch_run *run, u32 below);
/* Address of something that is not exported and named in the file's `symbols`, or 0. */
unsigned long orch_symbol(const char *name);

/*
 * @fn in one thread on each of @cpus. orch_parallel() waits for them and
 * returns the first status that is not 0.
 */
struct orch_workers;
struct orch_workers *orch_workers_start(struct orch_run *run, const struct cpumask *cpus,
					int (*fn)(struct orch_run *, int cpu, void *arg), void *arg);
int orch_workers_join(struct orch_workers *workers);
int orch_parallel(struct orch_run *run, const struct cpumask *cpus,
		  int (*fn)(struct orch_run *, int cpu, void *arg), void *arg);

/* --- pokes */

/**
 * struct orch_poke - one poke
 * @addr: of the instruction
 * @len: its length
 * @from: bytes before
 * @to: bytes after, others than @from
 * @emulate: what to emulate at int3, NULL for the new instruction itself
 * @handler: where to go at int3 on kernels that take an address
 */
struct orch_poke {
	u8 *addr;
	unsigned int len;
	u8 from[ORCH_MAX_LEN];
	u8 to[ORCH_MAX_LEN];
	const void *emulate;
	void *handler;
};

/* Whether this kernel emulates instructions; else it goes to a handler. */
bool orch_emulates(void);
/* Poke under text_mutex, announced to the debugger. */
void orch_poke(const struct orch_poke *poke);
/* The poke of one of the module's own sites, there (@on) or back, with its int3 target. */
struct orch_poke orch_poke_of(const struct orch_site *site, bool on);
void orch_poke_site(const struct orch_site *site, bool on);

/**
 * orch_poke_held() - poke while this holds CPU @cpu's interrupts off
 * @fn: called on @cpu, interrupts off, in phase 1, 2 and 3 of the poke
 *
 * A sync round waits for every CPU, so a CPU that keeps its interrupts off
 * holds the poker between two writes, and can run through the site in that very
 * phase. Nothing but the kernel's own promise is used for it: a kernel that
 * goes on without this CPU is caught at it.
 *
 * Returns false, with orch_fail() called, when the kernel did not wait.
 */
bool orch_poke_held(struct orch_run *run, const struct orch_poke *poke, int cpu,
		    void (*fn)(struct orch_run *run, enum orch_phase phase, void *arg), void *arg);

#endif
