// SPDX-License-Identifier: GPL-2.0
/*
 * insmod provoke.ko how=FAULT makes the kernel report FAULT on its console.
 * The logs in tests/unit/klog/ were made with it. Loading succeeds with
 * `how=warn` and `how=none`; most other faults end the guest.
 */
#include <linux/delay.h>
#include <linux/err.h>
#include <linux/gfp.h>
#include <linux/init.h>
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/refcount.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/spinlock.h>
#include <linux/string.h>

static char *how = "none";
module_param(how, charp, 0);

static int cpu;
module_param(cpu, int, 0);
MODULE_PARM_DESC(cpu, "CPU for the faults that block a thread or a CPU");

static DEFINE_SPINLOCK(lock);
static DEFINE_MUTEX(first);
static DEFINE_MUTEX(second);
static refcount_t references;

static noinline int overflow(int depth)
{
	volatile char space[512];

	memset((char *)space, depth, sizeof(space));
	return depth < 0 ? 0 : overflow(depth + 1) + space[depth % sizeof(space)];
}

static void oops_everywhere(void *unused)
{
	*(volatile int *)NULL = 0;
}

/* Ask for 4 MiB after the other, until one request fails. */
static void exhaust(void)
{
	static unsigned long blocks[1024];
	int i;

	for (i = 0; i < ARRAY_SIZE(blocks); i++) {
		blocks[i] = __get_free_pages(GFP_KERNEL | __GFP_NORETRY, 10);
		if (!blocks[i])
			break;
	}
	while (i--)
		free_pages(blocks[i], 10);
}

static int sleep_forever(void *unused)
{
	set_current_state(TASK_UNINTERRUPTIBLE);
	schedule();
	return 0;
}

static int spin_forever(void *unused)
{
	preempt_disable();
	for (;;)
		cpu_relax();
	return 0;
}

static int spin_without_interrupts(void *unused)
{
	local_irq_disable();
	for (;;)
		cpu_relax();
	return 0;
}

static void start(int (*function)(void *))
{
	struct task_struct *task = kthread_create(function, NULL, "provoke");

	if (!IS_ERR(task)) {
		kthread_bind(task, cpu);
		wake_up_process(task);
	}
}

static int __init provoke(void)
{
	volatile char *bytes;

	if (!strcmp(how, "warn")) {
		WARN(1, "provoked by %s\n", __func__);
	} else if (!strcmp(how, "bug")) {
		BUG();
	} else if (!strcmp(how, "null")) {
		*(volatile int *)NULL = 0;
	} else if (!strcmp(how, "gpf")) {
		*(volatile int *)0xdead000000000000UL = 0;
	} else if (!strcmp(how, "int3")) {
		asm volatile("int3");
	} else if (!strcmp(how, "ud")) {
		asm volatile(".byte 0x0f, 0xff");
	} else if (!strcmp(how, "divide")) {
		asm volatile("xor %%ecx, %%ecx; div %%ecx" : : : "eax", "ecx", "edx");
	} else if (!strcmp(how, "doublefault")) {
		return overflow(0);
	} else if (!strcmp(how, "everywhere")) {
		on_each_cpu(oops_everywhere, NULL, 0);
	} else if (!strcmp(how, "panic")) {
		panic("provoked by %s", __func__);
	} else if (!strcmp(how, "atomic")) {
		spin_lock(&lock);
		msleep(10);
		spin_unlock(&lock);
	} else if (!strcmp(how, "hung")) {
		start(sleep_forever);
	} else if (!strcmp(how, "softlockup")) {
		start(spin_forever);
	} else if (!strcmp(how, "irqsoff")) {
		start(spin_without_interrupts);
	} else if (!strcmp(how, "lockdep")) {
		mutex_lock(&first);
		mutex_lock(&second);
		mutex_unlock(&second);
		mutex_unlock(&first);
		mutex_lock(&second);
		mutex_lock(&first);
		mutex_unlock(&first);
		mutex_unlock(&second);
	} else if (!strcmp(how, "refcount")) {
		refcount_set(&references, 0);
		refcount_dec(&references);
	} else if (!strcmp(how, "slub")) {
		bytes = kmalloc(64, GFP_KERNEL);
		bytes[64] = 1;
		kfree((void *)bytes);
	} else if (!strcmp(how, "allocation")) {
		exhaust();
	} else if (!strcmp(how, "kasan")) {
		bytes = kmalloc(100, GFP_KERNEL);
		bytes[100] = 1;
		kfree((void *)bytes);
	} else if (strcmp(how, "none")) {
		return -EINVAL;
	}
	return 0;
}

static void __exit done(void)
{
}

module_init(provoke);
module_exit(done);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Provokes one fault report");
