"""Files that a person writes: YAML, checked against a model in which nothing is implied, every mistake one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic
import yaml

from orchestrator.errors import UsageError, nearest


class Strict(pydantic.BaseModel):
    """A model that takes no unknown key and converts nothing."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", strict=True, populate_by_name=False
    )


def mapping(file: Path, what: str) -> dict[str, Any]:
    """The mapping that the YAML `file` is. what: it should be, with an example, for the message."""
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
    """One problem as `key: sentence`: a misspelt key before the key that is missing for it.

    model: of the whole file. inner: of what is below its keys.
    """
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        of = inner.get(str(first["loc"][0])) if len(first["loc"]) > 1 else model
        known = [field.alias or name for name, field in (of or model).model_fields.items()]
        return f"{key}: unknown key{nearest(str(first['loc'][-1]), known)}; known are {', '.join(known)}"
    if first["type"] == "missing":
        return f"{key}: is missing"
    if first["type"] in ("string_type", "model_type") and isinstance(first["input"], int | float):
        return (
            f'{key}: {first["input"]} is a number to YAML, write it in quotes: "{first["input"]}"'
        )
    return f"{key}: {first['msg'].removeprefix('Value error, ')}, not {first['input']!r}"
