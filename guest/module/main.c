// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/orchestrator: each line written to it runs one step and returns when the
 * step is done; reading it gives the results so far, as KTAP with the counters
 * as diagnostic lines. KTAP's own lines go to the console, too.
 *
 *	plan N
 *	step site=nop5 how=direct gated=1 cpu=0 passes=2
 *	step site=key how=key ms=500 burst=64 pause=200 gap=100
 */
#include <linux/errno.h>
#include <linux/fs.h>
#include <linux/kernel.h>
#include <linux/math64.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include "compat.h"
#include "orch.h"

#define LOG_SIZE	(1 << 20)

static DEFINE_MUTEX(lock);
static char *log;
static size_t log_used;
static unsigned int steps;

static __printf(1, 0) void append(const char *fmt, va_list args)
{
	log_used += vscnprintf(log + log_used, LOG_SIZE - log_used, fmt, args);
}

static __printf(1, 2) void note(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	append(fmt, args);
	va_end(args);
}

/* A line of KTAP itself: for the console as well. */
static __printf(1, 2) void ktap(const char *fmt, ...)
{
	size_t start = log_used;
	va_list args;

	va_start(args, fmt);
	append(fmt, args);
	va_end(args);
	printk(KERN_INFO "%s", log + start);
}

struct total {
	u64 count[ORCH_PHASES][ORCH_RESULTS];
	u64 stale;
};

static void add_cpu(int number, const struct orch_cpu *cpu, struct total *total)
{
	int phase, result;

	for (phase = 0; phase < ORCH_PHASES; phase++) {
		const u64 *count = cpu->count[phase];
		u64 passes = 0;

		for (result = 0; result < ORCH_RESULTS; result++) {
			passes += count[result];
			total->count[phase][result] += count[result];
		}
		if (passes)
			note("# cpu=%d phase=%s old=%llu new=%llu int3=%llu torn=%llu\n", number,
			     phase == ORCH_FREE ? "free" : (char[]) { '0' + phase, 0 },
			     count[ORCH_OLD], count[ORCH_NEW], count[ORCH_INT3], count[ORCH_TORN]);
	}
	total->stale += cpu->stale;
	if (cpu->stale)
		note("# cpu=%d stale=%llu\n", number, cpu->stale);
}

static u64 others(const u64 *count, enum orch_result allowed)
{
	return count[ORCH_OLD] + count[ORCH_NEW] + count[ORCH_INT3] + count[ORCH_TORN] -
	       count[allowed];
}

/* The guest's own assertions: NULL, or what does not hold. */
static const char *judge(const struct orch_step *step, const struct orch_outcome *out,
			 const struct total *total, bool on)
{
	enum orch_result from = on ? ORCH_OLD : ORCH_NEW, to = on ? ORCH_NEW : ORCH_OLD;
	int phase;

	if (out->error)
		return "the step could not be run";
	if (out->what)
		return out->what;
	for (phase = 0; phase < ORCH_PHASES; phase++)
		if (total->count[phase][ORCH_TORN])
			return "a CPU executed a torn instruction";
	if (!cpumask_empty(&orch_gate_stuck))
		return "a CPU did not come through the site while the poker was held";
	if (total->stale)
		return "a CPU executed other bytes than those last written";
	if (!step->gated)
		return NULL;
	if (others(total->count[ORCH_PHASE_OLD], from))
		return "before the poke a CPU did not execute the old bytes";
	if (others(total->count[ORCH_PHASE_NEW], to))
		return "after the poke a CPU did not execute the new bytes";
	if (step->how == ORCH_DIRECT && (others(total->count[ORCH_PHASE_INT3], ORCH_INT3) ||
					 others(total->count[ORCH_PHASE_TAIL], ORCH_INT3)))
		return "while int3 was in place a CPU did not go to the int3 target";
	return NULL;
}

static const char *const how_names[] = { [ORCH_DIRECT] = "direct", [ORCH_KEY] = "key" };

/*
 * Where a CPU that met int3 may go on. When the kernel's own code chose, that is
 * behind the site or where its branch leads.
 */
static void note_targets(const struct orch_step *step)
{
	const struct orch_site *site = step->site;
	unsigned long end = (unsigned long)site->addr + site->len;
	s32 disp;

	if (step->how == ORCH_DIRECT) {
		note("# targets=%lx\n", (unsigned long)site->target);
		return;
	}
	disp = site->len == 2 ? (s8)site->new[1] : *(const s32 *)(site->new + 1);
	note("# targets=%lx,%lx\n", end, end + disp);
}

