# SPDX-License-Identifier: GPL-2.0-only
"""YAML files that a user writes: checked against a strict model, with one sentence per mistake."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pydantic
import yaml

from orchestrator.errors import UsageError, nearest, shortened
from orchestrator.host import userfile

LARGEST = 256 << 10
"""Largest file, in bytes."""
MOST = 100_000
"""Most values in a file, with those that its aliases stand for."""
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's is ten times as fast as Python's, and not everywhere."""


class Strict(pydantic.BaseModel):
    """A model that accepts no unknown keys and converts no values."""

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", strict=True, populate_by_name=False
    )


def mapping(file: Path, name: str, what: str) -> dict[str, Any]:
    """The content of the YAML `file`. Raises UsageError if it is not YAML or not a mapping.

    name, what: for messages: what the file is called, and what it should contain.
    """
    text = userfile.read_text(file, name, LARGEST)
    try:
        data = _data(text)
    except RecursionError as error:
        raise UsageError(f"{file}: not YAML that a person would write: too deep") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # 2026-13-32 is a ValueError
        where = getattr(error, "problem_mark", None)
        line = f":{where.line + 1}" if where else ""
        parts = [getattr(error, "context", None), getattr(error, "problem", None)]
        problem = ": ".join(filter(None, parts)) or str(error)
        raise UsageError(f"{file}{line}: not YAML: {shortened(problem)}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{file}: {what}")
    return data


def _data(text: str) -> Any:
    """The data in the YAML `text`. Raises yaml.YAMLError, ValueError, OverflowError, or
    RecursionError."""
    loader = LOADER(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MOST:
            raise ValueError(f"its aliases stand for more than {MOST} values")
        _check_keys(node, set())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _check_keys(node: yaml.Node, seen: set[int]) -> None:
    """Raises MarkedYAMLError if a key is in a mapping twice, of which YAML drops the first."""
    if id(node) in seen or isinstance(node, yaml.ScalarNode):
        return
    seen.add(id(node))
    keys: set[str] = set()
    for part in node.value:
        if isinstance(node, yaml.MappingNode):
            key, value = part
            if isinstance(key, yaml.ScalarNode) and key.value in keys and key.value != "<<":
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} is there twice", problem_mark=key.start_mark
                )
            keys.add(str(key.value))
            _check_keys(value, seen)
        else:
            _check_keys(part, seen)


def _size(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """The number of values in `node` once all aliases are replaced by what they stand for."""
    if node in known:
        return known[node]
    known[node] = MOST  # for an alias of something that it is inside of
    parts: Iterable[yaml.Node] = ()
    if isinstance(node, yaml.MappingNode):
        parts = itertools.chain.from_iterable(node.value)
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    known[node] = 1 + sum(_size(part, known) for part in parts)
    return known[node]


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
        number = shortened(str(first["input"]))
        return f'{key}: {number} is a number to YAML, write it in quotes: "{number}"'
    value = shortened(repr(first["input"]))
    return f"{key}: {first['msg'].removeprefix('Value error, ')}, not {value}"
