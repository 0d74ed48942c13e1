# SPDX-License-Identifier: GPL-2.0-only
"""kernels/NAME.yaml: a kernel to build from source, as data. The models below are the whole format.

    name: 6.1-int3                       # the same as the file's
    description: one line for `orchestrator kernels list`
    source: {debian-source: "6.1"}       # Debian's linux-source-6.1, newest version in the mirror
    config:
      base: tinyconfig                   # tinyconfig, defconfig, or a file
      fragments: [6.1-int3/trim.config]  # merged in order; a lost option is an error
    series: 6.1-int3/series              # lists patches, one a line, which are beside it or in
                                         # patches/ beside it
    patches: []                          # more patches, applied after the series
    make: {KCFLAGS: -O3}                 # variables for make's command line

Paths are relative to the directory of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pydantic

from orchestrator.errors import UsageError, nearest, shortened
from orchestrator.host import yamlfile
from orchestrator.host.paths import DATA
from orchestrator.host.yamlfile import Strict
from orchestrator.kernel import patches

DEFINITIONS = DATA / "kernels"
BASES = ("tinyconfig", "defconfig")


class DefinitionSource(Strict):
    """Where the source comes from."""

    debian_source: str = pydantic.Field(alias="debian-source", pattern=r"^\d+\.\d+$")
    """The series of one of Debian's linux-source packages."""


class DefinitionConfig(Strict):
    """The configuration."""

    base: str = "tinyconfig"
    fragments: list[str] = pydantic.Field(default=[])
    """Files that are merged on the base, in order."""


class Definition(Strict):
    """One kernels/*.yaml."""

    name: str
    description: str
    source: DefinitionSource
    config: DefinitionConfig = DefinitionConfig()
    series: str | None = None
    patches: list[str] = pydantic.Field(default=[])
    make: Mapping[str, str] = pydantic.Field(default={})
    _folder: Path = pydantic.PrivateAttr(default=DEFINITIONS)
    """The directory that paths are relative to."""

    def fragment_files(self) -> tuple[Path, ...]:
        return tuple(self._folder / name for name in self.config.fragments)

    def base(self) -> str | Path:
        """`tinyconfig`, `defconfig`, or the file to start from."""
        return self.config.base if self.config.base in BASES else self._folder / self.config.base

    def patch_files(self) -> tuple[Path, ...]:
        """The patches in the order in which they apply."""
        listed = patches.listed(self._folder / self.series) if self.series else []
        return (*listed, *(self._folder / name for name in self.patches))


INNER: Mapping[str, type[pydantic.BaseModel]] = {
    "source": DefinitionSource,
    "config": DefinitionConfig,
}


def names() -> list[str]:
    """The names of all definitions in kernels/, sorted."""
    return sorted(path.stem for path in DEFINITIONS.glob("*.yaml"))


def load(selector: str) -> Definition:
    """The definition named `selector`, or the one in the file `selector` (`./mine.yaml`).

    Raises UsageError if there is none or it is wrong.
    """
    if selector.endswith((".yaml", ".yml")):
        file = Path(selector)
    else:
        file = DEFINITIONS / f"{selector}.yaml"
        if "/" in selector or selector not in names():
            known = [*names(), "debian:6.1"]
            raise UsageError(
                f"unknown kernel {shortened(selector)}{nearest(selector, known)}: "
                "`orchestrator kernels list` shows them"
            )
    return read(file)


def read(file: Path) -> Definition:
    """The definition in `file`.

    Raises UsageError if a type or name is wrong or a file that it mentions is missing.
    """
    data = yamlfile.mapping(
        file, "kernel definition", "a kernel definition is a mapping (name: ..., source: ...)"
    )
    try:
        definition = Definition.model_validate(data)
    except pydantic.ValidationError as error:
        raise UsageError(f"{file}: {yamlfile.explained(error, Definition, INNER)}") from error
    definition._folder = file.resolve().parent
    if definition.name != file.stem:
        raise UsageError(
            f"{file}: name: is {definition.name}, must be {file.stem} like the file's name"
        )
    mentioned = [("config.fragments", path) for path in definition.fragment_files()]
    mentioned += [("patches", definition._folder / name) for name in definition.patches]
    if definition.series:
        mentioned.append(("series", definition._folder / definition.series))
    base = definition.base()
    if isinstance(base, Path):
        mentioned.append(("config.base", base))
    for key, path in mentioned:
        if not path.is_file():
            also = f", nor is it one of {', '.join(BASES)}" if key == "config.base" else ""
            raise UsageError(f"{file}: {key}: there is no file {path}{also}")
    definition.patch_files()  # raises UsageError for a missing patch of the series
    return definition
