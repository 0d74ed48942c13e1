// SPDX-License-Identifier: GPL-2.0
/* What the poke handler and the kprobes' handler would find, read from the kernel's own data. */
#include "conf.h"
#include "guest.h"
#include "patching.h"

/* Whether struct bp_patching_desc is not what it was so far: vec, nr_entries, refs. */
static bool laid_out_otherwise(void)
{
	static bool otherwise;
	uint64_t vector = quad(patching_refs);

	otherwise |= vector && !(vector >> 63);
	return otherwise;
}

/* Of the poke and of each handler that looks: on this CPU, if they are counted by CPU. */
static uint32_t references(void)
{
	uint64_t gs = reg(GS_BASE), at = 0;
	uint32_t value = 0;

	if (patching_refs && !laid_out_otherwise())
		at = patching_refs + 12;
	else if (patching_refs_percpu && gs >> 63)
		at = gs + patching_refs_percpu;
	return at && memory(at, &value, 4) ? value : 0;
}

bool is_patching(void)
{
	uint8_t flag = 0;

	if (patching_flag && memory(patching_flag, &flag, 1))
		return flag;
	return references();
}

bool is_reference_kept(bool by_this_cpu, bool by_any_cpu)
{
	return !(patching_refs ? by_any_cpu : by_this_cpu) && references() > 1;
}

#define POKES		256	/* TEXT_POKE_ARRAY_MAX */

/* struct text_poke_loc, since 5.8 */
struct poke {
	int32_t address;	/* from _stext */
	uint8_t rest[12];
};

/* What the handler has been given. */
static struct poke given[POKES];
static uint32_t given_count;

static void read_given(void)
{
	uint64_t vector = patching_refs ? quad(patching_refs) : patching_array;
	uint64_t count = patching_refs ? patching_refs + 8 :
					 patching_array + POKES * sizeof(struct poke);

	if (!vector || !memory(count, &given_count, 4) || given_count > POKES ||
	    !memory(vector, given, given_count * sizeof(*given)))
		given_count = 0;
}

static bool was_given(uint64_t address)
{
	if (patching_address)
		return quad(patching_address) == address + 1;
	for (uint32_t i = 0; i < given_count; i++)
		if (text_start + given[i].address == address)
			return true;
	return false;
}

static bool found;	/* addresses count once one of them was where we look for them */

/* Sites of the poke under way that were given to the handler when their int3 was written. */
static struct {
	uint64_t address;
	bool over;	/* it is about to have its new first byte */
} sites[POKES];
static unsigned int site_count;

static void note_write(uint64_t address, bool begins)
{
	bool all_over = true;

	for (unsigned int i = 0; i < site_count; i++) {
		if (sites[i].address == address && !sites[i].over) {
			sites[i].over = true;	/* be it by another int3 */
			return;
		}
		all_over = all_over && sites[i].over;
	}
	if (!begins)
		return;
	if (all_over)
		site_count = 0;
	if (found && site_count < POKES && was_given(address)) {
		sites[site_count].address = address;
		sites[site_count++].over = false;
	}
}

bool is_patching_here(uint64_t address, const uint8_t *bytes, uint64_t length)
{
	bool begins = length == 1 && bytes[0] == INT3;

	if (!is_patching())
		return false;
	read_given();
	if (!begins || !found)
		found |= was_given(address) || was_given(address - 1);
	note_write(address, begins);
	return !begins || !found || was_given(address);
}

void poke_is_over(void)
{
	site_count = 0;
}

bool is_patching_all(void)
{
	if (!is_patching())
		return false;
	read_given();
	for (unsigned int i = 0; i < site_count; i++)
		if (!was_given(sites[i].address))
			return false;
	return true;
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
