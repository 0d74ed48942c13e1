"""Headers of a newer release made usable on this one: their programs get that release's C library, their makefiles a
compiler that passes over what it does not know.

Which programs and which options those are is found by trying them, not by any version.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from orchestrator.host import debian, proc
from orchestrator.host.paths import cache_dir

LIBRARIES = ("libc6", "libelf1t64", "zlib1g", "libzstd1")
"""What modpost, objtool and fixdep are linked with; libelf1t64 is called so since trixie, where such programs begin."""
LOADER = "ld-linux-x86-64.so.2"
OPTION = re.compile(r"(?<![\w-])(-[fm][a-z][a-z0-9-]*)(=?)")
"""Compiler options in makefiles that may be new. Those of warnings are never refused, only noted."""


def adapt(prefix: Path, final: Path, suite: str) -> None:
    """Adapt the headers unpacked in `prefix`, which are of `suite` and will stand in `final`."""
    programs = [program for program in _programs(prefix) if not _runs_here(program)]
    if programs:
        _give_libraries(prefix, suite.partition("-")[0])
    for program in programs:
        kept = program.with_name(program.name + ".elf")
        program.rename(kept)
        libraries = final / "runtime"
        at = final / kept.relative_to(prefix)
        program.write_text(
            "#!/bin/sh\n# Made for a newer C library than this machine's, so it runs with that one.\n"
            f'exec {libraries}/{LOADER} --library-path {libraries} {at} "$@"\n'
        )
        program.chmod(0o755)
    if refused := sorted(_refused(prefix)):
        compiler = prefix / "runtime" / "gcc"
        compiler.parent.mkdir(exist_ok=True)
        patterns = "|".join(f"{option}|{option}=*" for option in refused)
        compiler.write_text(
            "#!/bin/bash\n# These headers are made for a newer gcc: pass over the options that this one lacks.\n"
            f'for word; do case $word in {patterns}) ;; *) words+=("$word") ;; esac; done\n'
            'exec gcc "${words[@]}"\n'
        )
        compiler.chmod(0o755)
        for variables in prefix.glob("usr/src/linux-headers-*/.kernelvariables"):
            at = final / compiler.relative_to(prefix)
            text = variables.read_text()
            variables.write_text(re.sub(r",\$\(CROSS_COMPILE\)gcc\)", f",{at})", text))


def _programs(prefix: Path) -> Iterator[Path]:
    for directory, _, files in os.walk(prefix / "usr" / "lib"):
        for name in files:
            file = Path(directory, name)
            if (
                not file.is_symlink()
                and os.access(file, os.X_OK)
                and file.read_bytes()[:4] == b"\x7fELF"
            ):
                yield file


def _runs_here(program: Path) -> bool:
    return "not found" not in proc.run([proc.need("ldd", "libc-bin"), program], check=False).stdout


def _give_libraries(prefix: Path, suite: str) -> None:
    """The shared libraries of `suite` in prefix/runtime."""
    unpacked = prefix / "runtime" / "packages"
    for name in LIBRARIES:
        if found := debian.candidates(re.escape(name), (suite,)):
            debian.unpack(debian.download(debian.newest_of(found)), unpacked)
    for library in unpacked.glob("**/x86_64-linux-gnu/*.so*"):
        link = prefix / "runtime" / library.name
        if library.is_file() and not link.exists():
            link.write_bytes(library.read_bytes())
            link.chmod(0o755)
    proc.run(["rm", "-rf", unpacked])


def _refused(prefix: Path) -> set[str]:
    """Options in the makefiles that this machine's gcc does not know."""
    wanted: set[tuple[str, str]] = set()
    for common in prefix.glob("usr/src/linux-headers-*"):
        for makefile in (
            common / "Makefile",
            common / "arch/x86/Makefile",
            *common.glob("scripts/Makefile.*"),
        ):
            if makefile.is_file():
                wanted |= set(OPTION.findall(makefile.read_text()))
    empty = cache_dir() / "empty.c"
    empty.touch()
    gcc = proc.need("gcc", "gcc")
    options = sorted({option + ("=0" if sign else "") for option, sign in wanted})
    said = proc.run([gcc, "-c", "-o", "/dev/null", *options, empty], check=False).stdout
    return {
        option.partition("=")[0]
        for option in re.findall(r"unrecognized command-line option .(-[\w=-]+)", said)
    }
