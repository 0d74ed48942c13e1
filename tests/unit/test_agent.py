# SPDX-License-Identifier: GPL-2.0-only
"""How the agent moves a CPU past a breakpoint, with a fake memory in place of GDB's."""

from __future__ import annotations

import importlib
import struct
import sys
from types import ModuleType, SimpleNamespace

import pytest

HERE, SLOT = 0xFFFFFFFF81015B60, 0xFFFFFFFFA0002640


class Memory(dict[int, int]):
    """Bytes by address."""

    def read_memory(self, address: int, size: int) -> bytes:
        return bytes(self[address + at] for at in range(size))

    def write_memory(self, address: int, data: bytes) -> None:
        self.update({address + at: byte for at, byte in enumerate(data)})


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    gdb = ModuleType("gdb")
    gdb.Breakpoint, gdb.MemoryError = object, OSError  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gdb", gdb)
    monkeypatch.delitem(sys.modules, "orchestrator.watch.agent", raising=False)
    return importlib.import_module("orchestrator.watch.agent")


def copy_in_slot(
    agent: ModuleType, monkeypatch: pytest.MonkeyPatch, code: bytes, disassembly: str
) -> bytes | None:
    """The slot's content after the instruction `code` was copied; None if the agent refused.

    disassembly: how GDB disassembles `code`.
    """
    memory = Memory()
    memory.write_memory(HERE, code)
    decoded = [{"length": len(code), "asm": disassembly}]
    architecture = SimpleNamespace(disassemble=lambda _, count: decoded)
    frame = SimpleNamespace(architecture=lambda: architecture)
    monkeypatch.setattr(agent.gdb, "selected_inferior", lambda: memory, raising=False)
    monkeypatch.setattr(agent.gdb, "selected_frame", lambda: frame, raising=False)
    copied = agent.copy_instruction(HERE, SLOT)
    return memory.read_memory(SLOT, len(code) + 5) if copied else None


@pytest.mark.parametrize(
    ("code", "at", "disassembly"),
    [
        # in poke_int3_handler() of 5.4, and of 6.1
        (
            "48 63 15 21 1c ac 00",
            3,
            "movslq 0xac1c21(%rip),%rdx        # 0xffffffff81ad7788 <bp_patching+8>",
        ),
        ("83 3d 21 1c ac 00 00", 2, "cmpl   $0x0,0xac1c21(%rip)        # 0xffffffff81ad7788"),
    ],
)
def test_a_rip_relative_operand_still_has_the_same_address_in_the_copy(
    agent: ModuleType, monkeypatch: pytest.MonkeyPatch, code: str, at: int, disassembly: str
) -> None:
    original = bytes.fromhex(code)
    copy = copy_in_slot(agent, monkeypatch, original, disassembly)
    assert copy is not None
    (displacement,) = struct.unpack_from("<i", copy, at)
    assert SLOT + len(original) + displacement == 0xFFFFFFFF81AD7788
    assert copy[:at] == original[:at] and copy[len(original) : len(original) + 1] == b"\xe9"
    assert SLOT + len(copy) + struct.unpack_from("<i", copy, len(original) + 1)[0] == HERE + len(
        original
    )


def test_so_has_that_of_a_per_cpu_variable_beyond_the_end_of_the_address_space(
    agent: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a do_sync_core() that asks for its CPU first."""
    target = 0x1A0CC
    far = struct.pack("<i", target - (HERE + 7) + (1 << 64))
    text = f"mov    %gs:{int.from_bytes(far, 'little'):#x}(%rip),%eax        # {target:#x}"
    copy = copy_in_slot(agent, monkeypatch, b"\x65\x8b\x05" + far, text)
    assert copy is not None
    assert (SLOT + 7 + struct.unpack_from("<i", copy, 3)[0]) % (1 << 64) == target


def test_an_operand_that_is_too_far_from_the_slot_is_not_copied(
    agent: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = HERE - 0x7FFFFF00
    near = struct.pack("<i", target - (HERE + 7))
    text = f"mov    0x1(%rip),%eax        # {target:#x}"
    assert copy_in_slot(agent, monkeypatch, b"\x65\x8b\x05" + near, text) is None


@pytest.mark.parametrize(
    ("code", "disassembly"),
    [
        ("e8 00 00 00 00", "call   0xffffffff81015b65"),
        ("75 03", "jne    0xffffffff81015b65"),
        # without the comment in which GDB shows the operand's address
        ("48 63 15 21 1c ac 00", "movslq 0xac1c21(%rip),%rdx"),
    ],
)
def test_an_instruction_that_cannot_run_elsewhere_is_not_copied(
    agent: ModuleType, monkeypatch: pytest.MonkeyPatch, code: str, disassembly: str
) -> None:
    assert copy_in_slot(agent, monkeypatch, bytes.fromhex(code), disassembly) is None
