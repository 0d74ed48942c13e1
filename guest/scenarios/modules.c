// SPDX-License-Identifier: GPL-2.0
/*
 * title: a module is loaded and removed while its key is flipped
 * promise: >-
 *   The branches of a module follow a key of another module from the first instruction that it
 *   executes to the last, even if the key is flipped while the module is being loaded.
 * order: 620
 * weight: 2
 * companion: |
 *   fails() {
 *           echo "$1"
 *           exit 1
 *   }
 *   [ -e /proc/modules ] || { echo "this kernel has no modules"; exit 4; }
 *   loads=0
 *   while [ -e /run/companion ] || [ $loads -eq 0 ]; do
 *           insmod /orch_guest.ko || fails "a module being loaded does not follow its key"
 *           rmmod orch_guest || fails "a module cannot be removed"
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

ORCH_DEFINE_KEY(orch_guest_key);
EXPORT_SYMBOL_GPL(orch_guest_key);

/*
 * Keeps the key from being flipped while the branches are checked. Not held while
 * the module is being loaded, since that is what is tested.
 */
static DEFINE_MUTEX(lock);
static bool key_is_on;
static unsigned int (*loaded)(bool on);	/* orch_guest.ko's function, while it is loaded */
static unsigned int loads;

unsigned int orch_guest_enter(unsigned int (*count_wrong)(bool on))
{
	unsigned int count;

	mutex_lock(&lock);
	count = count_wrong(key_is_on);
	if (!count)
		loaded = count_wrong;
	loads++;
	mutex_unlock(&lock);
	return count;
}
EXPORT_SYMBOL_GPL(orch_guest_enter);

void orch_guest_leave(void)
{
	mutex_lock(&lock);
	loaded = NULL;
	mutex_unlock(&lock);
}
EXPORT_SYMBOL_GPL(orch_guest_leave);

ORCH_SCENARIO(modules)
{
	unsigned int flips = 0, looked = 0, before = loads;

	do {
		mutex_lock(&lock);
		key_is_on = !key_is_on;
		orch_key_set(&orch_guest_key, key_is_on);
		flips++;
		if (loaded) {
			orch_expect(run, !loaded(key_is_on),
				    "a loaded module's branches are not %s after flip %u",
				    key_is_on ? "on" : "off", flips);
			looked++;
		}
		mutex_unlock(&lock);
		usleep_range(20, 200);
	} while (orch_time_left(run) || (loads == before && flips < 20000));
	mutex_lock(&lock);
	if (key_is_on)
		orch_key_set(&orch_guest_key, false);
	key_is_on = false;
	mutex_unlock(&lock);
	orch_note("# flips=%u loads=%u looked=%u\n", flips, loads - before, looked);
}

#else

ORCH_SCENARIO(modules)
{
	orch_skip(run, "CONFIG_JUMP_LABEL is not set");
}

#endif
