// SPDX-License-Identifier: GPL-2.0
/*
 * title: modules that come and go while their key is flipped
 * promise: >-
 *   The branches of a module follow a key of another one from its first instruction to its last, whenever the key is
 *   flipped: also while it is being loaded.
 * order: 620
 * weight: 2
 * companion: |
 *   [ -e /proc/modules ] || { echo "this kernel has no modules"; exit 4; }
 *   loads=0
 *   while [ -e /run/companion ] || [ $loads -eq 0 ]; do
 *           insmod /orch_guest.ko || { echo "the branches of a module do not follow its key when it is loaded"; exit 1; }
 *           rmmod orch_guest || { echo "a module cannot be removed"; exit 1; }
 *           loads=$((loads + 1))
 *   done
 *   echo "loads=$loads"
 */
#include <linux/delay.h>
#include <linux/jump_label.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include "compat.h"
#include "guest.h"
#include "scenario.h"

#ifdef CONFIG_JUMP_LABEL

#ifdef DEFINE_STATIC_KEY_FALSE
DEFINE_STATIC_KEY_FALSE(orch_guest_key);
#define flip(on)	((on) ? static_branch_enable(&orch_guest_key) : static_branch_disable(&orch_guest_key))
#else
struct static_key orch_guest_key = STATIC_KEY_INIT_FALSE;
#define flip(on)	((on) ? static_key_slow_inc(&orch_guest_key) : static_key_slow_dec(&orch_guest_key))
#endif
EXPORT_SYMBOL_GPL(orch_guest_key);

/*
 * Held while we look, so that the key stands still; not while a module is being
 * loaded: that is what is tested.
 */
static DEFINE_MUTEX(lock);
static bool now;
static unsigned int (*look)(bool on);
static unsigned int entered;

unsigned int orch_guest_enter(unsigned int (*wrong)(bool on))
{
	unsigned int count;

	mutex_lock(&lock);
	count = wrong(now);
	if (!count)
		look = wrong;
	entered++;
	mutex_unlock(&lock);
	return count;
}
EXPORT_SYMBOL_GPL(orch_guest_enter);

void orch_guest_leave(void)
{
	mutex_lock(&lock);
	look = NULL;
	mutex_unlock(&lock);
}
EXPORT_SYMBOL_GPL(orch_guest_leave);

ORCH_SCENARIO(modules)
{
	unsigned int flips = 0, looked = 0, before = entered;

	do {
		mutex_lock(&lock);
		now = !now;
		flip(now);
		flips++;
		if (look) {
			orch_expect(run, !look(now), "a loaded module's branches are not %s after flip %u",
				    now ? "on" : "off", flips);
			looked++;
		}
		mutex_unlock(&lock);
		usleep_range(20, 200);
	} while (orch_go_on(run) || (entered == before && flips < 20000));
	mutex_lock(&lock);
	if (now)
		flip(false);
	now = false;
	mutex_unlock(&lock);
	orch_note("# flips=%u loads=%u looked=%u\n", flips, entered - before, looked);
}

#else

ORCH_SCENARIO(modules)
{
	orch_skip(run, "CONFIG_JUMP_LABEL is not set");
}

#endif
