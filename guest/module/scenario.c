// SPDX-License-Identifier: GPL-2.0
/*
 * Scenarios in code (guest/scenarios/NAME.c): what runs them, and what most of
 * them need.
 */
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/jiffies.h>
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/slab.h>
#include <linux/string.h>
#include "compat.h"
#include "orch.h"
#include "scenario.h"

/* --- addresses that no kernel exports to modules */

static char *symbols = "";
module_param(symbols, charp, 0400);
MODULE_PARM_DESC(symbols, "Addresses of symbols, from /proc/kallsyms (name:address,...)");

/**
 * orch_symbol() - address of something that the kernel does not export
 * @name: name of a function or variable, which must be listed under `symbols` in
 *	the scenario's description, or be one that the host always looks up
 *
 * Return: its address, or 0 if the kernel does not have it.
 */
unsigned long orch_symbol(const char *name)
{
	size_t len = strlen(name);
	const char *at = symbols;
	unsigned long long address;

	while (at && *at) {
		if (!strncmp(at, name, len) && at[len] == ':' &&
		    sscanf(at + len + 1, "%llx", &address) == 1)
			return address;
		at = strchr(at, ',');
		at = at ? at + 1 : NULL;
	}
	return 0;
}

/* --- what a scenario reports */

/**
 * orch_fail() - report a promise that was broken
 * @run: the run, which goes on
 * @fmt: one sentence, without full stop and newline
 *
 * May be called in any context. Only the first four are reported.
 */
void orch_fail(struct orch_run *run, const char *fmt, ...)
{
	va_list args;

	/* The first few are enough, and the log is limited. */
	if (atomic_inc_return(&run->failures) > 4)
		return;
	va_start(args, fmt);
	orch_vdiag(fmt, args);
	va_end(args);
}

/**
 * orch_skip() - report what the kernel or the machine lacks for this scenario
 * @run: the run
 * @fmt: one sentence, without full stop and newline
 *
 * Only for what would be the same the next time. Else see orch_miss().
 */
void orch_skip(struct orch_run *run, const char *fmt, ...)
{
	va_list args;

	if (run->skip[0])
		return;
	va_start(args, fmt);
	vscnprintf(run->skip, sizeof(run->skip), fmt, args);
	va_end(args);
}

/**
 * orch_miss() - report what could not be done this time, so that nothing is shown
 * @run: the run
 * @fmt: one sentence, without full stop and newline
 *
 * The guest is out of memory, or the host is too slow.
 */
void orch_miss(struct orch_run *run, const char *fmt, ...)
{
	va_list args;

	if (run->miss[0])
		return;
	va_start(args, fmt);
	vscnprintf(run->miss, sizeof(run->miss), fmt, args);
	va_end(args);
}

/**
 * orch_time_left() - whether a scenario is to go on
 * @run: the run
 *
 * Return: false when the time is up or a signal is pending.
 */
bool orch_time_left(const struct orch_run *run)
{
	return time_before(jiffies, run->end) && !signal_pending(current);
}

/**
 * orch_now() - the time
 *
 * Return: ns since the guest has booted.
 */
u64 orch_now(void)
{
	return ktime_to_ns(ktime_get());
}

/**
 * orch_rest() - sleep after some work of a hammer
 * @since: orch_now() when that began
 * @us: how long to sleep, in us
 *
 * For as long as the work took at least. Where everything takes long, as with
 * lockdep, hammers would otherwise leave no time to the kernel's own threads, and
 * hardly sleep at all: a timer that is due already ends a sleep before it begins.
 * Then RCU waits for ever for tasks to schedule.
 */
void orch_rest(u64 since, unsigned int us)
{
	us += (unsigned long)(orch_now() - since) / 1000;
	usleep_range(us, 2 * us);
}

/**
 * orch_random() - a random number, the same ones for the same --seed
 * @run: the run
 * @below: an exclusive upper bound
 *
 * Return: a number from 0 to @below - 1.
 */
u32 orch_random(struct orch_run *run, u32 below)
{
	/* xorshift64*: the same sequence on every kernel */
	run->rng ^= run->rng >> 12;
	run->rng ^= run->rng << 25;
	run->rng ^= run->rng >> 27;
	return (u32)((run->rng * 0x2545f4914f6cdd1dULL) >> 32) % below;
}

/* --- one thread on each CPU */

struct worker {
	orch_work_t fn;
	struct orch_run *run;
	void *arg;
	int cpu;
	struct completion done;
	struct task_struct *task;
};

static int work(void *data)
{
	struct worker *worker = data;
	int status = worker->fn(worker->run, worker->cpu, worker->arg);

	complete(&worker->done);
	while (!kthread_should_stop()) {
		set_current_state(TASK_INTERRUPTIBLE);
		if (!kthread_should_stop())
			schedule();
		__set_current_state(TASK_RUNNING);
	}
	return status;
}

