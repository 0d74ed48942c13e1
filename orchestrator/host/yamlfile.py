# SPDX-License-Identifier: GPL-2.0-only
"""YAML files that a user writes: checked against a strict model, with one sentence per mistake."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic
import yaml

from orchestrator.errors import UsageError, nearest


class Strict(pydantic.BaseModel):
    """A model that accepts no unknown keys and converts no values."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", strict=True, populate_by_name=False
    )


def mapping(file: Path, what: str) -> dict[str, Any]:
    """The content of the YAML `file`. Raises UsageError if it is not YAML or not a mapping.

    what: says for the message what the file should contain, with an example.
    """
    try:
        data = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f":{where.line + 1}" if where else ""
        raise UsageError(f"{file}{line}: not YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{file}: {what}")
    return data


def explained(
    error: pydantic.ValidationError,
    model: type[pydantic.BaseModel],
    inner: Mapping[str, type[pydantic.BaseModel]],
) -> str:
    """The first mistake, as `key: sentence`.

    A misspelt key comes first, because it explains the required key that is missing.
    model: of the whole file.
    inner: models of the values of its keys, by key.
    """
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        part = inner.get(str(first["loc"][0])) if len(first["loc"]) > 1 else model
        known = [field.alias or name for name, field in (part or model).model_fields.items()]
        suggestion = nearest(str(first["loc"][-1]), known)
        return f"{key}: unknown key{suggestion}; known keys are {', '.join(known)}"
    if first["type"] == "missing":
        return f"{key}: is missing"
    if first["type"] in ("string_type", "model_type") and isinstance(first["input"], int | float):
        return (
            f'{key}: {first["input"]} is a number to YAML, write it in quotes: "{first["input"]}"'
        )
    return f"{key}: {first['msg'].removeprefix('Value error, ')}, not {first['input']!r}"
