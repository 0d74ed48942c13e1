"""Scenarios: what is done to a kernel, and what it promises about it. One file each in guest/scenarios/.

A file NAME.yaml says which site of the test module is poked, and how, or which sysctls flip keys of the kernel's own.
A file NAME.c is code for the test module, in whose first comment stands, in YAML too, what it is. Each may say what
else goes on in the guest meanwhile.
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
from orchestrator.host.paths import PROJECT

DIRECTORY = PROJECT / "guest" / "scenarios"
COMMENT = re.compile(r"^/\*\n((?: \*.*\n)+?) \*/$", re.MULTILINE)
"""The first block comment of a C file."""

OWNED = ("key", "static-call")
"""Sites that a static key or a static call changes."""

Part = Literal["gated", "free", "watched", "alone"]
"""Of a run: `gated`: a site is poked once, held in each phase, under GDB's eyes. `free`: as often as time allows, with
no breakpoint set. `watched`: code or sysctls that GDB watches. `alone`: code with no breakpoint set."""


class Scenario(BaseModel):
    """One scenario. The file's name is its name.

    title: what it does. promise: what the kernel promises, in a sentence. order: where it stands in a run.

    site: name of a site of the module. how: `direct` pokes it with text_poke_bp() or smp_text_poke_single(), with an
    int3 target of ours; `owner` has it changed by what owns it (a static key, a static call). passes: gated passes a
    phase and CPU. gated: whether it has a gated part.

    sysctls: in place of site, paths below /proc/sys that take 0 and 1 and flip static keys. Needs no test module, and
    is for kernels that none can be built for (the headers are gone): it is left out where there is one, unless asked
    for.

    code: the C file, in place of site. watched: whether it is also run once under GDB's eyes. symbols: what it wants to
    know the addresses of, where the kernel has them (name of a function or variable).

    weight: share of the time that runs free, 1 where nothing is said. beside: a shell script that runs in the guest as
    long as /run/companion exists; its status is 0, 4 where the kernel lacks something, or else a promise was broken, and
    the last line that it prints says which. nmi: NMIs a second, on every CPU. append: kernel parameters for the run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    promise: str
    order: int = 100
    site: (
        Literal["nop5", "line", "page", "jmp32", "nop2", "one", "call", "jcc", "key", "static-call"]
        | None
    ) = None
    how: Literal["direct", "owner"] = "direct"
    passes: int = Field(default=1, ge=1, le=1000)
    gated: bool = True
    sysctls: tuple[str, ...] = ()
    code: Path | None = None
    watched: bool = False
    symbols: tuple[str, ...] = ()
    weight: float = Field(default=1, gt=0, le=100)
    companion: str | None = None
    nmi: int = Field(default=0, ge=0, le=1000)
    append: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_of_both(self) -> Scenario:
        if [self.site is None, self.code is None, not self.sysctls].count(False) != 1:
            raise ValueError("a scenario has a site or sysctls (NAME.yaml) or is code (NAME.c)")
        if self.how == "owner" and self.site not in OWNED:
            raise ValueError(
                f"nothing in the kernel owns the site {self.site}, so it cannot be poked with how: owner"
            )
        return self

    @property
    def parts(self) -> tuple[Part, ...]:
        """The steps that it takes part in, in the order of a run."""
        if self.code:
            return ("watched", "alone") if self.watched else ("alone",)
        if self.sysctls:
            return ("watched", "free")
        return ("gated", "gated", "free") if self.gated else ("free",)

    @property
    def alone(self) -> bool:
        """Whether something else goes on meanwhile that must not go on beside other scenarios."""
        return bool(self.companion or self.nmi)


def load_all() -> list[Scenario]:
    """Every scenario there is, in the order of a run."""
    found = [read(path) for path in sorted(DIRECTORY.iterdir()) if path.suffix in (".yaml", ".c")]
    names = [scenario.name for scenario in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"{DIRECTORY} has two scenarios called {twice}")
    return sorted(found, key=lambda scenario: (scenario.order, scenario.name))


def read(path: Path) -> Scenario:
    """The scenario in the file `path`. UsageError says what is wrong with it."""
    text = path.read_text()
    if path.suffix == ".c":
        comment = COMMENT.search(text)
        if not comment:
            raise UsageError(f"{path.name}: its first comment must say what it is: title, promise")
        text = re.sub(r"^ \* ?", "", comment[1], flags=re.MULTILINE)
    try:
        fields: dict[str, Any] = yaml.safe_load(text)
        return Scenario(name=path.stem, code=path if path.suffix == ".c" else None, **fields)
    except (ValidationError, yaml.YAMLError, TypeError) as error:
        # A misspelt key comes before the key that is missing for it.
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
    """Of those that were selected by `patterns` the ones that a kernel can be run with.

    headers: whether there are any to build the test module with. Without a module all goes by sysctls; with it these
    are left out, unless asked for by name. UsageError: what was asked for by name cannot be run, or nothing can.
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
            f"{others[0].name} needs the test module, and there are no headers to build it with"
        )
    if others and without_module:
        raise UsageError(
            f"{without_module[0].name} is run without the test module, so not together with {others[0].name}"
        )
    if not without_module and not others:
        asked = ", ".join(patterns)
        raise UsageError(
            f"{asked}: all of these need the test module, and there are no headers for it"
        )
    return without_module or others


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
            raise UsageError(
                f"no scenario is called {pattern}{nearest(pattern, names)}; there are: {', '.join(names)}"
            )
    return [s for s in known if any(fnmatch.fnmatchcase(s.name, pattern) for pattern in patterns)]
