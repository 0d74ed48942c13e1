# SPDX-License-Identifier: GPL-2.0-only
"""Source lines of kernel addresses, from the line tables of a vmlinux.

Every kernel that we build has them (LINE_TABLES in kernel/build.py); a distribution's has not.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import InfraError
from orchestrator.host import proc
from orchestrator.text import symbols

ADDRESS = re.compile(r"0x[0-9a-f]+")
ANSWER = re.compile(r"(?P<file>.+):(?P<line>[1-9]\d*)(?: \(discriminator \d+\))?")
FRAME = re.compile(r"(?P<name>[\w.]+)\+0x(?P<offset>[0-9a-f]+)/0x[0-9a-f]+(?! \[)")
"""A function of the kernel in its own traces. A module's has the module's name behind it."""
SOURCE = re.compile(r"^.*?/src/")
"""What is before a file of the kernel's source in a workspace of ours."""


def of_addresses(vmlinux: Path | None, addresses: Iterable[int], moved: int = 0) -> dict[int, str]:
    """FILE:LINE by address, for those that `vmlinux` knows; empty if it has no line tables.

    moved: how far the kernel is from where its vmlinux has it.
    """
    asked = "".join(f"{address - moved:#x}\n" for address in set(addresses) if address > moved)
    if vmlinux is None or not asked:
        return {}
    try:
        # -a: each answer comes with its address, so that a warning between them does no harm.
        command = [proc.need("addr2line", "binutils"), "-a", "-e", str(vmlinux)]
        output = proc.run(command, stdin=asked).stdout.splitlines()
    except (InfraError, subprocess.CalledProcessError):
        return {}  # a report without lines is one all the same
    found = {}
    for before, line in itertools.pairwise(output):
        if ADDRESS.fullmatch(before) and (match := ANSWER.fullmatch(line)):
            file = SOURCE.sub("", os.path.normpath(match["file"]))
            found[int(before, 16) + moved] = f"{file}:{match['line']}"
    return found


def of_cpus(
    vmlinux: Path | None, cpus: Iterable[Mapping[str, Any]], moved: int = 0
) -> dict[int, str]:
    """The same for where CPUs are, and for the calls from which they came.

    cpus: as Watch.cpu_snapshot() returns them. A return address is behind the call, and may belong
    to the next line: so the lines are those of the byte before it.
    """
    cpus = list(cpus)
    calls = {word - 1 for cpu in cpus for word in cpu["stack"]}
    return of_addresses(vmlinux, calls | {cpu["rip"] for cpu in cpus}, moved)


def decoded(vmlinux: Path | None, trace: Iterable[str]) -> dict[str, str]:
    """The lines of a kernel's trace that name functions, with FILE:LINE added to each function.

    By the line as it is; what has no function in `vmlinux`, such as a module's, is left out.
    """
    frames = {line: match for line in trace if (match := FRAME.search(line))}
    if vmlinux is None or not frames:
        return {}
    functions = symbols.addresses(symbols.of_vmlinux(vmlinux))
    places = {}
    for line, match in frames.items():
        if start := functions.get(match["name"]):
            # Except for RIP, what is printed is behind the call.
            call = 0 if "RIP:" in line else 1
            places[line] = start + int(match["offset"], 16) - call
    known = of_addresses(vmlinux, places.values())
    return {
        line: f"{line[: frames[line].end()]} ({known[place]}){line[frames[line].end() :]}"
        for line, place in places.items()
        if place in known
    }
