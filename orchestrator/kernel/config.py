"""Kernel configurations: merging fragments, and what became of the options that were asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.errors import UsageError

_SET = re.compile(r"^(CONFIG_\w+)=(.*)$")
_UNSET = re.compile(r"^# (CONFIG_\w+) is not set$")

Options = dict[str, str]
"""CONFIG_X -> `y`, `m`, `n`, `64`, `"text"`; unset options are `n`."""


@dataclass(frozen=True)
class LostOption:
    """An option that came out otherwise than it was asked for. by: the file (or `setting`) that asked."""

    option: str
    asked: str
    got: str
    by: str

    def __str__(self) -> str:
        return f"{self.option}={self.asked} (asked by {self.by}) came out as {self.got}"


def parse(text: str, where: str) -> Options:
    """The options of a .config or fragment. Comments and empty lines are skipped, anything else is wrong usage."""
    options: Options = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if match := _SET.match(line):
            options[match[1]] = match[2].strip()
        elif match := _UNSET.match(line):
            options[match[1]] = "n"
        elif line and not line.startswith("#"):
            raise UsageError(
                f"{where}:{number}: `{line}` is neither CONFIG_X=value nor `# CONFIG_X is not set`"
            )
    return options


def settings(lines: Iterable[str]) -> Options:
    """The options of single settings as they are given on a command line; `CONFIG_` may be left out."""
    options: Options = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if not equals or not re.fullmatch(r"\w+", name) or not value:
            raise UsageError(f"{line}: a setting is CONFIG_X=y, CONFIG_X=n or CONFIG_X=value")
        options[name if name.startswith("CONFIG_") else f"CONFIG_{name}"] = value
    return options


def render(options: Mapping[str, str]) -> str:
    """`options` as a .config."""
    lines = (
        f"# {name} is not set" if value == "n" else f"{name}={value}"
        for name, value in options.items()
    )
    return "\n".join((*lines, ""))


def lost(
    asked: Iterable[tuple[str, Mapping[str, str]]], result: Mapping[str, str]
) -> list[LostOption]:
    """What `result` has otherwise than asked, for (who asks, options) in order; who asks later overrides."""
    final: dict[str, tuple[str, str]] = {}
    for who, options in asked:
        for name, value in options.items():
            final[name] = (value, who)
    missing = []
    for name, (value, who) in final.items():
        # An option that does not exist, or whose dependencies fail, is absent: that is what `n` asks for.
        got = result.get(name, "n")
        if got != value and not (value == '""' and got == "n"):
            missing.append(
                LostOption(
                    name,
                    value,
                    got if name in result else "n (unknown, or its dependencies fail)",
                    who,
                )
            )
    return missing
