# SPDX-License-Identifier: GPL-2.0-only
"""What no test may pass on to the next one."""

from __future__ import annotations

import pytest

from orchestrator.kernel import versions


@pytest.fixture(autouse=True)
def no_chosen_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process keeps the versions that it has chosen in its environment."""
    monkeypatch.setenv(versions.VARIABLE, "{}")
