"""Edits of a kernel's own code in the guest's memory, before anything is poked: a fault in a kernel that nobody built.

An edit names an instruction by the function it is in and by how it reads, so that one file fits many kernels:

    edits:
      - function: [smp_text_poke_batch_finish, text_poke_bp_batch]
        find: call.* <on_each_cpu_cond_mask>
        number: 1
        put: nop

function: the first of these that the kernel has. find: a regular expression that has to match the whole instruction, in
AT&T syntax with the names of branch targets behind it. after: look only behind the first instruction that matches this.
number: which of several matches counts, from 1; without it there must be just one. put: what comes in its place:

    nop             nothing
    always          for a conditional jump: the jump
    call NAME       for a call of five bytes: a call of that function
    .. .. 00        bytes, where .. keeps the one that is there
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import UsageError
from orchestrator.text import disasm
from orchestrator.text.symbols import TEXT, Symbols

Read = Callable[[int, int], bytes]
"""Address and number of bytes of the guest's memory to what is there."""
NOPS = {
    1: "90",
    2: "6690",
    3: "0f1f00",
    4: "0f1f4000",
    5: "0f1f440000",
    6: "660f1f440000",
    7: "0f1f8000000000",
}
PUT = r"nop|always|call \w+|(([0-9a-f]{2}|\.\.)( |$))+"
FIELDS = frozenset({"function", "find", "after", "number", "put"})


@dataclass(frozen=True)
class Edit:
    """One instruction to change; the fields are those of the file."""

    function: tuple[str, ...]
    find: str
    put: str
    after: str = ""
    number: int | None = None


@dataclass(frozen=True)
class Change:
    """What an edit comes to in one kernel. text: the instruction that was there, and where."""

    address: int
    old: bytes
    new: bytes
    text: str


def load(path: Path) -> dict[str, Any]:
    """The file of edits as it is. Raises UsageError when it is none."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from error
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("edits"), list)
        or not content["edits"]
    ):
        raise UsageError(f"{path}: a file of edits has a list called edits")
    return content


def read(path: Path) -> list[Edit]:
    """The edits in the file `path`. Raises UsageError with what is wrong with them."""
    return [_edit(path, entry) for entry in load(path)["edits"]]


def _edit(path: Path, entry: Any) -> Edit:
    if not isinstance(entry, dict) or not {"function", "find", "put"} <= set(entry) <= FIELDS:
        raise UsageError(
            f"{path}: an edit has function, find, put, and perhaps after and number, not {entry!r}"
        )
    functions = entry["function"] if isinstance(entry["function"], list) else [entry["function"]]
    words = [*functions, entry["find"], entry["put"], entry.get("after", "")]
    if not functions or not all(isinstance(word, str) for word in words):
        raise UsageError(
            f"{path}: function, find, after and put are text (in quotes where YAML needs them): {entry!r}"
        )
    number = entry.get("number")
    if number is not None and (type(number) is not int or number < 1):
        raise UsageError(f"{path}: number counts matches from 1, not {number!r}")
    for pattern in (entry["find"], entry.get("after", "")):
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"{path}: {pattern!r} is no regular expression: {error}") from error
    if not re.fullmatch(PUT, entry["put"]):
        raise UsageError(
            f"{path}: put is nop, always, call NAME, or bytes such as '.. 00', not {entry['put']!r}"
        )
    return Edit(tuple(functions), entry["find"], entry["put"], entry.get("after", ""), number)


def locate(edits: Iterable[Edit], lines: Sequence[str], memory: Read) -> list[Change]:
    """Where `edits` are to be made. lines: the symbol table as nm(1) has it, with the addresses of the guest.

    Raises UsageError when the kernel has not what one of them looks for.
    """
    names = Symbols(lines)
    starts: dict[str, int] = {}
    for line in lines:
        words = line.split()
        if len(words) == 3 and words[1] in TEXT:
            starts.setdefault(words[2], int(words[0], 16))
    addresses = sorted({int(line.split()[0], 16) for line in lines if len(line.split()) == 3})
    ends = dict(pairwise(addresses))
    return [_change(edit, starts, ends, names, memory) for edit in edits]


def _change(
    edit: Edit, starts: Mapping[str, int], ends: Mapping[int, int], names: Symbols, memory: Read
) -> Change:
    function = next((name for name in edit.function if name in starts), None)
    if function is None:
        raise UsageError(
            f"the kernel has no function {' or '.join(edit.function)}, in which an edit is to be made"
        )
    start = starts[function]
    code = memory(start, ends[start] - start)
    found = list(_matches(edit, code, start, names))
    if edit.number is None and len(found) > 1:
        raise UsageError(
            f"{len(found)} instructions of {function} match {edit.find!r}: say which, by number"
        )
    if not found or (edit.number or 1) > len(found):
        which = f"no instruction number {edit.number}" if found else "no instruction"
        raise UsageError(f"{function} of this kernel has {which} that matches {edit.find!r}")
    offset, size, text = found[(edit.number or 1) - 1]
    old = code[offset : offset + size]
    new = (
        _called(edit, start + offset, old, text, starts)
        if edit.put.startswith("call ")
        else _new(edit, old, text)
    )
    return Change(start + offset, old, new, f"{function}+{offset:#x}: {text}")


def _matches(edit: Edit, code: bytes, start: int, names: Symbols) -> Iterator[tuple[int, int, str]]:
    """Offset, length and text of the instructions that `edit` may mean."""
    behind, offset = not edit.after, 0
    for text, size in disasm.instructions(
        code, start, lambda address: _plain(names.function(address))
    ):
        if behind and re.fullmatch(edit.find, text):
            yield offset, size, text
        behind = behind or re.fullmatch(edit.after, text) is not None
        offset += size


def _plain(name: str | None) -> str | None:
    return name.removesuffix("+0x0") if name else None


def _called(edit: Edit, address: int, old: bytes, text: str, starts: Mapping[str, int]) -> bytes:
    name = edit.put.removeprefix("call ")
    if old[:1] != b"\xe8" or name not in starts:
        raise UsageError(
            f"`{text}` cannot become a call of {name}: it is no call, or the kernel has no such function"
        )
    return b"\xe8" + (starts[name] - (address + 5)).to_bytes(4, "little", signed=True)


def _new(edit: Edit, old: bytes, text: str) -> bytes:
    if edit.put == "nop":
        return bytes.fromhex(NOPS[len(old)]) if len(old) in NOPS else b"\x90" * len(old)
    if edit.put == "always":
        if len(old) == 2 and old[0] & 0xF0 == 0x70:
            return b"\xeb" + old[1:]
        if len(old) == 6 and old[0] == 0x0F and old[1] & 0xF0 == 0x80:
            return b"\x90\xe9" + old[2:]  # ends where the old one did, so its distance is the same
        raise UsageError(f"`{text}` is no conditional jump, which could be made to jump always")
    wanted = edit.put.split()
    if len(wanted) != len(old):
        raise UsageError(
            f"`{text}` has {len(old)} bytes ({old.hex(' ')}), and {edit.put!r} has {len(wanted)}"
        )
    return bytes(
        was if byte == ".." else int(byte, 16) for byte, was in zip(wanted, old, strict=True)
    )
