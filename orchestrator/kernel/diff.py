# SPDX-License-Identifier: GPL-2.0-only
"""The text of a patch: whether it is whole, and what it changes apart from how it was written."""

from __future__ import annotations

import bz2
import hashlib
import lzma
import re
import zlib
from collections.abc import Iterator
from typing import Any

from orchestrator.errors import shortened

HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
EXTENDED = re.compile(
    r"(old mode|new mode|rename from|rename to|copy from|copy to) |(new|deleted) file mode (?!1006)"
)
"""Header lines that change more than a hunk shows. Ordinary files have the mode 100644."""


class Damaged(ValueError):
    """A hunk has not the lines that its head promises."""


def canonical(text: str) -> str:
    """What the patch `text` changes: equal for the same change as a mail and as a diff.

    Prose, the hashes of blobs, times and the names of functions at hunks are left out. Raises
    Damaged for what `git apply` calls a corrupt patch.
    """
    return "\n".join(_canonical(text.split("\n")))


def key(text: str) -> str:
    """Identifies the change, as canonical(), but without line numbers; works for damaged text."""
    try:
        content = re.sub(r"^@@ .*$", "@@", canonical(text), flags=re.MULTILINE)
    except Damaged:
        content = text
    return hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()


def _canonical(lines: list[str]) -> Iterator[str]:
    number, path = 0, ""
    while number < len(lines):
        line = lines[number]
        number += 1
        if line.startswith("diff --git "):
            path = line.rpartition(" ")[2].partition("/")[2]
        elif EXTENDED.match(line):
            yield f"{path}: {line}"
        elif line == "GIT binary patch":
            yield f"{path}: {line}"
            while number < len(lines) and not lines[number].startswith(("diff --git ", "-- ")):
                yield lines[number]
                number += 1
        elif line.startswith("--- ") and "".join(lines[number : number + 1]).startswith("+++ "):
            yield f"--- {_path(line)}"
            yield f"+++ {_path(lines[number])}"
            number += 1
            while number < len(lines) and (head := HUNK.match(lines[number])):
                yield head[0]
                end = _end(lines, number + 1, int(head[2] or 1), int(head[4] or 1))
                yield from (row or " " for row in lines[number + 1 : end])
                number = end


def _path(line: str) -> str:
    """The path of a `---` or `+++` line, without the directory of the tree, and without a time."""
    path = line[4:].partition("\t")[0].rstrip()
    return path if path == "/dev/null" else path.partition("/")[2]


def _end(lines: list[str], number: int, old: int, new: int) -> int:
    """The number of the line after the hunk that begins at `number` and has `old` and `new` lines.

    An empty line is an empty line of the file, whose space at the beginning was lost.
    """
    while old or new:
        if number == len(lines) or (number == len(lines) - 1 and not lines[number]):
            raise Damaged("it ends before its last hunk does")
        first = lines[number][:1] or " "
        old -= first in " -"
        new -= first in " +"
        number += 1
        if first not in " -+\\" or old < 0 or new < 0:
            raise Damaged(f"`{shortened(lines[number - 1], 60)}` does not belong to its hunk")
    while number < len(lines) and lines[number].startswith("\\"):
        number += 1
    return number


def unpacked(raw: bytes, limit: int) -> bytes:
    """`raw`, or what it is the compressed form of; one byte more than `limit` if that is longer.

    Raises ValueError if it is damaged.
    """
    try:
        for magic, make in (
            (b"\x1f\x8b", lambda: zlib.decompressobj(wbits=31)),
            (b"BZh", bz2.BZ2Decompressor),
            (b"\xfd7zXZ\0", lambda: lzma.LZMADecompressor(memlimit=256 << 20)),
        ):
            if raw.startswith(magic):
                unpacker: Any = make()
                content: bytes = unpacker.decompress(raw, limit + 1)
                if not unpacker.eof and len(content) <= limit:
                    raise ValueError("it does not unpack: its end is missing")
                return content
    except (zlib.error, OSError, lzma.LZMAError, EOFError) as error:
        raise ValueError(f"it does not unpack: {error}") from error
    return raw
