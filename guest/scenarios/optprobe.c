// SPDX-License-Identifier: GPL-2.0
/*
 * title: kprobes that become jumps, and back
 * promise: >-
 *   A kprobe is hit exactly as often as its instruction runs, while it is an int3, while it is turned into a jump and
 *   back, and while another one comes to lie inside that jump.
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

/*
 * Room for a jump: instructions of three and four bytes, none of which is
 * jumped to. Without symbols at the probed ones: a function ends for kprobes
 * where the next symbol is, and a jump must not reach beyond that.
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

static atomic_t hits;
static bool hammering;

static int count(struct kprobe *probe, struct pt_regs *regs)
{
	atomic_inc(&hits);
	return 0;
}

static int hammer(struct orch_run *run, int cpu, void *arg)
{
	atomic_t *passes = arg;
	u64 x = cpu;

	while (READ_ONCE(hammering)) {
		orch_expect(run, orch_optprobe_pass(x) == x + 31,
			    "CPU %d went through probed code and it did something else", cpu);
		atomic_inc(passes);
		x++;
		usleep_range(20, 40);
	}
	return 0;
}

static bool becomes(u8 byte)
{
	unsigned long end = jiffies + 3 * HZ;

	while (READ_ONCE(*orch_optprobe_at) != byte && time_before(jiffies, end))
		usleep_range(1000, 2000);
	return READ_ONCE(*orch_optprobe_at) == byte;
}

/* One life of a probe: int3, jump, int3 again because of another probe inside it, gone. */
static bool live(struct orch_run *run, bool overlap)
{
	struct kprobe probe = { .addr = (kprobe_opcode_t *)orch_optprobe_at, .pre_handler = count };
	struct kprobe inside = { .addr = (kprobe_opcode_t *)orch_optprobe_inside, .pre_handler = count };
	int error = register_kprobe(&probe);
	bool jump;

	if (error) {
		orch_fail(run, "a kprobe is refused (%d)", error);
		return false;
	}
	jump = becomes(0xe9);
	if (overlap) {
		error = register_kprobe(&inside);
		orch_expect(run, !error, "a kprobe inside another one's jump is refused (%d)", error);
		if (!error) {
			orch_expect(run, READ_ONCE(*orch_optprobe_at) == 0xcc,
				    "a kprobe stays a jump although another one lies inside it");
			unregister_kprobe(&inside);
		}
	}
	unregister_kprobe(&probe);
	/* it goes like it came, by the optimiser's own thread */
	orch_expect(run, becomes(0x48), "a kprobe that is gone left %02x behind",
		    READ_ONCE(*orch_optprobe_at));
	return jump;
}

static void live_hammered(struct orch_run *run)
{
	struct kprobe probe = { .addr = (kprobe_opcode_t *)orch_optprobe_at, .pre_handler = count };
	struct orch_workers *hammers;
	atomic_t passes = ATOMIC_INIT(0);
	bool jump;

	/* there before the first pass and after the last, so that both counts are of the same */
	if (register_kprobe(&probe))
		return;
	atomic_set(&hits, 0);
	hammering = true;
	hammers = orch_workers_start(run, cpu_online_mask, hammer, &passes);
	do {
		jump = becomes(0xe9);
		disable_kprobe(&probe);
		enable_kprobe(&probe);
	} while (orch_go_on(run));
	WRITE_ONCE(hammering, false);
	orch_workers_join(hammers);
	unregister_kprobe(&probe);
	orch_note("# passes=%d hits=%d jump=%d\n", atomic_read(&passes), atomic_read(&hits), jump);
	/* fewer, for it was disabled now and then; on one CPU there may be no pass at all */
	orch_expect(run, atomic_read(&hits) <= atomic_read(&passes),
		    "a kprobe was hit %d times in %d passes", atomic_read(&hits), atomic_read(&passes));
}

static void counted(struct orch_run *run)
{
	struct kprobe probe = { .addr = (kprobe_opcode_t *)orch_optprobe_at, .pre_handler = count };
	struct orch_workers *hammers;
	atomic_t passes = ATOMIC_INIT(0);

	if (register_kprobe(&probe))
		return;
	atomic_set(&hits, 0);
	hammering = true;
	hammers = orch_workers_start(run, cpu_online_mask, hammer, &passes);
	becomes(0xe9);
	msleep(20);
	WRITE_ONCE(hammering, false);
	orch_workers_join(hammers);
	unregister_kprobe(&probe);
	orch_expect(run, atomic_read(&hits) + (int)probe.nmissed == atomic_read(&passes),
		    "a kprobe that became a jump was hit %d times and missed %lu in %d passes",
		    atomic_read(&hits), probe.nmissed, atomic_read(&passes));
}

ORCH_SCENARIO(optprobe)
{
	if (!live(run, !run->watched))
		return orch_skip(run, "kprobes do not become jumps here (debug.kprobes-optimization?)");
	if (run->watched)
		return;
	counted(run);
	live_hammered(run);
}

#else

ORCH_SCENARIO(optprobe)
{
	orch_skip(run, "CONFIG_OPTPROBES is not set");
}

#endif
