# SPDX-License-Identifier: GPL-2.0-only
"""The documentation points to files that exist, and `make test` fails when lint does."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.host.paths import PROJECT

PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *(PROJECT / "docs").glob("*.md")]
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(#[^)]*)?\)")


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of `page`."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {
        "#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_heading(page: Path) -> None:
    for name, anchor in LINK.findall(page.read_text()):
        target = page.parent / name if name else page
        assert target.exists(), name
        assert not anchor or anchor in anchors(target), name + anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_prose_has_no_line_of_more_than_100_columns(page: Path) -> None:
    prose = re.sub(r"^```.*?^```|^\|.*?$|^ {4}.*?$", "", page.read_text(), flags=re.M | re.S)
    assert [line for line in prose.splitlines() if len(line) > 100] == []


# -- make test


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with stubs for tools: each prints its name, and fails if NAME-fails exists."""
    shutil.copy(PROJECT / "Makefile", tmp_path)
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for path in (tmp_path / "setup", *(programs / name for name in ("ruff", "mypy", "python"))):
        path.write_text(f"#!/bin/sh\necho {path.name} $1\n! [ -e {path.name}-fails ]\n")
        path.chmod(0o755)
    return tmp_path


def make_test(checkout: Path) -> tuple[bool, list[str]]:
    """Whether `make test` passed, and its output."""
    command = ["make", "--no-print-directory", "test"]
    done = subprocess.run(command, cwd=checkout, stdout=subprocess.PIPE, text=True)
    return done.returncode == 0, done.stdout.splitlines()


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize(
    ("broken", "line"),
    [
        ("", "make test: lint passed, tests passed"),
        ("ruff", "make test: lint FAILED, tests passed"),
        ("mypy", "make test: lint FAILED, tests passed"),
        ("python", "make test: lint passed, tests FAILED"),
    ],
)
def test_make_test_runs_everything_and_ends_with_one_line(
    checkout: Path, broken: str, line: str
) -> None:
    (checkout / f"{broken}-fails").touch()
    passed, output = make_test(checkout)
    assert passed == (broken == "")
    tools = ["setup", "setup browser", "ruff check", "ruff format", "mypy --strict", "python -m"]
    assert output == [*tools, line]
