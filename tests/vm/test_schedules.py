# SPDX-License-Identifier: GPL-2.0-only
"""Seeds choose schedules: the same one again, another one for another seed, and many of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_replay_of_a_run import orchestrator

pytestmark = pytest.mark.vm


def explored(*arguments: str) -> Any:
    what = ("--smp", "2", "--scenario", "nop5", "--duration", "0.1", "--seeds", "3")
    return json.loads(orchestrator("explore", *what, "--json", *arguments))


def test_seeds_show_interleavings_that_plain_ones_do_not_and_repeat_them() -> None:
    plain, seeded = explored("--plain", "--jobs", "1"), explored("--jobs", "1")
    assert seeded["failed"] is None
    assert seeded["curve"][-1] > 2 * plain["curve"][-1]
    assert seeded["curve"] == sorted(set(seeded["curve"]))
    assert explored("--jobs", "1")["curve"] == seeded["curve"]
