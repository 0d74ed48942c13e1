# SPDX-License-Identifier: GPL-2.0-only
"""Options declared once, at the dataclass field that holds their value.

A field that `option()` makes knows how a person asks for it. Everything else derives from that
declaration:

- the command line: `add_options` and `from_namespace`;
- the argument list that asks a child process for the same thing: `argv`;
- the JSON in a run's directory: `to_json` and `from_json`;
- the keys of a sweep's matrix: `declared` (orchestrator/many/sweep/matrix.py).

orchestrator/spec.py and orchestrator/kernel/model.py declare all options of a run.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.errors import UsageError, printable, shortened

T = TypeVar("T")
KEY = "option"
LONGEST = 10 * 366 * 86400.0
"""Longest time that an option takes, in seconds."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """How to ask for one value."""

    flag: str
    """The flag on the command line, such as `--smp`."""
    help: str
    metavar: str | None
    group: str
    """The group that commands add this option with. A command takes whole groups."""
    parse: Callable[[str], Any]
    """Turns the text of an argument into the value. Raises ValueError or ArgumentTypeError."""
    choices: Sequence[str] | None
    axis: bool
    """Whether a sweep's matrix takes a list of values, each of which makes cells of its own."""
    key: str
    """The key in a sweep's matrix, if it is not the name of the field."""


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
    """Make a dataclass field that `flag` sets. A tuple as the default makes the flag repeatable."""
    declaration = Option(
        flag=flag,
        help=help,
        metavar=metavar,
        group=group,
        parse=parse,
        choices=choices,
        axis=axis,
        key=key,
    )
    return dataclasses.field(default=default, metadata={KEY: declaration})


def declared(cls: Any, groups: Iterable[str] | None = None) -> dict[str, Option]:
    """The options that the dataclass `cls` declares, by field name. groups: None for all."""
    options = {
        field.name: field.metadata[KEY]
        for field in dataclasses.fields(cls)
        if KEY in field.metadata
    }
    return {name: opt for name, opt in options.items() if groups is None or opt.group in groups}


def add_options(parser: argparse._ActionsContainer, cls: Any, *groups: str) -> None:
    """Add the options of these groups to `parser`. Their values get the names of the fields."""
    defaults = _defaults(cls)
    for name, opt in declared(cls, groups).items():
        repeatable = isinstance(defaults[name], tuple)
        parser.add_argument(
            opt.flag,
            dest=name,
            action="append" if repeatable else "store",
            default=[] if repeatable else defaults[name],
            type=opt.parse,
            choices=opt.choices,
            metavar=opt.metavar,
            help=opt.help,
        )


def from_namespace(cls: type[T], namespace: argparse.Namespace, **values: Any) -> T:
    """Build a `cls` from parsed options. Fields that the command does not take keep their defaults.

    values: the values of fields that do not come from the command line.
    """
    parsed: dict[str, Any] = {}
    for name in declared(cls):
        if hasattr(namespace, name):
            value = getattr(namespace, name)
            parsed[name] = tuple(value) if isinstance(value, list) else value
    return cls(**{**parsed, **values})


def argv(instance: Any, *groups: str) -> list[str]:
    """The arguments that ask for `instance`, which is of a class with options.

    groups: only the options of these groups; without any, all options.

    An option is left out only if it has its default and that is None, empty or 0. Other defaults
    are written out, so that the arguments mean the same to a version with other defaults.
    """
    arguments: list[str] = []
    defaults = _defaults(instance)
    for name, opt in declared(type(instance), groups or None).items():
        value = getattr(instance, name)
        if not defaults[name] and value == defaults[name]:
            continue
        for item in value if isinstance(value, tuple) else (value,):
            arguments += [opt.flag, f"{item:g}" if isinstance(item, float) else str(item)]
    return arguments


def to_json(instance: Any) -> dict[str, Any]:
    """The fields of a dataclass, which may hold others, as JSON values. Paths become text."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(item) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {name: plain(value) for name, value in dataclasses.asdict(instance).items()}


def from_json(cls: type[T], content: Mapping[str, Any]) -> T:
    """The instance of `cls` that to_json() turned into `content`.

    Missing fields keep their defaults, and unknown ones are ignored. Raises ValueError or TypeError
    for a value that its field does not take.
    """
    if not isinstance(content, Mapping):
        raise TypeError(f"{cls.__name__} has no fields")
    types = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        if field.name not in content:
            continue
        value, kind = content[field.name], types[field.name]
        is_path, takes_many = "Path" in str(kind), "tuple" in str(kind) or "Sequence" in str(kind)
        if isinstance(value, list) != takes_many or (is_path and isinstance(value, int | float)):
            raise TypeError(f"{field.name} is {value!r}")
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            values[field.name] = from_json(kind, value)
        elif isinstance(value, list):
            values[field.name] = tuple(Path(item) if is_path else item for item in value)
        else:
            values[field.name] = Path(value) if is_path and isinstance(value, str) else value
    return cls(**values)


def anywhere(instance: T) -> T:
    """`instance`, a dataclass, with absolute paths, so that it means the same in every directory.

    What is no file here, such as the name of a program, stays as it is.
    """

    def absolute(value: Any) -> Any:
        if isinstance(value, Path):
            return value.absolute() if os.access(value, os.F_OK) else value
        return tuple(map(absolute, value)) if isinstance(value, tuple) else value

    names = [field.name for field in dataclasses.fields(instance)]  # type: ignore[arg-type]
    return dataclasses.replace(  # type: ignore[type-var]
        instance, **{name: absolute(getattr(instance, name)) for name in names}
    )


def seconds(text: str) -> float:
    """Parse `90`, `90s`, `30m`, `8h` or `2d` into seconds."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "s")
    with contextlib.suppress(ValueError):
        if 0 <= float(number) * units[unit] <= LONGEST:
            return float(number) * units[unit]
    raise argparse.ArgumentTypeError(f"write a time such as 90s, 30m or 8h, not {shortened(text)}")


def whole(low: int, high: int) -> Callable[[str], int]:
    """A parser of whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        with contextlib.suppress(ValueError):
            if low <= int(text) <= high:
                return int(text)
        raise argparse.ArgumentTypeError(f"takes {low} to {high}, not {shortened(text)}")

    return parse


def number(low: float, high: float) -> Callable[[str], float]:
    """A parser of numbers from `low` to `high`."""

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError):
            if low <= float(text) <= high:
                return float(text)
        raise argparse.ArgumentTypeError(f"takes {low:g} to {high:g}, not {shortened(text)}")

    return parse


def check_texts(instance: Any) -> None:
    """Raise UsageError for an option of `instance` whose text has control characters.

    Lists, logs and configurations have a line for each, and terminals do what they say.
    """
    for name, opt in declared(type(instance)).items():
        value = getattr(instance, name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, str) and (clean := printable(item).replace("\n", "?")) != item:
                raise UsageError(f"{opt.flag} takes no control characters: {shortened(clean)}")


def _defaults(cls: Any) -> dict[str, Any]:
    """The default of each field of a dataclass, or of an instance of one."""
    return {field.name: field.default for field in dataclasses.fields(cls)}
