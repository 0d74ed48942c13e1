// SPDX-License-Identifier: GPL-2.0
/*
 * The module's report: KTAP version 1, with counters and other facts as
 * diagnostic lines. A diagnostic that begins with `key=value` is a list of
 * facts. Any other diagnostic is a sentence that says what went wrong. Reading
 * /dev/orchestrator returns the whole report. The console gets the KTAP lines
 * and the sentences, but not the facts.
 */
#include <linux/kernel.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/fs.h>
#include <linux/vmalloc.h>
#include "compat.h"
#include "orch.h"

#define LOG_SIZE	(1 << 20)

static DEFINE_SPINLOCK(lock);
struct orch_text orch_report;
static unsigned int results;

static __printf(2, 0) void append(bool console, const char *fmt, va_list args)
{
	unsigned long flags;
	size_t start;

	spin_lock_irqsave(&lock, flags);
	start = orch_report.used;
	orch_report.used += vscnprintf(orch_report.text + start, LOG_SIZE - start, fmt, args);
	if (console)
		printk(KERN_INFO "%s", orch_report.text + start);
	spin_unlock_irqrestore(&lock, flags);
}

/**
 * orch_note() - add facts to the report
 * @fmt: "# key=value key=value...\n"
 */
void orch_note(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	append(false, fmt, args);
	va_end(args);
}

static __printf(1, 2) void ktap(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	append(true, fmt, args);
	va_end(args);
}

/**
 * orch_vdiag() - add a sentence that says what went wrong
 * @fmt: the sentence, without full stop and newline
 * @args: its arguments
 */
void orch_vdiag(const char *fmt, va_list args)
{
	char sentence[200];

	vscnprintf(sentence, sizeof(sentence), fmt, args);
	ktap("# ! %s\n", sentence);
}

/**
 * orch_diag() - add a sentence that says what went wrong
 * @fmt: the sentence, without full stop and newline
 */
void orch_diag(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	orch_vdiag(fmt, args);
	va_end(args);
}

/**
 * orch_sign_of_life() - tell the host now and then that a long wait goes on
 * @sleeps: how often the caller has slept for 10 ms
 *
 * The host gives up on a guest from which it hears nothing for a minute
 * (SILENCE_SECONDS in orchestrator/machine/waiting.py).
 */
void orch_sign_of_life(unsigned int sleeps)
{
	if (sleeps % 500 == 0)
		printk(KERN_INFO "orchestrator: still waiting\n");
}

/**
 * orch_report_plan() - begin a new report
 * @steps: how many results it will have
 */
void orch_report_plan(unsigned int steps)
{
	orch_report.used = 0;
	results = 0;
	ktap("KTAP version 1\n");
	ktap("1..%u\n", steps);
}

/**
 * orch_report_number() - set the number of the next result
 * @number: from 1
 */
void orch_report_number(unsigned int number)
{
	results = number - 1;
}

/**
 * orch_report_next() - begin the next step
 *
 * Return: its number, from 1.
 */
unsigned int orch_report_next(void)
{
	orch_window.step = ++results;
	return results;
}

/**
 * orch_report_result() - report a step that was run to its end
 * @number: from orch_report_next()
 * @name: of the step
 * @ok: whether all that was promised holds
 */
void orch_report_result(unsigned int number, const char *name, bool ok)
{
	ktap("%s %u %s\n", ok ? "ok" : "not ok", number, name);
}

/**
 * orch_report_skip() - report a step that this kernel or machine lacks something for
 * @number: from orch_report_next()
 * @name: of the step
 * @why: what is lacking
 */
void orch_report_skip(unsigned int number, const char *name, const char *why)
{
	ktap("ok %u %s # SKIP %s\n", number, name, why);
}

/**
 * orch_report_error() - report a step that could not be done this time
 * @number: from orch_report_next()
 * @name: of the step
 * @why: what did not work
 *
 * Says nothing about the kernel, and is no pass either.
 */
void orch_report_error(unsigned int number, const char *name, const char *why)
{
	ktap("not ok %u %s # ERROR %s\n", number, name, why);
}

ssize_t orch_report_read(char __user *buf, size_t size, loff_t *pos)
{
	return simple_read_from_buffer(buf, size, pos, orch_report.text, orch_report.used);
}

int orch_report_init(void)
{
	orch_report.text = vmalloc(LOG_SIZE);
	return orch_report.text ? 0 : -ENOMEM;
}

void orch_report_exit(void)
{
	vfree(orch_report.text);
}
