// SPDX-License-Identifier: GPL-2.0
/*
 * title: a batch that is not in order, and one that overflows
 * promise: >-
 *   A batch may be queued in any order of addresses, with single pokes in between, and of any length: each site ends
 *   with its new bytes, and each int3 of it is taken.
 * order: 320
 * symbols: [text_poke_queue, text_poke_finish, smp_text_poke_batch_add, smp_text_poke_batch_finish]
 */
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/irqflags.h>
#include <linux/mutex.h>
#include <linux/string.h>
#include "compat.h"
#include "scenario.h"

/* More than a batch has room for: TP_VEC_MAX, TEXT_POKE_ARRAY_MAX are 256. */
#define SITES	260
#define SPACING	16
/* Looks at memory, of 1 us and more each. */
#define A_WHILE	300
#define TRIES	20

/*
 * A function of @SITES jumps of five bytes, each to the next: a pass goes
 * through all of them, whichever of them are NOPs meanwhile.
 */
extern u8 orch_queue_sites[];
void orch_queue_pass(void);

asm(".pushsection .text, \"ax\"\n"
    ".balign 64\n"
    ".globl orch_queue_pass\n"
    ".type orch_queue_pass, @function\n"
    "orch_queue_pass:\n"
    ".globl orch_queue_sites\n"
    "orch_queue_sites:\n"
    ".rept 260\n\t"
    ".byte 0xe9\n\t"
    ".long 11\n\t"			/* over the filling, to the next */
    ".skip 11, 0x90\n"
    ".endr\n\t"
    "ret\n\t"
    "int3\n"
    ".size orch_queue_pass, . - orch_queue_pass\n"
    ".popsection\n");

/*
 * The jump is also what a CPU that meets the int3 is to do, whatever is poked:
 * to skip a NOP is to come to the same site. (Before 5.13 a kernel takes only
 * the one NOP of five bytes that it has chosen for this CPU, else BUG().)
 */
static const u8 jump[5] = { 0xe9, 11, 0, 0, 0 };
static const u8 nop[5] = { 0x0f, 0x1f, 0x44, 0x00, 0x00 };

typedef void (*queue_t)(void *addr, const void *opcode, size_t len, const void *emulate);
typedef void (*finish_t)(void);

static queue_t queue;
static queue_t single;
static finish_t finish;
static bool hammering;
/* The first that is written of those to be poked. */
static u8 *first;
/* How often a CPU went through with all of them in place. */
static unsigned int met;

static u8 *site(unsigned int i)
{
	return orch_queue_sites + i * SPACING;
}

/*
 * With interrupts off this CPU holds up the round that comes after the int3. So
 * when the first of them is there it has but to wait for the others, and meets
 * them all.
 */
static void pass_in_round(void)
{
	unsigned int spins;

	local_irq_disable();
	for (spins = 0; spins < A_WHILE && READ_ONCE(*READ_ONCE(first)) != 0xcc; spins++)
		cpu_relax();
	if (spins < A_WHILE) {
		for (spins = 0; spins < A_WHILE; spins++)
			cpu_relax();
		WRITE_ONCE(met, met + 1);
	}
	orch_queue_pass();
	local_irq_enable();
}

static int hammer(struct orch_run *run, int cpu, void *arg)
{
	while (READ_ONCE(hammering)) {
		if (cpu == cpumask_first(cpu_online_mask))
			pass_in_round();
		else
			orch_queue_pass();
		usleep_range(20, 50);
	}
	return 0;
}

static void expect_all(struct orch_run *run, const u8 *bytes, unsigned int from, unsigned int to,
		       const char *what)
{
	unsigned int i;

	for (i = from; i < to; i++)
		if (!orch_expect(run, !memcmp(site(i), bytes, 5), "%s: site %u holds %5ph and not %5ph",
				 what, i, site(i), bytes))
			return;
}

/* The high address waits in the queue while a low one is poked: 2aebf5ee43bf. */
static void high_then_low(struct orch_run *run, struct mutex *lock, const u8 *to)
{
	WRITE_ONCE(first, site(200));
	mutex_lock(lock);
	queue(site(200), to, 5, jump);
	single(site(10), to, 5, jump);
	finish();
	mutex_unlock(lock);
	expect_all(run, to, 200, 201, "queued before a poke below it");
	expect_all(run, to, 10, 11, "poked below one that is queued");
}

static void descending(struct orch_run *run, struct mutex *lock, const u8 *to)
{
	int i;

	WRITE_ONCE(first, site(40));
	mutex_lock(lock);
	for (i = 40; i > 30; i--)
		queue(site(i), to, 5, jump);
	finish();
	mutex_unlock(lock);
	expect_all(run, to, 31, 41, "queued from high to low");
}

static void overflowing(struct orch_run *run, struct mutex *lock, const u8 *to)
{
	int i;

	WRITE_ONCE(first, site(0));
	mutex_lock(lock);
	for (i = 0; i < SITES; i++)
		queue(site(i), to, 5, jump);
	finish();
	mutex_unlock(lock);
	expect_all(run, to, 0, SITES, "one batch and more");
}

/* There and back, until a CPU was there in time. */
static void until_met(struct orch_run *run, struct mutex *lock,
		      void (*poke)(struct orch_run *run, struct mutex *lock, const u8 *to))
{
	unsigned int before = READ_ONCE(met), tries;

	for (tries = 0; tries < TRIES && READ_ONCE(met) == before; tries++) {
		poke(run, lock, nop);
		poke(run, lock, jump);
	}
}

ORCH_SCENARIO(queue_order)
{
	struct mutex *lock = (struct mutex *)orch_symbol("text_mutex");
	struct orch_workers *hammers;

	queue = (queue_t)(orch_symbol("smp_text_poke_batch_add") ?: orch_symbol("text_poke_queue"));
	finish = (finish_t)(orch_symbol("smp_text_poke_batch_finish") ?: orch_symbol("text_poke_finish"));
	single = (queue_t)(orch_symbol("smp_text_poke_single") ?: orch_symbol("text_poke_bp"));
	if (!queue || !finish)
		return orch_skip(run, "this kernel pokes one site at a time and has no queue");

	hammering = true;
	first = site(0);
	hammers = orch_workers_start(run, cpu_online_mask, hammer, NULL);
	do {
		until_met(run, lock, high_then_low);
		until_met(run, lock, descending);
		until_met(run, lock, overflowing);
	} while (orch_go_on(run));
	WRITE_ONCE(hammering, false);
	orch_workers_join(hammers);
}
