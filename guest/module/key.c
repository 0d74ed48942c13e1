// SPDX-License-Identifier: GPL-2.0
/*
 * The jump-label site: a static key of our own with one branch on it.
 */
#include <linux/jump_label.h>
#include <linux/module.h>
#include <linux/string.h>
#include "orch.h"

#ifdef DEFINE_STATIC_KEY_FALSE
static DEFINE_STATIC_KEY_FALSE(orch_key);
#define orch_key_address	(&orch_key.key)
#define orch_key_branch()	static_branch_unlikely(&orch_key)
#else
static struct static_key orch_key = STATIC_KEY_INIT_FALSE;
#define orch_key_address	(&orch_key)
#define orch_key_branch()	static_key_false(&orch_key)
#endif

extern void *orch_key_int3;

/*
 * A poke of this site with a target of ours goes to l_int3: an asm goto label
 * right behind the branch, where the compiler expects the same registers and
 * stack as at the branch, since nothing is live here.
 */
static noinline notrace __attribute__((noclone)) enum orch_result pass(void)
{
	if (orch_key_branch())
		return ORCH_NEW;
	asm goto("cmpb $0, orch_never(%%rip)\n\t"
		 "jne %l[l_int3]\n\t"
		 ".pushsection .data, \"aw\"\n\t"
		 ".balign 8\n"
		 ".globl orch_key_int3\n"
		 "orch_key_int3:\n\t"
		 ".quad %l[l_int3]\n\t"
		 ".popsection\n"
		 : : : "cc", "memory" : l_int3);
	return ORCH_OLD;
l_int3:
	return ORCH_INT3;
}

static void set(bool on)
{
#ifdef DEFINE_STATIC_KEY_FALSE
	if (on)
		static_branch_enable(&orch_key);
	else
		static_branch_disable(&orch_key);
#else
	if (on)
		static_key_slow_inc(&orch_key);
	else
		static_key_slow_dec(&orch_key);
#endif
}

/*
 * Up to 3.11 jump labels are changed by text_poke_smp(), which stops the machine,
 * unless somebody has made them use text_poke_bp(). That keeps the address which
 * it has served last.
 */
static bool stops_the_machine(const struct orch_site *site)
{
	void **last = (void **)orch_symbol("bp_int3_addr");
	bool other;

	if (!last || !orch_symbol("text_poke_smp"))
		return false;
	set(true);
	other = *last != site->addr + 1;
	set(false);
	return other;
}

#ifdef ORCH_JUMP_ENTRY_CODE
#define entry_code(e)	((u8 *)jump_entry_code(e))
#define entry_target(e)	((u8 *)jump_entry_target(e))
#define entry_key(e)	jump_entry_key(e)
#else
#define entry_code(e)	((u8 *)(unsigned long)(e)->code)
#define entry_target(e)	((u8 *)(unsigned long)(e)->target)
#define entry_key(e)	((struct static_key *)((unsigned long)(e)->key & ~3UL))
#endif

void orch_key_site_init(struct orch_site *site)
{
#ifdef CONFIG_JUMP_LABEL
	struct jump_entry *entry = THIS_MODULE->jump_entries;
	struct jump_entry *end = entry + THIS_MODULE->num_jump_entries;

	for (; entry < end; entry++)
		if (entry_key(entry) == orch_key_address)
			break;
	if (entry == end) {
		site->why_not = "the module has no jump entry for its key";
		return;
	}
	site->addr = entry_code(entry);
	/* two bytes where the kernel has short jump labels: 66 90 */
	site->len = site->addr[0] == 0x66 && site->addr[1] == 0x90 ? 2 : 5;
	site->pass = pass;
	site->set = set;
	if (stops_the_machine(site))
		site->set_why_not = "this kernel stops the machine to change a jump label";
	site->handler = orch_key_int3;
	site->target = orch_key_int3;
	site->to_old = site->addr + site->len;
	site->to_new = entry_target(entry);
	memcpy(site->old, site->addr, site->len);
	if (!orch_key_int3 ||
	    !orch_jump_to(site->new, site->len, site->addr, entry_target(entry)) ||
	    !orch_jump_to(site->emulate, site->len, site->addr, orch_key_int3)) {
		site->len = 0;
		site->why_not = "the compiler put its landing pad out of a short jump's reach";
	}
#else
	site->why_not = "CONFIG_JUMP_LABEL is not set";
#endif
}
