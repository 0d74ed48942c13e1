// SPDX-License-Identifier: GPL-2.0
/*
 * The poker: a thread that changes the site, on one CPU at a time. One thread
 * serves all steps, since creating one takes longer than a gated step.
 */
#include <linux/bitops.h>
#include <linux/completion.h>
#include <linux/cpu.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/jiffies.h>
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/mutex.h>
#include <linux/string.h>
#include <linux/wait.h>
#include "compat.h"
#include "orch.h"
#include "scenario.h"

#if ORCH_EMULATES
typedef void (*poke_t)(void *addr, const void *opcode, size_t len, const void *emulate);
#define TARGET(poke)	((poke)->emulate)
#else
typedef void *(*poke_t)(void *addr, const void *opcode, size_t len, void *handler);
#define TARGET(poke)	((poke)->handler)
#endif

struct orch_window orch_window;

static char *emulates;
module_param(emulates, charp, 0400);
MODULE_PARM_DESC(emulates, "Instructions that the kernel emulates at int3 (jmp32,ret,...)");

/**
 * orch_set_emulates() - set what the kernel emulates, in place of the parameter
 * @list: names as in the parameter
 *
 * For a host that can find it out only once the module is loaded. Nothing may
 * have been poked yet.
 *
 * Return: 0 or a negative errno.
 */
int orch_set_emulates(const char *list)
{
	static char kept[128];

	if (strlen(list) >= sizeof(kept))
		return -EINVAL;
	strcpy(kept, list);
	emulates = kept;
	orch_sites_init();
	return 0;
}

/**
 * orch_emulates() - whether this kernel emulates an instruction at int3
 * @insn: a name, see INSTRUCTIONS in orchestrator/text/emulation.py
 *
 * A kernel has a BUG() for an instruction that it does not know. The host has
 * found out which it knows; without that it is what all kernels know that
 * emulate anything.
 *
 * Return: false for all instructions if it sends the CPU to an address instead.
 */
bool orch_emulates(const char *insn)
{
	size_t len = strlen(insn);
	const char *at = emulates;

	if (!ORCH_EMULATES)
		return false;
	if (!emulates)
		return strcmp(insn, "ret") && strcmp(insn, "jcc");
	for (; at; at = strchr(at, ',')) {
		at += *at == ',';
		if (!strncmp(at, insn, len) && (at[len] == ',' || !at[len]))
			return true;
	}
	return false;
}

/* No kernel exports these to modules. The host looks them up in /proc/kallsyms. */
static void poke_text(const struct orch_poke *poke)
{
	static struct mutex *text_mutex;
	static poke_t function;

	if (!function) {
		text_mutex = (struct mutex *)orch_symbol("text_mutex");
		function = (poke_t)(orch_symbol("smp_text_poke_single") ?:
				    orch_symbol("text_poke_bp"));
		orch_note("# poked_by=%ps\n", function);
	}
	mutex_lock(text_mutex);
	function(poke->addr, poke->to, poke->len, TARGET(poke));
	mutex_unlock(text_mutex);
}

static void open_window(const struct orch_poke *poke, bool gated, const void *target,
			const void *other_target)
{
	orch_window.len = poke->len;
	orch_window.gated = gated;
	orch_window.seq++;
	orch_window.task = (u64)(unsigned long)current;
	memcpy(orch_window.from, poke->from, ORCH_MAX_LEN);
	memcpy(orch_window.to, poke->to, ORCH_MAX_LEN);
	orch_window.targets[0] = (u64)(unsigned long)target;
	orch_window.targets[1] = (u64)(unsigned long)other_target;
	/*
	 * The site is set last. Pairs with the debugger, which reads all of
	 * orch_window while the guest is stopped, and ignores the rest if the
	 * site is 0.
	 */
	smp_wmb();
	WRITE_ONCE(orch_window.site, (u64)(unsigned long)poke->addr);
}

static void close_window(void)
{
	WRITE_ONCE(orch_window.site, 0);
}

/**
 * orch_poke() - poke under text_mutex, announced to the debugger
 * @poke: what to poke
 */
void orch_poke(const struct orch_poke *poke)
{
	open_window(poke, false, NULL, NULL);
	poke_text(poke);
	close_window();
}

