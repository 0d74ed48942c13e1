// SPDX-License-Identifier: GPL-2.0
/*
 * title: a site executed by threads, softirqs, hard interrupts and NMIs
 * promise: >-
 *   In every context, including an NMI in the middle of the poke handler, a CPU executes the site
 *   as the phase demands, and the bytes last written when no poke is under way.
 * order: 250
 * weight: 2
 * symbols: [__smp_call_function_single]
 */
#include <linux/delay.h>
#include <linux/hardirq.h>
#include <linux/interrupt.h>
#include <linux/io.h>
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
#else				/* before 3.15; not exported to modules before 3.12 */
typedef void (*call_t)(int cpu, struct call_single_data *call, int wait);
#define call_async(cpu, call) \
	((call_t)orch_symbol("__smp_call_function_single"))(cpu, call, 0)
#endif
#ifndef ORCH_CALL_SINGLE_DATA	/* before 4.14 */
typedef struct call_single_data call_single_data_t;
#endif

/* How long to wait for the first NMI. */
#define SECONDS		40
/* How long a poke is held for contexts that are still missing: below a second. */
#define HELD_CYCLES	1000000000
#define HELD_PASSES	1000000
/* Each CPU gets an NMI after so many us. */
#define NMI_GAP_US	4000
/* After so many passes the CPU that holds the poker sends some and asks for one. */
#define NMI_PASSES	256
#define EAGER_PASSES	2048
/* How often the missing ones are tried again. */
#define ROUNDS		10

enum context { THREAD, SOFTIRQ, HARDIRQ, NMI, CONTEXTS };

static const char *const contexts[] = { "a thread", "a softirq", "a hard interrupt", "an NMI" };

/**
 * struct place - one CPU
 * @count: passes, by context and result
 * @stale: passes with no poke under way that did not execute the bytes last
 *	written
 * @held: passes while a poke was held, by context and phase
 * @lost: those of @held that did not go to the int3 target
 * @inside: NMIs that came while this CPU was between int3 and its target
 * @call: the call with which another CPU interrupts this one
 * @called: @call is in use
 * @tasklet: runs a softirq on this CPU
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

static struct place *places;	/* nr_cpu_ids elements */
static const struct orch_site *site;
static unsigned int hold;	/* odd while a poke is held; bits 1 and 2 are the phase */
static int holder = -1;		/* the CPU that holds it, and only executes the site */
static bool stop;

static struct place *here(void)
{
	return &places[raw_smp_processor_id()];
}

/* As the kernel sees it: a timer's function may run in a softirq or an interrupt. */
static enum context context(void)
{
	if (in_nmi())
		return NMI;
	if (hardirq_count())
		return HARDIRQ;
	return in_serving_softirq() ? SOFTIRQ : THREAD;
}

/* This CPU may not have synced yet, and may have fetched the site before the int3. */
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
	before = orch_epoch();
	result = READ_ONCE(site)->pass();
	after = orch_epoch();
	place->count[in][result]++;
	if ((held & 1) && held == READ_ONCE(hold)) {
		place->held[in][held >> 1 & 3]++;
		if (result != ORCH_INT3)
			place->lost[in][held >> 1 & 3]++;
	}
	if (orch_pass_is_stale(before, after, result))
		place->stale[in]++;
}

/* --- what brings a CPU into each context */

static int on_nmi(unsigned int type, struct pt_regs *regs)
{
	unsigned int held = READ_ONCE(hold);

	/* Outside of the module the holder can only be in the handling of an int3. */
	if ((held & 1) && READ_ONCE(holder) == raw_smp_processor_id() && !user_mode(regs) &&
	    regs->ip < MODULES_VADDR)
		here()->inside[held >> 1 & 3]++;
	pass();
	return NMI_HANDLED;
}

/* SDM, volume 3, "Local APIC": the interrupt command register, and where it is. */
#define APIC_BASE	0x1b
#define X2APIC_ENABLED	(1 << 10)
#define X2APIC_ICR	0x830
#define APIC_PAGE	0xfee00000
#define ICR		0x300
#define NMI_TO_OTHERS	0xc4400	/* all but self, assert, NMI */

static void __iomem *apic_page;

/* No kernel lets modules send NMIs. One write, so nobody else's command is disturbed. */
static void send_nmi_to_others(void)
{
	u32 low, high;

	asm volatile("rdmsr" : "=a" (low), "=d" (high) : "c" (APIC_BASE));
	if (low & X2APIC_ENABLED)
		asm volatile("wrmsr" : : "a" (NMI_TO_OTHERS), "d" (0), "c" (X2APIC_ICR) : "memory");
	else
		writel(NMI_TO_OTHERS, apic_page + ICR);
}

static bool stop_nmis;

