# SPDX-License-Identifier: GPL-2.0-only
"""The compiler and the linker that a kernel is built with, as make's variables choose them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from functools import cache

from orchestrator.errors import UsageError, shortened
from orchestrator.host import proc
from orchestrator.host.notices import warn

OURS = re.compile(r"[OMVWC]|ARCH|SRCARCH|SUBARCH|KBUILD_(OUTPUT|EXTMOD|BUILD_.*)|KCONFIG_.*|MAKE.*")
"""Variables that decide where and for what is built, which is not for the user to say."""
FORGOTTEN = ("LLVM", "LLVM_IAS", "CC", "LD", "KCFLAGS")
"""Variables of the environment that people give to make, and that have no effect here."""
JOINED = ("KCFLAGS", "KAFLAGS", "KCPPFLAGS")
"""Variables whose values add up."""


def settings(lines: Iterable[str]) -> dict[str, str]:
    """The variables of `--make VAR=VALUE`. Raises UsageError for what is none, or not for users."""
    found: dict[str, str] = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise UsageError(f"--make {shortened(line)}: write VAR=VALUE, such as LLVM=1")
        if OURS.fullmatch(name):
            raise UsageError(f"--make {shortened(line)}: orchestrator itself sets {name}")
        found[name] = value
    return found


def merged(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    """All variables; the second value wins, or is added if it is one of flags."""
    values = {**first, **second}
    for name in JOINED:
        if name in first and name in second:
            values[name] = f"{first[name]} {second[name]}"
    return values


def compiler(make: Mapping[str, str]) -> str:
    """The C compiler that a kernel with these variables is built with."""
    return make.get("CC") or _tool(make, "clang", "gcc")


def linker(make: Mapping[str, str]) -> str:
    return make.get("LD") or _tool(make, "ld.lld", "ld")


def _tool(make: Mapping[str, str], llvm: str, gnu: str) -> str:
    """LLVM=1, LLVM=-16 and LLVM=/path/ each mean another one (Documentation/kbuild/llvm.rst)."""
    value = make.get("LLVM", "")
    if not value:
        return gnu
    if value.endswith("/"):
        return f"{value}{llvm}"
    return f"{llvm}{value}" if value.startswith("-") else llvm


def variables(make: Mapping[str, str]) -> dict[str, str]:
    """All of make's variables that name a compiler, which is called through ccache if possible."""
    target = compiler(make)
    host = make.get("HOSTCC") or (_tool(make, "clang", "gcc"))
    through = "ccache " if shutil.which("ccache") else ""
    return {
        "CC": target if target.startswith("ccache ") else through + target,
        "HOSTCC": host if host.startswith("ccache ") else through + host,
    }


def needed(make: Mapping[str, str]) -> dict[str, str]:
    """The programs that a build needs, each with the Debian package that has it."""
    programs = {_program(compiler(make)): "", _program(linker(make)): ""}
    if make.get("LLVM"):
        programs[_tool(make, "llvm-ar", "ar")] = ""
    return {program: _package(program) for program in programs}


def _program(command: str) -> str:
    """The program of `ccache gcc -m64`."""
    words = command.split()
    return next((word for word in words if word != "ccache"), command)


def _package(program: str) -> str:
    """The Debian package of a program such as gcc-11, clang-16, ld.lld or llvm-ar-16."""
    name = program.rpartition("/")[2]
    match = re.fullmatch(r"(.*?)(-\d+)?", name)
    assert match
    tool, version = match[1], match[2] or ""
    package = {"ld": "binutils", "ld.bfd": "binutils", "ld.lld": "lld", "llvm-ar": "llvm"}
    return package.get(tool, tool) + ("" if tool in ("ld", "ld.bfd") else version)


def described(make: Mapping[str, str]) -> str:
    """The versions of compiler and linker, as they print them. Raises InfraError if one lacks."""
    return " | ".join(
        _version(program, package)
        for program, package in needed(make).items()
        if not program.rpartition("/")[2].startswith("llvm-ar")
    )


@cache
def _version(program: str, package: str) -> str:
    output = proc.ask([proc.need(program, package), "--version"])
    return (output.splitlines() or [""])[0]


def warn_about_environment(make: Mapping[str, str]) -> None:
    """Say which variables of the environment would count for make, and do not count here."""
    for name in FORGOTTEN:
        if (value := os.environ.get(name)) and name not in make:
            warn(f"{name}={value} in the environment has no effect: use --make {name}={value}")
