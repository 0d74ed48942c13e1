// SPDX-License-Identifier: GPL-2.0
/*
 * One step of a scenario that is data: a site is poked once with the gate, or
 * without it as often as time allows. Reports what the guest itself observed.
 */
#include <linux/kernel.h>
#include <linux/string.h>
#include "compat.h"
#include "orch.h"

struct total {
	u64 count[ORCH_PHASES][ORCH_RESULTS];
	u64 stale;
};

static void add_cpu(int cpu, const struct orch_hammer *hammer, struct total *total)
{
	int phase, result;

	for (phase = 0; phase < ORCH_PHASES; phase++) {
		const u64 *count = hammer->count[phase];
		u64 passes = 0;

		for (result = 0; result < ORCH_RESULTS; result++) {
			passes += count[result];
			total->count[phase][result] += count[result];
		}
		if (passes)
			orch_note("# cpu=%d phase=%s old=%llu new=%llu int3=%llu torn=%llu\n", cpu,
				  phase == ORCH_FREE ? "free" : (char[]) { '0' + phase, 0 },
				  count[ORCH_OLD], count[ORCH_NEW], count[ORCH_INT3],
				  count[ORCH_TORN]);
	}
	total->stale += hammer->stale;
	if (hammer->stale)
		orch_note("# cpu=%d stale=%llu\n", cpu, hammer->stale);
}

/* How many passes had another result than the allowed one. */
static u64 other_than(enum orch_result allowed, const u64 *count)
{
	return count[ORCH_OLD] + count[ORCH_NEW] + count[ORCH_INT3] + count[ORCH_TORN] -
	       count[allowed];
}

/* The guest's own assertions. Returns NULL, or the one that does not hold. */
static const char *judge(const struct orch_step *step, const struct orch_outcome *out,
			 const struct total *total, bool on)
{
	enum orch_result from = on ? ORCH_OLD : ORCH_NEW, to = on ? ORCH_NEW : ORCH_OLD;
	int phase;

	if (out->fault)
		return out->fault;
	for (phase = 0; phase < ORCH_PHASES; phase++)
		if (total->count[phase][ORCH_TORN])
			return "a CPU executed a torn instruction";
	if (!cpumask_empty(&orch_gate_stuck))
		return "a CPU did not get through the site while the poker was held";
	if (total->stale)
		return "a CPU executed bytes other than those last written";
	if (!step->gated)
		return NULL;
	if (other_than(from, total->count[ORCH_PHASE_OLD]))
		return "before the poke a CPU did not execute the old bytes";
	if (other_than(to, total->count[ORCH_PHASE_NEW]))
		return "after the poke a CPU did not execute the new bytes";
	if (step->how == ORCH_DIRECT &&
	    (other_than(ORCH_INT3, total->count[ORCH_PHASE_INT3]) ||
	     other_than(ORCH_INT3, total->count[ORCH_PHASE_TAIL])))
		return "while int3 was in place a CPU did not go to the int3 target";
	return NULL;
}

static void add_durations(const struct orch_outcome *out)
{
	unsigned int bucket;

	for (bucket = 0; bucket < ORCH_BUCKETS; bucket++)
		if (out->took[bucket])
			orch_note("# from_ns=%llu pokes=%u\n", orch_bucket_begin(bucket),
				  out->took[bucket]);
}

static const char *const how_names[] = { [ORCH_DIRECT] = "direct", [ORCH_OWNER] = "owner" };

/**
 * orch_step_run() - run one step and report it
 * @step: what to do
 */
void orch_step_run(const struct orch_step *step)
{
	const struct orch_site *site = step->site;
	bool on = site->len && !memcmp(site->addr, site->old, site->len);
	unsigned int number = orch_report_next();
	static struct orch_outcome out;	/* too large for the stack */
	char name[64];
	struct total total = { };
	const char *fault;
	int cpu;

	scnprintf(name, sizeof(name), "%s.%s.%s", site->name, how_names[step->how],
		  !step->gated ? "free" : on ? "on" : "off");
	if (!site->len || (step->how == ORCH_OWNER && site->set_why_not)) {
		orch_report_skip(number, name, site->len ? site->set_why_not : site->why_not);
		return;
	}
	orch_gate_begin();
	orch_poke_run(step, &out);
	orch_note("# step=%u name=%s seq=%llu\n", number, name, orch_window.seq);
	if (out.error) {
		orch_report_error(number, name, "the hammers cannot be started");
		return;
	}
	orch_note("# addr=%lx len=%u poker=%d pokes=%llu holds=%llu\n",
		  (unsigned long)site->addr, site->len, step->cpu, out.pokes, out.holds);
	orch_note("# elapsed_ns=%llu poke_ns=%llu poke_ns_max=%llu\n", out.elapsed_ns, out.ns,
		  out.ns_max);
	if (!step->gated)
		add_durations(&out);
	for (cpu = 0; cpu < nr_cpu_ids; cpu++)
		if (orch_hammer(cpu))
			add_cpu(cpu, orch_hammer(cpu), &total);
	fault = judge(step, &out, &total, on);
	if (!step->gated)
		orch_hammers_free();
	if (!fault && out.missed) {
		orch_report_error(number, name, out.missed);
		return;
	}
	if (fault)
		orch_diag("%s", fault);
	orch_report_result(number, name, !fault);
}
