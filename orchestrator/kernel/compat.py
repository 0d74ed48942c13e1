# SPDX-License-Identifier: GPL-2.0-only
"""What older kernel trees need to build with today's compilers: kernels/compat/compat.yaml."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pydantic
import yaml

from orchestrator.errors import InfraError
from orchestrator.host.yamlfile import Strict
from orchestrator.kernel import config, definition

FILE = definition.DEFINITIONS / "compat" / "compat.yaml"


class CompatEntry(Strict):
    """One entry of compat.yaml, for kernel versions from `first` up to, not including, `before`."""

    first: str = pydantic.Field(alias="from", pattern=r"^\d+\.\d+$")
    before: str = pydantic.Field(pattern=r"^\d+\.\d+$")
    why: str
    """What does not work, in one sentence."""
    make: Mapping[str, str] = pydantic.Field(default={})
    """Variables for make's command line. Values for the same variable are joined with spaces."""
    config: list[str] = pydantic.Field(default=[])
    """Options without `CONFIG_`. A version that lacks one may lose it."""
    patches: list[str] = pydantic.Field(default=[])
    """File names in the same directory."""
    base: str | None = None
    """The make target to configure from, in place of tinyconfig."""
    lacks: Mapping[str, str] = pydantic.Field(default={})
    """Path in the tree -> text. The entry applies only if the file exists and lacks the text."""


@dataclass(frozen=True)
class Compat:
    """Everything that one kernel needs."""

    why: tuple[str, ...] = ()
    """The reason for each entry that applies."""
    make: tuple[tuple[str, str], ...] = ()
    config: str = ""
    """A config fragment, possibly empty."""
    patches: tuple[Path, ...] = ()
    base: str = "tinyconfig"


@cache
def entries(file: Path = FILE) -> tuple[CompatEntry, ...]:
    """The entries of `file`.

    Raises InfraError if the file is damaged: it is part of this program.
    """
    try:
        return tuple(
            CompatEntry.model_validate(entry) for entry in yaml.safe_load(file.read_text())
        )
    except (OSError, yaml.YAMLError, pydantic.ValidationError, TypeError) as error:
        raise InfraError(f"{file}: {' '.join(str(error).split())}") from error


def version(makefile: str) -> tuple[int, int]:
    """(VERSION, PATCHLEVEL) from the text of a tree's Makefile; 0 for one that is missing."""
    matches = [
        re.search(rf"^{name}\s*=\s*(\d+)", makefile, re.MULTILINE)
        for name in ("VERSION", "PATCHLEVEL")
    ]
    major, minor = (int(match[1]) if match else 0 for match in matches)
    return major, minor


def needed(
    kernel: tuple[int, int], root: Path | None = None, known: Iterable[CompatEntry] | None = None
) -> Compat:
    """What a kernel of the version `kernel` needs.

    root: its source tree; without it, entries with `lacks` do not apply.
    known: the entries to choose from, by default those of compat.yaml.
    """
    applying = [
        entry
        for entry in (entries() if known is None else known)
        if pair(entry.first) <= kernel < pair(entry.before) and _lacks(root, entry.lacks)
    ]
    make: dict[str, str] = {}
    for entry in applying:
        for name, value in entry.make.items():
            make[name] = f"{make[name]} {value}" if name in make else value
    options = [f"CONFIG_{option}" for entry in applying for option in entry.config]
    return Compat(
        why=tuple(entry.why for entry in applying),
        make=tuple(make.items()),
        config=config.render(config.settings(options)),
        patches=tuple(FILE.parent / name for entry in applying for name in entry.patches),
        base=next((entry.base for entry in applying if entry.base), Compat.base),
    )


def _lacks(root: Path | None, texts: Mapping[str, str]) -> bool:
    """Whether each of these files exists in the tree and lacks its text."""
    files = {root / path: text for path, text in texts.items()} if root else {}
    return len(files) == len(texts) and all(
        file.is_file() and text not in file.read_text(errors="replace")
        for file, text in files.items()
    )


def pair(text: str) -> tuple[int, int]:
    """(6, 12) of `6.12`."""
    major, minor = text.split(".")
    return int(major), int(minor)
