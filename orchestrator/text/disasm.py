# SPDX-License-Identifier: GPL-2.0-only
"""The meaning of bytes at a patched site, in AT&T syntax. For reports: nothing here raises."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import capstone
from capstone import x86_const

from orchestrator.text.semantics import INT3

BAD = "(bad)"
MASK = (1 << 64) - 1
BRANCHES = (
    x86_const.X86_GRP_JUMP,
    x86_const.X86_GRP_CALL,
    x86_const.X86_GRP_RET,
    x86_const.X86_GRP_IRET,
)

Name = Callable[[int], str | None]
"""The symbol at an address, such as `orch_nop5_site+0x2`, or None."""


def disassemble(data: bytes, address: int, name: Name | None = None) -> str:
    """The first instruction of `data`, which lies at `address`.

    `(bad)` when the bytes are no instruction or are cut short.

    name: names the target of a branch, as in `jmp 0xffffffffa0000ad2 <orch_nop5_new>`.
    """
    return next(instructions(data, address, name), (BAD, 0))[0]


def length(data: bytes) -> int:
    """The length of the first instruction of `data`, 0 if it is none or cut short."""
    return next(instructions(data, 0, None), (BAD, 0))[1]


def executes(code: bytes, address: int, data: bytes, place: int) -> bool | None:
    """Whether a CPU that goes on at `place`, where `data` is, does what `code` at `address` does.

    It does so in a copy of the instruction, or where that branches to. None if nobody can tell.
    """
    one = _detailed(code, address)
    if one is None:
        return None
    if one.group(x86_const.X86_GRP_BRANCH_RELATIVE):
        if one.operands[0].imm & MASK == place:
            return True
    elif any(one.group(kind) for kind in BRANCHES):
        return None  # the target is in a register or in memory
    copy = _detailed(data, place)
    if copy is None or copy.size != one.size:
        return False
    if not any(
        operand.type == x86_const.X86_OP_MEM and operand.mem.base == x86_const.X86_REG_RIP
        for operand in one.operands
    ):
        return bool(copy.bytes == one.bytes)
    start, end = one.disp_offset, one.disp_offset + one.disp_size
    rest, other = ([*each.bytes[:start], *each.bytes[end:]] for each in (one, copy))
    return rest == other and (address + one.disp - place - copy.disp) & MASK == 0


def needs_execution(code: bytes) -> bool:
    """Whether it shows if a CPU leaves out this instruction, which does not branch.

    Of those that do not, kprobes emulate cli and sti (prepare_emulation() in arch/x86).
    """
    one = _detailed(code, 0)
    if one is None or any(one.group(kind) for kind in BRANCHES):
        return False
    return not one.mnemonic.startswith(("nop", "endbr", "cli", "sti"))


def _detailed(code: bytes, address: int) -> capstone.CsInsn | None:
    """The instruction with which `code` at `address` begins, with its operands and groups."""
    machine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    machine.detail = True
    return next(machine.disasm(code, address & MASK), None)


def describe(data: bytes, address: int, old: bytes, new: bytes, name: Name | None = None) -> str:
    """The meaning of `data`, read at the site at `address` during a poke from `old` to `new`.

    One of: the old or the new instruction; int3 with the tail of one of them; torn, that is a
    mixture in which each byte belongs to one of them; or the plain disassembly. A tail that old and
    new share counts as the old one.
    """
    if len(data) != len(old) or len(data) != len(new) or not data:
        return _all(data, address, name)
    before = f"old instruction ({disassemble(old, address, name)})"
    after = f"new instruction ({disassemble(new, address, name)})"
    if data == old:
        return f"the {before}"
    if data == new:
        return f"the {after}"
    if data == bytes([INT3]):
        return "int3"
    if data[0] == INT3 and data[1:] in (old[1:], new[1:]):
        return f"int3; then the tail of the {before if data[1:] == old[1:] else after}"
    if mixture := _mixture(data, old, new):
        return f"torn: {mixture}; reads as {_all(data, address, name)}"
    return _all(data, address, name)


def _mixture(data: bytes, old: bytes, new: bytes) -> str | None:
    """How `data` mixes bytes of both instructions and int3. None when it has other bytes."""
    if any(
        byte not in (before, after)
        for byte, before, after in zip(data[1:], old[1:], new[1:], strict=True)
    ):
        return None
    firsts = {
        new[0]: "the first byte of the new instruction",
        old[0]: "the first byte of the old instruction",
        INT3: "int3",
    }
    if data[0] not in firsts:
        return None
    if data[1:] == old[1:]:
        tail = "the tail of the old one"
    elif data[1:] == new[1:]:
        tail = "the tail of the new one"
    else:
        changed = [f"+{at}" for at in range(1, len(data)) if data[at] == new[at] != old[at]]
        tail = f"the tail of the old one, except {', '.join(changed)} from the new one"
    return f"{firsts[data[0]]} with {tail}"


def _all(data: bytes, address: int, name: Name | None) -> str:
    """All instructions of `data`."""
    parts, done = [], 0
    for text, length in instructions(data, address, name):
        parts.append(text)
        done += length
    return "; ".join([*parts, BAD] if done < len(data) or not parts else parts)


def instructions(data: bytes, address: int, name: Name | None) -> Iterator[tuple[str, int]]:
    """Text and length of each instruction, up to the first bytes that do not decode."""
    machine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    machine.syntax = capstone.CS_OPT_SYNTAX_ATT
    machine.detail = True
    for instruction in machine.disasm(data, address & MASK):
        text = f"{instruction.mnemonic} {instruction.op_str}".rstrip()
        if name and instruction.group(x86_const.X86_GRP_BRANCH_RELATIVE):
            target = instruction.operands[0].imm & MASK
            symbol = name(target)
            text += f" <{symbol}>" if symbol else ""
        yield text, instruction.size
