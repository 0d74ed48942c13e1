/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The test module: sites that are patched, hammers that execute them on every
 * CPU, a poker that patches them, and a gate at which a debugger holds the
 * poker between two phases.
 */
#ifndef ORCH_H
#define ORCH_H

#include <linux/types.h>
#include <linux/cpumask.h>
#include <linux/fs.h>
#include <linux/sched.h>

/* What one pass through a site turned out to be. */
enum orch_result {
	ORCH_OLD,
	ORCH_NEW,
	ORCH_INT3,
	ORCH_TORN,
	ORCH_RESULTS,
};

/* Where a pass is counted: in one of the four phases of a gated poke, or free. */
enum orch_phase {
	ORCH_PHASE_OLD,		/* old bytes */
	ORCH_PHASE_INT3,	/* int3 and the old tail */
	ORCH_PHASE_TAIL,	/* int3 and the new tail */
	ORCH_PHASE_NEW,		/* new bytes */
	ORCH_FREE,		/* free-running: the hammer cannot know the phase */
	ORCH_PHASES,
};

#define ORCH_MAX_LEN	8

/**
 * struct orch_site - one instruction that is patched
 * @name: name by which the host refers to it
 * @addr: its address
 * @len: its length in bytes; 0 if this kernel does not have such a site
 * @why_not: the reason if @len is 0
 * @old: bytes at load time
 * @new: bytes it is changed to
 * @emulate: instruction of @len bytes that goes to the int3 target
 * @handler: the int3 target as an address, for kernels that take one
 * @target: where a CPU that hit int3 resumes when the module pokes the site
 * @pass: executes the site once and returns the result
 * @set: changes the site the way its owner in the kernel does; NULL if it has no
 *	owner
 * @set_why_not: set if the owner does not change the site by int3: the reason
 * @to_old: where a CPU that hit int3 resumes when the owner changes the site and
 *	the kernel lets the CPU go the old way
 * @to_new: the same for the new way
 */
struct orch_site {
	const char *name;
	u8 *addr;
	unsigned int len;
	const char *why_not;
	u8 old[ORCH_MAX_LEN];
	u8 new[ORCH_MAX_LEN];
	u8 emulate[ORCH_MAX_LEN];
	void *handler;
	void *target;
	enum orch_result (*pass)(void);
	void (*set)(bool on);
	const char *set_why_not;
	void *to_old;
	void *to_new;
};

enum orch_site_id {
	ORCH_SITE_NOP5,
	ORCH_SITE_LINE,
	ORCH_SITE_PAGE,
	ORCH_SITE_JMP32,
	ORCH_SITE_NOP2,
	ORCH_SITE_ONE,
	ORCH_SITE_CALL,
	ORCH_SITE_JCC,
	ORCH_SITE_KEY,
	ORCH_SITE_STATIC_CALL,
	ORCH_SITES,
};

/* sites.c, key.c, static_call.c, insn.c */

extern struct orch_site orch_sites[ORCH_SITES];
extern u8 orch_never;

void orch_sites_init(void);
const struct orch_site *orch_site(const char *name);
void orch_key_site_init(struct orch_site *site);
void orch_static_call_site_init(struct orch_site *site);
bool orch_jump_to(u8 *insn, unsigned int len, const u8 *addr, const u8 *to);

/* How the poker changes a site. */
enum orch_how {
	ORCH_DIRECT,		/* text_poke_bp() or smp_text_poke_single() */
	ORCH_OWNER,		/* orch_site.set: static_branch_enable() and the like */
};

/**
 * struct orch_window - tells the debugger about the poke under way
 * @site: address of the site being poked, 0 when no poke is under way
 * @len: its length
 * @gated: the debugger shall hold the poker before the second and each later
 *	write
 * @seq: number of this poke since the module was loaded, from 1
 * @step: number of the current step, also valid while no poke is under way
 * @task: the poker's task_struct, by which foreign pokes are told from ours
 * @from: bytes before
 * @to: bytes after
 * @targets: where a CPU that hit int3 may resume; 0 if unknown. Kept here and not
 *	in the report, because after a CPU has gone elsewhere there may be nobody
 *	left to write one
 *
 * orchestrator/watch/agent.py reads this layout: fixed sizes, no padding.
 */
struct orch_window {
	u64 site;
	u32 len;
	u32 gated;
	u64 seq;
	u64 step;
	u64 task;
	u8 from[ORCH_MAX_LEN];
	u8 to[ORCH_MAX_LEN];
	u64 targets[2];
};

extern struct orch_window orch_window;

/* cuts.c */

/**
 * struct orch_dice - random numbers of one thread
 * @state: private
 */
struct orch_dice {
	u64 state;
};

struct orch_dice orch_dice(void);
u32 orch_dice_throw(struct orch_dice *one, u32 below);
int orch_cuts_set(unsigned int number);
void orch_tick_set(unsigned int us);
void orch_cuts_next(void);
void orch_cuts_end(void);
void orch_cuts_exit(void);

/* hammer.c */

/**
 * struct orch_hammer - counters and progress of one CPU's hammer
 * @count: passes, by phase and result
 * @stale: passes that ran with no poke under way and did not execute the bytes
 *	last written
 * @round: the last gate round in which this CPU went through the site
 * @task: the hammer's thread; NULL if none runs on this CPU
 * @dice: for a seeded schedule
 */
