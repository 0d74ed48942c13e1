# SPDX-License-Identifier: GPL-2.0-only
"""Which instructions a kernel emulates, found out by running its own code.

golden/emulation-NAME.json holds the kernel's code and data that this touches, read from a guest
with `orchestrator run --smp 1 --scenario nop5`: 64 bytes at each address.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import InfraError
from orchestrator.text import emulation

GOLDEN = Path(__file__).with_name("golden")
UD2, ENDLESS_LOOP = bytes.fromhex("0f0b"), bytes.fromhex("ebfe")


class Recording:
    """A kernel's memory as it was recorded."""

    def __init__(self, name: str) -> None:
        content: dict[str, Any] = json.loads((GOLDEN / f"emulation-{name}.json").read_text())
        self.symbols = {name: int(address, 16) for name, address in content["symbols"].items()}
        self.memory = {int(at, 16): bytes.fromhex(data) for at, data in content["memory"].items()}
        self.expected = frozenset(content["emulated"])

    def read(self, address: int, size: int) -> bytes:
        if not any(address <= at < address + size for at in self.memory):
            raise InfraError("Invalid addr")
        lines = (self.memory.get(at, bytes(64)) for at in range(address, address + size, 64))
        return b"".join(lines)


@pytest.mark.parametrize("name", ["5.9.1", "6.1-plain", "6.1-int3"])
def test_what_a_kernel_emulates_is_read_off_its_code(name: str) -> None:
    kernel = Recording(name)
    assert emulation.emulated(kernel.symbols, kernel.read) == kernel.expected


def test_what_was_recorded_is_what_these_kernels_emulate() -> None:
    """RET is from 5.10 and Jcc from 6.3, and both are in 6.1.176. The kernel of 2013 takes an
    address."""
    plain = {"call", "int3", "jmp32", "jmp8", "nop2", "nop5"}
    assert Recording("5.9.1").expected == plain
    assert Recording("6.1-plain").expected == plain | {"ret", "jcc"}
    assert Recording("6.1-int3").expected == set()


def test_a_kernel_whose_bug_is_an_endless_loop() -> None:
    """CONFIG_BUG=n."""
    kernel = Recording("5.9.1")
    kernel.memory = {at: data.replace(UD2, ENDLESS_LOOP) for at, data in kernel.memory.items()}
    assert emulation.emulated(kernel.symbols, kernel.read) == kernel.expected


def test_a_kernel_that_cannot_be_read_is_not_guessed_at() -> None:
    kernel = Recording("6.1-plain")
    assert emulation.emulated({}, kernel.read) is None
    assert emulation.emulated({"text_poke_bp": kernel.symbols["text_poke_bp"]}, kernel.read) is None
    kernel.memory.clear()
    assert emulation.emulated(kernel.symbols, kernel.read) is None


def test_lockdep_says_nothing_about_the_mutex_that_nobody_holds() -> None:
    page = emulation._page(
        0xFFFFFFFF82000000,
        {"debug_locks": 0xFFFFFFFF82000010},
        lambda address, size: b"\xff" * size,
    )
    assert page is not None
    assert page[0x10:0x14] == bytes(4)
    assert len(page) == 4096 and page.count(0) == 4
