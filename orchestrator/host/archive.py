# SPDX-License-Identifier: GPL-2.0-only
"""Unpacks archives that may come from strangers, perhaps as root.

Whatever is in an archive, only files, directories and links within the target directory are left of
it. They belong to the user, and have no set-user-ID, set-group-ID or sticky bit.
"""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path
from typing import IO

from orchestrator.host import proc

OPTIONS = (
    "--no-same-owner", "--no-same-permissions", "--no-acls", "--no-selinux", "--no-xattrs",
    "--force-local",  # otherwise tar would log in to HOST for an archive with the name HOST:FILE
)  # fmt: skip


class ArchiveError(Exception):
    """tar could not unpack it. The message is what tar printed, perhaps several lines."""


def unpack(
    archive: Path | IO[bytes] | bytes,
    into: Path,
    *,
    strip: int = 0,
    compression: str | None = None,
    chroot: bool = False,
) -> list[str]:
    """Unpack the tar `archive`. Returns what was left out, as paths relative to `into`.

    strip: number of leading components to remove from each name.
    compression: the option with which tar decompresses a stream; of a file tar finds out.
    chroot: whether `into` is the root directory to which absolute links refer. If not, they are
        left out.

    While this runs, nobody else can enter `into`. Raises ArchiveError.
    """
    tar = [proc.need("tar", "tar"), "--extract", *OPTIONS, f"--strip-components={strip}"]
    tar += ["--directory", str(into), *([compression] if compression else [])]
    tar += ["--file", str(archive) if isinstance(archive, Path) else "-"]
    before = stat.S_IMODE(into.stat().st_mode)
    into.chmod(0o700)
    try:
        _run(tar, None if isinstance(archive, Path) else archive)
        return _tame(into, chroot=chroot)
    finally:
        into.chmod(before)


def _run(tar: list[str], archive: IO[bytes] | bytes | None) -> None:
    data, stream = (archive, subprocess.PIPE) if isinstance(archive, bytes) else (None, archive)
    child = subprocess.Popen(
        proc.mortal(tar),
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL if stream is None else stream,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = child.communicate(data)
    except BaseException:
        child.kill()
        child.wait()
        raise
    proc.check_not_killed(tar, child.returncode)
    if child.returncode:
        raise ArchiveError(output.decode(errors="replace").strip())


def _tame(root: Path, *, chroot: bool) -> list[str]:
    """Remove what does not belong into a directory of files. Returns the paths of what is gone."""
    gone: list[str] = []
    links: list[str] = []
    for folder, folders, files in os.walk(root):  # a folder's mode is set before it is entered
        for name in (*folders, *files):
            path = f"{folder}/{name}"
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                links.append(path)
            elif stat.S_ISDIR(mode):
                _set_mode(path, mode, stat.S_IMODE(mode) & 0o755 | 0o700)
            elif stat.S_ISREG(mode):
                _set_mode(path, mode, stat.S_IMODE(mode) & 0o755 | 0o400)
            else:  # a device, a FIFO, a socket
                os.unlink(path)  # noqa: PTH108 (80,000 files)
                gone.append(path)
    if chroot:
        for path in links:
            _make_relative(path, root)
    inside = os.path.realpath(root)
    for path in links:
        target = os.path.realpath(path)
        if target != inside and not target.startswith(f"{inside}/"):
            Path(path).unlink()
            gone.append(path)
    return [os.path.relpath(path, root) for path in gone]


def _set_mode(path: str, before: int, mode: int) -> None:
    if stat.S_IMODE(before) != mode:
        os.chmod(path, mode)  # noqa: PTH101 (80,000 files)


def _make_relative(path: str, root: Path) -> None:
    """Let an absolute link refer to `root` in place of `/`."""
    target = os.readlink(path)  # noqa: PTH115 (not resolved)
    if target.startswith("/"):
        link = Path(path)
        link.unlink()
        link.symlink_to(os.path.relpath(f"{root}{target}", link.parent))
