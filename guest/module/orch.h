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

/* What one pass through a site can turn out to be. */
enum orch_result {
	ORCH_OLD,
	ORCH_NEW,
	ORCH_INT3,
	ORCH_TORN,
	ORCH_RESULTS,
};

/* Where a pass is accounted: the four phases of a gated poke, or none. */
enum orch_phase {
	ORCH_PHASE_OLD,		/* old bytes */
	ORCH_PHASE_INT3,	/* int3 and the old tail */
	ORCH_PHASE_TAIL,	/* int3 and the new tail */
	ORCH_PHASE_NEW,		/* new bytes */
	ORCH_FREE,		/* free-running: the hammer cannot know */
	ORCH_PHASES,
};

#define ORCH_MAX_LEN	8

/**
 * struct orch_site - one instruction that is patched
 * @name: as the host names it
 * @addr: where it is
 * @len: its length in bytes; 0 where this kernel does not have such a site
 * @why_not: the reason when @len is 0
 * @old: the bytes at load time
 * @new: the bytes it is changed to
 * @emulate: instruction of length @len whose effect is to go to the int3 target
 * @handler: the int3 target as an address, for kernels that take one
 * @target: where a CPU that met int3 goes on when we poke it
 * @pass: execute the site once and say which way it went
 * @set: change it the way its owner in the kernel does; NULL where nobody owns it
 * @set_why_not: the reason when it has an owner who does not do that by int3
 * @to_old: where a CPU that met int3 goes on when its owner changes it and the
 *	kernel chose the old way
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
 * struct orch_window - what the debugger reads to know what it is looking at
 * @site: address of the site being poked, 0 when no poke is under way
 * @len: its length
 * @gated: the debugger is to hold the poker before the second and later writes
 * @seq: number of this poke since the module was loaded, from 1
 * @step: number of the step that is being run, also while no poke is under way
 * @task: the poker's task_struct, so that foreign pokes can be told from ours
 * @from: the bytes before
 * @to: the bytes after
 * @targets: where a CPU may go on that met int3; 0 where that is not known.
 *	Here and not in the report, since a CPU that went elsewhere may leave
 *	nobody to make one
 *
 * The layout is read by orchestrator/watch/agent.py: fixed sizes, no padding.
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

/* hammer.c */

/**
 * struct orch_cpu - what one CPU's hammer counted, and how far it is
 * @count: passes, by where they are accounted and how they went
 * @stale: passes that began and ended with no poke under way and yet did not
 *	go the way of the bytes last written
 * @round: the last gate round this CPU has been through the site in
 */
struct orch_cpu {
	u64 count[ORCH_PHASES][ORCH_RESULTS];
	u64 stale;
	u64 round;
	struct task_struct *task;
};

struct orch_hammer_spec {
	const struct orch_site *site;
	bool gated;
	unsigned int passes;	/* gated: passes a round and CPU */
	unsigned int burst;	/* free: passes between two pauses */
	unsigned int pause_us;	/* free: length of a pause */
};

int orch_hammers_start(const struct orch_hammer_spec *spec);
void orch_hammers_rest(void);
void orch_hammers_stop(void);
const struct orch_cpu *orch_hammer(int cpu);

/*
 * The epoch counts pokes' beginnings and ends: odd while one is under way. Bit
 * 1 tells which way the site goes when none is.
 */
void orch_epoch_reset(void);
void orch_epoch_next(void);

/*
 * Let every CPU go through the site, accounted under @phase, and wait until
 * all have. Returns false when one did not in time; orch_gate_stuck then has
 * the CPUs that did not.
 */
bool orch_gate_round(enum orch_phase phase);
void orch_gate_begin(void);
unsigned int orch_gate_holds(void);
extern struct cpumask orch_gate_stuck;

/* poker.c */
struct orch_step {
	const struct orch_site *site;
	enum orch_how how;
	bool gated;
	int cpu;		/* where the poker runs; free: where it starts */
	unsigned int pokes;	/* gated: how many */
	unsigned int ms;	/* free: for how long */
	unsigned int gap_us;	/* free: between two pokes */
	unsigned int passes, burst, pause_us;
};

struct orch_outcome {
	u64 pokes;
	u64 ns;			/* time spent in pokes */
	u64 ns_max;
	u64 elapsed_ns;
	u64 holds;		/* gate: phases 1 and 2 that were held */
	int error;
	const char *what;
};

int orch_poker_start(void);
void orch_poker_stop(void);
void orch_poke_run(const struct orch_step *step, struct orch_outcome *outcome);
void orch_window_open(u8 *addr, unsigned int len, const u8 *from, const u8 *to, bool gated,
		      const void *one, const void *other);
void orch_window_close(void);

/* step.c */
void orch_step_run(const struct orch_step *step);

/* scenario.c */
struct orch_run;
int orch_scenario_run(const char *name, struct orch_run *run);
unsigned long orch_symbol(const char *name);

/* report.c */
int orch_report_init(void);
void orch_report_exit(void);
ssize_t orch_report_read(char __user *buf, size_t size, loff_t *pos);
void orch_plan(unsigned int steps);
unsigned int orch_next_result(void);
void orch_result(unsigned int number, const char *name, bool ok, const char *skip);
__printf(1, 2) void orch_note(const char *fmt, ...);
__printf(1, 2) void orch_sentence(const char *fmt, ...);
__printf(1, 0) void orch_say(const char *fmt, va_list args);

#endif
