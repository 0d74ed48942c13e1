# SPDX-License-Identifier: GPL-2.0-only
"""What a run writes down for GDB: which files have its symbols, and for which addresses."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from orchestrator import ui
from orchestrator.errors import InfraError
from orchestrator.guest import module
from orchestrator.host.paths import cache_dir, cached_dir
from orchestrator.kernel.model import Kernel
from orchestrator.machine.machine import Machine
from orchestrator.text import symbolfile

SYMBOLS = "symbols.json"
LIVE = "live.json"


def note_symbols(machine: Machine, kernel: Kernel, directory: Path, *, fetch: bool) -> None:
    """Write symbols.json: the symbol files of the kernel and the test module, and load addresses.

    fetch: if there is no vmlinux and the cache does not have the symbols either, read the guest's
    symbol table, which takes seconds.
    """
    status, output = machine.ssh.run("grep -r . /sys/module/orch/sections")
    pairs = (
        line.rpartition("/")[2].split(":") for line in (output.splitlines() if status == 0 else ())
    )
    # The kernel frees .init and may reuse the memory; .exit may not have been loaded at all.
    sections = {name: address for name, address in pairs if not name.startswith((".init", ".exit"))}
    content = {
        "kernel": str(kernel.vmlinux or _symbols_of_guest(machine, kernel, fetch=fetch)),
        "code": kernel.vmlinux is not None,
        "module": str(module.build(kernel)) if sections else None,
        "sections": sections,
    }
    (directory / SYMBOLS).write_text(json.dumps(content, indent=1) + "\n")


def kernel_symbols(directory: Path) -> Path:
    """The file with the kernel's symbols that symbols.json in `directory` names."""
    return Path(json.loads((directory / SYMBOLS).read_text())["kernel"])


def _symbols_of_guest(machine: Machine, kernel: Kernel, *, fetch: bool) -> Path:
    """An ELF file made from the guest's /proc/kallsyms.

    It is cached per kernel: guests boot with nokaslr, so addresses are the same at each boot.
    """
    directory = cache_dir() / "symbols" / kernel.digest

    def make(partial: Path) -> None:
        with ui.step("reading the guest's symbol table"):
            status, output = machine.ssh.run("gzip -c /proc/kallsyms > /tmp/kallsyms.gz", 300)
            if status:
                raise InfraError(f"cannot read the guest's symbol table: {output.strip()}")
            lines = gzip.decompress(machine.ssh.get("/tmp/kallsyms.gz")).decode().splitlines()
            machine.ssh.run("rm /tmp/kallsyms.gz")
        (partial / "kernel.elf").write_bytes(symbolfile.from_kallsyms(lines))

    return (cached_dir(directory, make) if fetch else directory) / "kernel.elf"
