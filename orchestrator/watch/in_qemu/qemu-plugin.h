/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The part of QEMU's plugin interface (include/plugins/qemu-plugin.h) that the
 * recorder uses, in the version API. plugin.py compiles it for each version,
 * and uses the one that the QEMU at hand loads:
 *
 *   4   since QEMU 9.2, the first in which a plugin reads memory; QEMU 10.0
 *       loads it.
 *   7   QEMU 11.1, which loads nothing older: callbacks no longer get the
 *       plugin's id, but the pointer given at their registration.
 */
#ifndef ORCHESTRATOR_QEMU_PLUGIN_H
#define ORCHESTRATOR_QEMU_PLUGIN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EXPORT	__attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_info_t;
struct qemu_plugin_register;
enum { QEMU_PLUGIN_CB_NO_REGS, QEMU_PLUGIN_CB_R_REGS };

typedef struct {
	struct qemu_plugin_register *handle;
	const char *name;
	const char *feature;
#if API >= 5
	bool is_readonly;
#endif
} qemu_plugin_reg_descriptor;

/* Of glib, which QEMU brings. */
typedef struct {
	char *data;
	unsigned int len;
} GArray;
typedef struct {
	uint8_t *data;
	unsigned int len;
} GByteArray;
GByteArray *g_byte_array_new(void);
GByteArray *g_byte_array_set_size(GByteArray *array, unsigned int length);

typedef void (*vcpu_udata_cb)(unsigned int vcpu_index, void *userdata);

#if API >= 7
typedef void (*tb_trans_cb)(struct qemu_plugin_tb *tb, void *userdata);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, tb_trans_cb cb, void *userdata);
void qemu_plugin_reset(qemu_plugin_id_t id, void (*cb)(void *userdata), void *userdata);
#else
typedef void (*tb_trans_cb)(qemu_plugin_id_t id, struct qemu_plugin_tb *tb);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, tb_trans_cb cb);
void qemu_plugin_reset(qemu_plugin_id_t id, void (*cb)(qemu_plugin_id_t id));
#endif

#if API >= 6
bool qemu_plugin_read_register(struct qemu_plugin_register *handle, GByteArray *buffer);
#else
int qemu_plugin_read_register(struct qemu_plugin_register *handle, GByteArray *buffer);
#endif

GArray *qemu_plugin_get_registers(void);
bool qemu_plugin_read_memory_vaddr(uint64_t address, GByteArray *data, size_t length);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *insn, void *dest, size_t len);
uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *insn);
void qemu_plugin_register_vcpu_insn_exec_cb(struct qemu_plugin_insn *insn, vcpu_udata_cb cb,
					    int flags, void *userdata);

/* Has every translated block passed to translated(), whose arguments differ between versions. */
void translated(struct qemu_plugin_tb *tb);

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

/* Has QEMU forget all its translations, so that each block is passed to translated() once more. */
#if API >= 7
static inline void on_reset(void *id)
{
	register_translated((qemu_plugin_id_t)(uintptr_t)id);
}

static inline void translate_anew(qemu_plugin_id_t id)
{
	qemu_plugin_reset(id, on_reset, (void *)(uintptr_t)id);
}
#else
static inline void translate_anew(qemu_plugin_id_t id)
{
	qemu_plugin_reset(id, register_translated);
}
#endif

#endif
