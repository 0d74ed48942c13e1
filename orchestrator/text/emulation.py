# SPDX-License-Identifier: GPL-2.0-only
"""Which instructions a kernel can emulate for a CPU that hits the int3 of a poke.

A kernel has a BUG() for an instruction that it does not know, and which it knows changed over the
years: RET came with 5.10 (c43a43e439e0), Jcc with 6.3 (ac0ee0a9560c), and both were backported. So
this is found out before the test module asks for anything: the kernel's own function for pokes is
run on a copy of the guest's memory, in an emulator in this process. The guest is not disturbed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.errors import InfraError
from orchestrator.text.functions import POKE_ONE, WRITERS

Read = Callable[[int, int], bytes]
"""Reads guest memory: address, number of bytes. Raises InfraError where there is none."""

INSTRUCTIONS: Mapping[str, tuple[str, ...]] = {
    "jmp32": ("e900000000",),
    "jmp8": ("eb00",),
    "call": ("e800000000",),
    # Up to 5.12 a kernel knows only the NOP of five bytes that it has chosen for this CPU.
    "nop5": ("0f1f440000", "6666666690"),
    "nop2": ("6690",),
    "int3": ("cc",),
    "ret": ("c3",),
    "jcc": ("0f8400000000",),
}
"""Name, as the test module has it (guest/module/poker.c), and its encodings."""

CONTROL = "jmp32"
"""Jump labels need it: if a kernel seems not to know it, nothing was found out."""
NONSENSE = "0fa2"
"""CPUID. A kernel that takes even this emulates nothing: up to 5.4 it takes an address instead."""

DEBUG_LOCKS = "debug_locks"
"""Whether lockdep reports anything. Nobody holds text_mutex in the emulator."""
SYMBOLS = (*POKE_ONE, *WRITERS, DEBUG_LOCKS)
"""All symbols whose addresses are used, if they exist."""

PAGE = 0x1000
OWN = range(0xFFFFC9FFFFF00000, 0xFFFFC9FFFFF80000)
"""Addresses that no kernel uses. The emulator has its own data there."""
STACK, RETURN, OPCODE, PER_CPU = OWN[0x10000::0x10000][:4]
MAX_INSTRUCTIONS = 100_000
"""A few hundred are enough, and one that is not known may end in an endless loop (CONFIG_BUG=n)."""


def emulated(symbols: Mapping[str, int], read: Read) -> frozenset[str] | None:
    """The INSTRUCTIONS that the kernel takes as the one to emulate. None if it cannot be found out.

    Empty if it emulates nothing, and sends CPUs to an address.

    symbols: addresses of the kernel's functions and data by name.
    """
    poke = next((symbols[name] for name in POKE_ONE if name in symbols), None)
    writers = [symbols[name] for name in WRITERS if name in symbols]
    if poke is None or not writers:
        return None
    pages: dict[int, bytes | None] = {}

    def page(address: int) -> bytes | None:
        if address not in pages:
            pages[address] = _page(address, symbols, read)
        return pages[address]

    def known(*encodings: str) -> bool:
        return any(_reaches(writers, poke, bytes.fromhex(code), page) for code in encodings)

    if not known(*INSTRUCTIONS[CONTROL]):
        return None
    if known(NONSENSE):
        return frozenset()
    return frozenset(name for name, encodings in INSTRUCTIONS.items() if known(*encodings))


def _page(address: int, symbols: Mapping[str, int], read: Read) -> bytes | None:
    """A page of the guest's memory; None where it has none."""
    if address in OWN:
        return None
    try:
        data = bytearray(read(address, PAGE))
    except InfraError:
        return None
    if symbols.get(DEBUG_LOCKS, 0) & -PAGE == address:
        at = symbols[DEBUG_LOCKS] % PAGE
        data[at : at + 4] = bytes(4)
    return bytes(data)


def _reaches(
    writers: list[int], poke: int, code: bytes, page: Callable[[int], bytes | None]
) -> bool:
    """Whether a poke of some site, with `code` as what to emulate, gets as far as its first write.

    Everything before that is preparation, and where a kernel has its BUG().
    """
    # Here and not above, as it takes a tenth of a second.
    import unicorn
    from unicorn import x86_const

    machine = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_64)
    # Kernel addresses are beyond what the emulator takes for physical ones.
    machine.ctl_set_tlb_mode(unicorn.UC_TLB_VIRTUAL)
    physical: dict[int, int] = {}

    def place(address: int) -> int:
        base = address & -PAGE
        if base not in physical:
            physical[base] = PAGE * (1 + len(physical))
            machine.mem_map(physical[base], PAGE)
            machine.mem_write(physical[base], page(base) or bytes(PAGE))
        return physical[base]

    def write(address: int, data: bytes) -> None:
        machine.mem_write(place(address) + address % PAGE, data)

    def fill(_: Any, address: int, access: int, entry: Any, data: Any) -> bool:
        # An empty page does for data of which little is used, but not for code.
        if access == unicorn.UC_MEM_FETCH and page(address & -PAGE) is None:
            return False
        entry.paddr, entry.perms = place(address), unicorn.UC_PROT_ALL
        return True

    reached: list[int] = []

    def stop(_: Any, address: int, size: int, data: Any) -> None:
        reached.append(address)
        machine.emu_stop()

    machine.hook_add(unicorn.UC_HOOK_TLB_FILL, fill)
    for address in (*writers, RETURN):
        machine.hook_add(unicorn.UC_HOOK_CODE, stop, None, address, address)
    write(OPCODE, code)
    write(STACK, RETURN.to_bytes(8, "little"))
    for register, value in (
        (x86_const.UC_X86_REG_RSP, STACK),
        (x86_const.UC_X86_REG_RDI, poke),  # the site: any text will do
        (x86_const.UC_X86_REG_RSI, OPCODE),
        (x86_const.UC_X86_REG_RDX, len(code)),
        (x86_const.UC_X86_REG_RCX, OPCODE),
        (x86_const.UC_X86_REG_GS_BASE, PER_CPU),
    ):
        machine.reg_write(register, value)
    try:
        machine.emu_start(poke, 0, count=MAX_INSTRUCTIONS)
    except unicorn.UcError:
        return False
    return bool(reached) and reached[0] in writers
