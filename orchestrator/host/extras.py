# SPDX-License-Identifier: GPL-2.0-only
"""Libraries that only some commands need. pyproject.toml has them as optional dependencies."""

from __future__ import annotations

import importlib
from typing import Any

from orchestrator.errors import UsageError


def library(name: str, user: str) -> Any:
    """The module `name`. Raises UsageError, which says how to install it, if there is none.

    user: what needs it, such as `--scheduler`.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise UsageError(
            f"{user} needs {name}, which is not installed: install it next to this program, "
            f"for example with `pip install {name}`"
        ) from None
