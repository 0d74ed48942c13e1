/* SPDX-License-Identifier: GPL-2.0 */
/* What orch.ko exports to orch_guest.ko. */
#ifndef ORCH_GUEST_H
#define ORCH_GUEST_H

#include <linux/types.h>
#include "compat.h"

#ifdef CONFIG_HAVE_STATIC_CALL_INLINE
#include <linux/static_call.h>

bool orch_guest_is_off(void);
DECLARE_STATIC_CALL(orch_guest_call, orch_guest_is_off);
#endif

extern orch_key_t orch_guest_key;

/**
 * orch_guest_enter() - announce that orch_guest.ko is loaded
 * @at_start: returns how many of the module's branches do not go the way given
 *	by its argument, those in its init text included
 * @count_wrong: the same without those in its init text
 *
 * Calls @at_start at once and, if that returns 0, @count_wrong after each flip
 * of the key until orch_guest_leave().
 *
 * Return: the result of @at_start.
 */
unsigned int orch_guest_enter(unsigned int (*at_start)(bool on),
			      unsigned int (*count_wrong)(bool on));

/**
 * orch_guest_look() - check the branches of orch_guest.ko before it announces itself
 * @at_start: as for orch_guest_enter()
 *
 * Return: the result of @at_start.
 */
unsigned int orch_guest_look(unsigned int (*at_start)(bool on));

/**
 * orch_guest_leave() - announce that orch_guest.ko is about to go
 */
void orch_guest_leave(void);

#endif
