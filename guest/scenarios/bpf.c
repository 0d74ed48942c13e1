// SPDX-License-Identifier: GPL-2.0
/*
 * title: tail calls of BPF are patched
 * promise: >-
 *   A BPF program jumps to what its map says, from the moment on when the map was set, however many
 *   CPUs execute it meanwhile.
 * order: 630
 * weight: 2
 * symbols: [bpf_arch_text_poke]
 * companion: |
 *   exec tailcaller /run/companion
 */
#include <linux/delay.h>
#include "compat.h"
#include "scenario.h"

/* The jumps are patched by the program; here is somebody else who wants text_mutex. */
ORCH_SCENARIO(bpf)
{
	const struct orch_site *site = &orch_sites[ORCH_SITE_NOP5];
	unsigned int pokes = 0;

	if (!orch_symbol("bpf_arch_text_poke"))
		return orch_skip(run, "this kernel patches no BPF programs");

	do {
		orch_poke_site(site, true);
		orch_poke_site(site, false);
		pokes++;
		usleep_range(100, 200);
	} while (orch_time_left(run));
	orch_note("# pokes=%u\n", pokes);
}
