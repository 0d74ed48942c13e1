// SPDX-License-Identifier: GPL-2.0
/*
 * title: a site in threads, softirqs, hard interrupts and NMIs
 * promise: >-
 *   In every context, an NMI in the midst of the poke handler included, a CPU goes through the site as its phase
 *   demands, and with no poke under way by the bytes last written.
 * order: 250
 * weight: 2
 * nmi: 50
 * append: [apic_extnmi=all]
 * symbols: [__smp_call_function_single]
 */
#include <linux/delay.h>
#include <linux/hardirq.h>
#include <linux/interrupt.h>
#include <linux/jiffies.h>
#include <linux/kernel.h>
#include <linux/ptrace.h>
#include <linux/slab.h>
#include <linux/smp.h>
#include <linux/string.h>
#include <asm/nmi.h>
#include <asm/tsc.h>
#include "compat.h"
#include "scenario.h"

#ifdef ORCH_CALL_ASYNC
#define call_async(cpu, call)	smp_call_function_single_async(cpu, call)
#else				/* before 3.15, and not for modules before 3.12 */
typedef void (*call_t)(int cpu, struct call_single_data *call, int wait);
#define call_async(cpu, call)	((call_t)orch_symbol("__smp_call_function_single"))(cpu, call, 0)
#endif
#ifndef ORCH_CALL_SINGLE_DATA	/* before 4.14 */
typedef struct call_single_data call_single_data_t;
#endif

/* Until the first NMI, in which the host may have other things to do. */
#define SECONDS		10
/* How long a poke is held for what has not come yet: a good part of a second. */
#define HELD_CYCLES	1000000000
#define HELD_PASSES	1000000
/* How often again. */
#define ROUNDS		5

enum context { THREAD, SOFTIRQ, HARDIRQ, NMI, CONTEXTS };

static const char *const contexts[] = { "a thread", "a softirq", "a hard interrupt", "an NMI" };

/**
 * struct place - one CPU
 * @count: passes by context and how they went
 * @stale: passes with no poke under way that did not go by the bytes last written
 * @held: passes while a poke was held, by phase, and @lost those that did not go to the int3 target
 * @inside: NMIs that came while this CPU was between int3 and its target
 */
struct place {
	u64 count[CONTEXTS][ORCH_RESULTS];
	u64 stale[CONTEXTS];
	u64 held[CONTEXTS][ORCH_PHASES];
	u64 lost[CONTEXTS][ORCH_PHASES];
	u64 inside[ORCH_PHASES];
	call_single_data_t call;
	bool called;
	struct tasklet_struct tasklet;
};

static struct place *places;	/* nr_cpu_ids of them */
static const struct orch_site *site;
static u64 epoch;		/* as in hammer.c */
static unsigned int hold;	/* even: none; else bits 1 and 2 are the phase */
static int holder = -1;		/* a CPU that does nothing but go through the site */
static bool stop;

static struct place *here(void)
{
	return &places[raw_smp_processor_id()];
}

/* By what the kernel says: a timer's function may run in one or the other. */
static enum context context(void)
{
	if (in_nmi())
		return NMI;
	if (hardirq_count())
		return HARDIRQ;
	return in_serving_softirq() ? SOFTIRQ : THREAD;
}

/* This CPU may not have synced yet, and what it has fetched may be of before the int3. */
static void serialize_cpu(void)
{
	unsigned int a = 0, b, c = 0, d;

	asm volatile("cpuid" : "+a" (a), "=b" (b), "+c" (c), "=d" (d) : : "memory");
}

static void pass(void)
{
	enum context in = context();
	struct place *place = here();
	unsigned int held = READ_ONCE(hold);
	enum orch_result result;
	u64 before, after;

	if (held & 1)
		serialize_cpu();
	before = READ_ONCE(epoch);
	result = READ_ONCE(site)->pass();
	after = READ_ONCE(epoch);
	place->count[in][result]++;
	if ((held & 1) && held == READ_ONCE(hold)) {
		place->held[in][held >> 1 & 3]++;
		if (result != ORCH_INT3)
			place->lost[in][held >> 1 & 3]++;
	}
	if (before == after && !(before & 1) && result != (before & 2 ? ORCH_NEW : ORCH_OLD))
		place->stale[in]++;
}

static void epoch_next(void)
{
	smp_mb();
	WRITE_ONCE(epoch, epoch + 1);
	smp_mb();
}

/* --- what brings a CPU into each context */

static int on_nmi(unsigned int type, struct pt_regs *regs)
{
	unsigned int held = READ_ONCE(hold);

	/* The holder is in the module, or in what int3 leads to. */
	if ((held & 1) && READ_ONCE(holder) == raw_smp_processor_id() && !user_mode(regs) &&
	    regs->ip < MODULES_VADDR)
		here()->inside[held >> 1 & 3]++;
	pass();
	return NMI_HANDLED;
}

static void on_softirq(unsigned long unused)
{
	pass();
}

/*
 * With PREEMPT_RT softirqs are run by threads, and what other CPUs call must
 * raise none (kernel/softirq.c, do_softirq_post_smp_call_flush()).
 */
