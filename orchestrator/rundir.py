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
from collections.abc import Sequence
from pathlib import Path

from orchestrator.errors import UsageError
from orchestrator.host.paths import state_dir
from orchestrator.options import to_json
from orchestrator.spec import RunSpec


def create(spec: RunSpec, command: Sequence[str] = ("run",)) -> Path:
    """A new directory for the run of `spec`, with spec.json and repeat.sh in it.

    command: the command that was given, without its options, such as ("run",).

    Raises UsageError when the requested directory is not empty.
    """
    path = spec.kernel.bzimage or spec.kernel.tree
    name = re.sub(r"[^\w.]+", "-", path.resolve().name if path else spec.kernel.selector)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    unique = f"{stamp}-{name}-smp{spec.smp}-{secrets.token_hex(2)}"
    directory = spec.directory or state_dir() / "runs" / unique
    if directory.exists() and any(directory.iterdir()):
        raise UsageError(
            f"{directory} is not empty: the results of a run need a directory of their own"
        )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "spec.json").write_text(json.dumps(to_json(spec), indent=1) + "\n")
    script = directory / "repeat.sh"
    argv = [sys.executable, "-m", "orchestrator", *command, *spec.argv()]
    script.write_text(
        "#!/bin/sh\n# Repeats this run: the same kernel, machine, scenarios and seed.\n"
        f"cd {shlex.quote(str(Path.cwd()))} || exit\n"
        f'exec {shlex.join(argv)} "$@"\n'
    )
    script.chmod(0o755)
    return directory


def discard(directory: Path) -> None:
    """Remove what was written for a wrong request. Anything else in the directory stays."""
    for name in ("spec.json", "repeat.sh", "initramfs.cpio"):
        (directory / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        directory.rmdir()
