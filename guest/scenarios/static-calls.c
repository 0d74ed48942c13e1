// SPDX-License-Identifier: GPL-2.0
/*
 * title: static calls at several sites, to nothing, and to zero
 * promise: >-
 *   A static call is switched at all of its sites, those in tail position included. A CPU that runs
 *   through one meanwhile calls the old or the new function. If that is none, it goes on; if it is
 *   the function that returns zero, it gets zero. Whoever has switched it finds all of its sites
 *   switched, also if another task has done the same meanwhile.
 * order: 330
 */
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/irqflags.h>
#include <linux/sched.h>
#include "compat.h"
#include "scenario.h"

#ifdef CONFIG_HAVE_STATIC_CALL
#include <linux/static_call.h>
#endif

#if defined(CONFIG_HAVE_STATIC_CALL) && defined(DEFINE_STATIC_CALL_RET0) && \
	!defined(ORCH_RETURN0_NOT_EXPORTED)

/* Not static, or the compiler could see what they return. */
long orch_plus_one(long x);
long orch_plus_two(long x);
void orch_count(long *count);

noinline notrace long orch_plus_one(long x)
{
	barrier();
	return x + 1;
}

noinline notrace long orch_plus_two(long x)
{
	barrier();
	return x + 2;
}

noinline notrace void orch_count(long *count)
{
	barrier();
	++*count;
}

DEFINE_STATIC_CALL(orch_add, orch_plus_one);
DEFINE_STATIC_CALL_NULL(orch_maybe, orch_count);
DEFINE_STATIC_CALL_RET0(orch_zero, orch_plus_one);

/* A barrier keeps a call from being compiled as a tail call, which is a jump. */
#define CALLER(name, call)							\
static noinline notrace __attribute__((noclone)) long name(long x)		\
{										\
	long result = static_call(call)(x);					\
										\
	barrier();								\
	return result;								\
}

CALLER(first, orch_add)
CALLER(second, orch_add)
CALLER(third, orch_add)

/* A call that is emulated as a NOP leaves in rax what was there, and that is no result. */
static noinline notrace __attribute__((noclone)) long zero(long x)
{
	long result;

	asm volatile("movq $-1, %%rax" : : : "rax");
	result = static_call(orch_zero)(x);
	barrier();
	return result;
}

static noinline notrace __attribute__((noclone)) long tail(long x)
{
	return static_call(orch_add)(x);
}

static noinline notrace __attribute__((noclone)) void maybe(long *count)
{
	static_call_cond(orch_maybe)(count);
	barrier();
}

static noinline notrace __attribute__((noclone)) void maybe_tail(long *count)
{
	static_call_cond(orch_maybe)(count);
}

static long (*const callers[])(long x) = { first, second, third, tail };
static void (*const counters[])(long *count) = { maybe, maybe_tail };

static bool hammering;

/*
 * A sync round waits for a CPU that has its interrupts off, and its passes until
 * they are on again meet the int3. A switch takes several rounds (the trampoline
 * comes first), so the hammers sleep but rarely.
 */
#define PASSES		16	/* with interrupts off */
#define SLEEP_EVERY	64	/* times */

static long pass_all(struct orch_run *run, int cpu, long x)
{
	long result, count;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(callers); i++) {
		result = callers[i](x);
		orch_expect(run, result == x + 1 || result == x + 2,
			    "static call %u with %ld returned %ld on CPU %d", i, x, result, cpu);
	}
	result = zero(x);
	orch_expect(run, !result || result == x + 1,
		    "a static call to zero with %ld returned %ld on CPU %d", x, result, cpu);
	for (i = 0; i < ARRAY_SIZE(counters); i++) {
		count = 0;
		counters[i](&count);
		orch_expect(run, count == 0 || count == 1,
			    "a static call to nothing was called %ld times on CPU %d", count, cpu);
	}
	return (x + 1) & 0xffff;
}

