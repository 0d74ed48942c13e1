# SPDX-License-Identifier: GPL-2.0-only
"""The process that attaches: it finds the run that the user names, and becomes a GDB on it."""

from __future__ import annotations

import contextlib
import difflib
import os
from pathlib import Path

from orchestrator.attach import notes
from orchestrator.attach.notes import LIVE, SYMBOLS
from orchestrator.errors import UsageError, printable
from orchestrator.host import proc
from orchestrator.host.paths import state_dir

SCRIPT = Path(__file__).with_name("in_gdb.py")


def attach(name: str | None) -> int:
    """Become a GDB on the run `name`: its directory or name, or None for the newest kept run.

    Raises UsageError if there is no such run. Does not return otherwise.
    """
    directory = find_run(name)
    if not (directory / SYMBOLS).exists():
        raise UsageError(
            f"{directory} has no {SYMBOLS}: that run ended before its test module was loaded"
        )
    command = gdb_command(directory)
    os.execv(command[0], command)


def gdb_command(directory: Path) -> list[str]:
    """The command line of a GDB on the run in `directory`.

    Raises UsageError if the files in it are not as a run has written them.
    """
    symbols, sockets = notes.read_symbols(directory), notes.read_sockets(directory)
    run = {
        "directory": printable(str(directory.resolve())),
        "kernel": str(symbols.kernel) if symbols.kernel else None,
        "code": symbols.code,
        "module": str(symbols.module) if symbols.module else None,
        "sections": dict(symbols.sections),
        "gdb": str(sockets.gdb) if sockets else None,
        "line": str(sockets.line) if sockets else None,
    }
    # No -nx: this GDB is the user's, with the user's own .gdbinit. in_gdb.py repeats the settings,
    # in case that file changes them.
    return [
        proc.need("gdb", "gdb"),
        "-quiet",
        *("-iex", "set auto-load off"),
        *("-iex", "set debuginfod enabled off"),
        *("-ex", f"source {SCRIPT}"),
        *("-ex", f"python start({run!r})"),
    ]


def find_run(name: str | None) -> Path:
    """The directory of the run `name`, as in attach(). Raises UsageError if there is none."""
    runs = state_dir() / "runs"
    known = sorted(path for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else []
    for path in known if name is None else [Path(name), runs / name]:
        _remove_stale_live(path)
    if name is None:
        kept = [path for path in known if (path / LIVE).exists()]
        if not kept:
            raise UsageError(
                "no run is kept: name a finished one, or use `run --keep` or `gdb --now`"
            )
        return kept[-1]
    for path in (Path(name), runs / name):
        if os.path.isfile(path / "spec.json"):  # noqa: PTH113 (raises for no name, however long)
            return path
    for path in (Path(name), runs / name):
        if os.path.isdir(path):  # noqa: PTH112
            raise UsageError(f"{path} is not the directory of a run: it has no spec.json")
    close = difflib.get_close_matches(name, [path.name for path in known], n=3, cutoff=0.3)
    raise UsageError(
        f"there is no run {name}: "
        + (f"did you mean {' or '.join(close)}?" if close else f"{runs} has none by that name")
    )


def _remove_stale_live(directory: Path) -> None:
    """Remove live.json if the guest's owner was killed before it could."""
    live = directory / LIVE
    with contextlib.suppress(OSError, UsageError):
        line = notes.read(live).get("line")
        if isinstance(line, str) and not Path(line).exists():
            live.unlink()
