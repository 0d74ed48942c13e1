// SPDX-License-Identifier: GPL-2.0
/*
 * A module that is loaded and removed while orch.ko flips a key that it
 * branches on, and a static call that it does (guest/scenarios/modules.c).
 */
#include <linux/delay.h>
#include <linux/errno.h>
#include <linux/module.h>
#include "guest.h"

#ifdef CONFIG_JUMP_LABEL

static noinline notrace bool first(void)
{
	return orch_key_branch(&orch_guest_key);
}

static noinline notrace bool second(void)
{
	if (orch_key_branch(&orch_guest_key))
		return true;
	return false;
}

#ifdef CONFIG_HAVE_STATIC_CALL_INLINE
static noinline notrace bool call(void)
{
	bool on = static_call(orch_guest_call)();

	barrier();	/* no call in tail position */
	return on;
}
#else
static bool call(void)
{
	return first();
}
#endif

static unsigned int count_wrong(bool on)
{
	return (first() != on) + (second() != on) + (call() != on);
}

/* A branch that is gone once the module is loaded; nobody may change it afterwards. */
static noinline notrace bool __init at_start(void)
{
	return orch_key_branch(&orch_guest_key);
}

static unsigned int __init count_wrong_at_start(bool on)
{
	return count_wrong(on) + (at_start() != on);
}

static int __init start(void)
{
	if (orch_guest_look(count_wrong_at_start))
		return -EINVAL;
	/* The key is flipped while this function runs and has executed the branches. */
	usleep_range(500, 1000);
	return orch_guest_enter(count_wrong_at_start, count_wrong) ? -EINVAL : 0;
}

static void __exit stop(void)
{
	orch_guest_leave();
}

module_init(start);
module_exit(stop);

#endif

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Branches on a static key of another module");