/**
 * orch_make_poke() - the poke of one of the module's own sites
 * @site: the site
 * @on: to its new bytes, else back to its old ones
 *
 * Return: the poke, with the site's int3 target.
 */
struct orch_poke orch_make_poke(const struct orch_site *site, bool on)
{
	struct orch_poke poke = {
		.addr = site->addr,
		.len = site->len,
		.emulate = site->emulate,
		.handler = site->handler,
	};

	memcpy(poke.from, on ? site->old : site->new, ORCH_MAX_LEN);
	memcpy(poke.to, on ? site->new : site->old, ORCH_MAX_LEN);
	return poke;
}

/**
 * orch_poke_site() - poke one of the module's own sites
 * @site: the site
 * @on: to its new bytes, else back to its old ones
 */
void orch_poke_site(const struct orch_site *site, bool on)
{
	struct orch_poke poke = orch_make_poke(site, on);

	orch_poke(&poke);
}

static void change(const struct orch_step *step, bool on)
{
	const struct orch_site *site = step->site;
	struct orch_poke poke = orch_make_poke(site, on);

	if (step->gated && step->how == ORCH_OWNER)
		open_window(&poke, true, site->to_old, site->to_new);
	else if (step->gated)
		open_window(&poke, true, site->target, NULL);
	if (step->how == ORCH_OWNER)
		site->set(on);
	else
		poke_text(&poke);
	if (step->gated)
		close_window();
}

/**
 * orch_bucket_begin() - the shortest duration in a bucket
 * @bucket: an index of struct orch_outcome's took
 *
 * Return: nanoseconds. The first bucket has what is shorter, too.
 */
u64 orch_bucket_begin(unsigned int bucket)
{
	return (u64)(4 + bucket % 4) << (bucket / 4);
}

/* The bucket of a duration: its highest set bit, and the two bits below that. */
static unsigned int bucket_of(u64 ns)
{
	unsigned int shift;

	ns = max_t(u64, ns, orch_bucket_begin(0));
	shift = fls64(ns) - 3;
	return min_t(unsigned int, 4 * shift + ((ns >> shift) & 3), ORCH_BUCKETS - 1);
}

static void timed_poke(const struct orch_step *step, bool on, struct orch_outcome *out)
{
	u64 start = orch_now(), ns;

	change(step, on);
	ns = orch_now() - start;
	out->pokes++;
	out->ns += ns;
	out->took[bucket_of(ns)]++;
	if (ns > out->ns_max)
		out->ns_max = ns;
}

/* One poke. Each of its phases 0 to 3 lasts until every CPU has been through the site. */
static void poke_gated(const struct orch_step *step, struct orch_outcome *out)
{
	bool on = !memcmp(step->site->addr, step->site->old, step->site->len);

	orch_gate_begin();
	if (!orch_gate_round(ORCH_PHASE_OLD))
		out->fault = "not every CPU got through the site before the poke";
	timed_poke(step, on, out);
	if (!orch_gate_round(ORCH_PHASE_NEW) && !out->fault)
		out->fault = "not every CPU got through the site after the poke";
	out->holds = orch_gate_holds();
}

struct job {
	const struct orch_step *step;
	struct orch_outcome *out;
	struct completion done;
	bool abort;
};

static struct task_struct *poker_task;
static struct job *poker_job;
static DECLARE_WAIT_QUEUE_HEAD(poker_wait);

/*
 * The poker outranks the hammer of the CPU that it runs on, so that hammer hardly
 * ever hits int3. Therefore the poker moves to the next CPU every so often.
 */
#define POKES_BEFORE_MOVE	16

/* How long to wait for a CPU to go offline and come back, as the host may be busy. */
#define ABSENCE_SECONDS		40

/* Pokes while a CPU was offline, and after it was back. */
struct absence {
	unsigned int cpus;
	unsigned int away, back;
};

static bool is_over(const struct orch_step *step, struct absence *seen)
{
	if (!step->offline || seen->cpus == 1 || !IS_ENABLED(CONFIG_HOTPLUG_CPU) ||
	    !IS_ENABLED(CONFIG_SYSFS))
		return true;
	if (num_online_cpus() < seen->cpus)
		seen->away++;
	else if (seen->away >= step->offline)
		seen->back++;
	return seen->back >= step->offline;
}

