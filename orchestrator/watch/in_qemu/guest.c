// SPDX-License-Identifier: GPL-2.0
/* What the guest is like at this moment: its registers, its memory, which CPU and which task. */
#include <string.h>

#include "conf.h"
#include "guest.h"
#include "qemu-plugin.h"
#include "record.h"

static const char *const reg_names[REGISTERS] = {
	"rax", "rdx", "rcx", "rsi", "rdi", "rbx", "rbp", "r8", "r9", "r10", "r11", "r12",
	"r13", "r14", "r15", "rsp", "eflags", "gs_base", "k_gs_base", "cr3",
};
static struct qemu_plugin_register *reg_handle[REGISTERS];
static GByteArray *scratch;

void prepare_to_read(void)
{
	scratch = g_byte_array_new();
}

void find_registers(void)
{
	GArray *all = reg_handle[RSP] ? NULL : qemu_plugin_get_registers();
	qemu_plugin_reg_descriptor *one = all ? (qemu_plugin_reg_descriptor *)all->data : NULL;

	for (unsigned int i = 0; all && i < all->len; i++)
		for (int r = 0; r < REGISTERS; r++)
			if (!strcmp(one[i].name, reg_names[r]))
				reg_handle[r] = one[i].handle;
}

uint64_t reg(enum reg which)
{
	uint64_t value = 0;

	g_byte_array_set_size(scratch, 0);
	if (!reg_handle[which] || !qemu_plugin_read_register(reg_handle[which], scratch))
		return 0;
	memcpy(&value, scratch->data, scratch->len < 8 ? scratch->len : 8);
	return value;
}

bool memory(uint64_t address, void *to, size_t length)
{
	if (!length || !qemu_plugin_read_memory_vaddr(address, scratch, length) ||
	    scratch->len < length)
		return false;
	memcpy(to, scratch->data, length);
	return true;
}

uint64_t quad(uint64_t address)
{
	uint64_t value = 0;

	return memory(address, &value, 8) ? value : 0;
}

static uint64_t gs_of[CPUS];

static unsigned int find_gs(uint64_t gs)
{
	static unsigned int last;

	if (gs_of[last] == gs)
		return last;
	for (unsigned int cpu = 0; cpu < CPUS; cpu++)
		if (gs_of[cpu] == gs)
			return last = cpu;
	return NO_CPU;
}

/*
 * In the kernel gs_base is __per_cpu_offset[cpu]. Just before it goes back to
 * user mode that is in k_gs_base. QEMU's own number of the CPU is wrong with
 * one thread: it is that of the CPU for which the block was translated.
 */
unsigned int cpu_now(void)
{
	uint64_t gs = reg(GS_BASE), kernel_gs;
	unsigned int cpu;

	if (!per_cpu_offset)	/* built without CONFIG_SMP */
		return 0;
	cpu = gs >> 63 ? find_gs(gs) : NO_CPU;
	if (cpu != NO_CPU)
		return cpu;
	kernel_gs = reg(K_GS_BASE);
	cpu = kernel_gs >> 63 ? find_gs(kernel_gs) : NO_CPU;
	if (cpu == NO_CPU && (gs >> 63 || kernel_gs >> 63) &&
	    memory(per_cpu_offset, gs_of, sizeof(gs_of)))
		cpu = find_gs(gs >> 63 ? gs : kernel_gs);
	return cpu;
}

uint64_t task_now(void)
{
	uint64_t gs = reg(GS_BASE);

	return current_task && gs >> 63 ? quad(gs + current_task) : 0;
}

uint64_t cpus_online(void)
{
	return online_mask ? quad(online_mask) : 1;
}

bool behind_call(uint64_t address)
{
	uint8_t code[5];

	return address >> 31 == 0x1ffffffff && memory(address - 5, code, 5) &&
	       (code[0] == 0xe8 || (code[3] == 0xff && (code[4] & 0xf8) == 0xd0));
}

uint64_t fnv1a(const uint8_t *bytes, size_t length)
{
	uint64_t hash = 0xcbf29ce484222325ull;

	for (size_t i = 0; i < length; i++)
		hash = (hash ^ bytes[i]) * 0x100000001b3ull;
	return hash;
}
