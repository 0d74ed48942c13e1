// SPDX-License-Identifier: GPL-2.0
/*
 * The recorder: a TCG plugin that logs everything the guest does to its own
 * text, in the order in which it is executed: each write, each core that syncs
 * or serialises, each int3 and how its CPU went on. It changes nothing in the
 * guest. What is right or wrong is not known here; docs/recorder.md says what
 * is made of it.
 *
 * Only a few instructions get a callback, so nothing else runs any slower:
 * the functions named in `conf`, int3, instructions that serialise, and
 * the sites of the test module. All are found when they are translated, which
 * is here, and a site that is patched is translated anew for each of its
 * contents.
 *
 * The order is total only while QEMU runs all CPUs in one thread.
 *
 * It has these files, each given as an argument of that name:
 *
 *   conf    what to watch, read at the start and when the host asks: one
 *           `NAME ADDRESS [NUMBER]` a line; see load_conf() for the names
 *   control struct control: what the host asks for, and what was done
 *   log0, log1
 *           struct record, control.records of them in the one that is written,
 *           control.previous in the other; see turn_log()
 *   ledger  struct slot: int3 by address and CPU; address 0 ends the list
 *
 * All but the first are mapped shared. So they are complete at any moment, and
 * stay so when QEMU is killed. recorder.py reads them. The host gives names of
 * files that are in memory: a hole of a file on a full disk is a SIGBUS.
 */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "conf.h"
#include "files.h"
#include "guest.h"
#include "idle.h"
#include "points.h"
#include "qemu-plugin.h"
#include "rounds.h"
#include "text.h"
#include "traps.h"
#include "watched.h"
#include "wishes.h"

EXPORT int qemu_plugin_version = API;

/*
 * NOPs by which the guest says that nothing is under way, and that it has left
 * that place: the loop in guest/module/plan.c.
 */
static const uint8_t hold_here[] = { 0x0f, 0x1f, 0x84, 0x00, 'h', 'o', 'l', 'd' };
static const uint8_t left[] = { 0x0f, 0x1f, 0x84, 0x00, 'l', 'e', 'f', 't' };

static void holds(unsigned int vcpu, void *data)
{
	(void)vcpu;
	(void)data;
	if (control->hold)
		wait_for_host();
}

static void counts_step(unsigned int vcpu, void *data)
{
	(void)vcpu;
	(void)data;
	control->steps++;
}

static void instruction(struct qemu_plugin_insn *insn)
{
	uint64_t address = qemu_plugin_insn_vaddr(insn);
	uint8_t code[INLINE] = { 0 };
	struct watched *here;
	unsigned int how;
	size_t length = qemu_plugin_insn_data(insn, code, sizeof(code));

	if (how_changing_mode(code, length) == SLEEP)	/* firmware's, too */
		qemu_plugin_register_vcpu_insn_exec_cb(insn, before_idle, QEMU_PLUGIN_CB_NO_REGS,
						       NULL);
	if (!(address >> 63))	/* the upper half is the kernel's */
		return;
	shadow_check(address, code, length);
	if (length == sizeof(hold_here) && !memcmp(code, hold_here, length))
		qemu_plugin_register_vcpu_insn_exec_cb(insn, holds, QEMU_PLUGIN_CB_NO_REGS, NULL);
	if (length == sizeof(left) && !memcmp(code, left, length) && !control->single)
		qemu_plugin_register_vcpu_insn_exec_cb(insn, counts_step, QEMU_PLUGIN_CB_NO_REGS,
						       NULL);
	note_executed(address);
	here = watched_at(address);
	if (here) {
		qemu_plugin_register_vcpu_insn_exec_cb(insn, passes, QEMU_PLUGIN_CB_R_REGS, here);
		watch_second(here, code, length);
	}
	if (length && code[0] == INT3) {
		struct slot *slot = slot_of(address);

		if (slot)
			qemu_plugin_register_vcpu_insn_exec_cb(insn, executes_int3,
							       QEMU_PLUGIN_CB_R_REGS, slot);
	} else if ((how = how_serialising(code, length))) {
		uint64_t where = (address & 0xffffffffffffull) | (uint64_t)how << 48;

		qemu_plugin_register_vcpu_insn_exec_cb(insn, serialises, QEMU_PLUGIN_CB_R_REGS,
						       (void *)(uintptr_t)where);
	} else if ((how = how_changing_mode(code, length))) {
		qemu_plugin_register_vcpu_insn_exec_cb(insn, changes_mode, QEMU_PLUGIN_CB_R_REGS,
						       (void *)(uintptr_t)(how == SLEEP));
	} else if (length == 5 && code[0] == 0xe8) {
		int32_t distance;

		memcpy(&distance, code + 1, 4);
		here = watched_at(address + 5 + distance);
		if (here && here->point >= P_ENTRY && here->point < P_RETURN &&
		    !watched_at(address + 5))
			watch(address + 5, P_RETURN, here->point);
	}
}

void translated(struct qemu_plugin_tb *tb)
{
	pthread_mutex_lock(&recorder_lock);
	find_registers();
	heed();
	if (control->gdb)
		find_second(qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(tb, 0)));
	for (size_t i = 0, n = qemu_plugin_tb_n_insns(tb); i < n; i++) {
		struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);

		if (control->single)	/* before the others, which may wait */
			qemu_plugin_register_vcpu_insn_exec_cb(insn, counts_step,
							       QEMU_PLUGIN_CB_NO_REGS, NULL);
		instruction(insn);
	}
	pthread_mutex_unlock(&recorder_lock);
}

EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const struct qemu_info_t *info,
			       int argc, char **argv)
{
	(void)info;
	for (int i = 0; i < argc; i++)
		take_argument(argv[i]);
	prepare_to_read();
	if (!open_files()) {
		fprintf(stderr, "recorder: cannot write to the files given as arguments\n");
		return -1;
	}
	plugin_id = id;
	find_main_thread();
	load_conf();
	register_translated(id);
	return 0;
}