static void poke_free(const struct orch_step *step, struct orch_outcome *out, const bool *abort)
{
	unsigned long end = jiffies + msecs_to_jiffies(step->ms);
	unsigned long limit = end + ABSENCE_SECONDS * HZ;
	struct absence seen = { .cpus = num_online_cpus() };
	bool on = true, over = false;

	while (time_before(jiffies, end) || !on || !over) {
		if (time_after(jiffies, end) && !over)
			orch_sign_of_life(out->pokes);
		orch_cuts_next();
		orch_epoch_next();
		timed_poke(step, on, out);
		orch_epoch_next();
		on = !on;
		over = is_over(step, &seen) || over;
		if (!over && time_after(jiffies, limit)) {
			out->missed = "no CPU went offline and came back while the site was poked";
			over = true;
		}
		if (!step->offline && out->pokes % POKES_BEFORE_MOVE == 0)
			set_cpus_allowed_ptr(current,
					     cpumask_of(orch_next_cpu(raw_smp_processor_id())));
		if (READ_ONCE(*abort)) {
			end = jiffies;
			over = true;
		}
		if (step->gap_us)
			usleep_range(step->gap_us, step->gap_us + step->gap_us / 2);
		else if (num_online_cpus() == 1)	/* else the hammer never runs */
			usleep_range(200, 300);
	}
	orch_cuts_end();
}

/*
 * Where CPUs go offline the poker stays on the one that never does. PREEMPT_RT
 * warns (6.12, affine_move_task()) when a task is moved off a CPU that goes while
 * it holds a spinlock, which has nothing to do with text.
 */
static unsigned int cpu_for(const struct orch_step *step)
{
	return step->offline ? cpumask_first(cpu_online_mask) : step->cpu;
}

static void do_job(struct job *job)
{
	u64 start;

	set_cpus_allowed_ptr(current, cpumask_of(cpu_for(job->step)));
	start = orch_now();
	if (job->step->gated)
		poke_gated(job->step, job->out);
	else
		poke_free(job->step, job->out, &job->abort);
	job->out->elapsed_ns = orch_now() - start;
	complete(&job->done);
}

static int poker(void *unused)
{
	while (!kthread_should_stop()) {
		wait_event_interruptible(poker_wait, kthread_should_stop() || READ_ONCE(poker_job));
		/* xchg() is fully ordered. Pairs with smp_wmb() in orch_poke_run(). */
		if (READ_ONCE(poker_job))
			do_job(xchg(&poker_job, NULL));
	}
	return 0;
}

/**
 * orch_poker_start() - create the poker
 *
 * It has a real-time priority: otherwise it would share a CPU with a hammer, and
 * every poke would wait for its turn on that CPU.
 *
 * Return: 0 or a negative errno.
 */
int orch_poker_start(void)
{
	struct task_struct *task = kthread_create(poker, NULL, "orch_poker");

	if (IS_ERR(task))
		return PTR_ERR(task);
	orch_set_fifo(task);
	poker_task = task;
	wake_up_process(task);
	return 0;
}

/**
 * orch_poker_stop() - end the poker
 */
void orch_poker_stop(void)
{
	kthread_stop(poker_task);
}

/**
 * orch_poke_run() - have the poker and the hammers do one step
 * @step: what to do
 * @out: filled in
 *
 * The hammers' counters can be read afterwards.
 */
void orch_poke_run(const struct orch_step *step, struct orch_outcome *out)
{
	struct orch_hammer_spec spec = {
		.site = step->site,
		.gated = step->gated,
		.passes = step->passes,
		.burst = step->burst,
		.pause_us = step->pause_us,
	};
	struct job job = { .step = step, .out = out };

	memset(out, 0, sizeof(*out));
	init_completion(&job.done);
	orch_epoch_reset();
	out->error = orch_hammers_start(&spec);
	if (out->error)
		return;
	/* The job before its address. Pairs with xchg() in poker(). */
	smp_wmb();
	WRITE_ONCE(poker_job, &job);
	wake_up(&poker_wait);
	/*
	 * Interruptible, so that a long step is not reported as a hung task.
	 * After a signal the poker restores the old bytes and ends the step.
	 */
	if (wait_for_completion_interruptible(&job.done)) {
		WRITE_ONCE(job.abort, true);
		wait_for_completion(&job.done);
	}
	if (!step->gated)
		orch_hammers_stop();
}