struct orch_hammer {
	u64 count[ORCH_PHASES][ORCH_RESULTS];
	u64 stale;
	u64 round;
	struct task_struct *task;
	struct orch_dice dice;
};

/**
 * struct orch_hammer_spec - what the hammers do
 * @site: the site that they execute
 * @gated: wait at the gate for each round instead of running free
 * @passes: gated: passes per round and CPU
 * @burst: free: passes between two pauses
 * @pause_us: free: length of a pause
 */
struct orch_hammer_spec {
	const struct orch_site *site;
	bool gated;
	unsigned int passes;
	unsigned int burst;
	unsigned int pause_us;
};

int orch_hammers_start(const struct orch_hammer_spec *requested);
void orch_hammers_stop(void);
void orch_hammers_free(void);
const struct orch_hammer *orch_hammer(int cpu);

void orch_epoch_reset(void);
void orch_epoch_next(void);
u64 orch_epoch(void);
bool orch_pass_is_stale(u64 before, u64 after, enum orch_result result);

/* CPUs that did not go through the site in time, since orch_gate_begin(). */
extern struct cpumask orch_gate_stuck;

void orch_gate_begin(void);
bool orch_gate_round(enum orch_phase phase);
unsigned int orch_gate_holds(void);

/* poker.c */

/**
 * struct orch_step - one step of a scenario that is data
 * @site: the site that is poked
 * @how: how the poker changes it
 * @gated: poke once and hold the poker in each phase, instead of running free
 * @cpu: where the poker runs; free: where it starts
 * @ms: free: duration
 * @offline: free: go on until so many pokes came while a CPU was offline, and as
 *	many after it was back
 * @gap_us: free: pause between two pokes
 * @passes: see struct orch_hammer_spec
 * @burst: see struct orch_hammer_spec
 * @pause_us: see struct orch_hammer_spec
 */
struct orch_step {
	const struct orch_site *site;
	enum orch_how how;
	bool gated;
	int cpu;
	unsigned int ms;
	unsigned int offline;
	unsigned int gap_us;
	unsigned int passes, burst, pause_us;
};

/*
 * Durations are counted in buckets, four for each power of two of nanoseconds. The last
 * one has all that took longer.
 */
#define ORCH_BUCKETS		(4 * 40)

/**
 * struct orch_outcome - what the poker reports about a step
 * @pokes: number of pokes
 * @ns: time spent in pokes
 * @ns_max: duration of the longest poke
 * @took: number of pokes by their duration; see orch_bucket_begin()
 * @elapsed_ns: duration of the step
 * @holds: how often the gate held the poker in phase 1 or 2
 * @error: 0, or the negative errno with which the step could not be run
 * @missed: NULL, or what did not happen meanwhile, as a sentence
 * @fault: NULL, or a promise that was broken, as a sentence
 */
struct orch_outcome {
	u64 pokes;
	u64 ns;
	u64 ns_max;
	u32 took[ORCH_BUCKETS];
	u64 elapsed_ns;
	u64 holds;
	int error;
	const char *missed;
	const char *fault;
};

int orch_poker_start(void);
void orch_poker_stop(void);
void orch_poke_run(const struct orch_step *step, struct orch_outcome *out);
u64 orch_bucket_begin(unsigned int bucket);

/* step.c */
void orch_step_run(const struct orch_step *step);

/* scenario.c */
struct orch_run;
int orch_scenario_run(const char *name, struct orch_run *run);
unsigned long orch_symbol(const char *name);

/**
 * orch_wait_until() - wait for a condition, for many seconds in which the guest runs
 * @condition: looked at every 10 ms or so
 * @seconds: the limit, at least
 *
 * The limit is a number of short sleeps and not a time. While a host does not
 * run the machine its clock may go on, and nothing in the guest had a chance.
 *
 * Return: whether the condition holds.
 */
#define orch_wait_until(condition, seconds)				\
	({								\
		unsigned int __sleeps = 0;				\
									\
		while (!(condition) && __sleeps < 100 * (seconds)) {	\
			msleep(10);					\
			orch_sign_of_life(++__sleeps);			\
		}							\
		!!(condition);						\
	})

/**
 * struct orch_text - text that the host reads from the memory of the guest
 * @text: without a NUL at the end
 * @used: its length
 */
struct orch_text {
	char *text;
	size_t used;
};

/* plan.c */
extern struct orch_text orch_letter;
int orch_plan_init(void);
void orch_plan_exit(void);

/* report.c */
extern struct orch_text orch_report;

int orch_report_init(void);
void orch_report_exit(void);
ssize_t orch_report_read(char __user *buf, size_t size, loff_t *pos);
void orch_report_plan(unsigned int steps);
void orch_report_number(unsigned int number);
void orch_sign_of_life(unsigned int sleeps);
unsigned int orch_report_next(void);
void orch_report_result(unsigned int number, const char *name, bool ok);
void orch_report_skip(unsigned int number, const char *name, const char *why);
void orch_report_error(unsigned int number, const char *name, const char *why);
__printf(1, 2) void orch_note(const char *fmt, ...);
__printf(1, 2) void orch_diag(const char *fmt, ...);
__printf(1, 0) void orch_vdiag(const char *fmt, va_list args);

/* The online CPU after @cpu, cyclically; the first one for -1. */
static inline int orch_next_cpu(int cpu)
{
	cpu = cpumask_next(cpu, cpu_online_mask);
	return cpu < nr_cpu_ids ? cpu : cpumask_first(cpu_online_mask);
}

#endif
