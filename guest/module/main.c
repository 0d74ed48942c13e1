// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/orchestrator takes commands, which are separated by newlines or
 * semicolons. Each runs one step or one scenario in code. The write returns when
 * all are done. Reading returns the report so far.
 *
 *	plan N
 *	number 7
 *	emulates jmp32,call,nop5
 *	cuts 7
 *	tick 4000
 *	step site=nop5 how=direct gated=1 cpu=0 passes=2
 *	step site=key how=owner ms=500 burst=64 pause=200 gap=100
 *	scenario emulation ms=200 cpu=1 seed=7
 *	skip boot-keys.free the kernel ignores its command line
 *
 * "plan" begins a new report of N results. "number" sets the number of the next
 * one, where another guest reports those before it.
 * "cuts" has the seed of a schedule for all steps that follow, "tick" the period
 * of a timer in us, see cuts.c for both.
 * "emulates" has the parameter of that name for a module that is loaded. The
 * options of a step are the fields of struct orch_step (gap and pause in us),
 * those of a scenario the fields of struct orch_run, and seed, which fixes its
 * random choices. "skip" reports a step for which the host knows that the kernel
 * or machine lacks something.
 */
#include <linux/errno.h>
#include <linux/fs.h>
#include <linux/kernel.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include "compat.h"
#include "orch.h"
#include "scenario.h"

/* Commands are run one at a time. */
static DEFINE_MUTEX(lock);

/* A parsed command: a step, or a scenario in code. */
struct command {
	struct orch_step step;
	struct orch_run run;
	const char *scenario;
};

static int parse_option(char *option, struct command *command)
{
	struct orch_step *step = &command->step;
	char *value = strchr(option, '=');
	unsigned int number = 0;

	if (!value)
		return -EINVAL;
	*value++ = '\0';
	if (!strcmp(option, "site")) {
		step->site = orch_site(value);
		return step->site ? 0 : -ENOENT;
	}
	if (!strcmp(option, "how")) {
		if (strcmp(value, "direct") && strcmp(value, "owner"))
			return -EINVAL;
		step->how = !strcmp(value, "owner") ? ORCH_OWNER : ORCH_DIRECT;
		return 0;
	}
	if (kstrtouint(value, 10, &number))
		return -EINVAL;
	if (!strcmp(option, "gated"))
		step->gated = number;
	else if (!strcmp(option, "cpu"))
		step->cpu = command->run.cpu = number;
	else if (!strcmp(option, "ms"))
		step->ms = command->run.ms = number;
	else if (!strcmp(option, "offline"))
		step->offline = number;
	else if (!strcmp(option, "gap"))
		step->gap_us = number;
	else if (!strcmp(option, "passes"))
		step->passes = number;
	else if (!strcmp(option, "burst"))
		step->burst = number;
	else if (!strcmp(option, "pause"))
		step->pause_us = number;
	else if (!strcmp(option, "seed"))
		command->run.rng = number;
	else if (!strcmp(option, "watched"))
		command->run.watched = number;
	else
		return -EINVAL;
	return 0;
}

static int run_command(char *line)
{
	struct command command = {
		.step = { .ms = 500, .passes = 2, .burst = 64, .pause_us = 200 },
		.run = { .ms = 100 },
	};
	struct orch_step *step = &command.step;
	char *verb = strsep(&line, " "), *option, *name;
	bool scenario = !strcmp(verb, "scenario");
	unsigned int number;
	int error;

	if (!strcmp(verb, "plan")) {
		if (!line || kstrtouint(line, 10, &number))
			return -EINVAL;
		orch_report_plan(number);
		return 0;
	}
	if (!strcmp(verb, "number")) {
		if (!line || kstrtouint(line, 10, &number) || !number)
			return -EINVAL;
		orch_report_number(number);
		return 0;
	}
	if (!strcmp(verb, "cuts"))
		return !line || kstrtouint(line, 10, &number) ? -EINVAL : orch_cuts_set(number);
	if (!strcmp(verb, "tick")) {
		if (!line || kstrtouint(line, 10, &number) || number > 1000000)
			return -EINVAL;
		orch_tick_set(number);
		return 0;
	}
	if (!strcmp(verb, "emulates"))
		return orch_set_emulates(line ? line : "");
	if (!strcmp(verb, "skip")) {
		name = strsep(&line, " ");
		if (!name || !line)
			return -EINVAL;
		orch_report_skip(orch_report_next(), name, line);
		return 0;
	}
	if (scenario)
		command.scenario = strsep(&line, " ");
	else if (strcmp(verb, "step"))
		return -EINVAL;
	while ((option = strsep(&line, " "))) {
		if (!*option)
			continue;
		error = parse_option(option, &command);
		if (error)
			return error;
	}
	if (step->cpu < 0 || step->cpu >= nr_cpu_ids || !cpu_online(step->cpu))
		return -ENXIO;
	if (scenario)
		return command.scenario ? orch_scenario_run(command.scenario, &command.run) :
					  -EINVAL;
	if (!step->site || (step->how == ORCH_OWNER && step->site->len && !step->site->set))
		return -EINVAL;
	orch_step_run(step);
	return 0;
}

#define MAX_WRITE	16384

static ssize_t orch_write(struct file *file, const char __user *buf, size_t size, loff_t *pos)
{
	char *lines, *rest, *line;
	int error = 0;

	if (size > MAX_WRITE)
		return -EINVAL;
	lines = rest = kmalloc(size + 1, GFP_KERNEL);
	if (!lines)
		return -ENOMEM;
	if (copy_from_user(lines, buf, size)) {
		kfree(lines);
		return -EFAULT;
	}
	lines[size] = '\0';
	mutex_lock(&lock);
	while (!error && !signal_pending(current) && (line = strsep(&rest, ";\n"))) {
		line = strim(line);
		if (*line)
			error = run_command(line);
	}
	mutex_unlock(&lock);
	kfree(lines);
	return error ? error : size;
}

static ssize_t orch_read(struct file *file, char __user *buf, size_t size, loff_t *pos)
{
	return orch_report_read(buf, size, pos);
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
	int error = orch_report_init();

	if (error)
		return error;
	orch_sites_init();
	error = orch_poker_start();
	if (error)
		goto report;
	error = orch_plan_init();
	if (error)
		goto poker;
	error = misc_register(&orch_device);
	if (error)
		goto plan;
	return 0;

plan:
	orch_plan_exit();
poker:
	orch_poker_stop();
report:
	orch_report_exit();
	return error;
}

static void __exit orch_exit(void)
{
	misc_deregister(&orch_device);
	orch_plan_exit();
	orch_hammers_free();
	orch_poker_stop();
	orch_cuts_exit();
	orch_report_exit();
}

module_init(orch_init);
module_exit(orch_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Sites, hammers and a poker for testing live instruction patching");
