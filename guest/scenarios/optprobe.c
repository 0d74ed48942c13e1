// SPDX-License-Identifier: GPL-2.0
/*
 * title: kprobes that become jumps, and int3 again
 * promise: >-
 *   A kprobe is hit exactly as often as its instruction runs: while it is an int3, while it is
 *   turned into a jump and back, and while another kprobe is put inside that jump.
 * order: 410
 * weight: 2
 * watched: true
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
 * beyond that.
 */
u64 orch_optprobe_pass(u64 x);

asm(".pushsection .text, \"ax\"\n"
    ".balign 16\n"
    ".globl orch_optprobe_pass\n"
    ".type orch_optprobe_pass, @function\n"
    "orch_optprobe_pass:\n\t"
    "movq %rdi, %rax\n\t"
    "addq $1, %rax\n\t"		/* at */
    "addq $2, %rax\n\t"		/* inside */
    "addq $4, %rax\n\t"
    "addq $8, %rax\n\t"
    "addq $16, %rax\n\t"
    "ret\n\t"
    "int3\n"
    ".size orch_optprobe_pass, . - orch_optprobe_pass\n"
    ".popsection\n");

#define orch_optprobe_at	((u8 *)orch_optprobe_pass + 3)
#define orch_optprobe_inside	((u8 *)orch_optprobe_pass + 7)

static struct orch_probe probe, inner_probe;
static bool hammering;

static int hammer(struct orch_run *run, int cpu, void *arg)
{
	u64 x = cpu;

	while (READ_ONCE(hammering)) {
		orch_expect(run, orch_optprobe_pass(x) == x + 31,
			    "CPU %d executed probed code, and it computed something else", cpu);
		atomic_inc(&probe.passes);
		x++;
		usleep_range(20, 40);
	}
	return 0;
}

/* Wait until the probed instruction begins with @byte. */
static bool becomes(u8 byte)
{
	unsigned long end = jiffies + 3 * HZ;

	while (READ_ONCE(*orch_optprobe_at) != byte && time_before(jiffies, end))
		usleep_range(1000, 2000);
	return READ_ONCE(*orch_optprobe_at) == byte;
}

/*
 * A probe from registration to removal: int3, jump, if @overlap int3 again
 * because another probe is inside the jump, original instruction. Returns
 * whether it became a jump.
 */
static bool register_and_remove(struct orch_run *run, bool overlap)
{
	int error = orch_probe_register(&probe, orch_optprobe_at);
	bool jump;

	if (error) {
		orch_fail(run, "a kprobe is refused (%d)", error);
		return false;
	}
	jump = becomes(0xe9);
	if (overlap) {
		error = orch_probe_register(&inner_probe, orch_optprobe_inside);
		orch_expect(run, !error, "a kprobe inside the jump of another is refused (%d)",
			    error);
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

/* The probe is there before the first pass and after the last. */
static struct orch_workers *start_hammers(struct orch_run *run)
{
	struct orch_workers *hammers;

	if (orch_probe_register(&probe, orch_optprobe_at))
		return NULL;
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
		disable_kprobe(&probe.kprobe);
		enable_kprobe(&probe.kprobe);
	} while (orch_time_left(run));
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
	becomes(0xe9);
	msleep(20);
	stop_hammers(hammers);
	orch_probe_compare(run, &probe, "a kprobe that became a jump");
}

ORCH_SCENARIO(optprobe)
{
	if (!register_and_remove(run, !run->watched))
		return orch_skip(run,
				 "kprobes do not become jumps here (debug.kprobes-optimization?)");
	if (run->watched)
		return;
	count_hits(run);
	disable_and_enable(run);
}

#else

ORCH_SCENARIO(optprobe)
{
	orch_skip(run, "CONFIG_OPTPROBES is not set");
}

#endif
