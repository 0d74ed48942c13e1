// SPDX-License-Identifier: GPL-2.0
/*
 * QEMU's own ledger of breakpoints: a TCG plugin that counts, for each address
 * of the kernel and each virtual CPU, how often the instruction int3 (0xcc) is
 * executed. It knows nothing of the guest, of GDB or of what is being tested.
 *
 * Only instructions that are int3 when they are translated get a callback, so
 * nothing else runs any slower. A site that is patched is translated anew for
 * each of its contents, so its int3 is counted and its other contents are not.
 *
 * The counters lie in a file that is mapped shared (argument `file=`), so that
 * they can be read at any time, also after QEMU was killed. Its layout is read
 * by ledger.py: SLOTS times { u64 address; u64 count[CPUS]; }, an address of 0
 * ending the list.
 *
 * Of QEMU's plugin interface only what is used here is declared, after its
 * documentation (include/plugins/qemu-plugin.h, version 3 of October 2024 on:
 * qemu_plugin_insn_data() copies).
 */
#include <fcntl.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT	__attribute__((visibility("default")))
#define SLOTS	1024
#define CPUS	64
#define INT3	0xcc

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info_t;
enum { QEMU_PLUGIN_CB_NO_REGS };

typedef void (*tb_trans_cb)(qemu_plugin_id_t id, struct qemu_plugin_tb *tb);
typedef void (*vcpu_udata_cb)(unsigned int vcpu_index, void *userdata);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, tb_trans_cb cb);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *insn, void *dest, size_t len);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, vcpu_udata_cb cb,
					    int flags, void *userdata);

EXPORT int qemu_plugin_version = 3;

struct slot {
	uint64_t address;
	uint64_t count[CPUS];
};

static struct slot *slots;

/* Each virtual CPU has a counter of its own: no two threads write the same. */
static void executed(unsigned int cpu, void *data)
{
	struct slot *slot = data;

	if (cpu < CPUS)
		__atomic_fetch_add(&slot->count[cpu], 1, __ATOMIC_RELAXED);
}

/* Several threads may translate at once. NULL when the list is full. */
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

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	size_t n = qemu_plugin_tb_n_insns(tb);

	(void)id;
	for (size_t i = 0; i < n; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
		uint64_t address = qemu_plugin_insn_vaddr(insn);
		uint8_t first = 0;
		struct slot *slot;

		/* the upper half is the kernel's */
		if (!(address >> 63) || qemu_plugin_insn_data(insn, &first, 1) != 1 || first != INT3)
			continue;
		slot = slot_of(address);
		if (slot)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, executed, QEMU_PLUGIN_CB_NO_REGS, slot);
	}
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info, int argc, char **argv)
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
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
	return 0;
}
