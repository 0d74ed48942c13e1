# SPDX-License-Identifier: GPL-2.0-only
"""What unit tests share."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import SECONDS, marked, within

from orchestrator.host import files
from orchestrator.kernel import build, from_source, versions

FAKE = Path(__file__).parent / "fakekernel"


@pytest.fixture(autouse=True)
def no_chosen_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The versions that a process has chosen stay in its environment; tests must not share them."""
    monkeypatch.setenv(versions.VARIABLE, "{}")


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test writes need not survive a loss of power, and other programs' data even less."""
    monkeypatch.setattr(files, "flush", lambda directory: None)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake kernel tree, a private cache, and no more tools and default options than it needs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fragment = tmp_path / "trim.config"
    fragment.write_text("CONFIG_SMP=y\n")
    monkeypatch.setattr(from_source, "TREE_FRAGMENT", fragment)
    monkeypatch.setattr(build, "_NEEDED", {})
    return Path(shutil.copytree(FAKE, tmp_path / "linux"))


@pytest.fixture
def mark(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A mark that all processes of the test inherit. None of them may be left at its end."""
    text = f"LEFT_BY={os.getpid()}-{time.monotonic_ns()}"
    monkeypatch.setenv(*text.split("="))
    yield text
    assert within(SECONDS, lambda: not marked(text)), "processes are left"
