# SPDX-License-Identifier: GPL-2.0-only
"""Names for addresses, and the line about where a CPU is."""

from __future__ import annotations

import subprocess

from orchestrator.text import facts
from orchestrator.text.edit import Edit, locate_edits
from orchestrator.text.symbols import CLONE, Symbols, addresses, offset, shifted, where

TABLE = Symbols(
    [
        "ffffffff81000000 T _text",
        "ffffffff81018790 t do_sync_core",
        "ffffffff81018800 t int3_notify",
        "ffffffff81b57900 b bp_patching_in_progress",
        "ffffffffa0000ac0 t orch_pass_nop5\t[orch]",
        "ffffffffa0004000 d orch_sites\t[orch]",
        "                 U nothing",
    ]
)


def test_an_address_is_named_after_the_function_before_it() -> None:
    assert TABLE.name(0xFFFFFFFF81018795) == "do_sync_core+0x5"
    assert TABLE.name(0xFFFFFFFFA0000ACB) == "orch_pass_nop5+0xb [orch]"


def test_data_is_not_a_function() -> None:
    assert TABLE.function(0xFFFFFFFF81B57904) is None
    assert TABLE.function(0xFFFFFFFFA0004010) is None


def test_an_address_far_from_any_function_stays_a_number() -> None:
    assert TABLE.name(0xFFFFFFFF81900000) == "ffffffff81900000"
    assert TABLE.name(0x1000) == "1000"


LINES = ["ffffffff81000000 T _stext", "ffffffff81018803 T int3_notify", "0000000000000000 A x"]


def test_a_kernel_that_kaslr_moved_is_named_by_its_vmlinux() -> None:
    by = offset(LINES, {"int3_notify": 0xFFFFFFFF9AC18803})
    assert by == 0x19C00000
    assert Symbols(shifted(LINES, by)).name(0xFFFFFFFF9AC18804) == "int3_notify+0x1"
    assert Symbols(shifted(LINES, by)).name(0xFFFFFFFF81018804) == "ffffffff81018804"


def test_a_kernel_where_it_was_linked_is_not_shifted() -> None:
    assert offset(LINES, {"int3_notify": 0xFFFFFFFF81018803}) == 0
    assert offset(LINES, {"other": 1}) == 0
    assert shifted(LINES, 0) == LINES


def test_where_names_the_function_and_the_possible_callers() -> None:
    cpu = {
        "cpu": 3,
        "rip": 0xFFFFFFFF81018803,
        "rsp": 0,
        "eflags": 0x46,
        "stack": [0xFFFFFFFFA0000AD0, 0xFFFFFFFF81B57900],
    }
    assert (
        where(cpu, TABLE) == "CPU 3: int3_notify+0x3, interrupts off < orch_pass_nop5+0x10 [orch]"
    )


# --- names that compilers make -------------------------------------------------------------------

LTO = [
    "ffffffff81000000 T _stext",
    "ffffffff81001000 t do_sync_core.llvm.8808958708760710351",
    "ffffffff81002000 t do_sync_core.cold",
    "ffffffff81003000 t __text_poke.constprop.0.isra.0",
    "ffffffff81003800 t __text_poke.part.0",
    "ffffffff81004000 t poke_int3_handler.cfi_jt",
    "ffffffff81005000 t multi_cpu_stop.lto_priv.0",
    "ffffffff81006000 t text_poke_bp.constprop.0",
    "ffffffff81007000 T text_poke_bp",
    "ffffffff81008000 t int3_notify.__uniq.123.llvm.9",
]


def test_clones_have_the_name_of_their_source() -> None:
    found = addresses(LTO)
    assert found["do_sync_core"] == 0xFFFFFFFF81001000
    assert found["__text_poke"] == 0xFFFFFFFF81003000
    assert found["multi_cpu_stop"] == 0xFFFFFFFF81005000
    assert found["int3_notify"] == 0xFFFFFFFF81008000
    assert found["text_poke_bp"] == 0xFFFFFFFF81007000  # the function itself, not its clone
    assert "poke_int3_handler" not in found  # where an indirect call jumps from
    assert Symbols(LTO).function(0xFFFFFFFF81001002) == "do_sync_core+0x2"
    assert Symbols(LTO).function(0xFFFFFFFF81002002) == "do_sync_core.cold+0x2"


def test_the_guest_is_asked_for_clones_as_well() -> None:
    pattern = f" [a-zA-Z] (do_sync_core|__text_poke|text_poke_bp){CLONE}*([[:space:]]|$)"
    done = subprocess.run(
        ["grep", "-cE", pattern], input="\n".join(LTO), capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == 4


def test_facts_and_edits_find_clones() -> None:
    read = lambda address, length: b"\x90" * length  # noqa: E731
    found = facts.facts(LTO, read)
    assert found["writes text"] == "__text_poke" and found["pokes one site"] == "text_poke_bp"
    edit = Edit(("do_sync_core",), "nop", "nop", "", 1)
    (change,) = locate_edits([edit], LTO, read)
    assert change.address == 0xFFFFFFFF81001000
