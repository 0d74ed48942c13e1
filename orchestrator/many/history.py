# SPDX-License-Identifier: GPL-2.0-only
"""Earlier runs on this machine, in an SQLite file in the state directory.

What is wrong with that file never changes a run.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sqlite3
import stat
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from orchestrator import ui
from orchestrator.errors import InfraError, OrchestratorError, sentence
from orchestrator.host.files import lock_of, locked, unicode
from orchestrator.host.paths import state_dir
from orchestrator.verdict.cases import cases
from orchestrator.verdict.outcome import KERNEL_FAILED
from orchestrator.verdict.result import RunResult

FILE = "history.sqlite"
WAIT = 30.0
"""Seconds to wait while others write. Many runs may end at once."""
POLL = 0.05
"""Seconds between two attempts. SQLite can wait by itself, but then no signal is noticed."""
LOCKED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""SQLITE_ERROR: our tables are not there, or not as we made them."""
UNWRITABLE = (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
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

T = TypeVar("T")


class HistoryError(InfraError):
    """The history cannot be used."""


@dataclass(frozen=True)
class PastRun:
    """One earlier run."""

    id: int
    """Its number in the history, by which `orchestrator show` knows it, too."""
    ended: float
    """Seconds since the epoch."""
    kernel: str
    release: str
    digest: str
    smp: int
    accel: str
    seed: int
    seconds: float
    outcome: str
    reason: str
    exit_status: int
    directory: str
    """It may be gone: see `orchestrator history --prune`."""
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

    def insert(connection: sqlite3.Connection) -> None:
        with connection:
            machine, kernel = result.machine, result.kernel
            cursor = connection.execute(
                "INSERT INTO run VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    time.time(), unicode(str(result.directory.resolve())),
                    unicode(result.name),
                    kernel.release if kernel else "", kernel.digest if kernel else "",
                    result.spec.smp, machine.accel.option if machine else result.spec.accel,
                    ".".join(map(str, machine.qemu.version)) if machine else "",
                    result.spec.seed, len(result.evidence.edited),
                    result.verdict.outcome, unicode(result.verdict.reason),
                    result.verdict.exit_status,
                    sum(result.seconds.values()), platform.node(), os.getloadavg()[0],
                ),
            )  # fmt: skip
            connection.executemany(
                "INSERT INTO entry VALUES (?, ?, ?, ?, ?)",
                [
                    (cursor.lastrowid, case.group, case.name, case.status, unicode(case.text))
                    for case in cases(result)
                ],
            )

    try:
        _use(path, insert, write=True)
    except OrchestratorError as error:
        ui.say(f"this run is not in the history: {error}")


