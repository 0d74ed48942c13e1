// SPDX-License-Identifier: GPL-2.0
/*
 * A module that comes and goes: branches on a key that orch.ko owns and flips
 * meanwhile (guest/scenarios/modules.c).
 */
#include <linux/errno.h>
#include <linux/jump_label.h>
#include <linux/module.h>
#include "guest.h"

#ifdef CONFIG_JUMP_LABEL

static noinline notrace bool first(void)
{
	return orch_guest_branch();
}

static noinline notrace bool second(void)
{
	if (orch_guest_branch())
		return true;
	return false;
}

static unsigned int wrong(bool on)
{
	return (first() != on) + (second() != on);
}

static int __init start(void)
{
	return orch_guest_enter(wrong) ? -EINVAL : 0;
}

static void __exit stop(void)
{
	orch_guest_leave();
}

module_init(start);
module_exit(stop);

#endif

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Branches on a key of another module");
