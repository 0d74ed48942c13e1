// SPDX-License-Identifier: GPL-2.0
/* The rounds of a poke: which CPU syncs and serialises between two writes, or has no need to. */
#include <stdbool.h>

#include "files.h"
#include "guest.h"
#include "patching.h"
#include "rounds.h"
#include "traps.h"
#include "wishes.h"

uint64_t round_number, sync_count, in_user, in_idle;

#define SYNC_FRAME	256	/* bytes that do_sync_core() takes of the stack, at most */

static struct {
	uint64_t round;		/* since which this CPU is known to have serialised */
	uint64_t round_in_sync;	/* the same, within do_sync_core() */
	uint64_t sync_rsp;	/* where do_sync_core() was entered, since the last WRITE */
	uint64_t sync_round;
	uint64_t round_on_purpose;	/* since which it has serialised, and for its own sake */
	uint64_t mode_round;	/* since which `modes` of MODE were emitted */
	unsigned int modes;
} core[CPUS];

#define MODES	4	/* MODEs of a CPU after one WRITE, at most */

static void set_mode(unsigned int cpu, enum mode mode)
{
	uint64_t bit = 1ull << cpu;
	enum mode before = in_user & bit ? M_USER : in_idle & bit ? M_IDLE : M_KERNEL;

	if (mode == before)
		return;
	in_user = mode == M_USER ? in_user | bit : in_user & ~bit;
	in_idle = mode == M_IDLE ? in_idle | bit : in_idle & ~bit;
	if (core[cpu].mode_round != round_number) {
		core[cpu].mode_round = round_number;
		core[cpu].modes = 0;
	}
	if (core[cpu].round_on_purpose != round_number && core[cpu].modes++ < MODES)
		emit(MODE, cpu, 0, mode, NULL, 0);
}

void on_sync(unsigned int cpu, uint64_t rsp)
{
	uint64_t words[2] = { rsp, quad(rsp) };

	sync_count++;
	emit(SYNC, cpu, (reg(EFLAGS) & EFLAGS_IF ? F_IRQS : 0) | (is_patching_all() ? F_STATE : 0), 0,
	     words, 2);
	if (cpu < CPUS) {
		core[cpu].sync_rsp = rsp;
		core[cpu].sync_round = round_number;
	}
}

/*
 * Whether a CPU with this rsp is within do_sync_core(), as far as that shows
 * without seeing it return.
 */
static bool in_sync_core(unsigned int cpu, uint64_t rsp)
{
	return core[cpu].sync_round == round_number && rsp <= core[cpu].sync_rsp &&
	       core[cpu].sync_rsp - rsp <= SYNC_FRAME;
}

/*
 * MSRs that wrmsr writes without serialising (SDM, volume 3, "Serializing
 * Instructions"; APM for the last).
 */
static bool quiet_msr(uint32_t msr)
{
	return msr == 0x48 || msr == 0x49 || msr == 0x6e0 || msr == 0x6e1 ||
	       (msr >= 0x800 && msr <= 0x8ff) || (msr >= 0xc0000100 && msr <= 0xc0000102);
}

/*
 * Whether the instruction is there to serialise: an iret to what follows it, or
 * one that nothing but a sync needs. Other irets return from an interrupt, and
 * the kernel moves to cr3 and writes MSRs for reasons of its own.
 */
static bool is_on_purpose(unsigned int how, uint64_t address, uint64_t rsp)
{
	if (how == S_IRET)
		return quad(rsp) == address + 2;	/* 48 cf */
	return how == S_CPUID || how == S_SERIALIZE;
}

void serialises(unsigned int vcpu, void *data)
{
	uint64_t where = (uintptr_t)data, address = where | 0xffff000000000000ull, rsp;
	unsigned int how = (where >> 48) & 0xff, cpu;
	bool in_sync, on_purpose, first;

	(void)vcpu;
	pthread_mutex_lock(&recorder_lock);
	heed();
	cpu = cpu_now();
	if (cpu < CPUS && !(how == S_MSR && quiet_msr(reg(RCX)))) {
		rsp = reg(RSP);
		on_purpose = is_on_purpose(how, address, rsp);
		in_sync = in_sync_core(cpu, rsp);
		if (how == S_IRET && !on_purpose) {
			resume(cpu);
			if (in_idle >> cpu & 1)	/* from the interrupt that woke it */
				set_mode(cpu, M_KERNEL);
		}
		first = core[cpu].round != round_number ||
			(in_sync && core[cpu].round_in_sync != round_number) ||
			(on_purpose && core[cpu].round_on_purpose != round_number);
		core[cpu].round = round_number;
		if (in_sync)
			core[cpu].round_in_sync = round_number;
		if (on_purpose)
			core[cpu].round_on_purpose = round_number;
		if (first)
			emit(SERIALISE, cpu,
			     how | (in_sync ? S_IN_SYNC : 0) | (on_purpose ? S_ON_PURPOSE : 0), 0,
			     &address, 1);
	}
	pthread_mutex_unlock(&recorder_lock);
}

/* hlt, mwait: the CPU sleeps. swapgs: it comes from user mode, or is about to go there. */
void changes_mode(unsigned int vcpu, void *sleeps)
{
	unsigned int cpu;

	(void)vcpu;
	pthread_mutex_lock(&recorder_lock);
	heed();
	cpu = cpu_now();
	if (cpu < CPUS)
		set_mode(cpu, sleeps ? M_IDLE : reg(GS_BASE) >> 63 ? M_USER : M_KERNEL);
	pthread_mutex_unlock(&recorder_lock);
}

int how_changing_mode(const uint8_t *code, size_t length)
{
	if (length == 1 && code[0] == 0xf4)
		return SLEEP;
	if (length == 3 && code[0] == 0x0f && code[1] == 0x01)
		return code[2] == 0xf8 ? SWAPGS : code[2] == 0xc9 ? SLEEP : 0;
	return 0;
}

unsigned int how_serialising(const uint8_t *code, size_t length)
{
	size_t at = 0;
	uint8_t modrm;

	while (at < length && ((code[at] & 0xf0) == 0x40 || code[at] == 0x66 || code[at] == 0xf2 ||
			       code[at] == 0xf3))
		at++;
	if (at < length && code[at] == 0xcf)
		return S_IRET;
	if (at + 1 >= length || code[at] != 0x0f)
		return 0;
	modrm = at + 2 < length ? code[at + 2] : 0;
	switch (code[at + 1]) {
	case 0x00:	/* lldt, ltr */
		return (modrm >> 3 & 7) == 2 || (modrm >> 3 & 7) == 3 ? S_OTHER : 0;
	case 0x01:
		if (modrm == 0xe8)
			return S_SERIALIZE;
		if (modrm >> 6 == 3)
			return 0;
		/* lgdt, lidt, invlpg */
		return (modrm >> 3 & 7) == 2 || (modrm >> 3 & 7) == 3 || (modrm >> 3 & 7) == 7 ?
		       S_OTHER : 0;
	case 0x08:	/* invd */
	case 0x09:	/* wbinvd */
	case 0x23:	/* mov to a debug register */
	case 0xaa:	/* rsm */
		return S_OTHER;
	case 0x22:	/* mov to a control register; cr8 does not serialise */
		return (at && (code[at - 1] & 0xf4) == 0x44) ? 0 : S_CONTROL;
	case 0x30:
		return S_MSR;
	case 0xa2:
		return S_CPUID;
	}
	return 0;
}
