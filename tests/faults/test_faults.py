# SPDX-License-Identifier: GPL-2.0-only
"""The short part of the fault injection: some of each kind, and all of it below three minutes."""

from __future__ import annotations

import pytest

from faults import campaign
from faults.kinds import FAULTS
from faults.world import World

pytestmark = pytest.mark.vm

SEED = 1
SHORT = [fault for fault in FAULTS if fault.short]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, campaign.TrialResult]:
    """Results of all short faults by name, tried two at a time."""
    world = World.fresh()
    world.prepare()
    pairs = [(fault, 0) for fault in SHORT]
    results = {result.fault: result for result in campaign.run_all(pairs, SEED, world, jobs=2)}
    if not any(result.findings for result in results.values()):
        world.remove()
    return results


@pytest.mark.parametrize("name", [fault.name for fault in SHORT])
def test_a_fault_changes_no_verdict_and_leaves_nothing(
    name: str, results: dict[str, campaign.TrialResult]
) -> None:
    result = results[name]
    assert not result.findings, campaign.described(result, SEED)
