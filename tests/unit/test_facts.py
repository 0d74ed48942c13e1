# SPDX-License-Identifier: GPL-2.0-only
"""Facts read off a kernel's symbols and memory."""

from __future__ import annotations

import struct
from collections.abc import Callable

from orchestrator.errors import InfraError
from orchestrator.text import facts

TEXT, TABLE, QUEUE = 0xFFFFFFFF81000000, 0xFFFFFFFF82000000, 0xFFFFFFFF81000800
NOP5, NOP2, JMP = bytes.fromhex("0f1f440000"), bytes.fromhex("6690"), bytes.fromhex("e910000000")
NAMES = {
    "_stext": TEXT, "text_poke_queue": QUEUE, "_etext": TEXT + 0x1000, "text_poke_bp": TEXT + 0x900,
    "__text_poke": TEXT + 0xA00, "poke_int3_handler": TEXT + 0xB00, "do_sync_core": TEXT + 0xC00,
    "arch_static_call_transform": TEXT + 0xD00, "ftrace_replace_code.part.0": TEXT + 0xE00,
    "__start___jump_table": TABLE, "text_mutex": TABLE + 0x2000, "_end": TABLE + 0x4000,
}  # fmt: skip


def read_facts(old: bool) -> dict[str, str]:
    sites = {TEXT + 0x10: NOP5, TEXT + 0x20: NOP2, TEXT + 0x30: NOP5, TEXT + 0x40: JMP}
    size = facts.OLD_ENTRY if old else facts.ENTRY
    content: dict[int, bytes] = {site: code + b"\x90" * 8 for site, code in sites.items()}
    memory = bytearray()
    for number, site in enumerate(sites):
        at = TABLE + number * size
        memory += struct.pack("<3Q", site, 0, 0) if old else struct.pack("<iiq", site - at, 0, 0)
    content[TABLE] = bytes(memory)
    content[QUEUE] = bytes.fromhex("803d0000000001813d0000000000010000c3")  # cmpb $1; cmpl $0x100

    def read(address: int, count: int) -> bytes:
        start = max((at for at in content if at <= address), default=None)
        if start is None:
            raise InfraError("no memory there")
        return content[start][address - start : address - start + count]

    names = {**NAMES, "__stop___jump_table": TABLE + size * len(sites)}
    return facts.facts([f"{address:x} T {name}" for name, address in names.items()], read)


def test_facts_of_a_kernel_with_either_kind_of_jump_table() -> None:
    for old in (False, True):
        values = read_facts(old)
        assert values["pokes one site"] == "text_poke_bp"
        assert values["pokes a batch"] == "text_poke_queue, at most 256"
        assert values["takes int3"] == "poke_int3_handler"
        assert values["pokes for"] == "static calls, ftrace"
        assert values["stops machines"] == "none"
        assert values["emulates"] == "unknown"
        assert values["jump labels"] == "4"
        assert values["sample of 4"] == "5 bytes 0f1f440000: 2, 2 bytes 6690: 1, 5 bytes jmp: 1"


def test_facts_of_a_kernel_of_2013() -> None:
    nothing: Callable[[int, int], bytes] = lambda *_: b""  # noqa: E731
    values = facts.facts(
        ["ffffffff81000000 t int3_notify", "ffffffff81000100 T text_poke_bp"], nothing
    )
    assert values["takes int3"] == "int3_notify (a die notifier)"
    assert (values["pokes a batch"], values["jump labels"]) == ("none", "none")
