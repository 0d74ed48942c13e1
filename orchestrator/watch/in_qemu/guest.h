/* SPDX-License-Identifier: GPL-2.0 */
/* The guest's registers and memory, and what they say about the CPU that executes. */
#ifndef RECORDER_GUEST_H
#define RECORDER_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define INT3		0xcc
#define EFLAGS_IF	0x200

enum reg {
	RAX, RDX, RCX, RSI, RDI, RBX, RBP, R8, R9, R10, R11, R12, R13, R14, R15, GENERAL,
	RSP = GENERAL, EFLAGS, GS_BASE, K_GS_BASE, CR3, REGISTERS
};

/* When the plugin begins. */
void prepare_to_read(void);

/* Before a register is read: QEMU tells of them once there is a CPU. */
void find_registers(void);

/* The value of a register, 0 if QEMU does not tell. */
uint64_t reg(enum reg which);

/* Copy memory of the guest. Returns whether all of it can be read. */
bool memory(uint64_t address, void *to, size_t length);

/* 8 bytes of the guest's memory, 0 if they cannot be read. */
uint64_t quad(uint64_t address);

unsigned int cpu_now(void);
uint64_t task_now(void);
uint64_t cpus_online(void);

/* Whether there is a call before `address`: of a function (e8), or by a register (ff d0 to d7). */
bool behind_call(uint64_t address);

uint64_t fnv1a(const uint8_t *bytes, size_t length);

#endif
