# SPDX-License-Identifier: GPL-2.0-only
"""Edits of a kernel's code find exactly the intended instruction, or are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.text import edit as textedit
from orchestrator.text.edit import Edit

BASE = 0xFFFFFFFF81000000
CODE = bytes.fromhex(
    "b901000000"  # 00: movl $1, %ecx
    "e8f6000000"  # 05: callq sync
    "b901000000"  # 0a: movl $1, %ecx
    "e8ec000000"  # 0f: callq sync
    "83f801"  # 14: cmpl $1, %eax
    "7402"  # 17: je +2
    "6690"  # 19: xchgw
    "0f84e0ffffff"  # 1b: je back
    "c3"  # 21
)
LINES = [
    f"{BASE:x} t patch",
    f"{BASE + len(CODE):x} t behind",
    f"{BASE + 0x100:x} T sync",
    f"{BASE + 0x200:x} T _end",
]


def _memory(address: int, size: int) -> bytes:
    return CODE[address - BASE :][:size]


def _located(find: str, put: str, *, after: str = "", number: int | None = None) -> textedit.Change:
    return textedit.locate_edits(
        [Edit(("older_name", "patch"), find, put, after, number)], LINES, _memory
    )[0]


def test_a_call_is_found_by_the_name_of_its_target() -> None:
    change = _located("call.* <sync>", "nop", number=2)
    assert (change.address - BASE, change.old, change.new) == (
        0x0F,
        CODE[0x0F:0x14],
        bytes.fromhex("0f1f440000"),
    )
    assert change.text.startswith("patch+0xf: call") and change.text.endswith("<sync>")


def test_several_matches_without_a_number_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"2 instructions of patch match .*: choose one with number"
    ):
        _located("call.* <sync>", "nop")


@pytest.mark.parametrize(
    ("find", "number", "reason"), [("lock .*", None, "no instruction"), ("ret.*", 2, "number 2")]
)
def test_an_edit_without_a_match_is_refused(find: str, number: int | None, reason: str) -> None:
    with pytest.raises(UsageError, match=rf"this kernel's patch has .*{reason}.* that matches"):
        _located(find, "nop", number=number)


def test_after_skips_earlier_matches() -> None:
    assert _located(r"movl \$1, %ecx", ".. 00 .. .. ..", after="call.*").address == BASE + 0x0A


def test_dots_keep_the_old_bytes() -> None:
    assert _located(r"movl \$1, %ecx", ".. 00 .. .. ..", number=1).new == bytes.fromhex(
        "b900000000"
    )
    with pytest.raises(UsageError, match=r"has 5 bytes \(b9 01 00 00 00\), but '\.\. 00' has 2"):
        _located(r"movl \$1, %ecx", ".. 00", number=1)


def test_always_keeps_the_target_of_a_conditional_jump() -> None:
    assert _located("je .*", "always", number=1).new == bytes.fromhex("eb02")
    assert _located("je .*", "always", number=2).new == bytes.fromhex("90e9e0ffffff")
    with pytest.raises(UsageError, match="is not a conditional jump"):
        _located("ret.*", "always")


def test_a_call_becomes_a_call_of_another_function() -> None:
    assert _located("call.* <sync>", "call behind", number=1).new == bytes.fromhex("e818000000")
    for find, name in (("je .*", "behind"), ("call.* <sync>", "nowhere")):
        with pytest.raises(UsageError, match=f"cannot become a call of {name}"):
            _located(find, f"call {name}", number=1)


def test_an_edit_of_a_missing_function_is_refused() -> None:
    with pytest.raises(
        UsageError, match="does not match this kernel: it has no function foo or bar"
    ):
        textedit.locate_edits([Edit(("foo", "bar"), "ret", "nop")], LINES, _memory)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[]", "a list called edits"),
        ("edits: []", "a list called edits"),
        (
            "edits: [{function: f, find: r, put: nop, where: x}]",
            "an edit has function, find and put",
        ),
        ("edits: [{function: f, find: '(', put: nop}]", "is not a regular expression"),
        ("edits: [{function: f, find: r, put: jump}]", "put is nop, always, call NAME or bytes"),
        ("edits: [{function: f, find: r, put: 90}]", "in quotes where YAML needs them"),
        ("edits: [{function: f, find: r, put: nop, number: 0}]", "number counts matches from 1"),
        ("edits: [", "while parsing"),
    ],
)
def test_an_invalid_file_is_refused_with_the_reason(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "edits.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=reason):
        textedit.read_edits(path)


def test_a_missing_file_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no"):
        textedit.read_edits(tmp_path / "none.yaml")
