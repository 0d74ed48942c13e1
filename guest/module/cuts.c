// SPDX-License-Identifier: GPL-2.0
/*
 * Seeded schedules. Under QEMU with icount one thread runs all CPUs, in turn,
 * and a CPU's turn ends when it waits, or when the soonest timer of the machine
 * is due, whether or not that makes an interrupt. Without more, CPUs take turns
 * where they wait for each other, and hardly anywhere else.
 *
 * So a timer of the HPET runs with its interrupt off, and with another period
 * for each poke. It cuts turns anywhere, with interrupts off and in the int3
 * handler as well, and nobody in the guest notices. All choices follow from the
 * seed that the plan gives. Without a seed, or without HPET, nothing changes.
 *
 * The same timer, with a fixed period, keeps the guest's clock from leaping far
 * where GDB stops CPUs, see orch_tick_set().
 */
#include <linux/delay.h>
#include <linux/errno.h>
#include <linux/io.h>
#include <linux/kernel.h>
#include "compat.h"
#include "orch.h"

/* IA-PC HPET Specification 1.0a. QEMU's HPET is where every PC has it. */
#define BASE		0xfed00000
#define SIZE		0x400
#define ID		0x000
#define   VENDOR(id)	((id) >> 16)
#define   TIMERS(id)	(((id) >> 8 & 31) + 1)
#define CONFIG		0x010
#define   ENABLE	1
#define COUNTER		0x0f0
#define TIMER		2	/* the kernel uses 0, and has another use for 1 and 2 only with MSI */
#define TIMER_CONFIG	(0x100 + 0x20 * TIMER)
#define   INTERRUPT	(1 << 2)
#define   PERIODIC	(1 << 3)
#define   SET_VALUE	(1 << 6)
#define   IS_32_BIT	(1 << 8)
#define COMPARATOR	(TIMER_CONFIG + 8)
#define TICKS_A_US	100

/*
 * Periods in ticks of 10 ns. The CPUs share a period, and an instruction takes
 * 32 ns of the guest's time: turns have some 20 to 2,000 instructions.
 */
#define SHORTEST	200
#define DOUBLINGS	7

static void __iomem *hpet;
static u64 seed, starts;
static struct orch_dice dice;

/**
 * orch_dice_throw() - a random number
 * @one: from orch_dice()
 * @below: the number is less
 *
 * Return: the number; 0 if schedules are not seeded.
 */
u32 orch_dice_throw(struct orch_dice *one, u32 below)
{
	if (!seed || !below)
		return 0;
	one->state ^= one->state >> 12;
	one->state ^= one->state << 25;
	one->state ^= one->state >> 27;
	return (u32)((one->state * 0x2545f4914f6cdd1dULL) >> 32) % below;
}

/**
 * orch_dice() - random numbers of their own for a thread
 *
 * They must not depend on which thread is faster.
 *
 * Return: to be passed to orch_dice_throw().
 */
struct orch_dice orch_dice(void)
{
	return (struct orch_dice) { (seed ^ ++starts * 0x9e3779b97f4a7c15ULL) | 1 };
}

static void timer_off(void)
{
	if (hpet)
		writel(readl(hpet + TIMER_CONFIG) & ~PERIODIC, hpet + TIMER_CONFIG);
}

/* Let the timer expire after @first ticks, and then each @period ticks. */
static void timer_on(u32 first, u32 period)
{
	writel(PERIODIC | SET_VALUE | IS_32_BIT, hpet + TIMER_CONFIG);
	writel(readl(hpet + COUNTER) + first, hpet + COMPARATOR);
	writel(period, hpet + COMPARATOR);
}

/* Take the timer of which nobody else makes use. */
static int take_timer(void)
{
	u32 id;

	if (!hpet)
		hpet = ioremap(BASE, SIZE);
	if (!hpet)
		return -ENOMEM;
	id = readl(hpet + ID);
	if (VENDOR(id) != 0x8086 || TIMERS(id) <= TIMER || readl(hpet + TIMER_CONFIG) & INTERRUPT)
		return -ENODEV;
	writel(readl(hpet + CONFIG) | ENABLE, hpet + CONFIG);
	return 0;
}

/**
 * orch_cuts_set() - choose a schedule
 * @number: the seed; 0 for none
 *
 * Return: 0, or -ENODEV if the machine has no such timer.
 */
int orch_cuts_set(unsigned int number)
{
	int error;

	seed = number * 0x9e3779b97f4a7c15ULL;
	starts = 0;
	dice = orch_dice();
	timer_off();
	if (!number)
		return 0;
	error = take_timer();
	if (error)
		seed = 0;
	return error;
}

/**
 * orch_tick_set() - have the timer expire regularly
 * @us: its period; 0 for never
 *
 * QEMU counts a CPU that GDB has stopped as idle. If all others are, too, the
 * clock leaps to the next timer. Where the CPU was about to set the kernel's next
 * one, that can be a day away, and the kernel finds that nothing made progress.
 * A machine without such a timer does without.
 */
void orch_tick_set(unsigned int us)
{
	timer_off();
	if (us && !take_timer())
		timer_on(us * TICKS_A_US, us * TICKS_A_US);
}

/**
 * orch_cuts_next() - wait for a random time, and cut turns in another way
 *
 * Before each poke.
 */
void orch_cuts_next(void)
{
	u32 period, shortest;

	if (!seed)
		return;
	shortest = SHORTEST << orch_dice_throw(&dice, DOUBLINGS);
	period = shortest + orch_dice_throw(&dice, shortest);
	timer_on(orch_dice_throw(&dice, period), period);
	ndelay(orch_dice_throw(&dice, 8000));
}

/**
 * orch_cuts_end() - the last poke of a step is over
 *
 * While all CPUs are idle the timer would cost time of the host and do nothing.
 */
void orch_cuts_end(void)
{
	if (seed)
		timer_off();
}

/**
 * orch_cuts_exit() - the module is unloaded
 */
void orch_cuts_exit(void)
{
	timer_off();
	if (hpet)
		iounmap(hpet);
}
