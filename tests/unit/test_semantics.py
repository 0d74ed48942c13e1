# SPDX-License-Identifier: GPL-2.0-only
"""What the instructions do that a kernel patches."""

from __future__ import annotations

import pytest

from orchestrator.text.semantics import CARRY, OVERFLOW, PARITY, SIGN, ZERO, condition, effect

AT = 0xFFFFFFFF81000000


@pytest.mark.parametrize(
    ("code", "ip", "stack", "pushed"),
    [
        ("0f1f440000", AT + 5, 0, None),
        ("6666666690", AT + 5, 0, None),
        ("660f1f00", AT + 4, 0, None),
        ("6690", AT + 2, 0, None),
        ("90", AT + 1, 0, None),
        ("e90b000000", AT + 16, 0, None),
        ("e9fbffffff", AT, 0, None),
        ("ebfe", AT, 0, None),
        ("eb7f", AT + 0x81, 0, None),
        ("e800010000", AT + 0x105, -8, AT + 5),
        ("c3", None, 8, None),
        ("2e2e2e31c0", AT + 5, 0, None),
    ],
)
def test_an_instruction_does_what_the_manual_says(
    code: str, ip: int | None, stack: int, pushed: int | None
) -> None:
    assert effect(AT, bytes.fromhex(code), 0) == (ip, stack, pushed)


def test_a_conditional_jump_depends_on_the_flags() -> None:
    jump = bytes.fromhex("0f8400010000")  # je
    taken, not_taken = effect(AT, jump, ZERO), effect(AT, jump, 0)
    assert taken and taken.ip == AT + 0x106
    assert not_taken and not_taken.ip == AT + 6


@pytest.mark.parametrize("code", ["cc", "48c7c000000000", "0f1f44", "e90b", ""])
def test_what_is_not_known_has_no_effect(code: str) -> None:
    assert effect(AT, bytes.fromhex(code), 0) is None


@pytest.mark.parametrize(
    ("name", "code", "flags", "holds"),
    [
        ("jo", 0x0, OVERFLOW, True),
        ("jno", 0x1, OVERFLOW, False),
        ("jb", 0x2, CARRY, True),
        ("je", 0x4, ZERO, True),
        ("jne", 0x5, ZERO, False),
        ("jbe", 0x6, CARRY, True),
        ("jbe", 0x6, ZERO, True),
        ("ja", 0x7, 0, True),
        ("js", 0x8, SIGN, True),
        ("jp", 0xA, PARITY, True),
        ("jl", 0xC, SIGN, True),
        ("jl", 0xC, SIGN | OVERFLOW, False),
        ("jge", 0xD, OVERFLOW, False),
        ("jle", 0xE, ZERO, True),
        ("jle", 0xE, SIGN, True),
        ("jle", 0xE, SIGN | OVERFLOW, False),
        ("jg", 0xF, 0, True),
        ("jg", 0xF, ZERO, False),
        ("jg", 0xF, SIGN, False),
    ],
)
def test_a_condition_is_that_of_the_manual(name: str, code: int, flags: int, holds: bool) -> None:
    assert condition(code, flags) is holds, name
