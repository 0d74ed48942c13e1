# SPDX-License-Identifier: GPL-2.0-only
"""Edits of the kernel's code in guest memory, made before anything is poked.

They put a fault into a kernel without building it. An edit identifies an instruction by its
function and its disassembly, so that one file fits many kernels:

    edits:
      - function: [smp_text_poke_batch_finish, text_poke_bp_batch]
        find: call.* <on_each_cpu_cond_mask>
        number: 1
        put: nop

function    one name, or several of which the first that the kernel has is taken
find        regular expression for the whole instruction, in AT&T syntax followed by the name of the
            branch target
after       optional: search only after the first instruction that matches this expression
number      optional: which of several matches to take, from 1; without it there must be exactly one
put         the replacement:

    nop             no operation
    always          an unconditional jump, in place of a conditional one
    call NAME       a call of another function, in place of a five-byte call
    .. .. 00        bytes, where .. keeps the old byte
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from orchestrator.errors import UsageError, shortened
from orchestrator.host import yamlfile
from orchestrator.text import disasm
from orchestrator.text.symbols import TEXT, Symbols, addresses

Read = Callable[[int, int], bytes]
"""Reads guest memory: address, number of bytes."""
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
    """One instruction to change. The fields are those of the file."""

    function: tuple[str, ...]
    find: str
    put: str
    after: str = ""
    number: int | None = None


@dataclass(frozen=True)
class Change:
    """An edit, located in one kernel."""

    address: int
    old: bytes
    new: bytes
    text: str
    """Where the old instruction is, and its disassembly."""


def load(path: Path) -> dict[str, Any]:
    """The content of a file of edits. Raises UsageError when it has no list of edits."""
    what = "a file of edits needs a list called edits"
    content = yamlfile.mapping(path, "file of edits", what)
    if not isinstance(content.get("edits"), list) or not content["edits"]:
        raise UsageError(f"{path}: {what}")
    return content


def read_edits(path: Path) -> list[Edit]:
    """The edits in the file `path`. Raises UsageError when they are not valid."""
    return [_edit(path, entry) for entry in load(path)["edits"]]


def _edit(path: Path, entry: Any) -> Edit:
    if not isinstance(entry, dict) or not {"function", "find", "put"} <= set(entry) <= FIELDS:
        raise UsageError(
            f"{path}: an edit has function, find and put, and optionally after and number, "
            f"not {shortened(repr(entry))}"
        )
    functions = entry["function"] if isinstance(entry["function"], list) else [entry["function"]]
    strings = [*functions, entry["find"], entry["put"], entry.get("after", "")]
    if not functions or not all(isinstance(string, str) for string in strings):
        raise UsageError(
            f"{path}: function, find, after and put are strings "
            f"(in quotes where YAML needs them): {shortened(repr(entry))}"
        )
    number = entry.get("number")
    if number is not None and (type(number) is not int or number < 1):
        raise UsageError(f"{path}: number counts matches from 1, not {number!r}")
    for pattern in (entry["find"], entry.get("after", "")):
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise UsageError(
                f"{path}: {shortened(pattern)!r} is not a regular expression: {error}"
            ) from error
    if not re.fullmatch(PUT, entry["put"]):
        raise UsageError(
            f"{path}: put is nop, always, call NAME or bytes such as '.. 00', not {entry['put']!r}"
        )
    return Edit(tuple(functions), entry["find"], entry["put"], entry.get("after", ""), number)


def locate_edits(edits: Iterable[Edit], lines: Sequence[str], memory: Read) -> list[Change]:
    """Locate the edits in the running kernel.

    lines: the kernel's symbol table in the format of nm(1), with guest addresses.

    Raises UsageError when an edit does not match this kernel.
    """
    names = Symbols(lines)
    starts = addresses(line for line in lines if line.split()[1:2] and line.split()[1] in TEXT)
    ends = dict(pairwise(sorted(set(addresses(lines).values()))))
    return [_change(edit, starts, ends, names, memory) for edit in edits]


def _change(
    edit: Edit, starts: Mapping[str, int], ends: Mapping[int, int], names: Symbols, memory: Read
) -> Change:
    function = next((name for name in edit.function if name in starts), None)
    if function is None:
        raise UsageError(
            f"an edit does not match this kernel: it has no function {' or '.join(edit.function)}"
        )
    start = starts[function]
    code = memory(start, ends[start] - start)
    matches = list(_matches(edit, code, start, names))
    if edit.number is None and len(matches) > 1:
        raise UsageError(
            f"{len(matches)} instructions of {function} match {edit.find!r}: choose one with number"
        )
    if not matches or (edit.number or 1) > len(matches):
        which = f"no instruction number {edit.number}" if matches else "no instruction"
        raise UsageError(f"this kernel's {function} has {which} that matches {edit.find!r}")
    offset, size, text = matches[(edit.number or 1) - 1]
    old = code[offset : offset + size]
    new = (
        _new_call(edit, start + offset, old, text, starts)
        if edit.put.startswith("call ")
        else _new_bytes(edit, old, text)
    )
    return Change(start + offset, old, new, f"{function}+{offset:#x}: {text}")


def _matches(edit: Edit, code: bytes, start: int, names: Symbols) -> Iterator[tuple[int, int, str]]:
    """Offset, length and text of the instructions that match the edit."""
    searching, offset = not edit.after, 0
    for text, size in disasm.instructions(
        code, start, lambda address: _function_name(names.function(address))
    ):
        if searching and re.fullmatch(edit.find, text):
            yield offset, size, text
        searching = searching or re.fullmatch(edit.after, text) is not None
        offset += size


def _function_name(name: str | None) -> str | None:
    """The name without the offset of the function's first byte."""
    return name.removesuffix("+0x0") if name else None


def _new_call(edit: Edit, address: int, old: bytes, text: str, starts: Mapping[str, int]) -> bytes:
    name = edit.put.removeprefix("call ")
    if old[:1] != b"\xe8" or name not in starts:
        raise UsageError(
            f"`{text}` cannot become a call of {name}: "
            f"it is not a call, or the kernel has no {name}"
        )
    return b"\xe8" + (starts[name] - (address + 5)).to_bytes(4, "little", signed=True)


def _new_bytes(edit: Edit, old: bytes, text: str) -> bytes:
    if edit.put == "nop":
        return bytes.fromhex(NOPS[len(old)]) if len(old) in NOPS else b"\x90" * len(old)
    if edit.put == "always":
        if len(old) == 2 and old[0] & 0xF0 == 0x70:
            return b"\xeb" + old[1:]
        if len(old) == 6 and old[0] == 0x0F and old[1] & 0xF0 == 0x80:
            # It ends where the old one did, so the displacement stays the same.
            return b"\x90\xe9" + old[2:]
        raise UsageError(f"`{text}` is not a conditional jump, so `put: always` does not apply")
    new = edit.put.split()
    if len(new) != len(old):
        raise UsageError(
            f"`{text}` has {len(old)} bytes ({old.hex(' ')}), but {edit.put!r} has {len(new)}"
        )
    return bytes(
        before if byte == ".." else int(byte, 16) for byte, before in zip(new, old, strict=True)
    )
