# SPDX-License-Identifier: GPL-2.0-only
"""What holds for all unit tests."""

from __future__ import annotations

import pytest

from orchestrator.host import files
from orchestrator.kernel import versions


@pytest.fixture(autouse=True)
def no_chosen_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The versions that a process has chosen stay in its environment; tests must not share them."""
    monkeypatch.setenv(versions.VARIABLE, "{}")


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test writes need not survive a loss of power, and other programs' data even less."""
    monkeypatch.setattr(files, "flush", lambda directory: None)
