// SPDX-License-Identifier: GPL-2.0
/*
 * What the module has to say: KTAP version 1, with counters and other facts as
 * diagnostic lines. A diagnostic that begins with `key=value` is a list of
 * facts, any other a sentence on what does not hold. Reading /dev/orchestrator
 * gives all of it; KTAP's own lines and the sentences go to the console, too.
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
static char *log;
static size_t log_used;
static unsigned int results;

static __printf(2, 0) void append(bool console, const char *fmt, va_list args)
{
	unsigned long flags;
	size_t start;

	spin_lock_irqsave(&lock, flags);
	start = log_used;
	log_used += vscnprintf(log + log_used, LOG_SIZE - log_used, fmt, args);
	if (console)
		printk(KERN_INFO "%s", log + start);
	spin_unlock_irqrestore(&lock, flags);
}

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

void orch_say(const char *fmt, va_list args)
{
	char sentence[200];

	vscnprintf(sentence, sizeof(sentence), fmt, args);
	ktap("# %s\n", sentence);
}

void orch_sentence(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	orch_say(fmt, args);
	va_end(args);
}

void orch_plan(unsigned int steps)
{
	log_used = 0;
	results = 0;
	ktap("KTAP version 1\n");
	ktap("1..%u\n", steps);
}

unsigned int orch_next_result(void)
{
	orch_window.step = ++results;
	return results;
}

void orch_result(unsigned int number, const char *name, bool ok, const char *skip)
{
	if (ok && skip)
		ktap("ok %u %s # SKIP %s\n", number, name, skip);
	else
		ktap("%s %u %s\n", ok ? "ok" : "not ok", number, name);
}

ssize_t orch_report_read(char __user *buf, size_t size, loff_t *pos)
{
	return simple_read_from_buffer(buf, size, pos, log, log_used);
}

int orch_report_init(void)
{
	log = vmalloc(LOG_SIZE);
	return log ? 0 : -ENOMEM;
}

void orch_report_exit(void)
{
	vfree(log);
}
