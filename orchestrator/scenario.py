"""Scenarios: what is poked, how, and what the kernel promises about it. One file each in guest/scenarios/."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from orchestrator.errors import InfraError, UsageError, nearest
from orchestrator.paths import PROJECT

DIRECTORY = PROJECT / "guest" / "scenarios"


class Scenario(BaseModel):
    """One scenario. The file's name is its name.

    title: what it does. promise: what the kernel promises, in a sentence. site: name of a site of the module.
    how: `direct` pokes it with text_poke_bp() or smp_text_poke_single(), with an int3 target of ours; `key` flips the
    static key that owns it. order: where it stands in a run. passes: gated passes a phase and CPU.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    promise: str
    site: Literal["nop5", "jmp32", "nop2", "one", "key"]
    how: Literal["direct", "key"] = "direct"
    order: int = 100
    passes: int = Field(default=1, ge=1, le=1000)

    @model_validator(mode="after")
    def _only_keys_are_flipped(self) -> Scenario:
        if self.how == "key" and self.site != "key":
            raise ValueError(f"no static key owns the site {self.site}, so it cannot be poked with how: key")
        return self


def load_all() -> list[Scenario]:
    """Every scenario there is, in the order of a run."""
    found: list[Scenario] = []
    for path in sorted(DIRECTORY.glob("*.yaml")):
        try:
            found.append(Scenario(name=path.stem, **yaml.safe_load(path.read_text())))
        except (ValidationError, yaml.YAMLError, TypeError) as error:
            detail = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
            where = ".".join(map(str, detail["loc"])) or "the file"
            raise UsageError(f"{path.name}: {where}: {detail['msg']}") from error
    return sorted(found, key=lambda scenario: (scenario.order, scenario.name))


def select(patterns: Sequence[str]) -> list[Scenario]:
    """Those that match one of the shell patterns, all when there is none; an unknown name raises UsageError."""
    known = load_all()
    if not known:
        raise InfraError(f"there is no scenario in {DIRECTORY}: the installation is not complete")
    if not patterns:
        return known
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(scenario.name, pattern) for scenario in known):
            names = [scenario.name for scenario in known]
            raise UsageError(f"no scenario is called {pattern}{nearest(pattern, names)}; there are: {', '.join(names)}")
    return [s for s in known if any(fnmatch.fnmatchcase(s.name, pattern) for pattern in patterns)]
