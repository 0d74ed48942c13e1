# SPDX-License-Identifier: GPL-2.0-only
"""GDB/MI as GDB writes it: bytes of a pipe in, records out, in linear time whatever the bytes are.

pygdbmi's parser does not do for output that may be damaged: a list without its end keeps it in a
loop for ever, and it needs minutes for a line of 3 MB.
"""

from __future__ import annotations

import os
import re
import select
from collections.abc import Iterator
from typing import IO, Any

from orchestrator.errors import InfraError, shortened

Record = dict[str, Any]
"""One line of GDB's output. `type` is that of TYPES. `message` is the class of a result or
notification, such as done or stopped, else None. `payload` is a dict by variable, the text of a
stream or of other output, or None. `token` is that of the command, or None."""

TYPES = {"^": "result", "*": "notify", "=": "notify", "+": "notify"}
STREAMS = {"~": "console", "&": "log", "@": "target"}
OTHER = "output"
"""The type of a line that is no MI."""

MAX_LINE = 16 << 20
"""Longest line in bytes. The longest that we ask for is where 64 CPUs are, 400 KB."""
MAX_DEPTH = 50
CHUNK = 1 << 16
CHUNKS = 64
"""Most chunks that are taken from a pipe in one go: a GDB that floods us must not stop our waits
from looking at the others."""

_RECORD = re.compile(r"(\d{0,18})([*^=+])([a-z-]+)(?=,|\s*$)")
_VARIABLE = re.compile(r"([\w-]+)=")
_STRING = re.compile(r'"((?:[^"\\]++|\\.)*+)"', re.DOTALL)
_ESCAPE = re.compile(r"((?:\\[0-7]{3})++)|\\(.)", re.DOTALL)
_LETTERS = {
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "v": "\v",
    "e": "\x1b",
}


class Output:
    """GDB's output, from pipes that are not blocking."""

    def __init__(self, pipes: list[IO[bytes]]) -> None:
        self._rest = {pipe.fileno(): bytearray() for pipe in pipes}

    def records(self, timeout: float) -> list[Record]:
        """The records of the next lines; waits for up to `timeout` seconds for any.

        Raises InfraError for a line that has no end, and for an answer or a stop of the guest that
        cannot be understood: without it we would wait for what has happened already.
        """
        ready, _, _ = select.select([*self._rest], [], [], max(0.0, timeout))
        return [
            parse(line.decode(errors="replace"))
            for pipe in ready
            for line in self._lines(pipe)
            if line.strip() not in (b"", b"(gdb)")
        ]

    def _lines(self, pipe: int) -> Iterator[bytes]:
        rest = self._rest[pipe]
        for _ in range(CHUNKS):
            try:
                data = os.read(pipe, CHUNK)
            except BlockingIOError:
                return
            if not data:  # the end: what there is of the last line cannot be relied on
                del self._rest[pipe]
                return
            *ends, last = data.split(b"\n")
            for end in ends:
                yield bytes(rest + end)
                rest.clear()
            rest += last
            if len(rest) > MAX_LINE:
                raise InfraError(f"GDB wrote a line of more than {MAX_LINE >> 20} MiB")


def parse(line: str) -> Record:
    """The record of one line. Raises InfraError for a damaged result or stop."""
    if line[:1] in STREAMS and (string := _STRING.match(line, 1)):
        kind = STREAMS[line[0]]
        return {"type": kind, "message": None, "payload": _unescaped(string[1]), "token": None}
    if head := _RECORD.match(line):
        token, kind, message = head.groups()
        try:
            payload = _Values(line.rstrip(), head.end()).all()
        except ValueError as error:
            if kind in "^*":
                raise InfraError(f"GDB wrote {shortened(line)!r}, {error}") from error
        else:
            return {
                "type": TYPES[kind],
                "message": message,
                "payload": payload,
                "token": int(token) if token else None,
            }
    return {"type": OTHER, "message": None, "payload": line, "token": None}


class _Values:
    """What follows the class of a record: `,variable=value` any number of times."""

    def __init__(self, text: str, at: int) -> None:
        self._text = text
        self._at = at

    def all(self) -> dict[str, Any] | None:
        if self._at == len(self._text):
            return None
        values: dict[str, Any] = {}
        while self._at < len(self._text):
            self._take(",")
            self._variable(values, 0)
        return values

    def _variable(self, values: dict[str, Any], depth: int) -> None:
        name = _VARIABLE.match(self._text, self._at)
        if not name:
            raise ValueError(f"which has no variable at character {self._at}")
        self._at = name.end()
        value = self._value(depth)
        # GDB repeats names (its bug 22217).
        known = values.get(name[1])
        if known is None:
            values[name[1]] = value
        elif isinstance(known, list):
            known.append(value)
        else:
            values[name[1]] = [known, value]

    def _value(self, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise ValueError("which is nested too deeply")
        start = self._text[self._at : self._at + 1]
        if start == '"' and (string := _STRING.match(self._text, self._at)):
            self._at = string.end()
            return _unescaped(string[1])
        if start == "{":
            values: dict[str, Any] = {}
            for _ in self._until("}"):
                self._variable(values, depth + 1)
            return values
        if start == "[":
            return [self._item(depth + 1) for _ in self._until("]")]
        raise ValueError(f"which has no value at character {self._at}")

    def _item(self, depth: int) -> Any:
        """An item of a list: a value, or a variable with its value, of which the value counts."""
        if name := _VARIABLE.match(self._text, self._at):
            self._at = name.end()
        return self._value(depth)

    def _until(self, end: str) -> Iterator[None]:
        """Once for each thing between here and `end`, which commas separate."""
        self._at += 1
        first = True
        while self._text[self._at : self._at + 1] != end:
            if not first:
                self._take(",")
            first = False
            yield
        self._at += 1

    def _take(self, character: str) -> None:
        if self._text[self._at : self._at + 1] != character:
            raise ValueError(f"which lacks {character!r} at character {self._at}")
        self._at += 1


def _unescaped(text: str) -> str:
    """The text of a string of MI; bytes that GDB writes in octal are UTF-8."""

    def plain(match: re.Match[str]) -> str:
        if match[1]:
            numbers = [int(octal, 8) & 0xFF for octal in match[1][1:].split("\\")]
            return bytes(numbers).decode(errors="replace")
        return _LETTERS.get(match[2], match[2])

    return _ESCAPE.sub(plain, text)