static bool comes(enum context in)
{
	return in != SOFTIRQ || !IS_ENABLED(CONFIG_PREEMPT_RT);
}

static void on_interrupt(void *data)
{
	struct place *place = data;

	pass();
	if (comes(SOFTIRQ))
		tasklet_schedule(&place->tasklet);
	smp_mb();
	WRITE_ONCE(place->called, false);
}

/* By a call from another CPU: no clock is too coarse for it. Interrupts may be off. */
static void interrupt_cpu(int cpu)
{
	struct place *place = &places[cpu];

	if (!xchg(&place->called, true))
		call_async(cpu, &place->call);
}

static void init_place(struct place *place)
{
	tasklet_init(&place->tasklet, on_softirq, 0);
	place->call.func = on_interrupt;
	place->call.info = place;
}

static int quiet(struct orch_run *run, int cpu, void *arg)
{
	while (READ_ONCE(places[cpu].called))
		cond_resched();
	tasklet_kill(&places[cpu].tasklet);
	return 0;
}

/* --- while a poke is held */

/* The first CPU that was not in that context in this phase, or -1. */
static int missing(enum context in, enum orch_phase phase)
{
	int cpu;

	if (!comes(in))
		return -1;
	for_each_online_cpu(cpu)
		if (!READ_ONCE(places[cpu].held[in][phase]))
			return cpu;
	return -1;
}

/* An NMI in the handler of a CPU: in one phase on every other, for it takes its time to come. */
static bool lacks_inside(int cpu, enum orch_phase phase)
{
	return (cpu + phase) % 2 && !READ_ONCE(places[cpu].inside[phase]);
}

/* All but the holder can be interrupted, so what they lack is worth waiting for. */
static bool covered(int cpu, enum orch_phase phase)
{
	int other;

	if (lacks_inside(cpu, phase))
		return false;
	for_each_online_cpu(other) {
		const struct place *place = &places[other];

		if (!READ_ONCE(place->held[NMI][phase]))
			return false;
		if (other != cpu && !READ_ONCE(place->held[HARDIRQ][phase]))
			return false;
		if (other != cpu && comes(SOFTIRQ) && !READ_ONCE(place->held[SOFTIRQ][phase]))
			return false;
	}
	return true;
}

/* Going through the site without end the holder is nearly always in the int3's handler. */
static void in_phase(struct orch_run *run, enum orch_phase phase, void *arg)
{
	int other, cpu = raw_smp_processor_id();
	cycles_t begin = get_cycles();
	unsigned int passes = 0;

	if (phase == ORCH_PHASE_NEW)
		return;
	WRITE_ONCE(holder, cpu);
	smp_mb();
	WRITE_ONCE(hold, (hold & ~7) + 8 + phase * 2 + 1);
	for_each_online_cpu(other)
		if (other != cpu)
			interrupt_cpu(other);
	do {
		pass();
		if (++passes % 32 == 0)
			cpu_relax();	/* an emulator goes to the next CPU */
	} while (!covered(cpu, phase) && passes < HELD_PASSES &&
		 get_cycles() - begin < HELD_CYCLES);
	WRITE_ONCE(hold, hold & ~1);
	smp_mb();
	WRITE_ONCE(holder, -1);
}

static bool hold_both_ways(struct orch_run *run, int cpu)
{
	struct orch_poke poke;
	bool on, kept = true;

	for (on = true; kept; on = false) {
		poke = orch_poke_of(site, on);
		epoch_next();
		kept = orch_poke_held(run, &poke, cpu, in_phase, NULL);
		epoch_next();
		if (!on)
			break;
	}
	if (!kept && !memcmp(site->addr, site->new, site->len))
		orch_poke_site(site, false);
	return kept;
}

static int uncovered(enum context *in, enum orch_phase *phase)
{
	int cpu;

	for (*phase = ORCH_PHASE_INT3; *phase <= ORCH_PHASE_TAIL; ++*phase) {
		for (*in = SOFTIRQ; *in < CONTEXTS; ++*in) {
			cpu = missing(*in, *phase);
			if (cpu >= 0)
				return cpu;
		}
		for_each_online_cpu(cpu)
			if (lacks_inside(cpu, *phase))
				return cpu;
	}
	return -1;
}

static bool held(struct orch_run *run)
{
	static const char *const names[] = { "nop5", "jmp32", "page", "call" };
	enum orch_phase phase;
	enum context in;
	int cpu, round, i = 0;

	for (round = 0; round < ROUNDS; round++) {
		for_each_online_cpu(cpu) {
			WRITE_ONCE(site, orch_site(names[i++ % ARRAY_SIZE(names)]));
			if (!hold_both_ways(run, cpu))
				return false;
		}
		if (uncovered(&in, &phase) < 0)
			return true;
	}
	cpu = uncovered(&in, &phase);
	orch_skip(run, "%s did not come to CPU %d while a poke was held in phase %d",
		  in < CONTEXTS ? contexts[in] : "an NMI in the int3 handler", cpu, phase);
	return true;
}

