// SPDX-License-Identifier: GPL-2.0
/*
 * title: a module is loaded and removed while its key is flipped
 * promise: >-
 *   The branches of a module follow a key of another module from the first instruction that it
 *   executes to the last, those in its init text included, even if the key is flipped while the
 *   module is being loaded. So does a static call. What was init text is left alone afterwards.
 * order: 620
 * weight: 2
 * companion: |
 *   # The module refuses with EINVAL if one of its branches goes the wrong way.
 *   cannot() {
 *           echo "$1: $2"
 *           case $2 in
 *           *"Invalid argument"*) exit $3 ;;
 *           *"not implemented"*|*"not support"*) exit 4 ;; # no CONFIG_MODULE_UNLOAD
 *           esac
 *           exit 3
 *   }
 *   loads=0
 *   while [ -e /run/companion ] || [ $loads -eq 0 ]; do
 *           why=$(insmod /orch_guest.ko 2>&1) ||
 *                   cannot "a module being loaded does not follow its key" "$why" 1
 *           why=$(rmmod orch_guest 2>&1) || cannot "a module cannot be removed" "$why" 3
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

#ifdef CONFIG_HAVE_STATIC_CALL_INLINE
noinline bool orch_guest_is_off(void)
{
	return false;
}

static noinline bool is_on(void)
{
	return true;
}

DEFINE_STATIC_CALL(orch_guest_call, orch_guest_is_off);
EXPORT_STATIC_CALL_GPL(orch_guest_call);

static void set_call(bool on)
{
	static_call_update(orch_guest_call, on ? &is_on : &orch_guest_is_off);
}
#else
static void set_call(bool on)
{
}
#endif

/*
 * Keeps the key from being flipped while the branches are checked. Not held while
 * the module is being loaded, since that is what is tested.
 */
static DEFINE_MUTEX(lock);
static bool key_is_on;
static unsigned int (*loaded)(bool on);	/* orch_guest.ko's function, while it is loaded */
static unsigned int loads;

/* How long to wait for the first module, as the host may be busy. */
#define SECONDS		40
/* And how long for another one: a kernel may not be able to remove modules. */
#define MORE_SECONDS	3
/* The key is flipped after the first one has gone. */
#define LOADS		2

static bool is_over(unsigned int seen, unsigned int looked, unsigned int sleeps)
{
	if (!seen)
		return sleeps >= 1000 * SECONDS;
	return (seen >= LOADS && looked) || sleeps >= 1000 * MORE_SECONDS;
}

unsigned int orch_guest_enter(unsigned int (*at_start)(bool on),
			      unsigned int (*count_wrong)(bool on))
{
	unsigned int count;

	mutex_lock(&lock);
	count = at_start(key_is_on);
	if (!count)
		loaded = count_wrong;
	loads++;
	mutex_unlock(&lock);
	return count;
}
EXPORT_SYMBOL_GPL(orch_guest_enter);

unsigned int orch_guest_look(unsigned int (*at_start)(bool on))
{
	unsigned int count;

	mutex_lock(&lock);
	count = at_start(key_is_on);
	mutex_unlock(&lock);
	return count;
}
EXPORT_SYMBOL_GPL(orch_guest_look);

void orch_guest_leave(void)
{
	mutex_lock(&lock);
	loaded = NULL;
	mutex_unlock(&lock);
}
EXPORT_SYMBOL_GPL(orch_guest_leave);

ORCH_SCENARIO(modules)
{
	unsigned int flips = 0, looked = 0, sleeps = 0, before = loads;

	do {
		mutex_lock(&lock);
		key_is_on = !key_is_on;
		orch_key_set(&orch_guest_key, key_is_on);
		set_call(key_is_on);
		flips++;
		if (loaded) {
			orch_expect(run, !loaded(key_is_on),
				    "a loaded module's branches and calls are not %s after flip %u",
				    key_is_on ? "on" : "off", flips);
			looked++;
		}
		mutex_unlock(&lock);
		if (orch_time_left(run)) {
			usleep_range(20, 200);
		} else {
			usleep_range(1000, 2000);
			if (++sleeps % 10 == 0)
				orch_sign_of_life(sleeps / 10);
		}
	} while (orch_time_left(run) || !is_over(loads - before, looked, sleeps));
	if (loads == before)
		orch_miss(run, "no module was loaded while the key was flipped");
	mutex_lock(&lock);
	if (key_is_on)
		orch_key_set(&orch_guest_key, false);
	set_call(false);
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
