// SPDX-License-Identifier: GPL-2.0
/*
 * title: the text after an even number of toggles
 * promise: >-
 *   Sites that were changed and changed back leave all text, the kernel's and the module's, as it was: nothing beside
 *   them was touched.
 * order: 350
 * symbols: [_stext, _etext]
 */
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>
#include "compat.h"
#include "scenario.h"

/* Text is compared by the page: one that changes by itself is not our sites' doing. */
struct hashes {
	unsigned long start;
	unsigned int pages;
	u64 *page;
};

/* FNV-1a over words: CONFIG_CRC32 is not everywhere. */
static u64 hash(const u64 *words)
{
	u64 hash = 0xcbf29ce484222325ULL;
	unsigned int i;

	for (i = 0; i < PAGE_SIZE / sizeof(*words); i++)
		hash = (hash ^ words[i]) * 0x100000001b3ULL;
	return hash;
}

static bool take(struct hashes *hashes)
{
	unsigned int i;

	if (!hashes->page)
		hashes->page = vmalloc(hashes->pages * sizeof(u64));
	for (i = 0; hashes->page && i < hashes->pages; i++) {
		hashes->page[i] = hash((void *)(hashes->start + i * PAGE_SIZE));
		cond_resched();
	}
	return hashes->page;
}

static unsigned int differ(const struct hashes *a, const struct hashes *b, unsigned long *where)
{
	unsigned int i, count = 0;

	for (i = 0; i < a->pages; i++) {
		if (a->page[i] == b->page[i])
			continue;
		*where = a->start + i * PAGE_SIZE;
		count++;
	}
	return count;
}

static void toggle_all(struct orch_run *run)
{
	int i, on;

	for (on = 1; on >= 0; on--) {
		for (i = 0; i < ORCH_SITES; i++) {
			if (!orch_sites[i].len)
				continue;
			if (orch_sites[i].set)
				orch_sites[i].set(on);
			else
				orch_poke_site(&orch_sites[i], on);
		}
	}
}

/*
 * The pages with our sites lie in the module; they must be as before in any
 * case. Those of the kernel must be, unless they also change while we do
 * nothing.
 */
static void compare(struct orch_run *run, unsigned long start, unsigned long end, const char *whose)
{
	struct hashes before = { .start = start & PAGE_MASK, .pages = (end - (start & PAGE_MASK)) / PAGE_SIZE };
	struct hashes idle = before, after = before;
	unsigned long where = 0;

	if (!before.pages || !take(&before) || !take(&idle))
		goto out;
	if (differ(&before, &idle, &where)) {
		orch_note("# %s_text=changes_by_itself\n", whose);
		goto out;
	}
	toggle_all(run);
	if (!take(&after))
		goto out;
	orch_note("# %s_pages=%u\n", whose, before.pages);
	orch_expect(run, !differ(&before, &after, &where),
		    "%u pages of the %s's text are not as before, the last at %pS",
		    differ(&before, &after, &where), whose, (void *)where);
out:
	vfree(before.page);
	vfree(idle.page);
	vfree(after.page);
}

ORCH_SCENARIO(text_hash)
{
	unsigned long start = orch_symbol("_stext"), end = orch_symbol("_etext");
	unsigned long own = (unsigned long)orch_sites[ORCH_SITE_NOP5].addr & PAGE_MASK;

	if (!start || !end)
		return orch_skip(run, "_stext and _etext are not in the symbol table");
	compare(run, start, end, "kernel");
	compare(run, own, own + PAGE_SIZE, "module");
}
