# SPDX-License-Identifier: GPL-2.0-only
"""The directory of one run: made with the request and a script that repeats it, removed when the request was wrong."""

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

    command: the words before the options that asked for it.
    Raises UsageError when the directory that the request names is not empty.
    """
    given = spec.kernel.bzimage or spec.kernel.tree
    name = re.sub(r"[^\w.]+", "-", given.resolve().name if given else spec.kernel.selector)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    unique = f"{stamp}-{name}-smp{spec.smp}-{secrets.token_hex(2)}"
    directory = spec.directory or state_dir() / "runs" / unique
    if directory.exists() and any(directory.iterdir()):
        raise UsageError(
            f"{directory} is not empty: a run keeps its results in a directory of its own"
        )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "spec.json").write_text(json.dumps(to_json(spec), indent=1) + "\n")
    script = directory / "repeat.sh"
    words = [sys.executable, "-m", "orchestrator", *command, *spec.argv()]
    script.write_text(
        "#!/bin/sh\n# Repeats this run: the same kernel, machine, scenarios and seed.\n"
        f"cd {shlex.quote(str(Path.cwd()))} || exit\n"
        f'exec {shlex.join(words)} "$@"\n'
    )
    script.chmod(0o755)
    return directory


def discard(directory: Path) -> None:
    """Remove what create() made: a wrong request is no run. Files of anybody else stay."""
    for name in ("spec.json", "repeat.sh", "initramfs.cpio"):
        (directory / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        directory.rmdir()
