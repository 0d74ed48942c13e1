// SPDX-License-Identifier: GPL-2.0
/*
 * title: foreign int3 during pokes
 * promise: >-
 *   The poke handler consumes the int3 of the site that is poked and no other: not one right before
 *   or right after it, nor one that remains at the site of an earlier poke. Each of these is
 *   delivered exactly once.
 * order: 230
 */
#include <linux/delay.h>
#include <linux/kdebug.h>
#include <linux/kernel.h>
#include <linux/notifier.h>
#include <linux/ptrace.h>
#include <linux/slab.h>
#include <linux/string.h>
#if __has_include(<linux/objtool.h>)
#include <linux/objtool.h>
#endif
#include "compat.h"
#include "scenario.h"

/*
 * What the functions below return: from behind the site, the target of the new
 * jump, or the pad, which is the int3 target. None of them has a stack frame, so
 * each may end where another one should.
 */
enum way { BEHIND, NEW, PAD };

asm(".pushsection .text, \"ax\"\n"
    ".balign 64\n"
    ".globl orch_foreign_alone\n"
    ".type orch_foreign_alone, @function\n"
    "orch_foreign_alone:\n\t"
    "xorl %eax, %eax\n"
    ".globl orch_foreign_alone_int3\n"
    "orch_foreign_alone_int3:\n\t"
    "int3\n\t"
    "ret\n"
    ".size orch_foreign_alone, . - orch_foreign_alone\n"

    ".globl orch_foreign_stays\n"
    ".type orch_foreign_stays, @function\n"
    "orch_foreign_stays:\n\t"
    "xorl %eax, %eax\n"
    ".globl orch_foreign_stays_int3\n"
    "orch_foreign_stays_int3:\n\t"
    "nop\n\t"
    "ret\n"
    ".size orch_foreign_stays, . - orch_foreign_stays\n"

    ".globl orch_foreign_behind\n"
    ".type orch_foreign_behind, @function\n"
    "orch_foreign_behind:\n\t"
    "xorl %eax, %eax\n\t"
    "jmp orch_foreign_behind_int3\n"
    ".size orch_foreign_behind, . - orch_foreign_behind\n"

    ".globl orch_foreign_before\n"
    ".type orch_foreign_before, @function\n"
    "orch_foreign_before:\n\t"
    "xorl %eax, %eax\n"
    ".globl orch_foreign_before_int3\n"
    "orch_foreign_before_int3:\n\t"
    "int3\n"
    ".globl orch_foreign_site\n"
    "orch_foreign_site:\n\t"
    ".byte 0x0f, 0x1f, 0x44, 0x00, 0x00\n"
    ".globl orch_foreign_behind_int3\n"
    "orch_foreign_behind_int3:\n\t"
    "int3\n\t"
    "ret\n"
    ".globl orch_foreign_new\n"
    "orch_foreign_new:\n\t"
    "movl $1, %eax\n\t"
    "ret\n"
    ".globl orch_foreign_pad\n"
    "orch_foreign_pad:\n\t"
    "movl $2, %eax\n\t"
    "ret\n\t"
    "int3\n"
    ".size orch_foreign_before, . - orch_foreign_before\n"
    ".popsection\n");

asmlinkage enum way orch_foreign_alone(void);
asmlinkage enum way orch_foreign_stays(void);
asmlinkage enum way orch_foreign_behind(void);
asmlinkage enum way orch_foreign_before(void);
extern u8 orch_foreign_alone_int3[], orch_foreign_stays_int3[];
extern u8 orch_foreign_behind_int3[], orch_foreign_before_int3[];
extern u8 orch_foreign_site[], orch_foreign_new[], orch_foreign_pad[];

