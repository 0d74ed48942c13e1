# SPDX-License-Identifier: GPL-2.0-only
"""Files that the user names: read within limits, with one sentence for whatever is wrong."""

from __future__ import annotations

import io
import os
import stat
from pathlib import Path

from orchestrator.errors import UsageError, sentence

TEXT = 4 << 20
"""Largest file that people write by hand, in bytes; a whole kernel configuration has 300 kB."""
CHUNK = 1 << 16
PATCH = 64 << 20
"""Largest patch or mailbox, in bytes; that from 6.1 to 6.12 has 60 MB."""


def read_bytes(path: Path, what: str, limit: int) -> bytes:
    """The content of the file `path`.

    what: what it should be, such as `patch`. limit: its largest size in bytes.

    Raises UsageError if there is no such file, or it is a directory, a pipe or a device, or it
    cannot be read, or is larger.
    """
    content = bytearray()
    with opened(path, what) as file:
        size = os.fstat(file.fileno()).st_size  # 0 for files in /proc, whatever is in them
        while size <= limit and (chunk := file.read(CHUNK)):
            content += chunk
            size = max(size, len(content))
    if size > limit:
        raise UsageError(f"{path} is no {what}: it has more than {limit >> 10} KiB")
    return bytes(content)


def read_text(path: Path, what: str, limit: int = TEXT) -> str:
    """The text in the file `path`, as read_bytes(). Raises UsageError also if it is not UTF-8."""
    try:
        return read_bytes(path, what, limit).decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is no {what}: it is not text in UTF-8") from error


def opened(path: Path, what: str) -> io.BufferedReader:
    """The file `path`, opened for reading. Raises UsageError as read_bytes() does."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return path.open("rb")
    except FileNotFoundError as error:
        raise UsageError(f"there is no {what} {path}") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as a {what}: {sentence(error)}") from error
    kind = "a directory" if stat.S_ISDIR(mode) else "a pipe, socket or device"
    raise UsageError(f"{path} is {kind}, and not a {what}")
