/* SPDX-License-Identifier: GPL-2.0 */
/* What the configuration says. */
#ifndef RECORDER_CONF_H
#define RECORDER_CONF_H

#include <stdint.h>

/* Addresses of data, 0 where the kernel has none. */
extern uint64_t text_mutex, per_cpu_offset, online_mask, current_task, memset_function;
extern uint64_t text_start, text_end;
extern uint64_t jump_label_mutex, jump_table, jump_table_end;
extern uint64_t static_call_mutex, call_sites, call_sites_end;
extern uint64_t patching_flag, patching_refs, patching_refs_percpu;
extern uint64_t patching_address, patching_array;
extern uint64_t poking_mm, poking_addr, page_offset_base, init_top_pgt;
extern uint64_t ftrace_lock, ftrace_pages, ftrace_enabled, ftrace_disabled, ftrace_ops_list;
extern uint64_t ftrace_caller, ftrace_regs_caller, ftrace_call, ftrace_regs_call;
extern uint64_t ftrace_ops, ftrace_regs_ops, function_trace_op;
extern uint64_t kprobe_table;
extern uint64_t kprobe_lists;	/* how many it has, KPROBE_TABLE_SIZE */

/* Read the configuration, in place of the one that was read before. */
void load_conf(void);

#endif