/* For an objtool that checks the linked module and so ignores OBJECT_FILES_NON_STANDARD. */
#ifdef STACK_FRAME_NON_STANDARD
STACK_FRAME_NON_STANDARD(orch_foreign_alone);
STACK_FRAME_NON_STANDARD(orch_foreign_stays);
STACK_FRAME_NON_STANDARD(orch_foreign_behind);
STACK_FRAME_NON_STANDARD(orch_foreign_before);
#endif

enum which { ALONE, STAYS, BEFORE, BEHIND_IT, INT3S };

static const char *const names[] = {
	"far from the site", "where an earlier poke was",
	"right before the site", "right behind the site",
};
static const u8 *const int3s[] = {
	orch_foreign_alone_int3, orch_foreign_stays_int3,
	orch_foreign_before_int3, orch_foreign_behind_int3,
};

/**
 * struct count - what became of the int3 of one CPU
 * @executed: how many it executed
 * @delivered: how often the die notifier was called for them
 * @taken: how often the CPU was sent to the int3 target instead
 */
struct count {
	u64 executed[INT3S];
	u64 delivered[INT3S];
	u64 taken[INT3S];
};

static struct count *counts;	/* nr_cpu_ids elements */
static bool stop;

static int notify(struct notifier_block *self, unsigned long event, void *data)
{
	struct die_args *args = data;
	int i;

	if (event != DIE_INT3 || !args->regs || user_mode(args->regs))
		return NOTIFY_DONE;
	for (i = 0; i < INT3S; i++)
		if (args->regs->ip == (unsigned long)int3s[i] + 1) {
			counts[raw_smp_processor_id()].delivered[i]++;
			return NOTIFY_STOP;
		}
	return NOTIFY_DONE;
}

static struct notifier_block notifier = { .notifier_call = notify };

/* By direct calls: an indirect call needs an ENDBR, which the functions do not have. */
static enum way execute(enum which which)
{
	struct count *count = &counts[raw_smp_processor_id()];
	enum way way = BEHIND;

	switch (which) {
	case ALONE:
		way = orch_foreign_alone();
		break;
	case STAYS:
		way = orch_foreign_stays();
		break;
	case BEFORE:
		way = orch_foreign_before();
		/* It went on to the site, and possibly to the int3 behind it. */
		if (way == BEHIND)
			count->executed[BEHIND_IT]++;
		break;
	default:
		way = orch_foreign_behind();
	}
	count->executed[which]++;
	if (which != BEFORE && way != BEHIND)
		count->taken[which]++;
	return way;
}

static void compare(struct orch_run *run, int cpu, const char *when)
{
	const struct count *count = &counts[cpu];
	int i;

	for (i = 0; i < INT3S; i++) {
		orch_expect(run, count->delivered[i] == count->executed[i],
			    "%s CPU %d executed %llu int3 %s, and %llu were delivered", when, cpu,
			    count->executed[i], names[i], count->delivered[i]);
		orch_expect(run, !count->taken[i],
			    "%s %llu int3 %s sent CPU %d to the int3 target of the poke", when,
			    count->taken[i], names[i], cpu);
	}
}

/* --- pokes of the site between two foreign int3 */

static struct orch_poke poke_near(bool on)
{
	static u8 emulate[5];
	struct orch_poke poke = {
		.addr = orch_foreign_site,
		.len = 5,
		.emulate = emulate,
		.handler = orch_foreign_pad,
	};
	static const u8 nop[] = { 0x0f, 0x1f, 0x44, 0x00, 0x00 };

	orch_jump_to(emulate, 5, poke.addr, orch_foreign_pad);
	memcpy(on ? poke.from : poke.to, nop, sizeof(nop));
	orch_jump_to(on ? poke.to : poke.from, 5, poke.addr, orch_foreign_new);
	return poke;
}

