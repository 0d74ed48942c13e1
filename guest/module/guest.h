/* SPDX-License-Identifier: GPL-2.0 */
/* What orch.ko gives to orch_guest.ko. */
#ifndef ORCH_GUEST_H
#define ORCH_GUEST_H

#include <linux/jump_label.h>
#include <linux/types.h>

#ifdef DEFINE_STATIC_KEY_FALSE
extern struct static_key_false orch_guest_key;
#define orch_guest_branch()	static_branch_unlikely(&orch_guest_key)
#else
extern struct static_key orch_guest_key;
#define orch_guest_branch()	static_key_false(&orch_guest_key)
#endif

/**
 * orch_guest_enter() - the other module is there
 * @wrong: tells how many of its branches do not go the way that it is given
 *
 * Looks at once, and after each flip until orch_guest_leave(). Returns what
 * @wrong said.
 */
unsigned int orch_guest_enter(unsigned int (*wrong)(bool on));
void orch_guest_leave(void);

#endif