/* While no poke is held: a CPU that waits for a sync round runs no other thread. */
static int send_nmis(struct orch_run *run, int cpu, void *arg)
{
	unsigned int gap = NMI_GAP_US * (num_online_cpus() - 1);

	while (!READ_ONCE(stop_nmis)) {
		send_nmi_to_others();
		usleep_range(gap, gap + gap / 4);
	}
	return 0;
}

static void on_softirq(unsigned long unused)
{
	pass();
}

/*
 * With PREEMPT_RT softirqs run in threads, and the function of a call from
 * another CPU must not raise one (kernel/softirq.c,
 * do_softirq_post_smp_call_flush()).
 */
static bool is_possible(enum context in)
{
	return in != SOFTIRQ || !IS_ENABLED(CONFIG_PREEMPT_RT);
}

static void on_interrupt(void *data)
{
	struct place *place = data;

	pass();
	if (READ_ONCE(hold) & 1)	/* the CPU that holds the poker needs NMIs from others */
		send_nmi_to_others();
	if (is_possible(SOFTIRQ))
		tasklet_schedule(&place->tasklet);
	/*
	 * The call is free again only after all of the above. Pairs with xchg()
	 * in interrupt_cpu().
	 */
	smp_mb();
	WRITE_ONCE(place->called, false);
}

/*
 * A call from another CPU, since a timer of the guest may be too coarse. May be
 * called with interrupts off. xchg() is fully ordered and pairs with smp_mb() in
 * on_interrupt().
 */
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

static int wait_until_quiet(struct orch_run *run, int cpu, void *arg)
{
	while (READ_ONCE(places[cpu].called))
		cond_resched();
	tasklet_kill(&places[cpu].tasklet);
	return 0;
}

/* --- while a poke is held */

/* The first CPU that did not execute the site in that context and phase, or -1. */
static int missing(enum context in, enum orch_phase phase)
{
	int cpu;

	if (!is_possible(in))
		return -1;
	for_each_online_cpu(cpu)
		if (!READ_ONCE(places[cpu].held[in][phase]))
			return cpu;
	return -1;
}

/*
 * Whether an NMI inside the int3 handler is still missing. It is required on each
 * CPU in only one of the phases, since it may take long to come.
 */
static bool lacks_inside(int cpu, enum orch_phase phase)
{
	return (cpu + phase) % 2 && !READ_ONCE(places[cpu].inside[phase]);
}

/* The holder has interrupts off. All other CPUs must have been in each context. */
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
		if (other != cpu && is_possible(SOFTIRQ) && !READ_ONCE(place->held[SOFTIRQ][phase]))
			return false;
	}
	return true;
}

/* The holder executes the site all the time, so it is nearly always in the int3 handler. */
static void in_phase(struct orch_run *run, enum orch_phase phase, void *arg)
{
	int other, cpu = raw_smp_processor_id();
	cycles_t begin = get_cycles();
	unsigned int passes = 0;

	if (phase == ORCH_PHASE_NEW)
		return;
	WRITE_ONCE(holder, cpu);
	/*
	 * The int3 and the holder before the hold. Pairs with on_nmi() and
	 * pass(), which read the hold first: x86 keeps loads in program order,
	 * and serialize_cpu() discards what was fetched before.
	 */
	smp_mb();
	WRITE_ONCE(hold, (hold & ~7) + 8 + phase * 2 + 1);
	for_each_online_cpu(other)
		if (other != cpu)
			interrupt_cpu(other);
	do {
		pass();
		if (++passes % NMI_PASSES == 0) {
			send_nmi_to_others();
			interrupt_cpu(orch_next_cpu(cpu));
		}
		/*
		 * An emulator switches to the next CPU. Later only when a timer is
		 * due: then this CPU is most often in the int3 handler.
		 */
		if (passes < EAGER_PASSES ? passes % 32 == 0 : passes % NMI_PASSES == 0)
			cpu_relax();
	} while (!covered(cpu, phase) && passes < HELD_PASSES &&
		 get_cycles() - begin < HELD_CYCLES);
	WRITE_ONCE(hold, hold & ~1);
	/*
	 * The end of the hold before that of the holder, and before the phase
	 * ends. Pairs with pass(), which reads the hold again after the site.
	 */
	smp_mb();
	WRITE_ONCE(holder, -1);
}

/* orch_hold_on_each_cpu() would not advance the epoch. */
static bool hold_one_way(struct orch_run *run, int cpu, bool on)
{
	struct orch_poke poke = orch_make_poke(site, on);
	bool ok;

	orch_epoch_next();
	ok = orch_poke_held(run, &poke, cpu, in_phase, NULL);
	orch_epoch_next();
	return ok;
}

static bool hold_both_ways(struct orch_run *run, int cpu)
{
	if (hold_one_way(run, cpu, true) && hold_one_way(run, cpu, false))
		return true;
	if (!memcmp(site->addr, site->new, site->len))
		orch_poke_site(site, false);
	return false;
}

