# SPDX-License-Identifier: GPL-2.0-only
"""What the instructions do that a kernel patches: where a CPU goes on, and with which stack.

Only those that text_poke_loc_init() in arch/x86/kernel/alternative.c knows, and the NOPs.
"""

from __future__ import annotations

from typing import NamedTuple

INT3, CALL, JUMP, RET = 0xCC, 0xE8, 0xE9, 0xC3
"""Opcodes; the jump is the long one."""
CARRY, PARITY, ZERO, SIGN, OVERFLOW = 0x1, 0x4, 0x40, 0x80, 0x800
"""Bits of rflags."""
CONDITIONS = CARRY | PARITY | ZERO | SIGN | OVERFLOW
AUXILIARY, DIRECTION = 0x10, 0x400
STATUS = CONDITIONS | AUXILIARY | DIRECTION
"""What instructions set, and others go by."""
RETURN_0 = (bytes.fromhex("2e2e2e31c0"), bytes.fromhex("66664831c0"))
"""xor %eax, %eax with prefixes, as it is now and as it was in 5.12: a static call to
__static_call_return0()."""


class Effect(NamedTuple):
    """What one instruction does."""

    ip: int | None
    """Where the CPU goes on; None if that is the word it takes from the stack."""
    stack: int
    """What is added to rsp."""
    pushed: int | None = None
    """The word that it pushes."""


def length(code: bytes) -> int:
    """The length of the instruction that `code` begins with, 0 if it is none of those we know."""
    if code[:1] in (b"\xe8", b"\xe9"):
        return 5
    if code[:1] == b"\xeb" or code[:2] == b"\x66\x90":
        return 2
    if code[:1] in (b"\x90", b"\xc3"):
        return 1
    if code[:1] == b"\x0f" and code[1:2] and code[1] & 0xF0 == 0x80:
        return 6
    if code[:5] in RETURN_0:
        return 5
    return _nop_length(code)


def _nop_length(code: bytes) -> int:
    """The length of a long NOP (0f 1f /0, with prefixes, or 66 66 66 66 90)."""
    at = 0
    while code[at : at + 1] in (b"\x66", b"\x2e", b"\x3e"):
        at += 1
    if at and code[at : at + 1] == b"\x90":
        return at + 1
    if code[at : at + 2] != b"\x0f\x1f" or len(code) <= at + 2:
        return 0
    mod, rm = code[at + 2] >> 6, code[at + 2] & 7
    size = at + 3 + (rm == 4 and mod != 3)
    return size + {0: 0, 1: 1, 2: 4, 3: 0}[mod]


def effect(address: int, code: bytes, flags: int) -> Effect | None:
    """What the instruction `code` at `address` does; None if it is none of those we know."""
    size = length(code)
    end = address + size
    if not size or size > len(code):
        return None
    if code[0] == 0xE9:
        return Effect(_wrap(end + _signed(code[1:5])), 0)
    if code[0] == 0xEB:
        return Effect(_wrap(end + _signed(code[1:2])), 0)
    if code[0] == 0xE8:
        return Effect(_wrap(end + _signed(code[1:5])), -8, end)
    if code[0] == 0xC3:
        return Effect(None, 8)
    if code[0] == 0x0F and code[1] & 0xF0 == 0x80:
        taken = condition(code[1] & 0xF, flags)
        return Effect(_wrap(end + _signed(code[2:6])) if taken else end, 0)
    return Effect(end, 0)


def condition(code: int, flags: int) -> bool:
    """Whether a conditional jump jumps. code: the lower half of its opcode (SDM, volume 2, Jcc)."""
    carry, parity, zero, sign, overflow = (
        bool(flags & bit) for bit in (CARRY, PARITY, ZERO, SIGN, OVERFLOW)
    )
    holds = (
        overflow,
        carry,
        zero,
        carry or zero,
        sign,
        parity,
        sign != overflow,
        zero or sign != overflow,
    )[code >> 1]
    return holds != bool(code & 1)


def _signed(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _wrap(address: int) -> int:
    return address & (1 << 64) - 1
