# SPDX-License-Identifier: GPL-2.0-only
"""The house: every part of the program stands above what it uses."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from orchestrator.host.paths import PROJECT

LAYERS = (
    "errors", "options", "ui", "host", "text", "scenarios", "kernel", "guest", "machine", "spec",
    "watch", "verdict", "attach", "survey", "branch", "guests", "course", "observer", "planned",
    "soak", "rundir", "run", "replay", "explore", "doctor", "many", "report", "commands", "cli",
)  # fmt: skip
"""From the ground up. A part may import itself and what comes before it."""

FILES = sorted((PROJECT / "orchestrator").rglob("*.py"))


def imported(file: Path) -> set[str]:
    """The parts of the program that `file` imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "orchestrator":
            names |= {f"orchestrator.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module))
    parts = {name.split(".")[1] for name in names if name.startswith("orchestrator.")}
    return {part for part in parts if not part.startswith("__")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PROJECT)))
def test_no_part_imports_one_above_it(file: Path) -> None:
    part = file.relative_to(PROJECT / "orchestrator").parts[0].removesuffix(".py")
    if part.startswith("__"):
        return
    below = LAYERS[: LAYERS.index(part) + 1]
    assert imported(file) <= set(below), f"{part} stands below what it imports"


def test_no_two_files_of_tests_have_one_name() -> None:
    # pytest imports them by their names alone, so `make test` would stop before the first test,
    # while `make test-unit` and `make test-vm` still ran.
    names = Counter(file.name for file in (PROJECT / "tests").rglob("test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