/* A CPU that lacks a context in a phase, or -1. @in is CONTEXTS if it lacks an NMI inside int3. */
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

static bool hold_on_each_cpu(struct orch_run *run)
{
	static const char *const names[] = { "nop5", "jmp32", "page", "call" };
	const struct orch_site *next;
	enum orch_phase phase;
	enum context in;
	int cpu, round, i = 0;

	for (round = 0; round < ROUNDS; round++) {
		for_each_online_cpu(cpu) {
			next = orch_site(names[i++ % ARRAY_SIZE(names)]);
			if (next->len)
				WRITE_ONCE(site, next);
			if (!hold_both_ways(run, cpu))
				return false;
		}
		if (uncovered(&in, &phase) < 0)
			return true;
	}
	cpu = uncovered(&in, &phase);
	orch_miss(run, "%s did not come to CPU %d while a poke was held in phase %d",
		  in < CONTEXTS ? contexts[in] : "an NMI in the int3 handler", cpu, phase);
	return true;
}

/* --- free-running */

static int hammer(struct orch_run *run, int cpu, void *arg)
{
	int i, next = orch_next_cpu(cpu);

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
	/* Not orch_time_left(): how long the held part takes depends on the NMIs. */
	unsigned long end = jiffies + msecs_to_jiffies(run->ms);
	struct orch_workers *workers;
	const struct orch_site *next;
	int i = 0, pokes = 0;
	bool on = true;

	WRITE_ONCE(stop, false);
	workers = orch_workers_start(run, cpu_online_mask, hammer, NULL);
	do {
		/* Change the site now and then, while the last one has its old bytes. */
		if (on && pokes++ % 8 == 0) {
			next = orch_site(names[i++ % ARRAY_SIZE(names)]);
			if (next->len)
				WRITE_ONCE(site, next);
		}
		orch_epoch_next();
		orch_poke_site(site, on);
		orch_epoch_next();
		on = !on;
		usleep_range(100, 150);
	} while ((time_before(jiffies, end) && !signal_pending(current)) || !on);
	WRITE_ONCE(stop, true);
	orch_workers_join(workers);
}

/* --- results */

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
			    "in %s CPU %d executed bytes other than those last written %llu times",
			    contexts[in], cpu, place->stale[in]);
		for (phase = ORCH_PHASE_INT3; phase <= ORCH_PHASE_TAIL; phase++)
			orch_expect(run, !place->lost[in][phase],
				    "in %s CPU %d missed int3 in %llu of %llu passes in phase %d",
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

/* A CPU that got no NMI, or -1. */
static int without_nmi(void)
{
	int cpu;

	for_each_online_cpu(cpu)
		if (!READ_ONCE(places[cpu].count[NMI][ORCH_OLD]))
			return cpu;
	return -1;
}

static void run_with_nmis(struct orch_run *run)
{
	struct orch_workers *senders;

	WRITE_ONCE(stop_nmis, false);
	senders = orch_workers_start(run, cpu_online_mask, send_nmis, NULL);
	if (!senders)
		return;
	if (!orch_wait_until(without_nmi() < 0, SECONDS))
		orch_miss(run, "no NMI came to CPU %d", without_nmi());
	else if (hold_on_each_cpu(run))
		poke_free(run);
	WRITE_ONCE(stop_nmis, true);
	orch_workers_join(senders);
}

static void run_all(struct orch_run *run)
{
	if (num_online_cpus() == 1)
		return orch_skip(run, "one CPU cannot hold another, nor interrupt it");
	if (!site->len)
		return orch_skip(run, "%s", site->why_not);
	apic_page = ioremap(APIC_PAGE, PAGE_SIZE);
	if (!apic_page)
		return orch_miss(run, "the guest is out of memory");
	run_with_nmis(run);
	iounmap(apic_page);
}

ORCH_SCENARIO(contexts)
{
	int cpu;

	places = kcalloc(nr_cpu_ids, sizeof(*places), GFP_KERNEL);
	if (!places)
		return orch_miss(run, "the guest is out of memory");
	for_each_possible_cpu(cpu)
		init_place(&places[cpu]);
	site = orch_site("nop5");
	hold = 0;
	orch_epoch_reset();
	if (register_nmi_handler(NMI_LOCAL, on_nmi, 0, "orchestrator")) {
		kfree(places);
		return orch_skip(run, "a module cannot handle NMIs in this kernel");
	}
	run_all(run);
	orch_parallel(run, cpu_online_mask, wait_until_quiet, NULL);
	unregister_nmi_handler(NMI_LOCAL, "orchestrator");
	for_each_online_cpu(cpu)
		compare(run, cpu);
	note();
	kfree(places);
}
