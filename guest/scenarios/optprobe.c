// SPDX-License-Identifier: GPL-2.0
/*
 * title: kprobes that become jumps, and then int3 again
 * promise: >-
 *   A kprobe is hit exactly as often as its instruction runs: while it is an int3, while it is
 *   turned into a jump and back, and while another kprobe is put inside that jump. It does not
 *   become a jump over another kprobe, nor over the target of a jump.
 * order: 410
 * weight: 2
 * watched: true
 * symbols: [get_kprobe, kprobes_allow_optimization]
 */
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/kprobes.h>
#include <linux/string.h>
#include "compat.h"
#include "scenario.h"

#if defined(CONFIG_KPROBES) && defined(CONFIG_OPTPROBES)
#include "kprobe.h"

/*
 * Room for the jump of a kprobe: instructions of three and four bytes, none of
 * which is the target of a jump. The probed ones have no symbols: kprobes takes
 * the next symbol for the end of the function, and its jump must not reach
 * beyond that. The int3 behind the RET is outside of it: up to 6.1 kprobes take
 * one inside for somebody's breakpoint, and do not optimize (63dc6325ff41).
 *
 * The result is wrong if the detour of a jump loses the carry flag, or one of the
 * registers that a function need not preserve.
 */
u64 orch_optprobe_pass(u64 x);
u64 orch_optprobe_target(u64 x);

asm(".pushsection .text, \"ax\"\n"
    ".balign 16\n"
    ".globl orch_optprobe_pass\n"
    ".type orch_optprobe_pass, @function\n"
    "orch_optprobe_pass:\n\t"
    "movq %rdi, %rcx\n\t"
    "movq %rdi, %rdx\n\t"
    "movq %rdi, %rsi\n\t"
    "movq %rdi, %r8\n\t"
    "movq %rdi, %r9\n\t"
    "movq %rdi, %r10\n\t"
    "movq %rdi, %r11\n\t"
    "xorl %eax, %eax\n\t"
    "stc\n\t"
    "adcq $1, %rax\n\t"		/* at */
    "addq $2, %rax\n\t"		/* inside */
    "addq $4, %rax\n\t"
    "addq $8, %rax\n\t"
    "addq $16, %rax\n\t"
    "addq %rcx, %rax\n\t"
    "addq %rdx, %rax\n\t"
    "addq %rsi, %rax\n\t"
    "addq %rdi, %rax\n\t"
    "addq %r8, %rax\n\t"
    "addq %r9, %rax\n\t"
    "addq %r10, %rax\n\t"
    "addq %r11, %rax\n\t"
    "ret\n"
    ".size orch_optprobe_pass, . - orch_optprobe_pass\n"
    /* The first ADD, where a probe is, is jumped over: to the second one, within five bytes. */
    ".globl orch_optprobe_target\n"
    ".type orch_optprobe_target, @function\n"
    "orch_optprobe_target:\n\t"
    "movq %rdi, %rax\n\t"
    ".byte 0xeb, 4\n\t"
    "addq $1, %rax\n\t"		/* skipped */
    "addq $2, %rax\n\t"
    "addq $4, %rax\n\t"
    "ret\n"
    ".size orch_optprobe_target, . - orch_optprobe_target\n"
    ".globl orch_optprobe_end\n"
    "orch_optprobe_end:\n\t"
    "int3\n"
    ".popsection\n");

#define orch_optprobe_at	((u8 *)orch_optprobe_pass + 24)
#define orch_optprobe_inside	(orch_optprobe_at + 4)
#define orch_optprobe_skipped	((u8 *)orch_optprobe_target + 5)

static noinline bool is_right(u64 x)
{
	return orch_optprobe_pass(x) == 8 * x + 32;
}

static struct orch_probe probe, inner_probe;
static bool hammering;

static int hammer(struct orch_run *run, int cpu, void *arg)
{
	u64 x = cpu, since;
	int i;

	while (READ_ONCE(hammering)) {
		since = orch_now();
		/* A jump is made and undone in some ten microseconds, which are not to be missed. */
		for (i = 0; i < 16; i++, x++) {
			orch_expect(run, is_right(x),
				    "CPU %d executed probed code, and it computed something else",
				    cpu);
			atomic_inc(&probe.passes);
		}
		orch_rest(since, 20);
	}
	return 0;
}

