# SPDX-License-Identifier: GPL-2.0-only
"""Building the test module for one kernel."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from orchestrator.errors import BuildError
from orchestrator.host import proc, seal
from orchestrator.host.paths import DATA, cache_dir, cached_dir
from orchestrator.kernel.build import TARGET
from orchestrator.kernel.model import Kernel
from orchestrator.scenarios import scenario

SOURCES = DATA / "guest" / "module"
NAME = "orch.ko"


def sources() -> dict[str, bytes]:
    """The module's sources, by name: its own, the scenarios in C, and a generated list of them."""
    files = {
        path.name: path.read_bytes()
        for path in sorted(SOURCES.iterdir())
        if path.suffix in (".c", ".h", ".list") or path.name == "Kbuild"
    }
    scenarios = sorted(scenario.DIRECTORY.glob("*.c"))
    files |= {f"scenario-{path.name}": path.read_bytes() for path in scenarios}
    entries = (f'ORCH_ENTRY("{path.stem}", {path.stem.replace("-", "_")})\n' for path in scenarios)
    return files | {"scenarios.h": "".join(entries).encode()}


def build(kernel: Kernel) -> Path:
    """The test module for `kernel`. Cached by what it is built with and the module's sources.

    Kernels that differ only in code have the same module: a commit of a bisection, a mutant.

    Raises BuildError, with the compiler's first error, if it does not build.
    """
    if kernel.kbuild is None:
        raise BuildError(
            f"{kernel.name} has no build tree or headers, so the test module cannot be built for it"
        )
    content = [_built_with(kernel), *(name.encode() + text for name, text in sources().items())]
    digest = hashlib.sha256(b"\0".join(content)).hexdigest()[:16]
    target = cache_dir() / "modules" / digest

    def make(directory: Path) -> None:
        for name, text in sources().items():
            (directory / name).write_bytes(text)
        try:
            jobs = f"-j{len(os.sched_getaffinity(0))}"
            variables = [
                f"{name}={_with_warnings(value)}"
                for name, value in {**TARGET, **kernel.make}.items()
            ]
            command = [
                proc.need("make", "make"),
                jobs,
                "-C",
                str(kernel.kbuild),
                f"M={directory}",
                *variables,
            ]
            proc.run([*command, "modules"])
        except subprocess.CalledProcessError as error:
            lines = [
                line
                for line in error.output.splitlines()
                if "error" in line.lower() or "***" in line
            ]
            log = cache_dir() / "modules" / f"{digest}.log"
            log.write_text(error.output)
            first = lines[0].strip() if lines else "make failed"
            raise BuildError(
                f"the test module does not build for {kernel.name}: {first} (see {log})"
            ) from error
        for file in directory.iterdir():  # the objects are ten times as large
            if file.suffix not in (".ko", ".c", ".h", ".list"):
                file.unlink() if not file.is_dir() else shutil.rmtree(file)

    return cached_dir(target, make) / NAME


def _built_with(kernel: Kernel) -> bytes:
    """Identifies headers, configuration, compiler, and make's variables."""
    assert kernel.kbuild is not None
    prefix = f"{kernel.kbuild.name}/"
    files = sorted(
        f"{path} {printed}"
        for path, printed in seal.fingerprints(kernel.kbuild.parent).items()
        if path.startswith(prefix)
    )
    # Headers that we did not build are not sealed by themselves.
    return "\n".join([*(files or [kernel.digest]), repr(sorted(kernel.make.items()))]).encode()


def _with_warnings(flags: str) -> str:
    """`flags` without -w, which hides a new compiler's many warnings about an old kernel's code.

    In our own code we want to see them.
    """
    return " ".join(flag for flag in flags.split() if flag != "-w")


def files(kernel: Kernel) -> dict[str, Path]:
    """Files for the guest, by path there: the test module, and the module that a scenario loads."""
    return {f"/{path.name}": path for path in sorted(build(kernel).parent.glob("*.ko"))}
