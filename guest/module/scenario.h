/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The interface for scenarios in code. A scenario is one file,
 * guest/scenarios/NAME.c, that consists of a comment with its description in
 * YAML (orchestrator/scenarios/scenario.py has the fields), and
 *
 *	ORCH_SCENARIO(name)
 *	{
 *		if (the kernel lacks something)
 *			return orch_skip(run, "this kernel has no ...");
 *		while (orch_time_left(run))
 *			orch_expect(run, what is promised, "what does not hold");
 *	}
 *
 * with the dashes of NAME as underscores. It runs in a process, may sleep, and
 * cleans up after itself whatever happens. Failures are sentences for people.
 * Figures are notes of the form "# key=value key=value\n".
 *
 * There are three ways not to pass. Only orch_fail() is the kernel's fault:
 *
 *	orch_fail()	the kernel broke a promise
 *	orch_skip()	this kernel or machine lacks something, and always will
 *	orch_miss()	it could not be done this time: out of memory, too slow, ...
 *
 * A run in which something was missed is no pass. The first that applies is
 * reported, in this order: failed, missed, skipped.
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
 * @ms: how long it runs; it does at least one round of whatever it does
 * @cpu: the CPU to poke from, if it matters
 * @watched: a debugger stops at each write, sync and int3, which takes
 *	milliseconds each time: do each thing once, and do not hammer
 * @end: private: when the time is up, in jiffies
 * @rng: private: state of orch_random()
 * @failures: private: calls of orch_fail()
 * @skip: private: the first sentence of orch_skip(); empty if not called
 * @miss: private: the same of orch_miss()
 */
struct orch_run {
	unsigned int ms;
	int cpu;
	bool watched;

	unsigned long end;
	u64 rng;
	atomic_t failures;
	char skip[120];
	char miss[120];
};

#define ORCH_SCENARIO(id)						\
	void orch_scenario_##id(struct orch_run *run);			\
	void orch_scenario_##id(struct orch_run *run)

__printf(2, 3) void orch_fail(struct orch_run *run, const char *fmt, ...);
__printf(2, 3) void orch_skip(struct orch_run *run, const char *fmt, ...);
__printf(2, 3) void orch_miss(struct orch_run *run, const char *fmt, ...);

/**
 * orch_expect() - report a failure if a promise does not hold
 * @run: the run
 * @holds: the promise
 * @...: see orch_fail()
 *
 * Return: @holds
 */
#define orch_expect(run, holds, ...)					\
	({								\
		bool __holds = (holds);					\
									\
		if (!__holds)						\
			orch_fail(run, __VA_ARGS__);			\
		__holds;						\
	})

bool orch_time_left(const struct orch_run *run);
u32 orch_random(struct orch_run *run, u32 below);
u64 orch_now(void);
void orch_rest(u64 since, unsigned int us);

/* --- threads */

typedef int (*orch_work_t)(struct orch_run *run, int cpu, void *arg);

struct orch_workers;
struct orch_workers *orch_workers_start(struct orch_run *run, const struct cpumask *cpus,
					orch_work_t fn, void *arg);
int orch_workers_join(struct orch_workers *workers);
int orch_parallel(struct orch_run *run, const struct cpumask *cpus, orch_work_t fn, void *arg);

/* --- pokes */

/**
 * struct orch_poke - one poke
 * @addr: address of the instruction
 * @len: its length
 * @from: bytes before
 * @to: bytes after, different from @from
 * @emulate: the instruction to emulate at int3; NULL for the new one itself
 * @handler: where to resume from int3, on kernels that take an address
 */
struct orch_poke {
	u8 *addr;
	unsigned int len;
	u8 from[ORCH_MAX_LEN];
	u8 to[ORCH_MAX_LEN];
	const void *emulate;
	void *handler;
};

bool orch_emulates(const char *insn);
int orch_set_emulates(const char *list);
void orch_poke(const struct orch_poke *poke);
struct orch_poke orch_make_poke(const struct orch_site *site, bool on);
void orch_poke_site(const struct orch_site *site, bool on);

/* --- pokes that a CPU holds in each phase */

typedef void (*orch_in_phase_t)(struct orch_run *run, enum orch_phase phase, void *arg);

bool orch_poke_held(struct orch_run *run, const struct orch_poke *poke, int cpu,
		    orch_in_phase_t fn, void *arg);
bool orch_hold_on_each_cpu(struct orch_run *run, const struct orch_site *const *sites,
			   unsigned int count, unsigned int first, orch_in_phase_t fn);

#endif
