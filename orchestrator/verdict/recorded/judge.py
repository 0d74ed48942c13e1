# SPDX-License-Identifier: GPL-2.0-only
"""Judges a log, by everything in this folder."""

from __future__ import annotations

from orchestrator.verdict.recorded import copies, locks, memory, switched, traps
from orchestrator.verdict.recorded.judgement import Judgement, LogName, Surroundings
from orchestrator.verdict.recorded.reading import Reading
from orchestrator.verdict.recorded.record import Records
from orchestrator.verdict.recorded.rounds import Rounds
from orchestrator.verdict.recorded.sites import Sites


def judge(
    records: Records,
    around: Surroundings,
    previous: Judgement | None = None,
    name: LogName | None = None,
) -> Judgement:
    """Judge a log.

    previous: of the log that this one goes on with. It is added to, and returned.
    name: of the log; None for the only one.
    """
    result = previous or Judgement()
    result.log = name or LogName()
    log = Reading(records, around, result)
    rounds = Rounds(log)
    sites = Sites(log, rounds)
    sites.follow()
    rounds.judge_left_out()
    memory.judge_mappings(log)
    memory.judge_loads(log)
    memory.judge_flushes(log)
    locks.judge_guards(log)
    locks.judge_orders(log)
    switched.judge_sites(log)
    switched.judge_tracers(log)
    memory.judge_code(log)
    sites.add_unfinished()
    traps.judge_int3(log, sites.finished)
    copies.judge_steps(log, sites.finished)
    copies.judge_freed(log, sites.left)
    copies.judge_removed(log, sites.finished)
    traps.judge_dying(log, sites.finished)
    return result