struct orch_workers {
	unsigned int count;
	struct worker worker[];
};

/**
 * orch_workers_start() - run a function in a thread on each of some CPUs
 * @run: the run
 * @cpus: the CPUs
 * @fn: the function; returns 0 or a status
 * @arg: its last argument
 *
 * Return: the threads, for orch_workers_join(); NULL after orch_miss() if not all
 * of them can be created.
 */
struct orch_workers *orch_workers_start(struct orch_run *run, const struct cpumask *cpus,
					orch_work_t fn, void *arg)
{
	struct orch_workers *workers;
	struct worker *worker;
	int cpu;

	workers = kzalloc(sizeof(*workers) + nr_cpu_ids * sizeof(*worker), GFP_KERNEL);
	if (!workers) {
		orch_miss(run, "the guest is out of memory");
		return NULL;
	}
	for_each_cpu(cpu, cpus) {
		worker = &workers->worker[workers->count];
		worker->fn = fn;
		worker->run = run;
		worker->arg = arg;
		worker->cpu = cpu;
		init_completion(&worker->done);
		worker->task = kthread_create(work, worker, "orch_work/%d", cpu);
		if (IS_ERR(worker->task)) {
			orch_miss(run, "a thread for CPU %d cannot be created (%ld)", cpu,
				  PTR_ERR(worker->task));
			/* Those that never ran do not call the function either. */
			while (workers->count--)
				kthread_stop(workers->worker[workers->count].task);
			kfree(workers);
			return NULL;
		}
		kthread_bind(worker->task, cpu);
		workers->count++;
	}
	for (cpu = 0; cpu < workers->count; cpu++)
		wake_up_process(workers->worker[cpu].task);
	return workers;
}

/**
 * orch_workers_join() - wait until all threads have returned
 * @workers: from orch_workers_start(), possibly NULL; freed
 *
 * Return: the first status that is not 0, else 0; -ENOMEM for NULL.
 */
int orch_workers_join(struct orch_workers *workers)
{
	int i, result, status = 0;

	if (!workers)
		return -ENOMEM;
	for (i = 0; i < workers->count; i++)
		wait_for_completion(&workers->worker[i].done);
	for (i = 0; i < workers->count; i++) {
		result = kthread_stop(workers->worker[i].task);
		if (!status)
			status = result;
	}
	kfree(workers);
	return status;
}

/**
 * orch_parallel() - run a function on each of some CPUs and wait
 * @run: the run
 * @cpus: the CPUs
 * @fn: the function
 * @arg: its last argument
 *
 * Return: see orch_workers_join().
 */
int orch_parallel(struct orch_run *run, const struct cpumask *cpus, orch_work_t fn, void *arg)
{
	return orch_workers_join(orch_workers_start(run, cpus, fn, arg));
}

/* --- running a scenario */

#define ORCH_ENTRY(name, id)	void orch_scenario_##id(struct orch_run *run);
#include "scenarios.h"		/* generated by the build: a line for each file */
#undef ORCH_ENTRY

static const struct {
	const char *name;
	void (*run)(struct orch_run *run);
} scenarios[] = {
#define ORCH_ENTRY(name, id)	{ name, orch_scenario_##id },
#include "scenarios.h"
#undef ORCH_ENTRY
	{ }
};

/**
 * orch_scenario_run() - run a scenario and report it
 * @name: of the scenario
 * @run: its parameters
 *
 * Return: 0, also if the scenario failed; -ENOENT if there is no such scenario.
 */
int orch_scenario_run(const char *name, struct orch_run *run)
{
	unsigned int number;
	u64 seq = orch_window.seq, start;
	char result[64];
	int i;

	for (i = 0; scenarios[i].name; i++)
		if (!strcmp(scenarios[i].name, name))
			break;
	if (!scenarios[i].name)
		return -ENOENT;
	orch_hammers_free();
	number = orch_report_next();
	run->end = jiffies + msecs_to_jiffies(run->ms) + 1;
	run->rng = (run->rng + 1) * 0x9e3779b97f4a7c15ULL;
	orch_note("# step=%u name=%s seq=%llu\n", number, name, seq + 1);
	start = orch_now();
	scenarios[i].run(run);
	orch_note("# announced=%llu elapsed_ns=%llu\n", orch_window.seq - seq,
		  orch_now() - start);
	scnprintf(result, sizeof(result), "%s.%s", name, run->watched ? "watched" : "free");
	if (!atomic_read(&run->failures) && run->miss[0])
		orch_report_error(number, result, run->miss);
	else if (!atomic_read(&run->failures) && run->skip[0])
		orch_report_skip(number, result, run->skip);
	else
		orch_report_result(number, result, !atomic_read(&run->failures));
	return 0;
}
