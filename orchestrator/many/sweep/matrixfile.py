# SPDX-License-Identifier: GPL-2.0-only
"""The format of MATRIX.yaml, as pydantic models that derive from the declared options of a run.

An option of RunSpec with `axis` takes a list of values, every other one a single value. The options
of KernelRequest are the keys of a row. So a new option of a run is a new key of the file.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from orchestrator.host.yamlfile import Strict
from orchestrator.kernel.model import KernelRequest
from orchestrator.options import Option, declared
from orchestrator.spec import RunSpec

Word = Annotated[str, pydantic.Field(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f\x7f]+$")]
KINDS: Mapping[Any, Any] = {str: Word, Path: Word, int: int, float: float}
"""The type in the file for each type of an option."""
DEFAULT, ALL = "default", "*"
"""How an axis spells None, and an empty tuple."""

AXES = {name: opt for name, opt in declared(RunSpec).items() if opt.axis}
SINGLE = {name: opt for name, opt in declared(RunSpec).items() if not opt.axis}
KERNEL = declared(KernelRequest)


def key_of(name: str, opt: Option) -> str:
    """The key in the file for the option at the field `name`."""
    return opt.key or name


def default_of(cls: Any, name: str) -> Any:
    """The default of the option at the field `name`."""
    return next(field.default for field in fields(cls) if field.name == name)


def item_type(cls: type, name: str) -> type:
    """The type of the option at the field `name`, without `| None`; for a tuple, of its items."""
    hint = typing.get_type_hints(cls)[name]
    if typing.get_origin(hint) in (types.UnionType, typing.Union, tuple):
        hint = typing.get_args(hint)[0]
    return typing.cast(type, hint)


def word_of(value: Any) -> Any:
    """How an axis spells a value of RunSpec."""
    if isinstance(value, tuple):
        return " ".join(value) or ALL
    return DEFAULT if value is None else value


def axis_value(name: str, word: Any) -> Any:
    """The value of RunSpec that an axis spells `word`: the inverse of word_of()."""
    default = default_of(RunSpec, name)
    if word == word_of(default):
        return default
    return tuple(word.split()) if isinstance(default, tuple) else word


def _type(cls: type, name: str, opt: Option) -> Any:
    """The type of one value in the file."""
    if opt.choices:
        return Literal.__getitem__(tuple(opt.choices))
    kind = item_type(cls, name)
    # An option with a parser of its own takes text as well (soak: 8h).
    return KINDS[kind] if opt.parse in (str, kind) else KINDS[kind] | Word


def _kernel_field(name: str, opt: Option) -> Any:
    item = _type(KernelRequest, name, opt)
    if isinstance(default_of(KernelRequest, name), tuple):
        return list[item], pydantic.Field(default=[], alias=key_of(name, opt))  # type: ignore[valid-type]
    return item | None, pydantic.Field(default=None, alias=key_of(name, opt))


def _axis_field(name: str, opt: Option) -> Any:
    default = [word_of(default_of(RunSpec, name))]
    field = pydantic.Field(default=default, min_length=1, alias=key_of(name, opt))
    return list[_type(RunSpec, name, opt)], field  # type: ignore[misc]


def _single_field(name: str, opt: Option) -> Any:
    if isinstance(default_of(RunSpec, name), tuple):
        item = _type(RunSpec, name, opt)
        return list[item], pydantic.Field(default=[], alias=key_of(name, opt))  # type: ignore[valid-type]
    return _type(RunSpec, name, opt), pydantic.Field(default=None, alias=key_of(name, opt))


def _exclusion_field(name: str, opt: Option) -> Any:
    return _type(RunSpec, name, opt) | None, pydantic.Field(default=None, alias=key_of(name, opt))


class _KernelRow(Strict):
    """What a row has besides the options of a kernel."""

    name: Word | None = None
    """Label of the row, if not the name of the kernel."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        return {"kernel": value} if isinstance(value, str) else value


KernelRow = pydantic.create_model(
    "KernelRow",
    __base__=_KernelRow,
    **{name: _kernel_field(name, opt) for name, opt in KERNEL.items()},
)
"""A row of the matrix. A plain name stands for {kernel: NAME}."""

Exclusion = pydantic.create_model(
    "Exclusion",
    __base__=Strict,
    kernel=(Word | None, None),
    **{name: _exclusion_field(name, opt) for name, opt in AXES.items()},
)
"""Cells to leave out: a shell pattern for the label of the row, and a value of each axis."""


class _Matrix(Strict):
    """The keys that are not options of a run."""

    kernels: list[KernelRow] = pydantic.Field(min_length=1)  # type: ignore[valid-type]
    repeats: int = pydantic.Field(default=1, ge=1)
    exclude: list[Exclusion] = pydantic.Field(default=[], max_length=1000)  # type: ignore[valid-type]


Matrix = pydantic.create_model(
    "Matrix",
    __base__=_Matrix,
    **{name: _axis_field(name, opt) for name, opt in AXES.items()},
    **{name: _single_field(name, opt) for name, opt in SINGLE.items()},
)
"""The whole file."""

INNER: Mapping[str, type[pydantic.BaseModel]] = {"kernels": KernelRow, "exclude": Exclusion}
"""The models below the keys of Matrix, for yamlfile.explained()."""