static void in_phase(struct orch_run *run, enum orch_phase phase, void *arg)
{
	bool on = *(bool *)arg;
	enum way way, expected = phase != ORCH_PHASE_NEW ? PAD : on ? NEW : BEHIND;
	char when[40];
	int i, which;

	scnprintf(when, sizeof(when), "in phase %d of a poke", phase);
	for (i = 0; i < 4; i++)
		for (which = 0; which < INT3S; which++) {
			way = execute(which);
			if (which == BEFORE)
				orch_expect(run, way == expected,
					    "%s CPU %d did not go the way of the site", when,
					    raw_smp_processor_id());
		}
	compare(run, raw_smp_processor_id(), when);
}

static bool hold_one_way(struct orch_run *run, int cpu, bool on)
{
	struct orch_poke poke = poke_near(on);

	return orch_poke_held(run, &poke, cpu, in_phase, &on);
}

static bool hold_on_each_cpu(struct orch_run *run)
{
	int cpu;

	for_each_online_cpu(cpu)
		if (!hold_one_way(run, cpu, true) || !hold_one_way(run, cpu, false))
			return false;
	return true;
}

/* --- an int3 that a poke leaves behind */

/*
 * No CPU executes orch_foreign_stays() while it is poked, so what is emulated does
 * not matter; all kernels know int3. Afterwards the int3 is like any other, but
 * at the very address that was poked last.
 */
static void leave_int3(bool there)
{
	static const u8 int3 = 0xcc;
	struct orch_poke poke = {
		.addr = orch_foreign_stays_int3,
		.len = 1,
		.from = { there ? 0x90 : 0xcc },
		.to = { there ? 0xcc : 0x90 },
		.emulate = &int3,
		.handler = orch_foreign_pad,
	};

	orch_poke(&poke);
}

static int stays(struct orch_run *run, int cpu, void *arg)
{
	execute(STAYS);
	compare(run, cpu, "with no poke under way");
	return 0;
}

/* --- free-running */

static int hammer(struct orch_run *run, int cpu, void *arg)
{
	int i;

	while (!READ_ONCE(stop)) {
		for (i = 0; i < 2 * INT3S; i++)
			execute(i % INT3S);
		usleep_range(200, 300);
	}
	return 0;
}

static void poke_free(struct orch_run *run)
{
	const struct orch_site *other = orch_site("nop5");
	struct orch_workers *workers;
	struct orch_poke poke;
	bool on = true;

	WRITE_ONCE(stop, false);
	workers = orch_workers_start(run, cpu_online_mask, hammer, NULL);
	do {
		poke = poke_near(on);
		orch_poke(&poke);
		orch_poke_site(other, on);
		on = !on;
		usleep_range(100, 150);
	} while (orch_time_left(run) || !on);
	WRITE_ONCE(stop, true);
	orch_workers_join(workers);
}

static void put_back(void)
{
	struct orch_poke off = poke_near(false);

	if (!memcmp(off.addr, off.from, off.len))
		orch_poke(&off);
	leave_int3(false);
}

ORCH_SCENARIO(int3_foreign)
{
	u64 executed = 0;
	int cpu, i;

	if (ORCH_EMULATES && (!orch_emulates("int3") || !orch_emulates("jmp32")))
		return orch_skip(run, "this kernel does not emulate JMP, or does not poke int3");
	counts = kcalloc(nr_cpu_ids, sizeof(*counts), GFP_KERNEL);
	if (!counts)
		return orch_miss(run, "the guest is out of memory");
	register_die_notifier(&notifier);
	leave_int3(true);
	orch_parallel(run, cpu_online_mask, stays, NULL);
	/* A single CPU cannot hold itself in a phase. There it is all left to chance. */
	if (num_online_cpus() == 1 || hold_on_each_cpu(run))
		poke_free(run);
	put_back();
	unregister_die_notifier(&notifier);
	for_each_online_cpu(cpu) {
		compare(run, cpu, "during pokes");
		for (i = 0; i < INT3S; i++)
			executed += counts[cpu].executed[i];
	}
	orch_note("# foreign_int3=%llu\n", executed);
	kfree(counts);
}
