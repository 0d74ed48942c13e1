// SPDX-License-Identifier: GPL-2.0
/* In which order tasks take locks, and what they call without those that it demands. */
#include <string.h>

#include "conf.h"
#include "files.h"
#include "guest.h"
#include "locks.h"

#define HOLDERS		64
#define FRAME_WORDS	16

static uint64_t lock_address[LOCKS];
static uint32_t order_seen[LOCKS];
static struct holder {
	uint64_t task;
	uint32_t held;
	uint64_t rsp, frames;	/* where it asked for HOTPLUG */
	unsigned int depth;	/* how often it has, for it may have it several times */
} holders[HOLDERS];

void watch_mutex(unsigned int number, uint64_t address)
{
	lock_address[number] = address;
}

void forget_mutexes(void)
{
	memset(lock_address, 0, sizeof(lock_address));
}

static bool no_holder;	/* once there was no room for another one */

unsigned int number_of_lock(uint64_t mutex)
{
	for (unsigned int i = 1; i < LOCKS && mutex; i++)
		if (lock_address[i] == mutex)
			return i;
	return LOCKS;
}

static struct holder *holder_now(bool wanted)
{
	uint64_t task = task_now();
	struct holder *free = NULL;

	for (int i = 0; i < HOLDERS && task; i++) {
		if (holders[i].held && holders[i].task == task)
			return &holders[i];
		if (!holders[i].held && !free)
			free = &holders[i];
	}
	if (wanted && free)
		*free = (struct holder){ .task = task };
	no_holder |= wanted && task && !free;
	return wanted ? free : NULL;
}

/* The return addresses in a part of the stack, which change when its functions have returned. */
static uint64_t frames(uint64_t rsp)
{
	uint64_t stack[FRAME_WORDS];
	size_t count = 0;

	if (!memory(rsp, stack, sizeof(stack)))
		return 0;
	for (int i = 0; i < FRAME_WORDS; i++)
		if (behind_call(stack[i]))
			stack[count++] = stack[i];
	return fnv1a((uint8_t *)stack, count * sizeof(*stack));
}

/*
 * Whether the task surely still has the lock: its release goes unseen where that
 * is inlined. HOTPLUG may be held, too, when a function that took it for another
 * has returned.
 */
static bool still_held(const struct holder *holder, unsigned int lock)
{
	if (lock == HOTPLUG)
		return frames(holder->rsp) == holder->frames;
	return (quad(lock_address[lock]) & ~7ull) == holder->task;	/* its owner, since 4.10 */
}

static bool has_lock(uint64_t task, unsigned int lock)
{
	struct holder *holder = holder_now(false);
	uint64_t mutex[16];

	/* Of the lock of CPU hotplug only what was asked for is known, if there was room for it. */
	if (lock == HOTPLUG)
		return no_holder || (holder && holder->held & 1);
	if (!memory(lock_address[lock], mutex, sizeof(mutex)))
		return true;
	for (int at = 0; at < 16; at++)	/* PREEMPT_RT has the owner behind a lock, of any size */
		if ((mutex[at] & ~7ull) == task)
			return true;
	return false;
}

/*
 * Whether readers are kept away from the lock of CPU hotplug. Its struct begins
 * with the rcu_sync's gp_state, which is 0 if nobody has written for a while.
 */
static bool cpus_are_written(void)
{
	uint32_t state;

	return !memory(lock_address[HOTPLUG], &state, sizeof(state)) || state;
}

/* A function is entered by the current task, which must have some locks. */
void on_guarded(unsigned int cpu, const struct watched *here, uint64_t rsp)
{
	uint64_t task = task_now(), words[2] = { here->address, quad(rsp) };

	for (unsigned int lock = 0; lock < LOCKS && task; lock++)
		if (here->number >> lock & 1 && lock_address[lock] && !has_lock(task, lock))
			emit(UNGUARDED, cpu, 0, lock, words, 2);
	if (here->number & CPUS_ARE_WRITTEN && lock_address[HOTPLUG] && !cpus_are_written())
		emit(UNGUARDED, cpu, 0, HOTPLUG, words, 2);
}

static void hold(struct holder *holder, unsigned int lock, uint64_t rsp)
{
	holder->held |= 1u << lock;
	if (lock != HOTPLUG)
		return;
	holder->depth++;
	holder->rsp = rsp + 8;
	holder->frames = frames(rsp + 8);
}

void on_hotplug_tried(uint64_t rsp)
{
	struct holder *holder = holder_now(true);

	if (holder)
		hold(holder, HOTPLUG, rsp);
}

/* A lock is asked for. */
void on_lock(unsigned int cpu, unsigned int lock, uint64_t rsp)
{
	struct holder *holder = holder_now(true);
	uint64_t words[2] = { lock, quad(rsp) };

	if (!holder)
		return;
	for (unsigned int held = 0; held < LOCKS; held++) {
		if (!(holder->held >> held & 1) || held == lock)
			continue;
		if (order_seen[held] >> lock & 1)
			continue;
		if (still_held(holder, held)) {
			order_seen[held] |= 1u << lock;
			emit(ORDER, cpu, 0, held, words, 2);
		} else if (held != HOTPLUG) {
			holder->held &= ~(1u << held);
		}
	}
	hold(holder, lock, rsp);
}

void on_unlock(unsigned int lock)
{
	struct holder *holder = lock < LOCKS ? holder_now(false) : NULL;

	if (!holder || (lock == HOTPLUG && holder->depth && --holder->depth))
		return;
	holder->held &= ~(1u << lock);
}
