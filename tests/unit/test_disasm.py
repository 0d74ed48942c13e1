# SPDX-License-Identifier: GPL-2.0-only
"""The meaning of bytes, alone and in a poke of a site."""

from __future__ import annotations

import random

import pytest

from orchestrator.text.disasm import describe, disassemble

SITE = 0xFFFFFFFFA0000ACB
NOP5 = bytes.fromhex("0f1f440000")
JMP32 = bytes.fromhex("e902000000")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("0f1f440000", "nopl (%rax, %rax)"),
        ("6690", "nop"),
        ("e902000000", "jmp 0xffffffffa0000ad2"),
        ("eb0c", "jmp 0xffffffffa0000ad9"),
        ("e8fbffffff", "callq 0xffffffffa0000acb"),
        ("0f8402000000", "je 0xffffffffa0000ad3"),
        ("74fe", "je 0xffffffffa0000acb"),
        ("e9ffffff7f", "jmp 0x20000acf"),  # past the end of the address space
        ("488b5308", "movq 8(%rbx), %rdx"),
        ("f8", "clc"),
        ("cc", "int3"),
        ("cc02000000", "int3"),  # one instruction, whatever follows
        ("f30f1efa", "endbr64"),
        ("06", "(bad)"),  # push %es, gone in 64-bit mode
        ("e9020000", "(bad)"),  # cut short
        ("", "(bad)"),
    ],
)
def test_one_instruction(data: str, text: str) -> None:
    assert disassemble(bytes.fromhex(data), SITE) == text


def test_the_target_of_a_branch_has_a_name() -> None:
    names = {SITE + 7: "orch_nop5_new"}
    assert disassemble(JMP32, SITE, names.get) == "jmp 0xffffffffa0000ad2 <orch_nop5_new>"
    assert disassemble(b"\xeb\x0c", SITE, names.get) == "jmp 0xffffffffa0000ad9"
    assert (
        disassemble(bytes.fromhex("ff2500000000"), SITE, names.get) == "jmpq *(%rip)"
    )  # its target is in memory
    assert describe(b"\xcc" + JMP32[1:], SITE, NOP5, JMP32, names.get).endswith("<orch_nop5_new>)")


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("0f1f440000", "the old instruction (nopl (%rax, %rax))"),
        ("cc1f440000", "int3; then the tail of the old instruction (nopl (%rax, %rax))"),
        ("cc02000000", "int3; then the tail of the new instruction (jmp 0xffffffffa0000ad2)"),
        ("e902000000", "the new instruction (jmp 0xffffffffa0000ad2)"),
        (
            "e91f440000",
            "torn: the first byte of the new instruction with the tail of the old one; "
            "reads as jmp 0xffffffffa0004eef",
        ),
        (
            "0f02000000",
            "torn: the first byte of the old instruction with the tail of the new one; "
            "reads as larl (%rax), %eax; addb %al, (%rax)",
        ),
        (
            "cc02440000",
            "torn: int3 with the tail of the old one, except +1 from the new one; "
            "reads as int3; addb (%rax, %rax), %al",
        ),
        ("cccccccccc", "int3; int3; int3; int3; int3"),
        ("9090909090", "nop; nop; nop; nop; nop"),
        ("0606060606", "(bad)"),
        ("cc", "int3"),  # read with another length than the site has
    ],
)
def test_bytes_of_each_phase_and_of_none(data: str, text: str) -> None:
    assert describe(bytes.fromhex(data), SITE, NOP5, JMP32) == text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("f8", "the old instruction (clc)"),
        ("cc", "int3"),
        ("f9", "the new instruction (stc)"),
        ("90", "nop"),
    ],
)
def test_a_site_of_one_byte_has_no_tail(data: str, text: str) -> None:
    assert describe(bytes.fromhex(data), SITE, b"\xf8", b"\xf9") == text


def test_an_old_instruction_that_is_int3_is_the_old_instruction() -> None:
    assert describe(b"\xcc", SITE, b"\xcc", b"\x90") == "the old instruction (int3)"


def test_random_bytes_never_raise() -> None:
    rng = random.Random(1)
    for _ in range(5000):
        data, old, new = (rng.randbytes(rng.choice((0, 1, 2, 5, 5, 5, 16))) for _ in range(3))
        assert describe(data, rng.randrange(1 << 64), old, new)
        text = disassemble(data, rng.randrange(1 << 64), lambda address: f"at_{address:x}")
        assert text and "\n" not in text and "at_-" not in text
