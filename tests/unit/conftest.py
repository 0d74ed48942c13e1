# SPDX-License-Identifier: GPL-2.0-only
"""What unit tests share."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
from processes import SECONDS, marked, within

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


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A mark that all processes of the test inherit. None of them may be left at its end."""
    text = f"LEFT_BY={os.getpid()}-{time.monotonic_ns()}"
    monkeypatch.setenv(*text.split("="))
    yield text
    assert within(SECONDS, lambda: not marked(text)), "processes are left"
