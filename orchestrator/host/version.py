# SPDX-License-Identifier: GPL-2.0-only
"""Which version of this program it is: its number, and the commit of its source."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

from orchestrator import __version__

DISTRIBUTION = "int3-orchestrator"
"""The name of the program for pip."""
FILE = "commit"
"""Has the commit, in a wheel and in an sdist (setup.py)."""
PACKAGE = Path(__file__).resolve().parent.parent


def version() -> str:
    """`0.1.0 (4ceb680e1a2b)`, with `-dirty` after the commit if files were changed since."""
    return f"{__version__} ({commit()})" if commit() else __version__


@cache
def commit() -> str:
    """The commit that this program was built from, or is checked out; empty if nobody knows."""
    for file in (PACKAGE / "data" / FILE, PACKAGE.parent / FILE):
        if file.is_file():
            return file.read_text().strip()
    if not (PACKAGE.parent / ".git").exists():
        return ""  # git would look further up, and find a repository of somebody else
    # Git sets variables that name another repository for what `git bisect run` and hooks start.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(
            [*command, "--exclude=*"],
            cwd=PACKAGE.parent,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
