"""The agent's way past a breakpoint, with a memory of ours in place of GDB's. tests/vm/ has the real one."""

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


def moved(
    agent: ModuleType, monkeypatch: pytest.MonkeyPatch, code: bytes, said: str
) -> bytes | None:
    """What the slot holds when the instruction `code`, of which GDB's disassembler said `said`, has been copied."""
    memory = Memory()
    memory.write_memory(HERE, code)
    frame = SimpleNamespace(
        architecture=lambda: SimpleNamespace(
            disassemble=lambda _, count: [{"length": len(code), "asm": said}]
        )
    )
    monkeypatch.setattr(agent.gdb, "selected_inferior", lambda: memory, raising=False)
    monkeypatch.setattr(agent.gdb, "selected_frame", lambda: frame, raising=False)
    return memory.read_memory(SLOT, len(code) + 5) if agent.copied(HERE, SLOT) else None


@pytest.mark.parametrize(
    ("code", "at", "said"),
    [
        # 5.4's poke_int3_handler, and 6.1's
        (
            "48 63 15 21 1c ac 00",
            3,
            "movslq 0xac1c21(%rip),%rdx        # 0xffffffff81ad7788 <bp_patching+8>",
        ),
        ("83 3d 21 1c ac 00 00", 2, "cmpl   $0x0,0xac1c21(%rip)        # 0xffffffff81ad7788"),
    ],
)
def test_what_is_relative_to_rip_still_means_the_same_address(
    agent: ModuleType, monkeypatch: pytest.MonkeyPatch, code: str, at: int, said: str
) -> None:
    there = bytes.fromhex(code)
    copy = moved(agent, monkeypatch, there, said)
    assert copy is not None
    (displacement,) = struct.unpack_from("<i", copy, at)
    assert SLOT + len(there) + displacement == 0xFFFFFFFF81AD7788
    assert copy[:at] == there[:at] and copy[len(there) : len(there) + 1] == b"\xe9"
    assert SLOT + len(copy) + struct.unpack_from("<i", copy, len(there) + 1)[0] == HERE + len(there)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("e8 00 00 00 00", "call   0xffffffff81015b65"),
        ("75 03", "jne    0xffffffff81015b65"),
        (
            "48 63 15 21 1c ac 00",
            "movslq 0xac1c21(%rip),%rdx",
        ),  # of which GDB does not say where it leads
    ],
)
def test_what_cannot_run_elsewhere_is_stepped(
    agent: ModuleType, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    assert moved(agent, monkeypatch, bytes.fromhex(code), said) is None
