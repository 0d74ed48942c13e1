# SPDX-License-Identifier: GPL-2.0-only
"""Kernel configurations: merging fragments, and which of the requested options did not survive."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import UsageError, shortened
from orchestrator.host import userfile

_SET_LINES = re.compile(r"^CONFIG_\w+=", re.MULTILINE)
WHOLE = 500
"""A text with more options than this is the .config of a whole kernel."""
FILES = ("CONFIG_SYSTEM_TRUSTED_KEYS", "CONFIG_SYSTEM_REVOCATION_KEYS", "CONFIG_MODULE_SIG_KEY")
"""Options that name files. Distributions have them in their packages."""
PROMPT = re.compile(
    r'^\s*(?:bool|tristate|int|hex|string|def_bool|def_tristate|prompt)\s+(?:["\']).+', re.MULTILINE
)
_SET = re.compile(r"^(CONFIG_\w+)=(.*)$")
_UNSET = re.compile(r"^# (CONFIG_\w+) is not set$")

Options = dict[str, str]
"""CONFIG_X -> `y`, `m`, `n`, `64`, `"text"`. Unset options are `n`."""


@dataclass(frozen=True)
class LostOption:
    """An option whose value after `make olddefconfig` is not the requested one."""

    option: str
    requested: str
    actual: str
    by: str
    """The fragment that requested it, or `setting`."""

    def __str__(self) -> str:
        return f"{self.option}={self.requested} (requested by {self.by}) became {self.actual}"


def parse(text: str, where: str) -> Options:
    """The options of a .config or fragment.

    Comments and empty lines are skipped. Raises UsageError for any other line.
    """
    options: Options = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if match := _SET.match(line):
            options[match[1]] = match[2].strip()
        elif match := _UNSET.match(line):
            options[match[1]] = "n"
        elif line and not line.startswith("#"):
            raise UsageError(
                f"{where}:{number}: `{shortened(line, 80)}` is neither CONFIG_X=value "
                "nor `# CONFIG_X is not set`"
            )
    return options


def is_whole(text: str) -> bool:
    """Whether `text` is the .config of a whole kernel, not a fragment that somebody wrote.

    It has options that nobody can set, which kconfig computes from others and from the compiler,
    and options that only the machine where it was made can have.
    """
    return (
        "Automatically generated file; DO NOT EDIT" in text or len(_SET_LINES.findall(text)) > WHOLE
    )


def without_missing_files(options: Options, exists: Callable[[str], bool]) -> Options:
    """`options` without names of files that the source does not have, such as a vendor's keys."""
    return {
        name: '""' if name in FILES and value.strip('"') and not exists(value.strip('"')) else value
        for name, value in options.items()
    }


def prompted(kconfig: Iterable[str]) -> set[str]:
    """The options that a user can set: those with a prompt.

    kconfig: the texts of the Kconfig files.
    """
    found = set()
    for text in kconfig:
        for block in re.split(r"^\s*(?:menu)?config\s+", text, flags=re.MULTILINE)[1:]:
            if PROMPT.search(block):
                found.add(f"CONFIG_{block.split(None, 1)[0]}")
    return found


def read_files(fragments: Iterable[Path]) -> tuple[tuple[str, str], ...]:
    """(file name, text) of each fragment. Raises UsageError if one is missing or does not parse."""
    texts = []
    for fragment in fragments:
        text = userfile.read_text(fragment, "config fragment")
        parse(text, str(fragment))
        texts.append((fragment.name, text))
    return tuple(texts)


def settings(lines: Iterable[str]) -> Options:
    """The options of single settings from the command line, where `CONFIG_` may be left out."""
    options: Options = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if not equals or not re.fullmatch(r"\w+", name) or not value:
            raise UsageError(
                f"{shortened(line)}: a setting is CONFIG_X=y, CONFIG_X=n or CONFIG_X=value"
            )
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
    requests: Iterable[tuple[str, Mapping[str, str]]], result: Mapping[str, str]
) -> list[LostOption]:
    """The requested options that `result` does not have.

    requests: (who requests, options), in order; later ones override earlier ones.
    """
    final: dict[str, tuple[str, str]] = {}
    for who, options in requests:
        for name, value in options.items():
            final[name] = (value, who)
    missing = []
    for name, (value, who) in final.items():
        # An option that does not exist, or whose dependencies fail, is absent from .config. A
        # request for `n` is satisfied by that.
        actual = result.get(name, "n")
        if actual != value and not (value == '""' and actual == "n"):
            shown = actual if name in result else "n (unknown, or its dependencies fail)"
            missing.append(LostOption(name, value, shown, who))
    return missing
