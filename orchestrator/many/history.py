# SPDX-License-Identifier: GPL-2.0-only
"""Earlier runs on this machine, in an SQLite file in the state directory."""

from __future__ import annotations

import contextlib
import os
import platform
import sqlite3
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator import ui
from orchestrator.host.paths import state_dir
from orchestrator.verdict.cases import cases
from orchestrator.verdict.outcome import KERNEL_FAILED
from orchestrator.verdict.result import RunResult

FILE = "history.sqlite"
WAIT = 30.0
"""Seconds that a writer waits for others. Many runs may end at once."""
SCHEMA = 1
TABLES = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY,
    ended REAL NOT NULL,          -- seconds since the epoch
    directory TEXT NOT NULL,
    kernel TEXT NOT NULL, release TEXT NOT NULL, digest TEXT NOT NULL,
    smp INTEGER NOT NULL, accel TEXT NOT NULL, qemu TEXT NOT NULL, seed INTEGER NOT NULL,
    edited INTEGER NOT NULL,      -- number of instructions that --edit-text changed
    outcome TEXT NOT NULL, reason TEXT NOT NULL, exit_status INTEGER NOT NULL,
    seconds REAL NOT NULL,
    host TEXT NOT NULL, load REAL NOT NULL
);
CREATE TABLE entry (
    run INTEGER NOT NULL REFERENCES run(id),
    kind TEXT NOT NULL,           -- run, claim or scenario
    name TEXT NOT NULL, status TEXT NOT NULL, text TEXT NOT NULL
);
CREATE INDEX run_by_kernel ON run(kernel, ended);
CREATE INDEX entry_by_run ON entry(run);
"""


@dataclass(frozen=True)
class PastRun:
    """One earlier run."""

    ended: float
    """Seconds since the epoch."""
    kernel: str
    release: str
    digest: str
    smp: int
    accel: str
    outcome: str
    reason: str
    directory: str
    failed: tuple[str, ...]
    """Names of the failed claims and scenarios."""


@dataclass(frozen=True)
class Flaky:
    """A scenario or claim that both passed and failed on the same kernel and machine shape."""

    kernel: str
    digest: str
    smp: int
    accel: str
    kind: str
    name: str
    passed: int
    failed: int


def record(result: RunResult, path: Path | None = None) -> None:
    """Add a run. A failure to do so is a message on stderr, and never changes the run."""
    try:
        with _opened(path) as connection, connection:
            machine, kernel = result.machine, result.kernel
            cursor = connection.execute(
                "INSERT INTO run VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    time.time(), str(result.directory.resolve()),
                    kernel.name if kernel else result.spec.kernel.selector,
                    kernel.release if kernel else "", kernel.digest if kernel else "",
                    result.spec.smp, machine.accel.option if machine else result.spec.accel,
                    ".".join(map(str, machine.qemu.version)) if machine else "",
                    result.spec.seed, len(result.evidence.edited),
                    result.verdict.outcome, result.verdict.reason, result.verdict.exit_status,
                    sum(result.seconds.values()), platform.node(), os.getloadavg()[0],
                ),
            )  # fmt: skip
            connection.executemany(
                "INSERT INTO entry VALUES (?, ?, ?, ?, ?)",
                [
                    (cursor.lastrowid, case.group, case.name, case.status, case.text)
                    for case in cases(result)
                ],
            )
    except (sqlite3.Error, OSError) as error:
        ui.say(f"this run is not in the history: {error}")


def past(
    *, kernel: str = "*", scenario: str | None = None, count: int = 20, path: Path | None = None
) -> list[PastRun]:
    """The newest `count` runs, newest first.

    - kernel: a shell pattern for the name or the release of the kernel.
    - scenario: a shell pattern; only runs in which a matching scenario or claim failed.
    """
    failing = "SELECT run FROM entry WHERE status = 'fail' AND kind != 'run' AND name GLOB ?"
    query = "SELECT * FROM run WHERE (kernel GLOB ? OR release GLOB ?)"
    query += f" AND id IN ({failing})" if scenario else ""
    values: list[str | int] = [kernel, kernel, *([scenario] if scenario else []), count]
    with _opened(path) as connection:
        rows = connection.execute(
            f"{query} ORDER BY ended DESC, id DESC LIMIT ?", values
        ).fetchall()
        return [
            PastRun(
                **{name: row[name] for name in PastRun.__dataclass_fields__ if name != "failed"},
                failed=tuple(
                    name
                    for (name,) in connection.execute(
                        "SELECT name FROM entry"
                        " WHERE run = ? AND status = 'fail' AND kind != 'run'",
                        (row["id"],),
                    )
                ),
            )
            for row in rows
        ]


def expected(
    digest: str, kernel: str, smp: int, path: Path | None = None
) -> tuple[float | None, bool]:
    """The expected duration of a run on `smp` CPUs, and whether the last such run failed.

    The duration is in seconds, and None if nothing is known. It is the median of the last runs with
    a verdict: those of the kernel with this digest, otherwise those of kernels called `kernel`.
    """
    query = "SELECT seconds, outcome FROM run WHERE {} = ? AND smp = ?"
    query += " AND exit_status IN (0, 1) AND NOT edited"
    with _opened(path) as connection:
        for column, value in (("digest", digest), ("kernel", kernel)):
            rows = connection.execute(
                f"{query.format(column)} ORDER BY ended DESC LIMIT 5", (value, smp)
            ).fetchall()
            if rows:
                failed = column == "digest" and rows[0]["outcome"] in KERNEL_FAILED
                return statistics.median(row["seconds"] for row in rows), failed
    return None, False


def flaky(*, kernel: str = "*", path: Path | None = None) -> list[Flaky]:
    """Scenarios and claims that passed in one run and failed in another one.

    The kernel and the machine shape were the same in both runs, and the seed may have differed.
    """
    with _opened(path) as connection:
        rows = connection.execute(
            """
            SELECT kernel, digest, smp, accel, kind, name,
                SUM(status = 'pass') AS passed, SUM(status = 'fail') AS failed
            FROM run JOIN entry ON entry.run = run.id
            WHERE digest != '' AND NOT edited AND kernel GLOB ?
            GROUP BY digest, smp, accel, kind, name HAVING passed AND failed
            ORDER BY kernel, smp, kind, failed DESC
            """,
            (kernel,),
        ).fetchall()
    return [Flaky(**dict(row)) for row in rows]


def table(runs: Sequence[PastRun]) -> Iterator[str]:
    """One line for each run."""
    for run in runs:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.ended))
        why = "" if run.outcome == "pass" else run.reason
        if run.outcome in KERNEL_FAILED:
            why = ", ".join(run.failed)
        machine = f"{run.kernel:<20} {run.release:<24} smp{run.smp:<3}"
        yield f"{when}  {run.outcome:<11} {machine} {why[:100]}".rstrip()


@contextlib.contextmanager
def _opened(path: Path | None) -> Iterator[sqlite3.Connection]:
    """Open the database, and create it if it is missing. Waits while other processes write."""
    connection = sqlite3.connect(
        path or state_dir() / FILE, timeout=WAIT, isolation_level="IMMEDIATE"
    )
    try:
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode = WAL")
        if not connection.execute("PRAGMA user_version").fetchone()[0]:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                # Another process may have created the tables meanwhile.
                if not connection.execute("PRAGMA user_version").fetchone()[0]:
                    for statement in TABLES.split(";\n"):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {SCHEMA}")
        yield connection
    finally:
        connection.close()
