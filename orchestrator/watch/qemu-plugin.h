/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The part of QEMU's plugin interface (include/plugins/qemu-plugin.h) that our
 * plugins use, in the version API. plugin.py compiles a plugin for each
 * version, and uses the one that the QEMU at hand loads:
 *
 *   3   since QEMU 9.1, in which qemu_plugin_insn_data() began to copy; QEMU
 *       10.0 loads it.
 *   7   QEMU 11.1, which loads nothing older: callbacks no longer get the
 *       plugin's id, but the pointer given at their registration.
 */
#ifndef ORCHESTRATOR_QEMU_PLUGIN_H
#define ORCHESTRATOR_QEMU_PLUGIN_H

#include <stddef.h>
#include <stdint.h>

#define EXPORT	__attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info_t;
enum { QEMU_PLUGIN_CB_NO_REGS };

typedef void (*vcpu_udata_cb)(unsigned int vcpu_index, void *userdata);

#if API >= 7
typedef void (*tb_trans_cb)(struct qemu_plugin_tb *tb, void *userdata);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, tb_trans_cb cb, void *userdata);
#else
typedef void (*tb_trans_cb)(qemu_plugin_id_t id, struct qemu_plugin_tb *tb);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, tb_trans_cb cb);
#endif

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *insn, void *dest, size_t len);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, vcpu_udata_cb cb,
					    int flags, void *userdata);

EXPORT int qemu_plugin_version = API;

/* Has every translated block passed to translated(), whose arguments differ between versions. */
static void translated(struct qemu_plugin_tb *tb);

#if API >= 7
static inline void on_translation(struct qemu_plugin_tb *tb, void *userdata)
{
	(void)userdata;
	translated(tb);
}

static inline void register_translated(qemu_plugin_id_t id)
{
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation, NULL);
}
#else
static inline void on_translation(qemu_plugin_id_t id, struct qemu_plugin_tb *tb)
{
	(void)id;
	translated(tb);
}

static inline void register_translated(qemu_plugin_id_t id)
{
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
}
#endif

#endif
