# SPDX-License-Identifier: GPL-2.0-only
"""The host's file system: XDG directories, and directories that are made once and then cached."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import platformdirs

from orchestrator.errors import InfraError, UsageError, sentence
from orchestrator.host import files, notices, seal
from orchestrator.host.files import lock_of, locked, write_whole

__all__ = ["DATA", "PACKAGE", "PROJECT", "cache_dir", "cached_dir", "check", "is_intact", "locked"]
__all__ += ["need_space", "output_directory", "real", "remembered", "state_dir", "write_whole"]


PACKAGE = Path(__file__).resolve().parent.parent
"""The program's own folder, orchestrator/."""
PROJECT = PACKAGE.parent
"""Where Python finds the program: the checkout, or the site-packages that it is installed in."""
DATA = PACKAGE / "data" if (PACKAGE / "data").is_dir() else PROJECT
"""Has kernels/ (definitions, patches, fragments) and guest/: setup.py puts them into a wheel."""
CACHE_DEPTH, STATE_DEPTH = 3, 2
"""Levels below cache_dir() and state_dir() on which temporary files and directories are made.

The files of a run are one level below: what a killed run leaves there is part of its record.
"""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a full disk answers."""


def cache_dir() -> Path:
    """$XDG_CACHE_HOME/orchestrator. All of its content can be downloaded or built again."""
    return _made(platformdirs.user_cache_dir, "XDG_CACHE_HOME")


def state_dir() -> Path:
    """$XDG_STATE_HOME/orchestrator: run directories, and what was found out about this host."""
    return _made(platformdirs.user_state_dir, "XDG_STATE_HOME")


def remembered(name: str) -> Path:
    """The file or folder `name` in state_dir(), for what can be found out again.

    Where that directory cannot be had, nothing can be read from this path or written to it.
    """
    try:
        return state_dir() / name
    except InfraError:
        return Path(os.devnull) / name


def _made(place: Callable[[str], str], variable: str) -> Path:
    """The directory, made if it does not exist. Raises InfraError if that is not possible."""
    path = Path(place("orchestrator"))
    if not path.is_absolute():
        # Either the variable, or `~` where nobody knows the user's home.
        raise InfraError(f"{path} depends on the current directory: set {variable} to a full path")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InfraError(
            f"{path} cannot be made ({sentence(error)}): set {variable} to a directory that you "
            "may write to"
        ) from error
    return path


def real(path: Path) -> Path:
    """`path` from the root, without symbolic links. Unlike resolve() it never raises."""
    return Path(os.path.realpath(path))


def output_directory(path: Path, what: str, *, empty: bool = False) -> Path:
    """The directory that the user names for `what`, made if it does not exist.

    empty: whether it must be empty.

    Raises UsageError if it cannot be had, InfraError if the disk is full.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if empty and any(path.iterdir()):
            raise UsageError(f"{path} is not empty: {what} need a directory of their own")
        if not os.access(path, os.W_OK | os.X_OK):
            raise UsageError(f"{path} is not writable: {what} need a directory that is")
    except FileExistsError as error:
        raise UsageError(f"{path} is a file: {what} need a directory") from error
    except (OSError, ValueError) as error:
        kind = InfraError if getattr(error, "errno", 0) in FULL else UsageError
        raise kind(f"{path} cannot be a directory for {what}: {sentence(error)}") from error
    return path


def cached_dir(
    final: Path,
    make: Callable[[Path], None],
    waiting: Callable[[], None] | None = None,
    *,
    vital: Sequence[str] = seal.ALL,
) -> Path:
    """The directory `final`. If it does not exist or is damaged, `make` creates its content.

    make: called with a temporary directory next to `final`, which takes its place only if `make`
        returns. If it fails or is interrupted, no incomplete result is left, and a damaged one
        stays where it is, for whoever has it in use.
    waiting: as for locked(). Of two processes that want the same directory, one makes it.
    vital: patterns of the files whose content is checked at each use, see seal.damage(). All files,
        unless the directory is large.

    Raises InfraError if the disk is full.
    """
    _tidy(cache_dir(), CACHE_DEPTH)
    with contextlib.suppress(InfraError):
        _tidy(state_dir(), STATE_DEPTH)
    if is_intact(final, vital=vital):
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock_of(final), waiting):
        if os.path.lexists(final):
            if not (damaged := seal.damage(final, vital)):
                return final
            notices.warn(f"cache: {_damage(final, damaged)}, making it again")
        for stale in final.parent.glob(f".{final.name}{files.PARTIAL}*"):
            files.remove(stale)
        partial = files.partial_dir(final)
        try:
            make(partial)
            seal.seal(partial)
            _replace(final, partial)
        except OSError as error:
            if error.errno in FULL:
                raise InfraError(
                    f"no space left for {final.name} in {final.parent}: "
                    "free some space and try again"
                ) from error
            raise
        finally:
            files.remove(partial)
    return final


def is_intact(final: Path, *, vital: Sequence[str] = seal.ALL) -> bool:
    """Whether cached_dir() has made `final` and it is still as it was."""
    if not final.is_dir() or seal.damage(final, vital):
        return False
    # The lock's time is when the directory was last used. It does no harm if this fails: a cache
    # that belongs to another user, or is full, can still be read.
    with contextlib.suppress(OSError):
        lock_of(final).touch()
    return True


def check(final: Path, *, vital: Sequence[str] = seal.ALL) -> None:
    """Raise InfraError if the entry `final`, which cannot be made again here, is damaged."""
    if damaged := seal.damage(final, vital):
        raise InfraError(f"cache: {_damage(final, damaged)}: make it again")


def _damage(final: Path, damaged: list[str]) -> str:
    """What is wrong with the entry `final`, in a few words."""
    name = f"{final.parent.name}/{final.name}"
    if damaged == [seal.FILE]:
        return f"{name} has no valid checksums"
    more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
    return f"{name} was damaged ({damaged[0]}{more})"


def _replace(final: Path, partial: Path) -> None:
    """Put `partial` in the place of `final`. Files that another process has open stay readable."""
    if os.path.lexists(final):
        gone = files.partial_dir(final)
        final.rename(gone / final.name)
        partial.rename(final)
        files.remove(gone)
    else:
        partial.rename(final)


@cache
def _tidy(root: Path, depth: int) -> None:
    """Remove what killed processes have left up to `depth` levels below `root`.

    Each process does so once.
    """
    files.remove_leftovers(root, depth)


def need_space(where: Path, mebibytes: int, what: str) -> None:
    """Raise InfraError if the file system of `where` has less than `mebibytes` MiB free.

    what: what needs the space, for the message: "building 6.1-plain".
    """
    where.mkdir(parents=True, exist_ok=True)
    stat = os.statvfs(where)
    free = stat.f_bavail * stat.f_frsize >> 20
    if free < mebibytes:
        raise InfraError(
            f"{what} needs {mebibytes} MiB in {where}, but only {free} MiB are free: "
            "free some space and try again"
        )