static int hammer(struct orch_run *run, int cpu, void *arg)
{
	unsigned long flags;
	unsigned int i, times = 0;
	u64 since = orch_now();
	long x = cpu;

	while (READ_ONCE(hammering)) {
		local_irq_save(flags);
		for (i = 0; i < PASSES; i++) {
			x = pass_all(run, cpu, x);
			cpu_relax();
		}
		local_irq_restore(flags);
		if (++times % SLEEP_EVERY) {
			cond_resched();
		} else {
			orch_rest(since, 20);
			since = orch_now();
		}
	}
	return 0;
}

static void expect_all(struct orch_run *run, long add, long returned, long counted)
{
	unsigned int i;
	long count;

	for (i = 0; i < ARRAY_SIZE(callers); i++)
		orch_expect(run, callers[i](40) == 40 + add,
			    "site %u of a static call does not call what it was switched to", i);
	orch_expect(run, zero(40) == returned, "a static call returned %ld instead of %ld", zero(40),
		    returned);
	for (i = 0; i < ARRAY_SIZE(counters); i++) {
		count = 0;
		counters[i](&count);
		orch_expect(run, count == counted, "a static call was called %ld times, not %ld",
			    count, counted);
	}
}

/*
 * Two tasks set the call to the same function at the same time. Whoever has done
 * so finds it set, also if the other one was first and is still switching sites.
 */
#define TOGETHER	12	/* times */

static atomic_t arrived;

/* Wait until both have come here, for the @time-th time. */
static void meet(int time)
{
	atomic_inc(&arrived);
	while (atomic_read(&arrived) < 2 * time)
		cond_resched();
}

static int set_together(struct orch_run *run, int cpu, void *arg)
{
	long add;
	int time;

	for (time = 1; time <= TOGETHER; time++) {
		add = time % 2 + 1;
		meet(2 * time - 1);
		static_call_update(orch_add, add == 1 ? &orch_plus_one : &orch_plus_two);
		/* The last one that is switched. */
		orch_expect(run, tail(40) == 40 + add && third(40) == 40 + add,
			    "CPU %d set a static call, and a site of it calls another function",
			    cpu);
		meet(2 * time);
	}
	return 0;
}

static void set_by_two(struct orch_run *run)
{
	cpumask_var_t two;
	int cpu;

	if (num_online_cpus() == 1)
		return;
	if (!zalloc_cpumask_var(&two, GFP_KERNEL))
		return orch_miss(run, "the guest is out of memory");
	for_each_online_cpu(cpu)
		if (cpumask_weight(two) < 2)
			cpumask_set_cpu(cpu, two);
	atomic_set(&arrived, 0);
	orch_parallel(run, two, set_together, NULL);
	free_cpumask_var(two);
	static_call_update(orch_add, &orch_plus_one);
}

ORCH_SCENARIO(static_calls)
{
	struct orch_workers *hammers;
	unsigned int rounds = 0;

	set_by_two(run);

	hammering = true;
	hammers = orch_workers_start(run, cpu_online_mask, hammer, NULL);
	do {
		static_call_update(orch_add, &orch_plus_two);
		static_call_update(orch_maybe, &orch_count);
		static_call_update(orch_zero, &orch_plus_one);
		expect_all(run, 2, 41, 1);
		static_call_update(orch_add, &orch_plus_one);
		static_call_update(orch_maybe, NULL);
		static_call_update(orch_zero, (void *)&__static_call_return0);
		expect_all(run, 1, 0, 0);
		rounds++;
		usleep_range(50, 100);
	} while (orch_time_left(run) || rounds < 4);
	WRITE_ONCE(hammering, false);
	orch_workers_join(hammers);
	orch_note("# rounds=%u\n", rounds);
}

#else

ORCH_SCENARIO(static_calls)
{
	orch_skip(run, "this kernel lets modules have no static calls that return zero");
}

#endif
