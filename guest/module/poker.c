// SPDX-License-Identifier: GPL-2.0
/*
 * The poker: a thread on one CPU at a time that changes the site.
 */
#include <linux/completion.h>
#include <linux/cpu.h>
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/jiffies.h>
#include <linux/kthread.h>
#include <linux/ktime.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/string.h>
#include "compat.h"
#include "orch.h"

/*
 * No kernel exports these to modules. The host finds them in /proc/kallsyms and
 * gives them when it loads us.
 */
static ulong text_poke;
module_param(text_poke, ulong, 0400);
MODULE_PARM_DESC(text_poke, "address of text_poke_bp() or smp_text_poke_single()");
static ulong text_mutex_at;
module_param_named(text_mutex, text_mutex_at, ulong, 0400);
MODULE_PARM_DESC(text_mutex, "address of text_mutex");

#if defined(ORCH_SMP_TEXT_POKE) || defined(ORCH_EMULATE)
typedef void (*poke_t)(void *addr, const void *opcode, size_t len, const void *emulate);
#define TARGET(site)	((site)->emulate)
#else
typedef void *(*poke_t)(void *addr, const void *opcode, size_t len, void *handler);
#define TARGET(site)	((site)->handler)
#endif

struct orch_window orch_window;

static void poke(const struct orch_site *site, enum orch_how how, bool on)
{
	struct mutex *mutex = (struct mutex *)text_mutex_at;

	if (how == ORCH_KEY) {
		orch_key_set(on);
		return;
	}
	mutex_lock(mutex);
	((poke_t)text_poke)(site->addr, on ? site->new : site->old, site->len, TARGET(site));
	mutex_unlock(mutex);
}

static void open_window(const struct orch_step *step, bool on)
{
	const struct orch_site *site = step->site;

	orch_window.len = site->len;
	orch_window.gated = step->gated;
	orch_window.seq++;
	orch_window.task = (u64)(unsigned long)current;
	memcpy(orch_window.from, on ? site->old : site->new, ORCH_MAX_LEN);
	memcpy(orch_window.to, on ? site->new : site->old, ORCH_MAX_LEN);
	smp_wmb();
	WRITE_ONCE(orch_window.site, (u64)(unsigned long)site->addr);
}

static void close_window(void)
{
	WRITE_ONCE(orch_window.site, 0);
}

static void timed_poke(const struct orch_step *step, bool on, struct orch_outcome *out)
{
	u64 start = ktime_to_ns(ktime_get()), ns;

	poke(step->site, step->how, on);
	ns = ktime_to_ns(ktime_get()) - start;
	out->pokes++;
	out->ns += ns;
	if (ns > out->ns_max)
		out->ns_max = ns;
}

/* Both ways once: phases 0 to 3 of each are held until every CPU was there. */
static void poke_gated(const struct orch_step *step, struct orch_outcome *out)
{
	bool on = !memcmp(step->site->addr, step->site->old, step->site->len);

	orch_gate_begin();
	if (!orch_gate_round(ORCH_PHASE_OLD))
		out->what = "not every CPU came through the site before the poke";
	open_window(step, on);
	timed_poke(step, on, out);
	close_window();
	if (!orch_gate_round(ORCH_PHASE_NEW) && !out->what)
		out->what = "not every CPU came through the site after the poke";
	out->holds = orch_gate_holds();
}

struct job {
	const struct orch_step *step;
	struct orch_outcome *out;
	struct completion done;
	bool abort;
};

/*
 * The poker outranks the hammer of the CPU it is on, which therefore hardly
 * meets an int3: so it moves on now and then.
 */
#define POKES_BEFORE_MOVE	16

static void move_on(void)
{
	int cpu = cpumask_next(raw_smp_processor_id(), cpu_online_mask);

	if (cpu >= nr_cpu_ids)
		cpu = cpumask_first(cpu_online_mask);
	set_cpus_allowed_ptr(current, cpumask_of(cpu));
}

static void poke_free(const struct orch_step *step, struct orch_outcome *out, const bool *abort)
{
	unsigned long end = jiffies + msecs_to_jiffies(step->ms);
	bool on = true;

	while (time_before(jiffies, end) || !on) {
		orch_epoch_next();
		timed_poke(step, on, out);
		orch_epoch_next();
		on = !on;
		if (out->pokes % POKES_BEFORE_MOVE == 0)
			move_on();
		if (READ_ONCE(*abort))
			end = jiffies;
		if (step->gap_us)
			usleep_range(step->gap_us, step->gap_us + step->gap_us / 2);
	}
}

static int poker(void *data)
{
	struct job *job = data;
	u64 start;

	set_cpus_allowed_ptr(current, cpumask_of(job->step->cpu));
	start = ktime_to_ns(ktime_get());
	if (job->step->gated)
		poke_gated(job->step, job->out);
	else
		poke_free(job->step, job->out, &job->abort);
	job->out->elapsed_ns = ktime_to_ns(ktime_get()) - start;
	complete(&job->done);
	while (!kthread_should_stop()) {
		set_current_state(TASK_INTERRUPTIBLE);
		if (!kthread_should_stop())
			schedule();
		__set_current_state(TASK_RUNNING);
	}
	return 0;
}

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
	struct task_struct *task;

	memset(out, 0, sizeof(*out));
	init_completion(&job.done);
	orch_epoch_reset();
	out->error = orch_hammers_start(&spec);
	if (out->error)
		return;
	task = kthread_create(poker, &job, "orch_poker/%d", step->cpu);
	if (IS_ERR(task)) {
		out->error = PTR_ERR(task);
	} else {
		/*
		 * Before the hammers: with them it would share a CPU, and every
		 * sync round waits for it.
		 */
		orch_set_fifo(task);
		wake_up_process(task);
		/*
		 * Interruptible, since a long step is not a hung task. After a
		 * signal the poker puts the old bytes back and ends.
		 */
		if (wait_for_completion_interruptible(&job.done)) {
			WRITE_ONCE(job.abort, true);
			wait_for_completion(&job.done);
		}
		kthread_stop(task);
	}
	orch_hammers_stop();
}
