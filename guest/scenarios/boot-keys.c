// SPDX-License-Identifier: GPL-2.0
/*
 * title: jump labels since early boot
 * promise: >-
 *   However often keys have been flipped since early boot, by kernel parameters or later, each
 *   branch in the kernel's table is a NOP or a jump to its target, as its key demands.
 * order: 340
 * append: [schedstats=enable]
 * symbols: [sched_schedstats, __start___jump_table, __stop___jump_table, text_mutex]
 */
#include <linux/jump_label.h>
#include <linux/mutex.h>
#include <linux/string.h>
#include "compat.h"
#include "scenario.h"

#if defined(CONFIG_JUMP_LABEL) && defined(ORCH_JUMP_ENTRY_CODE)

static bool is_jump(const u8 *code, const u8 *target)
{
	if (code[0] == 0xeb)
		return code + 2 + (s8)code[1] == target;
	return code[0] == 0xe9 && code + 5 + *(const s32 *)(code + 1) == target;
}

static bool is_nop(const u8 *code)
{
	static const u8 two[] = { 0x66, 0x90 };
	static const u8 five[] = { 0x0f, 0x1f, 0x44, 0x00, 0x00 };
	static const u8 k8[] = { 0x66, 0x66, 0x66, 0x66, 0x90 };

	return !memcmp(code, two, 2) || !memcmp(code, five, 5) || !memcmp(code, k8, 5);
}

static void check_entry(struct orch_run *run, const struct jump_entry *entry)
{
	const u8 *code = (const u8 *)jump_entry_code(entry);
	const u8 *target = (const u8 *)jump_entry_target(entry);
	bool jumps = static_key_enabled(jump_entry_key(entry)) ^ !!((unsigned long)entry->key & 1);

	if (jumps)
		orch_expect(run, is_jump(code, target), "%pS holds %5ph and not a jump to %pS",
			    code, code, target);
	else
		orch_expect(run, is_nop(code), "%pS holds %5ph and not a NOP", code, code);
}

ORCH_SCENARIO(boot_keys)
{
	const struct jump_entry *entry = (void *)orch_symbol("__start___jump_table");
	const struct jump_entry *end = (void *)orch_symbol("__stop___jump_table");
	struct static_key *schedstats = (struct static_key *)orch_symbol("sched_schedstats");
	unsigned int sites = 0, init_sites = 0;

	if (!entry || !end)
		return orch_skip(run, "the table of jump labels is not in the symbol table");
	if (schedstats)
		orch_expect(run, static_key_enabled(schedstats),
			    "schedstats=enable on the command line did not switch the key on");
	for (; entry < end; entry++) {
		if ((unsigned long)entry->key & 2) {	/* in init code, now freed */
			init_sites++;
			continue;
		}
		check_entry(run, entry);
		sites++;
	}
	orch_note("# sites=%u of_init=%u\n", sites, init_sites);
	orch_expect(run, sites, "the kernel's table of jump labels is empty");
}

#else

ORCH_SCENARIO(boot_keys)
{
	orch_skip(run, "a module cannot read the table of jump labels of this kernel");
}

#endif
