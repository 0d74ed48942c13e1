// SPDX-License-Identifier: GPL-2.0
/*
 * The static-call site: a call whose target the kernel changes. The site is the
 * call itself where the kernel patches calls inline, else the trampoline.
 */
#include <linux/module.h>
#include <linux/string.h>
#include "compat.h"
#include "orch.h"

#ifdef CONFIG_HAVE_STATIC_CALL
#include <linux/static_call.h>

/* Not static, or the compiler could see that both return a constant. */
enum orch_result orch_static_old(void);
enum orch_result orch_static_new(void);

noinline notrace enum orch_result orch_static_old(void)
{
	barrier();
	return ORCH_OLD;
}

noinline notrace enum orch_result orch_static_new(void)
{
	barrier();
	return ORCH_NEW;
}

DEFINE_STATIC_CALL(orch_static, orch_static_old);

/* The barrier keeps the call from being compiled as a tail call, which is a jump. */
static noinline notrace ORCH_NOCLONE enum orch_result pass(void)
{
	enum orch_result result = static_call(orch_static)();

	barrier();
	return result;
}

static void set(bool on)
{
	static_call_update(orch_static, on ? &orch_static_new : &orch_static_old);
}

static u8 *find(void)
{
#ifdef CONFIG_HAVE_STATIC_CALL_INLINE
	struct static_call_site *site = THIS_MODULE->static_call_sites;
	struct static_call_site *end = site + THIS_MODULE->num_static_call_sites;

	for (; site < end; site++) {
		unsigned long key = (unsigned long)&site->key + site->key;

		if ((key & ~3UL) == (unsigned long)&STATIC_CALL_KEY(orch_static))
			return (u8 *)&site->addr + site->addr;
	}
	return NULL;
#else
	return (u8 *)&STATIC_CALL_TRAMP(orch_static);
#endif
}

void orch_static_call_site_init(struct orch_site *site)
{
	site->addr = find();
	if (!site->addr || (site->addr[0] != 0xe8 && site->addr[0] != 0xe9)) {
		site->why_not = "the module's static call is not compiled as a call or jump";
		return;
	}
	site->len = 5;
	site->pass = pass;
	site->set = set;
	site->to_old = orch_static_old;
	site->to_new = orch_static_new;
	orch_jump_to(site->old, 5, site->addr, (u8 *)orch_static_old);
	orch_jump_to(site->new, 5, site->addr, (u8 *)orch_static_new);
	site->old[0] = site->new[0] = site->addr[0];
	if (memcmp(site->addr, site->old, 5)) {
		/* Until the call is first switched it may go by the trampoline. */
		set(true);
		set(false);
	}
	memcpy(site->old, site->addr, 5);
}

#else

void orch_static_call_site_init(struct orch_site *site)
{
	site->why_not = "CONFIG_HAVE_STATIC_CALL is not set";
}

#endif
