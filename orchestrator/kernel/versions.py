# SPDX-License-Identifier: GPL-2.0-only
"""Which version of a package stands for a name such as 6.1-int3 or debian:6.12.

It is chosen once, by the first process that needs it, which passes its choice on to its children in
an environment variable. So a sweep, which names a kernel's digest first and has it built and run by
children later, gets one version even if the mirror offers a new one in the meantime.

The state directory has the last choice for each name. A change is reported in one line, and if the
mirror cannot be asked, the last choice stays.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence

from orchestrator import ui
from orchestrator.errors import InfraError
from orchestrator.host import debian, files
from orchestrator.host.debian import Package
from orchestrator.host.files import lock_of, locked
from orchestrator.host.notices import warn
from orchestrator.host.paths import remembered

VARIABLE = "ORCHESTRATOR_VERSIONS"
"""JSON: subject -> list of [package, version, suite], all that this process has chosen so far."""
MEMORY = "versions"
"""The file of the state directory with the last choices: name -> [subject, list as in VARIABLE]."""


def chosen(
    name: str, subject: str, suites: Sequence[str], choose: Callable[[], Sequence[Package]]
) -> list[Package]:
    """The packages that stand for `name`, the one that gives the version first.

    - subject: what is chosen. Several names can have the same one, such as the package
      linux-source-6.1, and then get the same version.
    - suites: where `choose` searches.
    - choose: searches the mirror; called only if neither this process nor its parent has chosen.

    Raises what `choose` does.
    """
    before = last(name, subject)
    packages = _inherited(subject)
    if not packages:
        try:
            packages = list(choose())
        except InfraError as error:
            if not before:
                raise
            warn(f"{name}: staying with {before[0].name} {before[0].version}: {error}")
            packages = before
        # What could not be searched may have a newer version, and may be where the last one was.
        if before and debian.unsearched(suites):
            packages = before if _newest(before, packages) is before[0] else packages
        _pass_on(subject, packages)
    if packages != before:
        _remember(name, subject, packages)
        _report(name, before, packages)
    return packages


def last(name: str, subject: str | None = None) -> list[Package]:
    """The packages that were chosen last for `name`, in this process or before; or none.

    subject: only if this is what was chosen.
    """
    memory = files.load(remembered(MEMORY)) or {}
    known, packages = memory.get(name, [None, []])
    return [Package(*fields) for fields in packages] if subject in (None, known) else []


def inherited() -> dict[str, str]:
    """Environment variables for a child on another machine, which does not inherit ours."""
    return {VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ else {}


def _newest(before: list[Package], packages: list[Package]) -> Package:
    return debian.newest_of([before[0], packages[0]])


def _inherited(subject: str) -> list[Package]:
    return [Package(*fields) for fields in _choices().get(subject, [])]


def _pass_on(subject: str, packages: list[Package]) -> None:
    choices = _choices() | {subject: [_fields(package) for package in packages]}
    os.environ[VARIABLE] = json.dumps(choices)


def _choices() -> dict[str, list[list[str]]]:
    try:
        choices: dict[str, list[list[str]]] = json.loads(os.environ.get(VARIABLE) or "{}")
    except ValueError as error:
        raise InfraError(f"${VARIABLE} is not JSON ({error}): unset it") from error
    return choices


def _remember(name: str, subject: str, packages: list[Package]) -> None:
    memory = remembered(MEMORY)
    with contextlib.suppress(OSError), locked(lock_of(memory)):
        known = files.load(memory) or {}
        content = [subject, [_fields(package) for package in packages]]
        files.remember(memory, known | {name: content})


def _report(name: str, before: list[Package], packages: list[Package]) -> None:
    if before and before[0].version != packages[0].version:
        chosen = f"{packages[0].name} {packages[0].version}"
        ui.say(f"{name}: {chosen} (was {before[0].version})")


def _fields(package: Package) -> list[str]:
    return [package.name, package.version, package.suite]
