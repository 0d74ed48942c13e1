# SPDX-License-Identifier: GPL-2.0-only
"""What all tests share."""

from __future__ import annotations

import pytest

from orchestrator.host import failures


@pytest.fixture(autouse=True)
def show_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake of the program fails the test, and does not become the verdict of a run."""
    monkeypatch.setenv(failures.DEBUG, "1")