/* The optimizer is a thread, which waits for all other threads to pass by. */
#define SECONDS		40

/* Wait until the probed instruction begins with @byte. */
static bool becomes(u8 byte)
{
	return orch_wait_until(READ_ONCE(*orch_optprobe_at) == byte, SECONDS);
}

/*
 * Whether the kernel has prepared to turn the registered probe into a jump: then
 * there is another probe in the table in its stead.
 */
static bool is_prepared(u8 *addr)
{
	struct kprobe *(*get)(void *addr) = (void *)orch_symbol("get_kprobe");
	const bool *allowed = (void *)orch_symbol("kprobes_allow_optimization");
	bool prepared;

	if (!get || (allowed && !READ_ONCE(*allowed)))
		return false;
	preempt_disable();
	prepared = get(addr) != &probe.kprobe;
	preempt_enable();
	return prepared;
}

static const char is_late[] = "a kprobe did not become a jump in time";

/*
 * A probe from registration to removal: int3, jump, if @overlap int3 again
 * because another probe is inside the jump, original instruction. Returns
 * whether it became a jump.
 */
static bool register_and_remove(struct orch_run *run, bool overlap)
{
	int error = orch_probe_register_leaf(&probe, orch_optprobe_at, (unsigned long)is_right);
	bool jump;

	if (error) {
		orch_probe_refused(run, error, "on an ADC or ADD");
		return false;
	}
	jump = is_prepared(orch_optprobe_at) && becomes(0xe9);
	if (!jump && is_prepared(orch_optprobe_at))
		orch_miss(run, is_late);
	else if (!jump)
		orch_skip(run, "kprobes do not become jumps here (debug.kprobes-optimization?)");
	if (jump && overlap) {
		error = orch_probe_register(&inner_probe, orch_optprobe_inside);
		if (error == -ENOMEM)
			orch_miss(run, "no kprobe inside the jump of another (%d)", error);
		else
			orch_expect(run, !error,
				    "a kprobe inside the jump of another is refused (%d)", error);
		if (!error) {
			orch_expect(run, READ_ONCE(*orch_optprobe_at) == 0xcc,
				    "a kprobe stays a jump although another one is inside it");
			orch_probe_unregister(&inner_probe);
		}
	}
	orch_probe_unregister(&probe);
	/* The optimizer's thread removes it, as it inserted it. */
	orch_expect(run, becomes(0x48), "a kprobe that was removed left %02x behind",
		    READ_ONCE(*orch_optprobe_at));
	return jump;
}

static int register_inside(struct orch_run *run, int cpu, void *arg)
{
	while (READ_ONCE(hammering) && !kprobe_disabled(&probe.kprobe))
		usleep_range(20, 40);
	*(int *)arg = orch_probe_register(&inner_probe, orch_optprobe_inside);
	return 0;
}

/*
 * A probe that is removed stays a jump for some ticks, in which its remover waits
 * for RCU. If another one is to go inside of that jump just then, it is undone at
 * once, and the optimizer's thread has the rest to do.
 */
static void register_inside_removed(struct orch_run *run)
{
	int error = orch_probe_register_leaf(&probe, orch_optprobe_at, (unsigned long)is_right);
	struct orch_workers *worker;

	if (error)
		return orch_probe_refused(run, error, "where one has just been");
	if (!becomes(0xe9))
		orch_miss(run, is_late);
	error = -EAGAIN;
	hammering = true;
	worker = orch_workers_start(run, cpumask_of(cpumask_first(cpu_online_mask)),
				    register_inside, &error);
	orch_probe_unregister(&probe);
	WRITE_ONCE(hammering, false);
	orch_workers_join(worker);
	if (!error)
		orch_probe_unregister(&inner_probe);
	else if (error != -EAGAIN)
		orch_probe_refused(run, error, "inside the jump of one that is removed");
	orch_expect(run, becomes(0x48), "a kprobe that was removed left %02x behind",
		    READ_ONCE(*orch_optprobe_at));
}

static bool has_probe(u8 *addr)
{
	struct kprobe *(*get)(void *addr) = (void *)orch_symbol("get_kprobe");
	bool found;

	preempt_disable();
	found = get && get(addr);
	preempt_enable();
	return found;
}

