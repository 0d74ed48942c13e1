// SPDX-License-Identifier: GPL-2.0
/*
 * /dev/orchestrator-plan: what is written to it the host reads from the memory of
 * the guest. Reading it waits for a plan from the host, and returns it. QEMU hands
 * it over in its firmware configuration device (fw_cfg), under the name
 * opt/orchestrator/plan. What that device holds is no part of a snapshot: a guest
 * that was saved while it waits finds the plan of the QEMU that it is restored in.
 * So a plan arrives without an interrupt or a byte on a serial line, and always at
 * the same instruction.
 */
#include <linux/delay.h>
#include <linux/errno.h>
#include <linux/fs.h>
#include <linux/io.h>
#include <linux/kernel.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>
#include <asm/byteorder.h>
#include "compat.h"
#include "orch.h"

#define NAME		"opt/orchestrator/plan"
/* What it holds while there is no plan. */
#define NO_PLAN		'-'
/* Longest plan. */
#define PLAN_SIZE	(64 << 10)
/* Longest letter. */
#define LETTER_SIZE	(1 << 20)
/* The guest's time between two looks. An idle guest skips it. */
#define PAUSE_US	1000
/* So many looks later, what was written to the console before is there. */
#define SETTLED		50
/*
 * A NOP at which QEMU's plugin lets the host save the guest (holds() in
 * orchestrator/watch/in_qemu/plugin.c), so that it is the same instruction each
 * time. By the second one, which is in another translated block, the plugin
 * knows that the guest went on.
 */
#define NOP(name)	".byte 0x0f, 0x1f, 0x84, 0x00; .ascii \"" name "\""
#define HOLD		NOP("hold") "; jmp 1f; 1: " NOP("left")

/* docs/specs/fw_cfg.rst in QEMU's sources */
#define SELECTOR	0x510
#define DATA		0x511
#define SIGNATURE	0x00
#define DIRECTORY	0x19
#define MAX_FILES	1024

struct entry {
	__be32 size;
	__be16 key;
	u16 reserved;
	char name[56];
};

static void read_bytes(void *to, size_t size)
{
	u8 *byte = to;

	while (size--)
		*byte++ = inb(DATA);
}

static void seek(u16 key)
{
	outw(key, SELECTOR);
}

/* The number under which the plan is found, 0 if there is no such device or name. */
static u16 find_key(void)
{
	struct entry entry;
	char signature[4];
	__be32 count;
	u32 i;

	seek(SIGNATURE);
	read_bytes(signature, sizeof(signature));
	if (memcmp(signature, "QEMU", sizeof(signature)))
		return 0;
	seek(DIRECTORY);
	read_bytes(&count, sizeof(count));
	for (i = 0; i < be32_to_cpu(count) && i < MAX_FILES; i++) {
		read_bytes(&entry, sizeof(entry));
		if (!strncmp(entry.name, NAME, sizeof(entry.name)))
			return be16_to_cpu(entry.key);
	}
	return 0;
}

/*
 * A snapshot may be taken at any moment, so nothing of the old content may be
 * kept: the key is the same in every QEMU with the same options, but not the
 * size. Behind its end a file reads as zeros.
 */
static char first_byte(u16 key)
{
	seek(key);
	return inb(DATA);
}

static ssize_t plan_read(struct file *file, char __user *buf, size_t size, loff_t *pos)
{
	unsigned int looks = 0;
	ssize_t result;
	size_t used;
	char *plan;
	u16 key;

	if (*pos)	/* all that fits was returned at once */
		return 0;
	if (size < PLAN_SIZE)
		return -EINVAL;
	key = find_key();
	if (!key)
		return -ENODEV;
	plan = kzalloc(PLAN_SIZE, GFP_KERNEL);
	if (!plan)
		return -ENOMEM;
	while (first_byte(key) == NO_PLAN && !signal_pending(current)) {
		if (looks++ >= SETTLED)
			asm volatile(HOLD);
		usleep_range(PAUSE_US, PAUSE_US);
	}
	seek(key);
	for (used = 0; used < PLAN_SIZE; used++) {
		plan[used] = inb(DATA);
		if (!plan[used])
			break;
	}
	if (used == PLAN_SIZE)
		result = -E2BIG;
	else if (signal_pending(current))
		result = -EINTR;
	else
		result = simple_read_from_buffer(buf, size, pos, plan, used);
	kfree(plan);
	return result;
}

/* The kernel has this name in its symbol table; orchestrator/branch.py has the layout. */
struct orch_text orch_letter;

static ssize_t plan_write(struct file *file, const char __user *buf, size_t size, loff_t *pos)
{
	if (!orch_letter.text)
		orch_letter.text = vmalloc(LETTER_SIZE);
	if (!orch_letter.text)
		return -ENOMEM;
	if (size > LETTER_SIZE - orch_letter.used)
		return -ENOSPC;
	if (copy_from_user(orch_letter.text + orch_letter.used, buf, size))
		return -EFAULT;
	orch_letter.used += size;
	return size;
}

static const struct file_operations plan_fops = {
	.owner = THIS_MODULE,
	.read = plan_read,
	.write = plan_write,
};

static struct miscdevice plan_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "orchestrator-plan",
	.fops = &plan_fops,
};

/**
 * orch_plan_init() - create /dev/orchestrator-plan
 *
 * Return: 0 or a negative errno.
 */
int orch_plan_init(void)
{
	return misc_register(&plan_device);
}

/**
 * orch_plan_exit() - remove it
 */
void orch_plan_exit(void)
{
	misc_deregister(&plan_device);
	vfree(orch_letter.text);
}
