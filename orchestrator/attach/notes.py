# SPDX-License-Identifier: GPL-2.0-only
"""What a run writes down for GDB: which files have its symbols, and for which addresses.

A run's directory may come from a stranger, and GDB runs programs if it is asked to. So both files
are read only here, and only names, numbers and paths of the right kind leave this module.
"""

from __future__ import annotations

import json
import os
import re
import stat
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator import ui
from orchestrator.errors import InfraError, UsageError
from orchestrator.guest import module
from orchestrator.host.paths import cache_dir, cached_dir, write_whole
from orchestrator.kernel.model import Kernel
from orchestrator.machine.machine import Machine
from orchestrator.text import symbolfile

SYMBOLS = "symbols.json"
LIVE = "live.json"
LARGEST = 1 << 20
"""Bytes of either file. A module of a thousand sections needs a tenth of it."""
LARGEST_KALLSYMS = 128 << 20
"""Bytes of a guest's /proc/kallsyms. Debian's kernels have 11 MB."""
SECTION = re.compile(r"[.\w][.\w-]*", re.ASCII)
ADDRESS = re.compile(r"0x[0-9a-f]{1,16}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class SymbolFiles:
    """What symbols.json says."""

    kernel: Path | None
    """ELF file with the kernel's symbols; None if it does not exist (any more)."""
    code: bool
    """Whether that file has the kernel's code as well."""
    module: Path | None
    """The test module; None if none was loaded, or if it does not exist any more."""
    sections: Mapping[str, int]
    """Addresses of the module's sections in the guest."""


@dataclass(frozen=True, kw_only=True)
class Sockets:
    """What live.json says: the guest's sockets."""

    gdb: Path
    """QEMU's gdbstub."""
    line: Path
    """The owner of the guest."""


def note_symbols(
    machine: Machine, kernel: Kernel, directory: Path, *, fetch: bool, moved: bool = False
) -> Path:
    """Write symbols.json: the symbol files of the kernel and the test module, and load addresses.

    Returns the file with the kernel's symbols. A symbols.json that cannot be written costs a line.

    fetch: if there is no vmlinux and the cache does not have the symbols either, read the guest's
    symbol table, which takes seconds.
    moved: whether the kernel may be elsewhere than its vmlinux and the cache have it (KASLR). Then
    the symbols are the guest's own, and only good for this run.
    """
    vmlinux = None if moved else kernel.vmlinux
    cached = directory / "symbols" if moved else _cached_symbols(kernel)
    status, output = machine.ssh.run("grep -r . /sys/module/orch/sections")
    sections = sections_of_guest(output if status == 0 else "")
    symbols = vmlinux or _symbols_of_guest(machine, cached, fetch=fetch)
    _note(directory, kernel, symbols, sections, code=vmlinux is not None)
    return symbols


def note_saved(directory: Path, kernel: Kernel, listing: str) -> Path | None:
    """The same for a guest that was saved, and whose kernel's symbols are known.

    listing: as for sections_of_guest().
    """
    symbols, sections = known_symbols(kernel), sections_of_guest(listing)
    if symbols:
        _note(directory, kernel, symbols, sections, code=kernel.vmlinux is not None)
    return symbols


def _note(
    directory: Path, kernel: Kernel, symbols: Path, sections: Mapping[str, int], *, code: bool
) -> None:
    content = {
        "kernel": str(symbols),
        "code": code,
        "module": str(module.build(kernel)) if sections else None,
        "sections": {name: f"{address:#x}" for name, address in sections.items()},
    }
    with ui.saying_what_fails(SYMBOLS):
        write_whole(directory / SYMBOLS, json.dumps(content, indent=1) + "\n")


def sections_of_guest(listing: str) -> dict[str, int]:
    """The addresses in `listing`, the lines `/sys/module/orch/sections/NAME:ADDRESS` of a guest.

    GDB would evaluate an address as an expression, and an expression can run programs. A line that
    is no name with a hexadecimal number is left out: the guest may be damaged, or hostile.
    """
    sections = {}
    for line in listing.splitlines():
        name, _, address = line.rpartition("/")[2].partition(":")
        # The kernel frees .init and may reuse the memory; .exit may not have been loaded at all.
        if name.startswith((".init", ".exit")):
            continue
        if SECTION.fullmatch(name) and ADDRESS.fullmatch(address):
            sections[name] = int(address, 16)
    return sections


def read_symbols(directory: Path) -> SymbolFiles:
    """Read symbols.json in `directory`, which may come from a stranger.

    Raises UsageError for anything that a run would not have written.
    """
    file = directory / SYMBOLS
    content = read(file)
    code, sections = content.get("code"), content.get("sections")
    if not isinstance(code, bool) or not isinstance(sections, dict):
        raise _damaged(file, "its fields are of other types")
    for name, address in sections.items():
        if not (SECTION.fullmatch(name) and ADDRESS.fullmatch(str(address))):
            raise _damaged(file, f"{name!r} at {address!r} is no section of a module")
    return SymbolFiles(
        kernel=_elf_file(file, content.get("kernel")),
        code=code,
        module=_elf_file(file, content.get("module")),
        sections={name: int(address, 16) for name, address in sections.items()},
    )


def read_sockets(directory: Path) -> Sockets | None:
    """Read live.json in `directory`, which may come from a stranger; None if there is none.

    Raises UsageError for anything but two sockets in a directory that only this user can enter. GDB
    would take `| COMMAND` in place of the path of a socket.
    """
    file = directory / LIVE
    if not file.exists():
        return None
    content = read(file)
    sockets = Sockets(gdb=_path(file, content.get("gdb")), line=_path(file, content.get("line")))
    for path in (sockets.gdb, sockets.line):
        try:
            status, folder = path.stat(), path.parent.stat()
        except OSError as error:
            raise _damaged(file, f"{path} cannot be used ({error.strerror})") from None
        if not stat.S_ISSOCK(status.st_mode):
            raise _damaged(file, f"{path} is no socket")
        if {status.st_uid, folder.st_uid} != {os.geteuid()} or folder.st_mode & 0o077:
            raise _damaged(file, f"{path} is not a private socket of yours")
    return sockets


def read(file: Path) -> dict[str, object]:
    """The JSON object in `file`. Raises UsageError if there is none."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise _damaged(file, "it is not a regular file")
        with file.open("rb") as handle:
            raw = handle.read(LARGEST + 1)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from None
    if len(raw) > LARGEST:
        raise _damaged(file, "it is too large")
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        raise _damaged(file, "it is not JSON") from None
    if not isinstance(content, dict):
        raise _damaged(file, "it is not a JSON object")
    return content


def _path(file: Path, value: object) -> Path:
    if not isinstance(value, str) or not value.startswith("/") or not value.isprintable():
        raise _damaged(file, f"{value!r} is not an absolute path")
    return Path(value)


def _elf_file(file: Path, value: object) -> Path | None:
    """The ELF file that `file` names, unless it is gone."""
    if value is None:
        return None
    path = _path(file, value)
    try:
        if not path.exists():
            return None
        if path.is_file():
            with path.open("rb") as handle:
                if handle.read(4) == b"\x7fELF":
                    return path
    except OSError as error:
        raise _damaged(file, f"{path} cannot be read ({error.strerror})") from None
    raise _damaged(file, f"{path} is not an ELF file")


def _damaged(file: Path, reason: str) -> UsageError:
    return UsageError(f"{file} was not written by a run, or is damaged: {reason}")


def known_symbols(kernel: Kernel) -> Path | None:
    """A file with the kernel's symbols, if there is one before the kernel has booted."""
    if kernel.vmlinux:
        return kernel.vmlinux
    cached = _cached_symbols(kernel) / "kernel.elf"
    return cached if cached.exists() else None


def _cached_symbols(kernel: Kernel) -> Path:
    return cache_dir() / "symbols" / kernel.digest


def _symbols_of_guest(machine: Machine, directory: Path, *, fetch: bool) -> Path:
    """An ELF file made from the guest's /proc/kallsyms.

    It is cached per kernel: guests boot with nokaslr, so addresses are the same at each boot.
    """

    def make(partial: Path) -> None:
        with ui.step("reading the guest's symbol table"):
            status, output = machine.ssh.run("gzip -c /proc/kallsyms > /tmp/kallsyms.gz", 300)
            if status:
                raise InfraError(f"cannot read the guest's symbol table: {output.strip()}")
            packed = machine.ssh.get("/tmp/kallsyms.gz")
            machine.ssh.run("rm /tmp/kallsyms.gz")
        (partial / "kernel.elf").write_bytes(_symbol_file(packed))

    return (cached_dir(directory, make) if fetch else directory) / "kernel.elf"


def _symbol_file(packed: bytes) -> bytes:
    """The ELF file for a /proc/kallsyms that the guest has packed with gzip."""
    try:
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        listing = unpacker.decompress(packed, LARGEST_KALLSYMS)
        if unpacker.unconsumed_tail:
            raise ValueError(f"it has more than {LARGEST_KALLSYMS >> 20} MiB")
        return symbolfile.from_kallsyms(listing.decode(errors="replace").splitlines())
    except (zlib.error, ValueError) as error:
        raise InfraError(f"the guest's symbol table is damaged: {error}") from None
