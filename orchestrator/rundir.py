# SPDX-License-Identifier: GPL-2.0-only
"""The directory of one run.

It is created with the request and a script that repeats the run, and removed when the request was
wrong.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.errors import InfraError, sentence
from orchestrator.host import paths
from orchestrator.options import to_json
from orchestrator.spec import RunSpec

BRANCHES = "branches"
"""The folder of a run's directory in which each branch has one (orchestrator/branch.py)."""
THIS = "DIRECTORY-OF-THIS-FILE"
FAILURE = "failure"
"""What `replay --at` takes for the event that showed the failure."""
LONGEST = 60
"""Most characters of a kernel's name in that of a directory."""


def files_of(directory: Path, guest: str) -> Path:
    """The directory with the logs of one guest of a run.

    guest: the name of a branch, empty if there is one guest only. The files of the one that GDB
    watches are those of the run.
    """
    own = directory / BRANCHES / guest
    return own if guest and own.is_dir() else directory


def create(spec: RunSpec, command: Sequence[str] = ("run",)) -> Path:
    """A new directory for the run of `spec`, with spec.json and repeat.sh in it.

    command: the command that was given, without its options, such as ("run",).

    Raises UsageError when the requested directory cannot be had, InfraError when it cannot be
    written.
    """
    directory = _new_directory(spec)
    try:
        _write_request(directory, spec, command)
    except OSError as error:
        discard(directory)
        raise InfraError(
            f"{directory} cannot be written ({sentence(error)}): "
            "free some space, or put the results elsewhere with --output"
        ) from error
    return directory


def _new_directory(spec: RunSpec) -> Path:
    if spec.directory:
        return paths.output_directory(spec.directory, "the results of a run", empty=True)
    name = re.sub(r"[^\w.]+", "-", spec.kernel.name)[:LONGEST]
    stamp = time.strftime("%Y%m%d-%H%M%S")
    directory = paths.state_dir() / "runs" / f"{stamp}-{name}-smp{spec.smp}-{secrets.token_hex(2)}"
    try:
        directory.mkdir(parents=True)
    except OSError as error:
        raise InfraError(
            f"{directory} cannot be made ({sentence(error)}): "
            "put the results elsewhere with --output"
        ) from error
    return directory


def _write_request(directory: Path, spec: RunSpec, command: Sequence[str]) -> None:
    (directory / "spec.json").write_text(json.dumps(to_json(spec.anywhere()), indent=1) + "\n")
    write_script(directory, spec, command)


def write_script(
    directory: Path,
    spec: RunSpec,
    command: Sequence[str],
    versions: Mapping[str, str] | None = None,
) -> None:
    """Write repeat.sh. Raises OSError.

    versions: environment variables that choose the versions of packages.
    """
    script = directory / "repeat.sh"
    argv = [sys.executable, "-m", "orchestrator", *command, *spec.anywhere().argv()]
    exports = "".join(
        f"export {name}={shlex.quote(value)}\n" for name, value in (versions or {}).items()
    )
    script.write_text(
        "#!/bin/sh\n# Repeats this run: the same kernel, machine, scenarios and seed.\n"
        "# If it has a directory `branches`, this repeats those event by event, and stops at one:\n"
        f"# orchestrator replay {THIS} --at {FAILURE}\n"
        f"cd {shlex.quote(str(Path.cwd()))} || exit\n{exports}"
        f'exec {shlex.join(argv)} "$@"\n'
    )
    script.chmod(0o755)


def replay_command(directory: Path) -> str | None:
    """The command that replays the run in `directory` and stops it where it failed; None if it has
    no branches, which alone are replayed."""
    if not (directory / BRANCHES).is_dir():
        return None
    usual = directory.parent == paths.state_dir() / "runs"
    name = directory.name if usual else shlex.quote(str(directory.absolute()))
    return f"orchestrator replay {name} --at {FAILURE}"


def discard(directory: Path) -> None:
    """Remove what was written for a wrong request. Anything else in the directory stays."""
    with contextlib.suppress(OSError):
        written = [directory / name for name in ("spec.json", "repeat.sh", "initramfs.cpio")]
        for path in [*written, *directory.glob(".*.reserved")]:
            path.unlink(missing_ok=True)
        directory.rmdir()
