# SPDX-License-Identifier: GPL-2.0-only
"""Running the branches of a finished run once more, to see whether they take the same course."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchestrator import ui
from orchestrator.branch import BOOT_LOG, IDENTITY, PLAN
from orchestrator.errors import UsageError
from orchestrator.host import keeper
from orchestrator.options import from_json
from orchestrator.run import BRANCHES, branches_of
from orchestrator.spec import RunSpec
from orchestrator.verdict import result
from orchestrator.watch.recorder import Records, load

SECONDS = 3600.0
"""Limit for one branch."""


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """One branch that was run again."""

    name: str
    events: int
    """Records in the log of the first time."""
    differs_at: int | None
    """Number of the first record that is another one, from 0; None if all are the same."""


def replay(directory: Path) -> Iterator[Replayed]:
    """Run the branches of the run in `directory` again, one after the other.

    Raises UsageError if that run had none or cannot be repeated, and what a run raises.
    """
    spec, digest = _request(directory)
    folders = sorted(path.parent for path in (directory / BRANCHES).glob(f"*/{PLAN}"))
    if not folders:
        raise UsageError(f"{directory} has no branches: only a run with a fingerprint is replayed")
    with keeper.temporary_directory() as temporary:
        branches = branches_of(spec, digest, temporary)
        identity, _, seed_text = _text(directory / BRANCHES / IDENTITY).partition("\n")
        seed = int(seed_text) if seed_text.isdecimal() else spec.seed
        if branches.snapshot.identity != identity:
            ui.say("the snapshot of that run is gone: this one may take another course")
        for folder in folders:
            name = folder.name
            before = load(folder / BOOT_LOG)
            commands = _text(folder / PLAN).partition("\n")[2] + "\n"
            with contextlib.ExitStack() as stack, ui.step(f"replaying the branch {name}"):
                one = branches.carry_out(stack, name, commands, seed)
                one.wait(SECONDS)
                differs_at = first_difference(before, one.records())
                yield Replayed(name=name, events=len(before), differs_at=differs_at)


def first_difference(before: Records, now: Records) -> int | None:
    """Number of the first record in which two logs differ; None if they are equal."""
    common = min(len(before), len(now))
    different = np.flatnonzero(before[:common] != now[:common])
    if len(different):
        return int(different[0])
    return None if len(before) == len(now) else common


def _request(directory: Path) -> tuple[RunSpec, str]:
    """What the run was asked for, and the digest of its kernel."""
    try:
        spec = from_json(RunSpec, json.loads((directory / "spec.json").read_text()))
        kernel = result.read(directory).kernel
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"{directory} is not the directory of a finished run: {error}") from error
    if kernel is None:
        raise UsageError(f"{directory} had no kernel to run")
    return spec, kernel.digest


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
