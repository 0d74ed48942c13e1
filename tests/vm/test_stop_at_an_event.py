# SPDX-License-Identifier: GPL-2.0-only
"""A branch of a finished run is stopped at one event, every time in the same state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_branches import busy
from test_replay_of_a_run import orchestrator

from orchestrator.verdict.recorded import record
from orchestrator.watch.recorder import load

pytestmark = pytest.mark.vm


def test_a_branch_is_stopped_at_an_event_three_times_out_of_three(tmp_path: Path) -> None:
    run = tmp_path / "run"
    what = ("--smp", "2", "--scenario", "nop5", "--duration", "0.2")
    orchestrator("run", *what, "--output", str(run))
    log = load(run / "branches" / "sites" / "recorder.log.gz")
    traps = np.flatnonzero(log["kind"] == record.TRAP)
    number = int(traps[traps > 2000][0])

    seen = [orchestrator("replay", str(run), "--at", str(number))]
    with busy(4):
        seen.append(orchestrator("replay", str(run), "--at", f"sites:{number}"))
    seen.append(orchestrator("replay", str(run), "--at", str(number + 50), "--back", "50"))
    first = seen[0].splitlines()
    assert f"CPU {log['cpu'][number]} executes int3 at orch_nop5_site" in first[0]
    assert "the course until there: as in the run" in first
    assert "stopped behind the instruction of the event" in first
    assert any(line.startswith("* CPU") and "int3" in line for line in first)
    assert seen[0] == seen[1] == seen[2]
