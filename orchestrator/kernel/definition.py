"""kernels/NAME.yaml: a kernel that is built from source, as data. Its format is the models below, nothing is implied.

    name: 6.1-int3                       # as the file is called
    description: one line for `orchestrator kernels list`
    source: {debian-source: "6.1"}       # Debian's linux-source-6.1, the newest point release in the mirror
    config:
      base: tinyconfig                   # tinyconfig, defconfig, or a file
      fragments: [6.1-int3/trim.config]  # merged in order; an option that does not survive is an error
    series: 6.1-int3/series              # a file that lists patches, one a line, beside it or in patches/ beside it
    patches: []                          # single patches, after the series
    make: {KCFLAGS: -g1}                 # variables for make's command line

Paths are relative to the folder of the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pydantic
import yaml

from orchestrator.errors import UsageError, nearest
from orchestrator.kernel import patches
from orchestrator.paths import PROJECT

DEFINITIONS = PROJECT / "kernels"
BASES = ("tinyconfig", "defconfig")


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=False)


class Source(_Strict):
    """Where the source comes from. debian_source: the series of a Debian linux-source package, as text."""

    debian_source: str = pydantic.Field(alias="debian-source", pattern=r"^\d+\.\d+$")


class Config(_Strict):
    """What is configured: the base and what is merged on it."""

    base: str = "tinyconfig"
    fragments: list[str] = []


class Definition(_Strict):
    """One kernels/*.yaml. `folder` is where its paths start."""

    name: str
    description: str
    source: Source
    config: Config = Config()
    series: str | None = None
    patches: list[str] = []
    make: Mapping[str, str] = {}
    _folder: Path = pydantic.PrivateAttr(default=DEFINITIONS)

    def fragment_files(self) -> tuple[Path, ...]:
        return tuple(self._folder / name for name in self.config.fragments)

    def base(self) -> str | Path:
        """`tinyconfig`, `defconfig`, or the file to start from."""
        return self.config.base if self.config.base in BASES else self._folder / self.config.base

    def patch_files(self) -> tuple[Path, ...]:
        """The patches in the order in which they apply."""
        listed = patches.listed(self._folder / self.series) if self.series else []
        return (*listed, *(self._folder / name for name in self.patches))


def names() -> list[str]:
    """All definitions that come with the project, sorted."""
    return sorted(path.stem for path in DEFINITIONS.glob("*.yaml"))


def load(selector: str) -> Definition:
    """The definition called `selector`, or the one in the file of that path (`./mine.yaml`)."""
    if selector.endswith((".yaml", ".yml")):
        file = Path(selector)
        if not file.is_file():
            raise UsageError(f"{selector}: there is no such kernel definition")
    else:
        file = DEFINITIONS / f"{selector}.yaml"
        if "/" in selector or not file.is_file():
            known = [*names(), "debian:6.1"]
            raise UsageError(
                f"unknown kernel {selector}{nearest(selector, known)}: `orchestrator kernels list` shows them"
            )
    return read(file)


def read(file: Path) -> Definition:
    """The definition in `file`, checked: types, names, and that every file it mentions is there."""
    try:
        data = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f":{where.line + 1}" if where else ""
        raise UsageError(f"{file}{line}: not YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(data, dict):
        raise UsageError(f"{file}: a kernel definition is a mapping (name: ..., source: ...)")
    try:
        definition = Definition.model_validate(data)
    except pydantic.ValidationError as error:
        raise UsageError(f"{file}: {_explained(error)}") from error
    definition._folder = file.resolve().parent
    if definition.name != file.stem:
        raise UsageError(f"{file}: name: is {definition.name}, must be {file.stem} as the file")
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
    definition.patch_files()
    return definition


def _explained(error: pydantic.ValidationError) -> str:
    """One problem as `key: sentence`: a misspelt key before the key that is missing for it."""
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        models: dict[str, type[pydantic.BaseModel]] = {"source": Source, "config": Config}
        model = models.get(str(first["loc"][0])) if len(first["loc"]) > 1 else Definition
        known = [field.alias or name for name, field in (model or Definition).model_fields.items()]
        return f"{key}: unknown key{nearest(str(first['loc'][-1]), known)}; known are {', '.join(known)}"
    if first["type"] == "missing":
        return f"{key}: is missing"
    if first["type"] == "string_type" and isinstance(first["input"], int | float):
        return f'{key}: {first["input"]} is a number to YAML, write it in quotes: "{first["input"]}"'
    return f"{key}: {first['msg']}, not {first['input']!r}"