/* --- free */

static int hammer(struct orch_run *run, int cpu, void *arg)
{
	int i, next = cpumask_next(cpu, cpu_online_mask);

	if (next >= nr_cpu_ids)
		next = cpumask_first(cpu_online_mask);
	while (!READ_ONCE(stop)) {
		if (next != cpu)
			interrupt_cpu(next);
		for (i = 0; i < 16; i++)
			pass();
		usleep_range(300, 400);
	}
	return 0;
}

static void poke_free(struct orch_run *run)
{
	static const char *const names[] = {
		"nop5", "jmp32", "page", "call", "nop2", "one", "line",
	};
	/* not orch_go_on(): the held part takes what time the NMIs take */
	unsigned long end = jiffies + msecs_to_jiffies(run->ms);
	struct orch_workers *workers;
	const struct orch_site *next;
	int i = 0, pokes = 0;
	bool on = true;

	WRITE_ONCE(stop, false);
	workers = orch_workers_start(run, cpu_online_mask, hammer, NULL);
	do {
		/* another site now and then, while this one is as it was */
		if (on && pokes++ % 8 == 0) {
			next = orch_site(names[i++ % ARRAY_SIZE(names)]);
			if (next->len)
				WRITE_ONCE(site, next);
		}
		epoch_next();
		orch_poke_site(site, on);
		epoch_next();
		on = !on;
		usleep_range(100, 150);
	} while ((time_before(jiffies, end) && !signal_pending(current)) || !on);
	WRITE_ONCE(stop, true);
	orch_workers_join(workers);
}

/* --- what became of it */

static void compare(struct orch_run *run, int cpu)
{
	const struct place *place = &places[cpu];
	enum orch_phase phase;
	enum context in;

	for (in = 0; in < CONTEXTS; in++) {
		orch_expect(run, !place->count[in][ORCH_TORN],
			    "in %s CPU %d executed a torn instruction %llu times", contexts[in],
			    cpu, place->count[in][ORCH_TORN]);
		orch_expect(run, !place->stale[in],
			    "in %s CPU %d went %llu times by other bytes than those last written",
			    contexts[in], cpu, place->stale[in]);
		for (phase = ORCH_PHASE_INT3; phase <= ORCH_PHASE_TAIL; phase++)
			orch_expect(run, !place->lost[in][phase],
				    "in %s CPU %d did not meet int3 in %llu of %llu passes in phase %d",
				    contexts[in], cpu, place->lost[in][phase],
				    place->held[in][phase], phase);
	}
}

static void note(void)
{
	static const char *const names[] = { "thread", "softirq", "hardirq", "nmi" };
	u64 passes, int3, inside = 0;
	enum context in;
	int cpu, i;

	for (in = 0; in < CONTEXTS; in++) {
		passes = int3 = 0;
		for_each_online_cpu(cpu) {
			for (i = 0; i < ORCH_RESULTS; i++)
				passes += places[cpu].count[in][i];
			int3 += places[cpu].count[in][ORCH_INT3];
		}
		orch_note("# %s=%llu %s_int3=%llu\n", names[in], passes, names[in], int3);
	}
	for_each_online_cpu(cpu)
		inside += places[cpu].inside[ORCH_PHASE_INT3] + places[cpu].inside[ORCH_PHASE_TAIL];
	orch_note("# nmi_in_handler=%llu\n", inside);
}

/* A CPU to which no NMI came, or -1. */
static int without_nmi(void)
{
	unsigned long end = jiffies + SECONDS * HZ;
	const u64 *count;
	int cpu;

	for_each_online_cpu(cpu) {
		count = places[cpu].count[NMI];
		while (!READ_ONCE(count[ORCH_OLD]) && time_before(jiffies, end))
			msleep(5);
		if (!READ_ONCE(count[ORCH_OLD]))
			return cpu;
	}
	return -1;
}

static void run_all(struct orch_run *run)
{
	int cpu;

	if (num_online_cpus() == 1)
		return orch_skip(run, "one CPU cannot hold another, nor interrupt it");
	cpu = without_nmi();
	if (cpu >= 0)
		return orch_skip(run, "no NMI came to CPU %d within %d seconds", cpu, SECONDS);
	if (held(run))
		poke_free(run);
}

ORCH_SCENARIO(contexts)
{
	int cpu;

	places = kcalloc(nr_cpu_ids, sizeof(*places), GFP_KERNEL);
	if (!places)
		return orch_skip(run, "the guest has no memory left");
	for_each_possible_cpu(cpu)
		init_place(&places[cpu]);
	site = orch_site("nop5");
	epoch = hold = 0;
	if (register_nmi_handler(NMI_LOCAL, on_nmi, 0, "orchestrator")) {
		kfree(places);
		return orch_skip(run, "this kernel lets no module handle NMIs");
	}
	run_all(run);
	orch_parallel(run, cpu_online_mask, quiet, NULL);
	unregister_nmi_handler(NMI_LOCAL, "orchestrator");
	for_each_online_cpu(cpu)
		compare(run, cpu);
	note();
	kfree(places);
}
