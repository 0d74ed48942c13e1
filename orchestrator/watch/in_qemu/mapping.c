// SPDX-License-Identifier: GPL-2.0
/* The mm through which text is written: what is mapped in it, and when it is loaded and flushed. */
#include "conf.h"
#include "files.h"
#include "guest.h"
#include "mapping.h"

#define DIRECT_MAP	0xffff888000000000ull	/* of all memory, if nothing moves it */
#define PRESENT		1
#define LARGE		0x80
#define ADDRESS_BITS	0xffffffffff000ull
#define MM_SIZE		0x200	/* bytes of struct mm_struct among which `pgd` is */

/* The page table of poking_mm, which shares the kernel's half with all others; 0 if not found. */
static uint64_t find_pgd(uint64_t map)
{
	static uint64_t mm, pgd;
	uint64_t words[MM_SIZE / 8], kernel = quad(init_top_pgt + 511 * 8);

	if (mm == quad(poking_mm))
		return pgd;
	mm = quad(poking_mm);
	pgd = 0;
	if (!mm || !kernel || !memory(mm, words, sizeof(words)))
		return 0;
	for (int i = 0; i < MM_SIZE / 8 && !pgd; i++)
		if (!(words[i] & 0xfff) && words[i] - map < 1ull << 46 &&
		    quad(words[i] + 511 * 8) == kernel)
			pgd = words[i];
	return pgd;
}

static uint64_t direct_map(void)
{
	return page_offset_base ? quad(page_offset_base) : DIRECT_MAP;
}

static uint64_t poking_table(void)
{
	return poking_mm && poking_addr && init_top_pgt ? find_pgd(direct_map()) : 0;
}

/* The entry in a page table of poking_mm; 0 if there is none. */
static uint64_t mapping(uint64_t table)
{
	uint64_t entry = 0, at = table ? quad(poking_addr) : 0;

	for (int shift = 39; table && shift >= 12; shift -= 9) {
		entry = quad(table + (at >> shift & 511) * 8);
		/* Text that crosses into another page has two mappings, side by side. */
		if (shift == 12 && (at >> 12 & 511) != 511)
			entry |= quad(table + ((at >> 12 & 511) + 1) * 8);
		if (!(entry & PRESENT) || (entry & LARGE && shift > 12))
			return 0;
		table = direct_map() + (entry & ADDRESS_BITS);
	}
	return table ? entry : 0;
}

bool still_mapped(void)
{
	uint64_t table = poking_table();

	/* Or it is still loaded. */
	return (table && (reg(CR3) & ADDRESS_BITS) == table - direct_map()) || mapping(table);
}

void on_load(unsigned int cpu)
{
	uint64_t entry;

	if (!poking_mm || reg(RSI) != quad(poking_mm))
		return;
	entry = mapping(poking_table());
	emit(LOADED, cpu, reg(EFLAGS) & EFLAGS_IF ? F_IRQS : 0, 0, &entry, 1);
}

void on_flush(unsigned int cpu)
{
	uint64_t words[2] = { reg(RSI), reg(RDX) };

	if (poking_mm && reg(RDI) == quad(poking_mm))
		emit(FLUSH, cpu, mapping(poking_table()) ? F_MAPPED : 0, 0, words, 2);
}
