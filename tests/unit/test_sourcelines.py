# SPDX-License-Identifier: GPL-2.0-only
"""File and line of addresses in the kernel."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.text import sourcelines, symbols

SOURCE = """int poke(int what)
{
	return what + 1;
}

int main(void)
{
	return poke(41);
}
"""

needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler")


def built(directory: Path, *options: str) -> tuple[Path, int]:
    """A program that stands for a vmlinux, built as a kernel is, and the address of poke()."""
    source = directory / "src" / "arch" / "poke.c"
    source.parent.mkdir(parents=True)
    source.write_text(SOURCE)
    build = directory / "build"
    build.mkdir()
    command = ["cc", *options, "-no-pie", "-O0", "-o", "vmlinux", "../src/arch/poke.c"]
    subprocess.run(command, cwd=build, check=True)
    lines = symbols.of_vmlinux(build / "vmlinux")
    return build / "vmlinux", symbols.addresses(lines)["poke"]


@needs_compiler
def test_an_address_has_its_file_in_the_kernels_source(tmp_path: Path) -> None:
    vmlinux, poke = built(tmp_path, "-g1")
    assert sourcelines.of_addresses(vmlinux, [poke, 0x10]) == {poke: "arch/poke.c:2"}
    moved = 0x200000
    assert sourcelines.of_addresses(vmlinux, [poke + moved], moved) == {
        poke + moved: "arch/poke.c:2"
    }


@needs_compiler
def test_a_kernel_without_line_tables_has_no_lines(tmp_path: Path) -> None:
    vmlinux, poke = built(tmp_path, "-g0")
    assert sourcelines.of_addresses(vmlinux, [poke]) == {}


def test_without_a_vmlinux_there_are_no_lines(tmp_path: Path) -> None:
    assert sourcelines.of_addresses(None, [1]) == {}
    assert sourcelines.of_addresses(tmp_path / "missing", [1]) == {}


@needs_compiler
def test_where_a_cpu_is_has_the_line_of_the_call_and_not_the_next(tmp_path: Path) -> None:
    vmlinux, poke = built(tmp_path, "-g1")
    lines = symbols.of_vmlinux(vmlinux)
    code = subprocess.run(["objdump", "-d", vmlinux], capture_output=True, text=True, check=True)
    after = code.stdout.partition("<main>:")[2].partition("<poke>")[2].splitlines()[1]
    back = int(after.split(":")[0], 16)
    cpu = {"cpu": 1, "rip": poke, "eflags": 0x200, "stack": [back, 5]}
    names = symbols.Symbols(lines)
    names.lines = sourcelines.of_cpus(vmlinux, [cpu])
    text = symbols.where(cpu, names)
    assert text.startswith("CPU 1: poke+0x0 (arch/poke.c:2), interrupts on < main+0x")
    assert text.endswith("(arch/poke.c:8)")


@needs_compiler
def test_a_trace_of_the_kernel_gets_the_lines_of_its_functions(tmp_path: Path) -> None:
    vmlinux, _ = built(tmp_path, "-g1")
    rip = "[    1.0] RIP: 0010:poke+0x0/0x10"
    call = "[    1.0]  ? main+0x1/0x20"
    other = "[    1.0]  poke+0x0/0x10 [orch]"
    found = sourcelines.decoded(vmlinux, [rip, call, other, "Call Trace:", "gone+0x1/0x2"])
    assert found == {rip: f"{rip} (arch/poke.c:2)", call: f"{call} (arch/poke.c:7)"}
    assert sourcelines.decoded(None, [rip]) == {}
