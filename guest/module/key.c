// SPDX-License-Identifier: GPL-2.0
/*
 * The jump-label site: the only branch on a static key of the module.
 */
#include <linux/jump_label.h>
#include <linux/module.h>
#include <linux/string.h>
#include "compat.h"
#include "orch.h"

static ORCH_DEFINE_KEY(site_key);

extern void *orch_key_int3;

/*
 * When the module pokes this site itself, its int3 target is l_int3. That is an
 * asm goto label right behind the branch: nothing is live here, so the compiler
 * expects the same registers and stack there as at the branch.
 */
static noinline notrace ORCH_NOCLONE enum orch_result pass(void)
{
	if (orch_key_branch(&site_key))
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
	orch_key_set(&site_key, on);
}

/*
 * Up to 3.11 jump labels are changed by text_poke_smp(), which stops the
 * machine, unless the kernel is patched to use text_poke_bp(). The latter leaves
 * the address of its last poke in bp_int3_addr.
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
		if (entry_key(entry) == orch_key_struct(&site_key))
			break;
	if (entry == end) {
		site->why_not = "the module has no jump entry for its key";
		return;
	}
	site->addr = entry_code(entry);
	/* 66 90, a NOP of two bytes, where the kernel has short jump labels */
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
		site->why_not = "the landing pad is beyond the reach of a short jump";
	}
#else
	site->why_not = "CONFIG_JUMP_LABEL is not set";
#endif
}
