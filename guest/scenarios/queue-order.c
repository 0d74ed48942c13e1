// SPDX-License-Identifier: GPL-2.0
/*
 * title: batches out of order, and batches that overflow
 * promise: >-
 *   A batch may be queued in any order of addresses, with single pokes in between, and may be of
 *   any length: each site ends up with its new bytes, and every int3 on the way is consumed.
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

/* More than a batch holds: TP_VEC_MAX and TEXT_POKE_ARRAY_MAX are 256. */
#define SITES	260
#define SPACING	16
/* How often to look at memory, at 1 us or more each. */
#define SPINS	300
#define TRIES	20
/* How often to do it all again for the sake of a hit. */
#define ROUNDS	40

/*
 * A function of SITES jumps of five bytes, each to the next one. A pass executes
 * all of them, no matter which of them are NOPs at the moment.
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
    ".long 11\n\t"			/* over the padding, to the next */
    ".skip 11, 0x90\n"
    ".endr\n\t"
    "ret\n\t"
    "int3\n"
    ".size orch_queue_pass, . - orch_queue_pass\n"
    ".popsection\n");

/*
 * The jump is also what is emulated at int3, even when a site becomes a NOP: both
 * lead to the next site. (Before 5.13 a kernel can emulate only the NOP of five
 * bytes that it has chosen for this CPU, and has a BUG() for any other.)
 */
static const u8 jump[5] = { 0xe9, 11, 0, 0, 0 };
static const u8 nop[5] = { 0x0f, 0x1f, 0x44, 0x00, 0x00 };

typedef void (*queue_t)(void *addr, const void *opcode, size_t len, const void *emulate);
typedef void (*finish_t)(void);

static queue_t queue;
static queue_t single;
static finish_t finish;
static bool hammering;
/* The site of a batch that is written first. */
static u8 *first;
/* How often a CPU executed all sites while each of a batch had its int3. */
static unsigned int hits;

static u8 *site(unsigned int i)
{
	return orch_queue_sites + i * SPACING;
}

/*
 * With interrupts off this CPU delays the sync round that follows the int3. So
 * once the first int3 is there, it only has to wait for the others and will hit
 * all of them.
 */
static void pass_in_round(void)
{
	unsigned int spins;

	local_irq_disable();
	for (spins = 0; spins < SPINS && READ_ONCE(*READ_ONCE(first)) != 0xcc; spins++)
		cpu_relax();
	if (spins < SPINS) {
		for (spins = 0; spins < SPINS; spins++)
			cpu_relax();
		WRITE_ONCE(hits, hits + 1);
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
		if (!orch_expect(run, !memcmp(site(i), bytes, 5),
				 "%s: site %u holds %5ph and not %5ph", what, i, site(i), bytes))
			return;
}

/* A high address is in the queue while a low one is poked: 2aebf5ee43bf. */
static void high_then_low(struct orch_run *run, struct mutex *lock, const u8 *to)
{
	WRITE_ONCE(first, site(200));
	mutex_lock(lock);
	queue(site(200), to, 5, jump);
	single(site(10), to, 5, jump);
	finish();
	mutex_unlock(lock);
	expect_all(run, to, 200, 201, "queued before a poke at a lower address");
	expect_all(run, to, 10, 11, "poked while a higher address is queued");
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
	expect_all(run, to, 0, SITES, "more than one batch");
}

/* Poke there and back until a CPU has hit all int3. Returns whether one did. */
static bool poke_until_hit(struct orch_run *run, struct mutex *lock,
			   void (*poke)(struct orch_run *run, struct mutex *lock, const u8 *to))
{
	unsigned int before = READ_ONCE(hits), tries;

	for (tries = 0; tries < TRIES && READ_ONCE(hits) == before; tries++) {
		poke(run, lock, nop);
		poke(run, lock, jump);
	}
	return READ_ONCE(hits) != before;
}

ORCH_SCENARIO(queue_order)
{
	struct mutex *lock = (struct mutex *)orch_symbol("text_mutex");
	bool hit[3] = { }, all;
	struct orch_workers *hammers;
	unsigned int rounds = 0;

	queue = (queue_t)(orch_symbol("smp_text_poke_batch_add") ?:
			  orch_symbol("text_poke_queue"));
	finish = (finish_t)(orch_symbol("smp_text_poke_batch_finish") ?:
			    orch_symbol("text_poke_finish"));
	single = (queue_t)(orch_symbol("smp_text_poke_single") ?: orch_symbol("text_poke_bp"));
	if (!queue || !finish)
		return orch_skip(run, "this kernel pokes one site at a time and has no queue");

	hammering = true;
	first = site(0);
	hammers = orch_workers_start(run, cpu_online_mask, hammer, NULL);
	do {
		hit[0] |= poke_until_hit(run, lock, high_then_low);
		hit[1] |= poke_until_hit(run, lock, descending);
		hit[2] |= poke_until_hit(run, lock, overflowing);
		/* The only CPU of a guest is busy poking. */
		all = num_online_cpus() == 1 || (hit[0] && hit[1] && hit[2]);
	} while (orch_time_left(run) || (!all && ++rounds < ROUNDS));
	WRITE_ONCE(hammering, false);
	orch_workers_join(hammers);
	orch_note("# hits=%u more_rounds=%u\n", hits, rounds);
	if (!all)
		orch_miss(run, "no CPU was there while each site of a batch had its int3");
}