static void run_step(const struct orch_step *step)
{
	const struct orch_site *site = step->site;
	bool on = site->len && !memcmp(site->addr, site->old, site->len);
	char name[64];
	struct orch_outcome out;
	struct total total = { };
	const char *fault;
	int cpu;

	scnprintf(name, sizeof(name), "%s.%s.%s", site->name, how_names[step->how],
		  !step->gated ? "free" : on ? "on" : "off");
	steps++;
	if (!site->len) {
		ktap("ok %u %s # SKIP %s\n", steps, name, site->why_not);
		return;
	}
	orch_gate_begin();
	orch_poke_run(step, &out);
	note("# step=%u name=%s seq=%llu\n", steps, name, orch_window.seq);
	note("# addr=%lx len=%u poker=%d pokes=%llu holds=%llu error=%d\n",
	     (unsigned long)site->addr, site->len, step->cpu, out.pokes, out.holds, out.error);
	note_targets(step);
	note("# elapsed_ns=%llu poke_ns=%llu poke_ns_max=%llu\n", out.elapsed_ns, out.ns, out.ns_max);
	for (cpu = 0; cpu < nr_cpu_ids; cpu++)
		if (cpu_online(cpu) && orch_hammer(cpu))
			add_cpu(cpu, orch_hammer(cpu), &total);
	fault = judge(step, &out, &total, on);
	orch_hammers_free();
	if (fault)
		ktap("# %s\n", fault);
	ktap("%s %u %s\n", fault ? "not ok" : "ok", steps, name);
}

static const struct orch_site *find_site(const char *name)
{
	int i;

	for (i = 0; i < ORCH_SITES; i++)
		if (!strcmp(orch_sites[i].name, name))
			return &orch_sites[i];
	return NULL;
}

static int parse_word(char *word, struct orch_step *step)
{
	char *value = strchr(word, '=');
	unsigned int number = 0;

	if (!value)
		return -EINVAL;
	*value++ = '\0';
	if (!strcmp(word, "site")) {
		step->site = find_site(value);
		return step->site ? 0 : -ENOENT;
	}
	if (!strcmp(word, "how")) {
		if (strcmp(value, "direct") && strcmp(value, "key"))
			return -EINVAL;
		step->how = !strcmp(value, "key") ? ORCH_KEY : ORCH_DIRECT;
		return 0;
	}
	if (kstrtouint(value, 10, &number))
		return -EINVAL;
	if (!strcmp(word, "gated"))
		step->gated = number;
	else if (!strcmp(word, "cpu"))
		step->cpu = number;
	else if (!strcmp(word, "ms"))
		step->ms = number;
	else if (!strcmp(word, "gap"))
		step->gap_us = number;
	else if (!strcmp(word, "passes"))
		step->passes = number;
	else if (!strcmp(word, "burst"))
		step->burst = number;
	else if (!strcmp(word, "pause"))
		step->pause_us = number;
	else
		return -EINVAL;
	return 0;
}

static int do_line(char *line)
{
	struct orch_step step = { .ms = 500, .passes = 2, .burst = 64, .pause_us = 200 };
	char *word = strsep(&line, " ");
	unsigned int plan;
	int error;

	if (!strcmp(word, "plan")) {
		if (!line || kstrtouint(line, 10, &plan))
			return -EINVAL;
		log_used = 0;
		steps = 0;
		ktap("KTAP version 1\n");
		ktap("1..%u\n", plan);
		return 0;
	}
	if (strcmp(word, "step"))
		return -EINVAL;
	while ((word = strsep(&line, " "))) {
		if (!*word)
			continue;
		error = parse_word(word, &step);
		if (error)
			return error;
	}
	if (!step.site || (step.how == ORCH_KEY && strcmp(step.site->name, "key")))
		return -EINVAL;
	if (step.cpu < 0 || step.cpu >= nr_cpu_ids || !cpu_online(step.cpu))
		return -ENXIO;
	run_step(&step);
	return 0;
}

static ssize_t orch_write(struct file *file, const char __user *buf, size_t size, loff_t *pos)
{
	char line[256];
	int error;

	if (size >= sizeof(line))
		return -EINVAL;
	if (copy_from_user(line, buf, size))
		return -EFAULT;
	line[size] = '\0';
	mutex_lock(&lock);
	error = do_line(strim(line));
	mutex_unlock(&lock);
	return error ? error : size;
}

static ssize_t orch_read(struct file *file, char __user *buf, size_t size, loff_t *pos)
{
	return simple_read_from_buffer(buf, size, pos, log, log_used);
}

static const struct file_operations orch_fops = {
	.owner = THIS_MODULE,
	.read = orch_read,
	.write = orch_write,
};

static struct miscdevice orch_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "orchestrator",
	.fops = &orch_fops,
};

static int __init orch_init(void)
{
	int error;

	log = vmalloc(LOG_SIZE);
	if (!log)
		return -ENOMEM;
	orch_sites_init();
	error = misc_register(&orch_device);
	if (error)
		vfree(log);
	return error;
}

static void __exit orch_exit(void)
{
	misc_deregister(&orch_device);
	vfree(log);
}

module_init(orch_init);
module_exit(orch_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Sites, hammers and a poker for testing live instruction patching");
