// SPDX-License-Identifier: GPL-2.0-only
/*
 * QEMU's own ledger of breakpoints: a TCG plugin that counts how often each
 * int3 (0xcc) of the kernel is executed, by address and virtual CPU. It does
 * not depend on the guest, on GDB, or on what is being tested.
 *
 * Only instructions that are int3 when they are translated get a callback, so
 * nothing else runs any slower. When a site is patched it is translated again
 * with its new content, so its int3 is counted and its other contents are not.
 *
 * The counters are in a file that is mapped shared (argument "ledger="), so
 * they can be read at any time, even after QEMU was killed. ledger.py reads
 * it: SLOTS times { u64 address; u64 count[CPUS]; }. An address of 0 ends the
 * list.
 */
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "qemu-plugin.h"

#define SLOTS	1024
#define CPUS	64
#define INT3	0xcc

struct slot {
	uint64_t address;
	uint64_t count[CPUS];
};

static struct slot *slots;

/*
 * RELAXED, with no pair: each counter stands for itself. It is atomic so that
 * ledger.py never reads a half-written value.
 */
static void executed(unsigned int cpu, void *data)
{
	struct slot *slot = data;

	if (cpu < CPUS)
		__atomic_fetch_add(&slot->count[cpu], 1, __ATOMIC_RELAXED);
}

/*
 * Find or claim the slot of an address. NULL when the list is full.
 *
 * Several threads may translate at once. The release half of the exchange,
 * which claims a slot, pairs with the ACQUIRE of the load and of the failed
 * exchange in another thread that finds the slot claimed. An address never
 * changes again, and the counters are zero from the start (ftruncate()).
 */
static struct slot *slot_of(uint64_t address)
{
	for (int i = 0; i < SLOTS; i++) {
		uint64_t empty = 0;

		if (__atomic_load_n(&slots[i].address, __ATOMIC_ACQUIRE) == address ||
		    __atomic_compare_exchange_n(&slots[i].address, &empty, address, false,
						__ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE) ||
		    empty == address)
			return &slots[i];
	}
	return NULL;
}

static void translated(struct qemu_plugin_tb *tb)
{
	size_t n = qemu_plugin_tb_n_insns(tb);

	for (size_t i = 0; i < n; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		uint64_t address = qemu_plugin_insn_vaddr(insn);
		uint8_t first = 0;
		struct slot *slot;

		/* The upper half of the address space is the kernel's. */
		if (!(address >> 63))
			continue;
		if (qemu_plugin_insn_data(insn, &first, 1) != 1 || first != INT3)
			continue;
		slot = slot_of(address);
		if (slot)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, executed,
							       QEMU_PLUGIN_CB_NO_REGS, slot);
	}
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info,
			       int argc, char **argv)
{
	int fd = -1;

	(void)info;
	for (int i = 0; i < argc; i++)
		if (!strncmp(argv[i], "ledger=", 7))
			fd = open(argv[i] + 7, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0 || ftruncate(fd, SLOTS * sizeof(*slots))) {
		fprintf(stderr, "int3 ledger: cannot write the file given as ledger=\n");
		return -1;
	}
	slots = mmap(NULL, SLOTS * sizeof(*slots), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (slots == MAP_FAILED)
		return -1;
	register_translated(id);
	return 0;
}
