// SPDX-License-Identifier: GPL-2.0
/*
 * title: the text is intact after each site was poked and poked back
 * promise: >-
 *   After all sites were poked and poked back, all text, the kernel's and the module's, is as it
 *   was: nothing around the sites was touched.
 * order: 350
 * symbols: [_stext, _etext]
 */
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>
#include "compat.h"
#include "scenario.h"

/* How often to look for a moment in which nobody else changes the text. */
#define TRIES	20

/**
 * struct hashes - a hash of each page of a range of text
 * @start: address of the first page
 * @pages: how many
 * @page: a hash of each
 */
struct hashes {
	unsigned long start;
	unsigned int pages;
	u64 *page;
};

/* FNV-1a over words, since CONFIG_CRC32 is not set everywhere. */
static u64 hash(const u64 *words)
{
	u64 hash = 0xcbf29ce484222325ULL;
	unsigned int i;

	for (i = 0; i < PAGE_SIZE / sizeof(*words); i++)
		hash = (hash ^ words[i]) * 0x100000001b3ULL;
	return hash;
}

static bool take_hashes(struct hashes *hashes)
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

static unsigned int count_changed(const struct hashes *a, const struct hashes *b,
				  unsigned long *where)
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
 * The text must not change while all sites are toggled, unless it also changes
 * while nothing happens.
 */
static void compare(struct orch_run *run, unsigned long start, unsigned long end, const char *owner)
{
	struct hashes before = {
		.start = start & PAGE_MASK,
		.pages = (end - (start & PAGE_MASK)) / PAGE_SIZE,
	};
	struct hashes idle = before, after = before;
	unsigned long where = 0;
	int tries = 0;

	do {
		if (!take_hashes(&before) || !take_hashes(&idle)) {
			orch_miss(run, "the guest is out of memory");
			goto out;
		}
	} while (count_changed(&before, &idle, &where) && ++tries < TRIES);
	if (tries == TRIES) {
		orch_miss(run, "the %s's text changes by itself, at %pS", owner, (void *)where);
		goto out;
	}
	toggle_all(run);
	if (!take_hashes(&after)) {
		orch_miss(run, "the guest is out of memory");
		goto out;
	}
	orch_note("# %s_pages=%u\n", owner, before.pages);
	orch_expect(run, !count_changed(&before, &after, &where),
		    "%u pages of the %s's text changed, the last one at %pS",
		    count_changed(&before, &after, &where), owner, (void *)where);
out:
	vfree(before.page);
	vfree(idle.page);
	vfree(after.page);
}

ORCH_SCENARIO(text_hash)
{
	unsigned long start = orch_symbol("_stext"), end = orch_symbol("_etext");
	unsigned long module = (unsigned long)orch_sites[ORCH_SITE_NOP5].addr & PAGE_MASK;

	if (!start || !end)
		return orch_skip(run, "_stext and _etext are not in the symbol table");
	compare(run, start, end, "kernel");
	compare(run, module, module + PAGE_SIZE, "module");
}
