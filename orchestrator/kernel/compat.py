"""What older kernel trees need to be built with today's compiler, as data: kernels/compat/compat.yaml says what."""

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
    """For kernels from `first` up to, and without, `before`. why: in a sentence. The rest as in definition.py.

    lacks: path in the tree -> text; only for trees that have the file, without the text.
    """

    first: str = pydantic.Field(alias="from", pattern=r"^\d+\.\d+$")
    before: str = pydantic.Field(pattern=r"^\d+\.\d+$")
    why: str
    make: Mapping[str, str] = pydantic.Field(default={})
    config: list[str] = pydantic.Field(default=[])
    patches: list[str] = pydantic.Field(default=[])
    base: str | None = None
    lacks: Mapping[str, str] = pydantic.Field(default={})


@dataclass(frozen=True)
class Compat:
    """All that a kernel of one version needs. why: of each entry. config: as a fragment, empty when there is none."""

    why: tuple[str, ...] = ()
    make: tuple[tuple[str, str], ...] = ()
    config: str = ""
    patches: tuple[Path, ...] = ()
    base: str = "tinyconfig"


@cache
def entries(file: Path = FILE) -> tuple[CompatEntry, ...]:
    """What `file` has. InfraError when it is not what it must be: it is a part of this program."""
    try:
        return tuple(
            CompatEntry.model_validate(entry) for entry in yaml.safe_load(file.read_text())
        )
    except (OSError, yaml.YAMLError, pydantic.ValidationError, TypeError) as error:
        raise InfraError(f"{file}: {' '.join(str(error).split())}") from error


def version(makefile: str) -> tuple[int, int]:
    """(VERSION, PATCHLEVEL) of the text of a tree's Makefile; (0, 0) where it has none."""
    found = [
        re.search(rf"^{name}\s*=\s*(\d+)", makefile, re.MULTILINE)
        for name in ("VERSION", "PATCHLEVEL")
    ]
    major, minor = (int(match[1]) if match else 0 for match in found)
    return major, minor


def needed(
    of: tuple[int, int], root: Path | None = None, known: Iterable[CompatEntry] | None = None
) -> Compat:
    """What a kernel of the version `of` needs. root: its tree, None for one that lacks nothing."""
    fit = [
        entry
        for entry in (entries() if known is None else known)
        if pair(entry.first) <= of < pair(entry.before) and _lacks(root, entry.lacks)
    ]
    make: dict[str, str] = {}
    for entry in fit:
        for name, value in entry.make.items():
            make[name] = f"{make[name]} {value}" if name in make else value
    return Compat(
        why=tuple(entry.why for entry in fit),
        make=tuple(make.items()),
        config=config.render(
            config.settings([f"CONFIG_{option}" for entry in fit for option in entry.config])
        ),
        patches=tuple(FILE.parent / name for entry in fit for name in entry.patches),
        base=next((entry.base for entry in fit if entry.base), Compat.base),
    )


def _lacks(root: Path | None, texts: Mapping[str, str]) -> bool:
    """Whether each of these files is in the tree, and lacks its text."""
    files = {root / path: text for path, text in texts.items()} if root else {}
    return len(files) == len(texts) and all(
        file.is_file() and text not in file.read_text(errors="replace")
        for file, text in files.items()
    )


def pair(text: str) -> tuple[int, int]:
    """(6, 12) of `6.12`."""
    major, minor = text.split(".")
    return int(major), int(minor)
