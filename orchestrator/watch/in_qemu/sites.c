// SPDX-License-Identifier: GPL-2.0
/* Passes over the sites of the test module, by CPU and between two writes. */
#include "files.h"
#include "sites.h"

static struct watched *sites[256];
static int site_count;

void note_site(struct watched *site)
{
	if (site_count < 256)
		sites[site_count++] = site;
}

void forget_sites(void)
{
	site_count = 0;
}

void on_site(struct watched *site, unsigned int cpu)
{
	uint64_t words[2] = { site->address, 1 };

	if (cpu < CPUS && !site->passes[cpu]++)
		emit(PASS, cpu, F_FIRST, 0, words, 2);
}

void flush_passes(uint64_t address, uint64_t length)
{
	for (int i = 0; i < site_count; i++) {
		struct watched *site = sites[i];

		if (address >= site->address + site->number || address + length <= site->address)
			continue;
		for (unsigned int cpu = 0; cpu < CPUS; cpu++) {
			uint64_t words[2] = { site->address, site->passes[cpu] };

			if (words[1])
				emit(PASS, cpu, 0, 0, words, 2);
			site->passes[cpu] = 0;
		}
	}
}
