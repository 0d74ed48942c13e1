# SPDX-License-Identifier: GPL-2.0-only
"""Short notes to the user: what this process waits for, and problems that do not stop it."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator import ui


def waiting_for(what: str) -> Callable[[], None]:
    """A callback for locked() and cached_dir() that prints what this process waits for."""

    def show() -> None:
        if ui.quiet:
            return
        ui.console.print(f"  … waiting for {what}", markup=False, soft_wrap=True)

    return show


def warn(text: str) -> None:
    """Print a problem that does not stop the run."""
    ui.console.print(f"  ! {text}", markup=False, soft_wrap=True)
