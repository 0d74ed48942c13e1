# SPDX-License-Identifier: GPL-2.0-only
"""What all tests share."""

from __future__ import annotations

import signal

import pytest

from orchestrator.host import failures


def pytest_configure() -> None:
    """Take the signals that a shell lets its background jobs ignore, as children inherit that."""
    if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def show_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake of the program fails the test, and does not become the verdict of a run."""
    monkeypatch.setenv(failures.DEBUG, "1")
