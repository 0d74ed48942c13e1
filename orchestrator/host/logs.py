# SPDX-License-Identifier: GPL-2.0-only
"""Files that a run writes, in such a way that no verdict depends on the disk.

What an observer sees is kept in memory: in our own, or in a MemoryFile that another process writes
to. The files in the run's directory are copies for people. A full disk costs such a copy a few
lines, and a removed file costs all of it, but neither costs an observer anything.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
from pathlib import Path


class Log:
    """A file for people. Writing to it never raises: `lost` says what went wrong.

    A write that failed is not repeated, but the next one is tried again, on a line of its own. May
    be used by several threads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._file: int | None = None
        self._closed = False
        self._size = 0
        self._line_is_cut = False
        self._lost = ""
        self.write("")

    @property
    def lost(self) -> str:
        """Why the file does not have all that was written, as a sentence; empty if it has."""
        with self._lock:
            self._lost = self._lost or self._damage()
            return self._lost

    def write(self, content: str | bytes) -> None:
        """Append `content`."""
        data = content if isinstance(content, bytes) else content.encode(errors="backslashreplace")
        with self._lock:
            if self._closed:
                return
            try:
                self._append(self._opened(), b"\n" + data if self._line_is_cut else data)
                self._line_is_cut = False
            except OSError as error:
                self._note(error)

    def start_over(self) -> None:
        """Forget what was written, here and in the file."""
        with self._lock:
            try:
                os.ftruncate(self._opened(), 0)
                self._size, self._line_is_cut = 0, False
            except OSError as error:
                self._note(error)

    def close(self) -> None:
        """Close the file. What is written afterwards is dropped."""
        with self._lock:
            self._lost = self._lost or self._damage()
            self._closed = True
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def _opened(self) -> int:
        if self._file is None:
            # O_NONBLOCK: somebody may have put a FIFO there, whose other end nobody ever opens.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
            self._file = os.open(self.path, flags, 0o644)
            self._size = os.fstat(self._file).st_size
        return self._file

    def _append(self, file: int, data: bytes) -> None:
        while data:
            count = os.write(file, data)
            self._size += count
            self._line_is_cut = not data[:count].endswith(b"\n")
            data = data[count:]

    def _note(self, error: OSError) -> None:
        self._lost = self._lost or f"{self.path.name} could not be written: {error.strerror}"

    def _damage(self) -> str:
        """What somebody else has done to the file, as a sentence."""
        if self._file is None:
            return ""
        try:
            status, ours = self.path.stat(), os.fstat(self._file)
        except OSError as error:
            return f"{self.path.name} was removed during the run ({error.strerror})"
        if (status.st_dev, status.st_ino) != (ours.st_dev, ours.st_ino):
            return f"{self.path.name} was replaced during the run"
        if stat.S_ISREG(ours.st_mode) and ours.st_size < self._size:
            return f"{self.path.name} was truncated during the run"
        return ""


class MemoryFile:
    """A file that is on no disk, and that another process of ours writes to.

    Nobody can remove it, and it does not end with the process that writes to it. It is freed with
    this object, or when this process ends.
    """

    def __init__(self, name: str, content: bytes = b"") -> None:
        self._file = os.fdopen(os.memfd_create(name), "r+b", buffering=0)
        self._file.write(content)
        self.path = Path(f"/proc/{os.getpid()}/fd/{self.fileno()}")
        """Under this name other processes of the same user can open it."""

    def fileno(self) -> int:
        return self._file.fileno()

    def size(self) -> int:
        return os.fstat(self.fileno()).st_size

    def read(self, start: int = 0) -> bytes:
        """The content from the byte `start` on. The writer may be at work meanwhile."""
        parts = []
        while part := os.pread(self.fileno(), 1 << 20, start):
            parts.append(part)
            start += len(part)
        return b"".join(parts)

    def replace(self, content: bytes) -> None:
        """Make `content` all that it has."""
        self.clear()
        os.pwrite(self.fileno(), content, 0)

    def clear(self) -> None:
        """Make it empty. A writer that appends goes on at the new end."""
        os.ftruncate(self.fileno(), 0)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