def past(
    *, kernel: str = "*", scenario: str | None = None, count: int = 20, path: Path | None = None
) -> list[PastRun]:
    """The newest `count` runs, newest first.

    - kernel: a shell pattern for the name or the release of the kernel.
    - scenario: a shell pattern; only runs in which a matching scenario or claim failed.
    """
    failing = "SELECT run FROM entry WHERE status = 'fail' AND kind != 'run' AND name GLOB ?"
    columns = [name for name in PastRun.__dataclass_fields__ if name != "failed"]
    query = f"SELECT id, {', '.join(columns)} FROM run WHERE (kernel GLOB ? OR release GLOB ?)"
    query += f" AND id IN ({failing})" if scenario else ""
    values: list[str | int] = [kernel, kernel, *([scenario] if scenario else []), count]

    def select(connection: sqlite3.Connection) -> list[PastRun]:
        rows = connection.execute(
            f"{query} ORDER BY ended DESC, id DESC LIMIT ?", values
        ).fetchall()
        return [
            PastRun(
                **{name: row[name] for name in columns},
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

    return _use(path, select)


def expected(
    digest: str, kernel: str, smp: int, path: Path | None = None
) -> tuple[float | None, bool]:
    """The expected duration of a run on `smp` CPUs, and whether the last such run failed.

    The duration is in seconds, and None if nothing is known. It is the median of the last runs with
    a verdict: those of the kernel with this digest, otherwise those of kernels whose names begin
    with `kernel`.
    """
    query = "SELECT seconds, outcome FROM run WHERE substr({} || ' ', 1, length(?1)) = ?1"
    query += " AND smp = ?2"
    query += " AND exit_status IN (0, 1) AND NOT edited"

    def select(connection: sqlite3.Connection) -> tuple[float | None, bool]:
        for column, value in (("digest", f"{digest} "), ("kernel", f"{kernel} ")):
            rows = connection.execute(
                f"{query.format(column)} ORDER BY ended DESC LIMIT 5", (value, smp)
            ).fetchall()
            if rows:
                failed = column == "digest" and rows[0]["outcome"] in KERNEL_FAILED
                return statistics.median(row["seconds"] for row in rows), failed
        return None, False

    return _use(path, select)


def flaky(*, kernel: str = "*", path: Path | None = None) -> list[Flaky]:
    """Scenarios and claims that passed in one run and failed in another one.

    The kernel and the machine shape were the same in both runs, and the seed may have differed.
    """

    def select(connection: sqlite3.Connection) -> list[sqlite3.Row]:
        return connection.execute(
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

    return [Flaky(**dict(row)) for row in _use(path, select)]


def find(number: int, path: Path | None = None) -> str | None:
    """The directory of the run with this id, None if there is none."""

    def select(connection: sqlite3.Connection) -> str | None:
        row = connection.execute("SELECT directory FROM run WHERE id = ?", (number,)).fetchone()
        return str(row["directory"]) if row else None

    return _use(path, select)


def table(runs: Sequence[PastRun]) -> Iterator[str]:
    """Two lines for each run: what came of it, and where it is."""
    for run in runs:
        when = "                "
        with contextlib.suppress(ValueError, OverflowError, TypeError):  # a damaged number
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.ended))
        why = "" if run.outcome == "pass" else run.reason
        if run.outcome in KERNEL_FAILED:
            why = ", ".join(run.failed)
        why = " ".join(why.split())  # a tool's own words may have lines
        machine = f"{run.kernel:<20} {run.release:<24} smp{run.smp:<3}"
        yield f"{run.id:>5}  {when}  {run.outcome:<11} {machine} {why[:100]}".rstrip()
        gone = "" if Path(str(run.directory)).is_dir() else " (removed)"
        yield f"       {run.directory}{gone}"


# -- the file


def _use(path: Path | None, use: Callable[[sqlite3.Connection], T], *, write: bool = False) -> T:
    """What `use` returns, which gets a connection to the database, and may be called repeatedly.

    Creates the database if it is missing, waits while other processes write, and puts a damaged
    one aside. Raises HistoryError if none of that helps.
    """
    path = path or state_dir() / FILE
    deadline = time.monotonic() + WAIT
    read_only = put_aside = False
    while True:
        inode = _inode(path)
        try:
            with _opened(path, read_only=read_only) as connection:
                return use(connection)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            # The name of a damaged table is in SQLite's message, and need not be UTF-8.
            unreadable = sqlite3.SQLITE_CORRUPT if isinstance(error, UnicodeDecodeError) else 0
            code = (getattr(error, "sqlite_errorcode", None) or unreadable) & 0xFF
            if code in LOCKED and time.monotonic() < deadline:
                time.sleep(POLL)
            elif code in UNWRITABLE and path.is_file() and not (write or read_only):
                read_only = True
            elif (code in DAMAGED or not _is_file(path)) and not put_aside:
                put_aside = True
                _put_aside(path, inode)
            else:
                raise HistoryError(f"{path}: {error}") from error


@contextlib.contextmanager
def _opened(path: Path, *, read_only: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection to the database, which has our tables. Raises sqlite3.Error or HistoryError."""
    if not _is_file(path):
        raise sqlite3.DatabaseError("not a file")
    options = "mode=ro&immutable=1" if read_only else "mode=rwc"
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?{options}", uri=True, timeout=1.0, isolation_level="IMMEDIATE"
    )
    try:
        connection.row_factory = sqlite3.Row
        connection.text_factory = lambda raw: raw.decode(errors="replace")
        if not read_only:
            connection.execute("PRAGMA journal_mode = WAL")
        version = _version(connection)
        if version > SCHEMA:
            raise HistoryError(f"{path} was written by a newer version of this program")
        if not version:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                # Another process may have created the tables meanwhile.
                if not _version(connection):
                    for statement in TABLES.split(";\n"):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {SCHEMA}")
        yield connection
    finally:
        connection.close()


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _put_aside(path: Path, inode: int) -> None:
    """Rename a damaged database, unless another process has done so and made a new one."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    try:
        with locked(lock_of(path)):
            if _inode(path) != inode:
                return
            # SQLite would take what the others hold for a part of the new database.
            for suffix in ("", "-wal", "-shm"):
                file = path.with_name(f"{path.name}{suffix}")
                with contextlib.suppress(FileNotFoundError):
                    file.rename(path.with_name(f"{path.name}.damaged-{stamp}{suffix}"))
    except OSError as error:
        raise HistoryError(f"{path} is damaged and stays: {sentence(error)}") from error
    ui.say(f"{path} was damaged: it is now called {path.name}.damaged-{stamp}, a new one begins")


def _is_file(path: Path) -> bool:
    """Whether the path is that of a file, or free for one."""
    status = _status(path)
    return status is None or stat.S_ISREG(status.st_mode)


def _inode(path: Path) -> int:
    status = _status(path)
    return status.st_ino if status else 0


def _status(path: Path) -> os.stat_result | None:
    """None if there is nothing. One look, as another process may make the file between two."""
    with contextlib.suppress(OSError):
        return path.stat()
    return None
