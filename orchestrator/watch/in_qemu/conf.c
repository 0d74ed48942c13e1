// SPDX-License-Identifier: GPL-2.0
/* The configuration: which functions, sites and locks to watch, and where the kernel's data is. */
#include <stdio.h>
#include <string.h>

#include "conf.h"
#include "files.h"
#include "locks.h"
#include "sites.h"
#include "text.h"
#include "watched.h"

uint64_t text_mutex, per_cpu_offset, online_mask, current_task, memset_function;
uint64_t text_start, text_end;
uint64_t jump_label_mutex, jump_table, jump_table_end;
uint64_t static_call_mutex, call_sites, call_sites_end;
uint64_t patching_flag, patching_refs, patching_refs_percpu;
uint64_t patching_address, patching_array;
uint64_t poking_mm, poking_addr, page_offset_base, init_top_pgt;
uint64_t ftrace_lock, ftrace_pages, ftrace_enabled, ftrace_disabled, ftrace_ops_list;
uint64_t ftrace_caller, ftrace_regs_caller, ftrace_call, ftrace_regs_call;
uint64_t ftrace_ops, ftrace_regs_ops, function_trace_op;
uint64_t kprobe_table;
uint64_t kprobe_lists;

void load_conf(void)
{
	static const struct {
		const char *name;
		enum point point;
	} points[] = {
		{ "write", P_WRITE }, { "early", P_EARLY }, { "sync", P_SYNC },
		{ "stopper", P_STOPPER }, { "unlock", P_UNLOCK }, { "site", P_SITE },
		{ "entry", P_ENTRY }, { "poke", P_POKE }, { "kprobe", P_KPROBE },
		{ "ftrace", P_FTRACE }, { "key", P_KEY }, { "static_call", P_STATIC_CALL },
		{ "transform", P_TRANSFORM }, { "tracer", P_TRACER },
		{ "grace", P_GRACE }, { "freed", P_FREED }, { "slot", P_SLOT },
		{ "lock", P_LOCK }, { "cpus_lock", P_CPUS_LOCK }, { "cpus_unlock", P_CPUS_UNLOCK },
		{ "cpus_try", P_CPUS_TRY },
		{ "end", P_END }, { "dies", P_DIES }, { "flush", P_FLUSH },
		{ "guarded", P_GUARDED }, { "removed", P_REMOVED },
		{ "load", P_LOAD },
	};
	const struct {
		const char *name;
		uint64_t *value;
	} values[] = {
		{ "text_mutex", &text_mutex }, { "per_cpu_offset", &per_cpu_offset },
		{ "online_mask", &online_mask }, { "current_task", &current_task },
		{ "memset", &memset_function }, { "text_start", &text_start },
		{ "text_end", &text_end }, { "jump_label_mutex", &jump_label_mutex },
		{ "jump_table", &jump_table }, { "jump_table_end", &jump_table_end },
		{ "static_call_mutex", &static_call_mutex }, { "call_sites", &call_sites },
		{ "call_sites_end", &call_sites_end }, { "patching_flag", &patching_flag },
		{ "patching_refs", &patching_refs },
		{ "patching_refs_percpu", &patching_refs_percpu },
		{ "patching_address", &patching_address }, { "patching_array", &patching_array },
		{ "poking_mm", &poking_mm }, { "poking_addr", &poking_addr },
		{ "page_offset_base", &page_offset_base }, { "init_top_pgt", &init_top_pgt },
		{ "ftrace_lock", &ftrace_lock }, { "ftrace_pages", &ftrace_pages },
		{ "ftrace_enabled", &ftrace_enabled }, { "ftrace_disabled", &ftrace_disabled },
		{ "ftrace_ops_list", &ftrace_ops_list }, { "ftrace_caller", &ftrace_caller },
		{ "ftrace_regs_caller", &ftrace_regs_caller }, { "ftrace_call", &ftrace_call },
		{ "ftrace_regs_call", &ftrace_regs_call }, { "ftrace_ops", &ftrace_ops },
		{ "ftrace_regs_ops", &ftrace_regs_ops }, { "function_trace_op", &function_trace_op },
		{ "kprobe_table", &kprobe_table },
	};
	unsigned long long address, number;
	char line[256], name[64];
	FILE *file = conf_path ? fopen(conf_path, "re") : NULL;

	forget_watched();
	forget_sites();
	forget_mutexes();

	while (file && fgets(line, sizeof(line), file)) {
		number = 0;
		if (sscanf(line, "%63s %llx %llx", name, &address, &number) < 2)
			continue;
		for (size_t i = 0; i < sizeof(values) / sizeof(*values); i++)
			if (!strcmp(name, values[i].name))
				*values[i].value = address;
		if (!strcmp(name, "kprobe_table"))
			kprobe_lists = number;
		if (!strcmp(name, "mutex") && number < LOCKS)
			watch_mutex(number, address);
		for (size_t i = 0; i < sizeof(points) / sizeof(*points); i++) {
			struct watched *one;

			if (strcmp(name, points[i].name) ||
			    (points[i].point == P_SITE && watched_at(address)))
				continue;
			one = watch(address, points[i].point, number);
			if (one && points[i].point == P_SITE)
				note_site(one);
		}
	}
	if (file)
		fclose(file);
	shadow_text();
}
