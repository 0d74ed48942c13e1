# SPDX-License-Identifier: GPL-2.0-only
"""Makes the kernel headers of a newer Debian release usable on this machine.

Their programs (modpost, objtool, fixdep) get that release's C library, and their makefiles get a
compiler wrapper that drops options this machine's gcc does not know. Which programs and options are
affected is found by trying them, not by comparing versions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from orchestrator.host import debian, proc

LIBRARIES = ("libc6", "libelf1t64", "zlib1g", "libzstd1")
"""Packages of the libraries that these programs are linked with.

libelf1t64 has this name since trixie, the first release whose headers needed this.
"""
LOADER = "ld-linux-x86-64.so.2"
OPTION = re.compile(r"(?<![\w-])(-[fm][a-z][a-z0-9-]*)(=(?:[\w.,+-]+(?![\w.,+$-]))?)?")
"""Options in makefiles that gcc may refuse. It never refuses an unknown warning option.

`-fname`, `-fname=value`, or `-fname=` if the value is a variable of make.
"""


def adapt(prefix: Path, final: Path, suite: str) -> None:
    """Adapt the headers that are unpacked in `prefix`.

    final: where `prefix` will be moved.
    suite: the suite that the headers come from.
    """
    programs = [program for program in _programs(prefix) if not _runs_here(program)]
    if programs:
        _add_libraries(prefix, suite.partition("-")[0])
    for program in programs:
        _wrap(program, prefix, final)
    if refused := sorted(_refused_options(prefix)):
        _wrap_compiler(refused, prefix, final)


def _wrap(program: Path, prefix: Path, final: Path) -> None:
    """Replace `program` by a script that runs it with the libraries in prefix/runtime."""
    original = program.with_name(program.name + ".elf")
    program.rename(original)
    libraries = final / "runtime"
    binary = final / original.relative_to(prefix)
    program.write_text(
        "#!/bin/sh\n# Built for a newer C library than this machine's, so run it with that one.\n"
        f'exec {libraries}/{LOADER} --library-path {libraries} {binary} "$@"\n'
    )
    program.chmod(0o755)


def _wrap_compiler(refused: list[str], prefix: Path, final: Path) -> None:
    """Make the headers use a gcc that ignores the options `refused`, written like OPTION."""
    compiler = prefix / "runtime" / "gcc"
    compiler.parent.mkdir(exist_ok=True)
    patterns = "|".join(f"{option}*" if option.endswith("=") else option for option in refused)
    compiler.write_text(
        "#!/bin/bash\n# These headers expect a newer gcc: drop the options that this one lacks.\n"
        "for argument; do\n"
        f'case $argument in {patterns}) ;; *) arguments+=("$argument") ;; esac\n'
        "done\n"
        'exec gcc "${arguments[@]}"\n'
    )
    compiler.chmod(0o755)
    for variables in prefix.glob("usr/src/linux-headers-*/.kernelvariables"):
        path = final / compiler.relative_to(prefix)
        text = variables.read_text()
        variables.write_text(re.sub(r",\$\(CROSS_COMPILE\)gcc\)", f",{path})", text))


def _programs(prefix: Path) -> Iterator[Path]:
    """The ELF executables among the headers."""
    for directory, _, files in os.walk(prefix / "usr" / "lib"):
        for name in files:
            file = Path(directory, name)
            executable = not file.is_symlink() and os.access(file, os.X_OK)
            if executable and file.read_bytes()[:4] == b"\x7fELF":
                yield file


def _runs_here(program: Path) -> bool:
    return "not found" not in proc.run([proc.need("ldd", "libc-bin"), program], check=False).stdout


def _add_libraries(prefix: Path, suite: str) -> None:
    """Copy the shared libraries of `suite` to prefix/runtime."""
    unpacked = prefix / "runtime" / "packages"
    for name in LIBRARIES:
        if packages := debian.candidates(re.escape(name), (suite,)):
            debian.unpack(debian.download(debian.newest_of(packages)), unpacked)
    for library in unpacked.glob("**/x86_64-linux-gnu/*.so*"):
        copy = prefix / "runtime" / library.name
        if library.is_file() and not copy.exists():
            copy.write_bytes(library.read_bytes())
            copy.chmod(0o755)
    proc.run(["rm", "-rf", unpacked])


def _refused_options(prefix: Path) -> set[str]:
    """Options in the makefiles that this machine's gcc does not know.

    It may know an option with a value and not without one, or with some values only.
    """
    options: set[str] = set()
    for common in prefix.glob("usr/src/linux-headers-*"):
        for makefile in (
            common / "Makefile",
            common / "arch/x86/Makefile",
            *common.glob("scripts/Makefile.*"),
        ):
            if makefile.is_file():
                options |= {"".join(match) for match in OPTION.findall(makefile.read_text())}
    tried = {f"{option}0" if option.endswith("=") else option: option for option in options}
    command = [proc.need("gcc", "gcc"), "-c", "-o", "/dev/null", *sorted(tried)]
    output = proc.run([*command, "-x", "c", "/dev/null"], check=False).stdout
    refused = re.findall(r"unrecognized command-line option .(-[\w.,+=-]+)", output)
    return {tried[argument] for argument in refused if argument in tried}
