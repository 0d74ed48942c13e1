# SPDX-License-Identifier: GPL-2.0-only
"""What is remembered of earlier runs, damaged: the verdict must not depend on it."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from faults.fault import INFRA, NOTICED, SURVIVED, TRUTH, Fault
from faults.trial import Trial

HISTORY = "history.sqlite"


def faults() -> Iterator[Fault]:
    for name, damage in DAMAGES.items():
        for file in (HISTORY, "hosts.json"):
            yield Fault(
                name=f"state/{file}-{name}",
                prepare=_damaged(file, damage),
                allowed=SURVIVED,
                short=(file, name) == (HISTORY, "garbage"),
            )
        yield Fault(
            name=f"state/history-command-{name}",
            prepare=_shown(damage),
            allowed=frozenset({TRUTH, INFRA}),
            kernel="healthy",
            limit=60,
        )
    yield Fault(
        name="state/other-schema", prepare=_damaged(HISTORY, _other_schema), allowed=SURVIVED
    )
    yield Fault(
        name="state/newer-schema", prepare=_damaged(HISTORY, _newer_schema), allowed=SURVIVED
    )
    yield Fault(name="state/locked", prepare=_damaged(HISTORY, _locked), allowed=SURVIVED)
    yield Fault(name="state/runs-is-a-file", prepare=_damaged("runs", _empty), allowed=NOTICED)


def _damaged(name: str, damage: Callable[[Trial, Path], None]) -> Callable[[Trial], None]:
    def prepare(trial: Trial) -> None:
        _state_of_a_run(trial)
        damage(trial, trial.directory / "state" / "orchestrator" / name)

    return prepare


def _shown(damage: Callable[[Trial, Path], None]) -> Callable[[Trial], None]:
    def prepare(trial: Trial) -> None:
        _damaged(HISTORY, damage)(trial)
        trial.arguments = ["history"]

    return prepare


def _state_of_a_run(trial: Trial) -> None:
    before = trial.world.scratch / "normal" / "state"
    shutil.copytree(before, trial.directory / "state", dirs_exist_ok=True)


def _garbage(trial: Trial, path: Path) -> None:
    path.write_bytes(trial.rng.randbytes(5000))


def _empty(trial: Trial, path: Path) -> None:
    path.write_bytes(b"")


def _cut(trial: Trial, path: Path) -> None:
    content = path.read_bytes() if path.is_file() else b"{}"
    path.write_bytes(content[: trial.rng.randrange(1, len(content))])


def _flipped(trial: Trial, path: Path) -> None:
    content = bytearray(path.read_bytes() if path.is_file() else b"{}")
    for _ in range(20):
        content[trial.rng.randrange(len(content))] ^= 1 << trial.rng.randrange(8)
    path.write_bytes(content)


def _directory(trial: Trial, path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def _nowhere(trial: Trial, path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/nonexistent/of/a/fault")


DAMAGES: dict[str, Callable[[Trial, Path], None]] = {
    "garbage": _garbage,
    "empty": _empty,
    "cut": _cut,
    "flipped": _flipped,
    "directory": _directory,
    "nowhere": _nowhere,
}


def _other_schema(trial: Trial, path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as database:
        for table in ("runs", "results", "history"):
            database.execute(f"CREATE TABLE {table} (nonsense TEXT)")
    database.close()


def _newer_schema(trial: Trial, path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 9999")
    database.close()


def _locked(trial: Trial, path: Path) -> None:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    database.execute("BEGIN EXCLUSIVE")
    trial.undo.append(database.close)