/* The other order: there is another probe first, where the jump would be. */
static void register_over_another(struct orch_run *run)
{
	int error = orch_probe_register(&inner_probe, orch_optprobe_inside);

	if (error)
		return orch_probe_refused(run, error, "on an ADC or ADD");
	error = orch_probe_register_leaf(&probe, orch_optprobe_at, (unsigned long)is_right);
	if (error) {
		orch_probe_refused(run, error, "next to another one");
	} else {
		msleep(100);
		orch_expect(run, READ_ONCE(*orch_optprobe_at) == 0xcc,
			    "a kprobe became a jump over another one");
		orch_expect(run, is_right(1),
			    "code with two probes computed something else");
		orch_expect(run, atomic_read(&probe.hits) && atomic_read(&inner_probe.hits),
			    "of two kprobes in a row one was not hit");
		orch_probe_unregister(&probe);
	}
	orch_probe_unregister(&inner_probe);
	orch_expect(run, becomes(0x48), "a kprobe that was removed left %02x behind",
		    READ_ONCE(*orch_optprobe_at));
	/* It may have become a jump itself, and then stays in the table for a while. */
	orch_wait_until(!has_probe(orch_optprobe_inside), SECONDS);
}

/* A CPU that jumps there would execute a part of the kprobe's jump. */
static void register_before_target(struct orch_run *run)
{
	int error = orch_probe_register(&probe, orch_optprobe_skipped);

	if (error)
		return orch_probe_refused(run, error, "before the target of a jump");
	orch_expect(run, !is_prepared(orch_optprobe_skipped),
		    "a kprobe is to become a jump over the target of a jump");
	orch_expect(run, orch_optprobe_target(1) == 7,
		    "code with a probe that is jumped over computed something else");
	orch_probe_unregister(&probe);
}

/* The probe is there before the first pass and after the last. */
static struct orch_workers *start_hammers(struct orch_run *run)
{
	struct orch_workers *hammers;
	int error = orch_probe_register_leaf(&probe, orch_optprobe_at, (unsigned long)is_right);

	if (error) {
		orch_probe_refused(run, error, "where one has just been");
		return NULL;
	}
	hammering = true;
	hammers = orch_workers_start(run, cpu_online_mask, hammer, NULL);
	if (!hammers)
		orch_probe_unregister(&probe);
	return hammers;
}

static void stop_hammers(struct orch_workers *hammers)
{
	WRITE_ONCE(hammering, false);
	orch_workers_join(hammers);
	orch_probe_unregister(&probe);
}

static void disable_and_enable(struct orch_run *run)
{
	struct orch_workers *hammers = start_hammers(run);
	int passes, hits;
	bool jump;

	if (!hammers)
		return;
	do {
		jump = becomes(0xe9);
		if (!jump)
			break;
		disable_kprobe(&probe.kprobe);
		orch_expect(run, becomes(0x48), "a kprobe that was disabled left %02x behind",
			    READ_ONCE(*orch_optprobe_at));
		enable_kprobe(&probe.kprobe);
	} while (orch_time_left(run));
	jump = jump && becomes(0xe9);
	if (!jump)
		orch_miss(run, is_late);
	/* Before it is undone: an int3 in front of the rest of the jump, for which it stands. */
	disable_kprobe(&probe.kprobe);
	enable_kprobe(&probe.kprobe);
	msleep(20);
	stop_hammers(hammers);
	passes = atomic_read(&probe.passes);
	hits = atomic_read(&probe.hits);
	orch_note("# passes=%d hits=%d jump=%d\n", passes, hits, jump);
	/* Fewer hits, as it was disabled now and then. On one CPU there may be no pass at all. */
	orch_expect(run, hits <= passes, "a kprobe was hit %d times in %d passes", hits, passes);
}

static void count_hits(struct orch_run *run)
{
	struct orch_workers *hammers = start_hammers(run);

	if (!hammers)
		return;
	if (!becomes(0xe9))
		orch_miss(run, is_late);
	msleep(20);
	stop_hammers(hammers);
	orch_probe_compare(run, &probe, "a kprobe that became a jump");
}

ORCH_SCENARIO(optprobe)
{
	if (!register_and_remove(run, !run->watched) || run->watched)
		return;
	register_inside_removed(run);
	count_hits(run);
	disable_and_enable(run);
	register_over_another(run);
	register_before_target(run);
}

#else

ORCH_SCENARIO(optprobe)
{
	orch_skip(run, "CONFIG_OPTPROBES is not set");
}

#endif
