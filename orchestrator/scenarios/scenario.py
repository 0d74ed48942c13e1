# SPDX-License-Identifier: GPL-2.0-only
"""Scenarios: what is done to a kernel, and what it promises about it. One file each in
guest/scenarios/.

A file NAME.yaml names a site of the test module and how it is poked, or sysctls that switch static
keys of the kernel itself. A file NAME.c is code for the test module; its first comment holds the
same fields, in YAML. Either may name a shell script that runs alongside in the guest.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from orchestrator.errors import InfraError, UsageError, nearest
from orchestrator.host.paths import DATA

DIRECTORY = DATA / "guest" / "scenarios"
COMMENT = re.compile(r"^/\*\n((?: \*.*\n)+?) \*/$", re.MULTILINE)
"""The first block comment of a C file."""

OWNED = ("key", "static-call")
"""Sites that a static key or a static call changes."""

Part = Literal["gated", "free", "watched"]
"""How a step is run. `gated`: a site is poked once and held in each phase while GDB watches.
`watched`: GDB watches code or sysctls. `free`: poked as often as time allows, with no breakpoint
set."""

Site = Literal["nop5", "line", "page", "jmp32", "nop2", "one", "call", "jcc", "key", "static-call"]
"""The sites of the test module (guest/module/)."""


class Scenario(BaseModel):
    """One scenario. It has a site, or sysctls, or code."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """The name of the file, without its suffix."""
    title: str
    """What the scenario does."""
    promise: str
    """What the kernel promises, in one sentence."""
    order: int = 100
    """Position in a run; smaller numbers come first."""
    site: Site | None = None
    how: Literal["direct", "owner"] = "direct"
    """`direct` pokes the site with text_poke_bp() or smp_text_poke_single() and an int3 target of
    the module's own; `owner` has it changed by its owner (a static key, a static call)."""
    passes: int = Field(default=1, ge=1, le=1000)
    """Gated passes per phase and CPU."""
    gated: bool = True
    """Whether there is a gated part."""
    sysctls: tuple[str, ...] = ()
    """Paths below /proc/sys that take 0 and 1 and switch static keys. Such a scenario needs no test
    module. It is for kernels that have no headers to build one with; where there is a module it is
    left out unless requested."""
    code: Path | None = None
    """The C file."""
    watched: bool = False
    """Whether the code also runs once while GDB watches."""
    symbols: tuple[str, ...] = ()
    """Functions and variables whose addresses the code needs, where the kernel has them."""
    weight: float = Field(default=1, gt=0, le=100)
    """Share of the free-running time."""
    offline: int = Field(default=0, ge=0, le=1000)
    """The free-running step goes on until so many pokes came while a CPU was offline, and as many
    after it was back."""
    companion: str | None = None
    """A shell script that runs in the guest as long as /run/companion exists. Exit status 0: all
    well. 4: the kernel lacks something. Any other: a promise was broken, and the last line that
    it prints says which."""
    append: tuple[str, ...] = ()
    """Kernel parameters for the run."""

    @model_validator(mode="after")
    def _check_kind(self) -> Scenario:
        if [self.site is None, self.code is None, not self.sysctls].count(False) != 1:
            raise ValueError("a scenario has a site or sysctls (NAME.yaml) or is code (NAME.c)")
        if self.how == "owner" and self.site not in OWNED:
            raise ValueError(
                f"the site {self.site} has no owner in the kernel, so `how: owner` cannot poke it"
            )
        return self

    @property
    def parts(self) -> tuple[Part, ...]:
        """The steps of the scenario, in the order of a run."""
        if self.code:
            return ("watched", "free") if self.watched else ("free",)
        if self.sysctls:
            return ("watched", "free")
        return ("gated", "gated", "free") if self.gated else ("free",)

    @property
    def exclusive(self) -> bool:
        """Whether it must run alone: its companion would disturb other scenarios."""
        return bool(self.companion)


def load_all() -> list[Scenario]:
    """All scenarios, in the order of a run."""
    paths = [path for path in sorted(DIRECTORY.iterdir()) if path.suffix in (".yaml", ".c")]
    scenarios = [read(path) for path in paths]
    names = [scenario.name for scenario in scenarios]
    if duplicate := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"{DIRECTORY} has two scenarios called {duplicate}")
    return sorted(scenarios, key=lambda scenario: (scenario.order, scenario.name))


def read(path: Path) -> Scenario:
    """The scenario in the file `path`. Raises UsageError when the file is not valid."""
    text = path.read_text()
    if path.suffix == ".c":
        comment = COMMENT.search(text)
        if not comment:
            raise UsageError(f"{path.name}: its first comment must have at least title and promise")
        text = re.sub(r"^ \* ?", "", comment[1], flags=re.MULTILINE)
    try:
        fields: dict[str, Any] = yaml.safe_load(text)
        return Scenario(name=path.stem, code=path if path.suffix == ".c" else None, **fields)
    except (ValidationError, yaml.YAMLError, TypeError) as error:
        # Report a misspelt key rather than the key that is missing because of it.
        details = (
            error.errors()
            if isinstance(error, ValidationError)
            else [{"loc": (), "msg": str(error), "type": ""}]
        )
        detail: Any = min(details, key=lambda problem: problem["type"] != "extra_forbidden")
        where = ".".join(map(str, detail["loc"])) or "the file"
        raise UsageError(f"{path.name}: {where}: {detail['msg']}") from error


def runnable(
    scenarios: Sequence[Scenario], patterns: Sequence[str], *, headers: bool
) -> list[Scenario]:
    """The scenarios that can be run on a kernel.

    scenarios: those that `patterns` selected.
    headers: whether the kernel has headers to build the test module with, and takes modules.
    Without them only sysctl scenarios can run; with them these are left out unless a pattern is
    their exact name.

    Raises UsageError when a scenario requested by name cannot be run, or none can.
    """
    without_module = [
        scenario
        for scenario in scenarios
        if scenario.sysctls and (not headers or scenario.name in patterns)
    ]
    others = [
        scenario
        for scenario in scenarios
        if not scenario.sysctls and (headers or scenario.name in patterns)
    ]
    if others and not headers:
        raise UsageError(
            f"{others[0].name} needs the test module, and it cannot be built for this kernel"
        )
    if others and without_module:
        raise UsageError(
            f"{without_module[0].name} runs without the test module, so it cannot be combined "
            f"with {others[0].name}"
        )
    if not without_module and not others:
        raise UsageError(
            f"{', '.join(patterns)}: all of these need the test module, "
            "and it cannot be built for this kernel"
        )
    return without_module or others


def select(patterns: Sequence[str], skip: Sequence[str] = ()) -> list[Scenario]:
    """The scenarios that match a shell pattern; all of them when there are no patterns.

    skip: patterns of those to leave out.

    Raises UsageError when a pattern matches nothing, or nothing is left.
    """
    known = load_all()
    if not known:
        raise InfraError(f"{DIRECTORY} has no scenarios: the installation is incomplete")
    for pattern in (*patterns, *skip):
        if not any(fnmatch.fnmatchcase(scenario.name, pattern) for scenario in known):
            names = [scenario.name for scenario in known]
            raise UsageError(
                f"no scenario is called {pattern}{nearest(pattern, names)}; "
                f"the scenarios are: {', '.join(names)}"
            )
    chosen = [s for s in known if _matches(s, patterns or ["*"]) and not _matches(s, skip)]
    if not chosen:
        raise UsageError("--skip leaves out all scenarios")
    return chosen


def _matches(scenario: Scenario, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(scenario.name, pattern) for pattern in patterns)
