// SPDX-License-Identifier: GPL-2.0
/* What the poke handler and the kprobes' handler would find, read from the kernel's own data. */
#include "conf.h"
#include "guest.h"
#include "patching.h"

bool is_patching(void)
{
	uint64_t gs = reg(GS_BASE);
	uint32_t value = 0;
	uint8_t flag = 0;

	if (patching_flag && memory(patching_flag, &flag, 1))
		return flag;
	if (patching_refs)	/* struct bp_patching_desc: vec, nr_entries, refs */
		return memory(patching_refs + 12, &value, 4) && value;
	return patching_refs_percpu && gs >> 63 &&
	       memory(gs + patching_refs_percpu, &value, 4) && value;
}

#define POKES		256	/* TEXT_POKE_ARRAY_MAX */

/* struct text_poke_loc, since 5.8 */
struct poke {
	int32_t address;	/* from _stext */
	uint8_t rest[12];
};

/* Whether the handler has been given this address. */
static bool has_poke(uint64_t address)
{
	uint64_t vector = patching_refs ? quad(patching_refs) : patching_array;
	uint64_t count = patching_refs ? patching_refs + 8 :
					 patching_array + POKES * sizeof(struct poke);
	static struct poke pokes[POKES];
	uint32_t number;

	if (patching_address)
		return quad(patching_address) == address + 1;
	if (!vector || !memory(count, &number, 4) || number > POKES ||
	    !memory(vector, pokes, number * sizeof(*pokes)))
		return false;
	for (uint32_t i = 0; i < number; i++)
		if (text_start + pokes[i].address == address)
			return true;
	return false;
}

/*
 * Whether the handler looks for int3 at the site that is written to. Its
 * addresses count once one of them was found where we look for them.
 */
bool is_patching_here(uint64_t address, const uint8_t *bytes, uint64_t length)
{
	static bool found;
	bool begins = length == 1 && bytes[0] == INT3;

	if (!is_patching())
		return false;
	if (!begins || !found)
		found |= has_poke(address) || has_poke(address - 1);
	return !begins || !found || has_poke(address);
}

#define PROBES	1024	/* in one list, at most */

bool is_probed(uint64_t address)
{
	for (uint64_t i = 0; kprobe_table && i < kprobe_lists; i++) {
		uint64_t probe = quad(kprobe_table + 8 * i);

		for (int n = 0; n < PROBES && probe; n++, probe = quad(probe))
			if (quad(probe + KP_ADDRESS) == address)
				return true;
	}
	return false;
}
