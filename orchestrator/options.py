# SPDX-License-Identifier: GPL-2.0-only
"""Options declared once, at the dataclass field that holds their value.

A field that is made by `option()` knows how a person asks for it. From the same declaration come the command line
(`add_options`, `from_namespace`), the words that ask a child process for the same thing (`argv`), and the JSON that a
run directory keeps (`to_json`, `from_json`). orchestrator/spec.py and orchestrator/kernel/model.py declare them all.
"""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
KEY = "option"


@dataclass(frozen=True, kw_only=True)
class Option:
    """How one value is asked for."""

    flag: str
    """On the command line, such as `--smp`."""
    help: str
    metavar: str | None
    group: str
    """Which commands take it: each command adds whole groups."""
    parse: Callable[[str], Any]
    """Text to value. Raises ValueError or argparse.ArgumentTypeError."""
    choices: Sequence[str] | None
    axis: bool
    """Whether a sweep's matrix takes a list of values, each of which makes cells of its own."""
    key: str
    """In a sweep's matrix, where it is not the name of the field."""


def option(
    flag: str,
    default: Any,
    *,
    help: str,
    group: str,
    metavar: str | None = None,
    parse: Callable[[str], Any] = str,
    choices: Sequence[str] | None = None,
    axis: bool = False,
    key: str = "",
) -> Any:
    """A dataclass field with this default that `flag` asks for. A tuple as the default makes the flag repeatable."""
    declared = Option(
        flag=flag,
        help=help,
        metavar=metavar,
        group=group,
        parse=parse,
        choices=choices,
        axis=axis,
        key=key,
    )
    return dataclasses.field(default=default, metadata={KEY: declared})


def declared(cls: Any, groups: Iterable[str] | None = None) -> dict[str, Option]:
    """The options that the dataclass `cls` declares, by field name: all, or those of `groups`."""
    found = {
        field.name: field.metadata[KEY]
        for field in dataclasses.fields(cls)
        if KEY in field.metadata
    }
    return {name: one for name, one in found.items() if groups is None or one.group in groups}


def add_options(parser: argparse._ActionsContainer, cls: Any, *groups: str) -> None:
    """Add the options of these groups to `parser`; the values land in its namespace under the names of the fields."""
    defaults = {field.name: field.default for field in dataclasses.fields(cls)}
    for name, one in declared(cls, groups).items():
        repeatable = isinstance(defaults[name], tuple)
        parser.add_argument(
            one.flag,
            dest=name,
            action="append" if repeatable else "store",
            default=[] if repeatable else defaults[name],
            type=one.parse,
            choices=one.choices,
            metavar=one.metavar,
            help=one.help,
        )


def from_namespace(cls: type[T], namespace: argparse.Namespace, **further: Any) -> T:
    """An instance of `cls` from what was parsed; fields that this command does not take keep their defaults.

    further: values of fields that come from elsewhere.
    """
    values: dict[str, Any] = {}
    for name in declared(cls):
        if hasattr(namespace, name):
            value = getattr(namespace, name)
            values[name] = tuple(value) if isinstance(value, list) else value
    return cls(**{**values, **further})


def argv(value: Any, *groups: str) -> list[str]:
    """The words of a command line that ask for `value`, an instance of a class with options.

    groups: only the options of these. A value is left out only where it is its default and that is none, empty or 0,
    so that the words mean the same to a version of this program with other defaults.
    """
    words: list[str] = []
    defaults = {field.name: field.default for field in dataclasses.fields(value)}
    for name, one in declared(type(value), groups or None).items():
        own = getattr(value, name)
        if not defaults[name] and own == defaults[name]:
            continue
        for word in own if isinstance(own, tuple) else (own,):
            words += [one.flag, f"{word:g}" if isinstance(word, float) else str(word)]
    return words


def to_json(value: Any) -> dict[str, Any]:
    """`value`, a dataclass of options and of further such dataclasses, as JSON takes it: paths are strings."""

    def plain(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {name: plain(one) for name, one in part.items()}
        if isinstance(part, list | tuple):
            return [plain(one) for one in part]
        return str(part) if isinstance(part, Path) else part

    return {name: plain(one) for name, one in dataclasses.asdict(value).items()}


def from_json(cls: type[T], content: Mapping[str, Any]) -> T:
    """The instance of `cls` that to_json() made `content` of. Fields that it lacks, or has too many, do no harm.

    Raises ValueError or TypeError when a value is none that the field takes.
    """
    types = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name not in content:
            continue
        own, kind = content[field.name], types[field.name]
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            values[field.name] = from_json(kind, own)
        elif isinstance(own, list):
            item = Path if "Path" in str(kind) else lambda one: one
            values[field.name] = tuple(item(one) for one in own)
        else:
            values[field.name] = Path(own) if isinstance(own, str) and "Path" in str(kind) else own
    return cls(**values)


def seconds(text: str) -> float:
    """`90`, `90s`, `30m`, `8h` or `2d` in seconds."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    try:
        return float(number) * units[unit]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"write a time such as 90s, 30m or 8h, not {text}"
        ) from None
