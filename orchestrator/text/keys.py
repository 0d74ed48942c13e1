# SPDX-License-Identifier: GPL-2.0-only
"""Keys for counts, so that no tuple has to say in which order its numbers come."""

from __future__ import annotations

from typing import NamedTuple


class PhaseCpu(NamedTuple):
    """The phase of a poke, and a CPU that was observed in it."""

    phase: int
    cpu: int


class SiteCpu(NamedTuple):
    """The address of a site, and a CPU that executed its int3."""

    site: int
    cpu: int
