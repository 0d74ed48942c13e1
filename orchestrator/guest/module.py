"""Building the test module for exactly one kernel."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from orchestrator.errors import BuildError
from orchestrator.host import proc
from orchestrator.host.paths import PROJECT, cache_dir, cached_dir
from orchestrator.kernel.build import TARGET
from orchestrator.kernel.model import Kernel
from orchestrator.scenarios import scenario

SOURCES = PROJECT / "guest" / "module"
NAME = "orch.ko"


def sources() -> dict[str, bytes]:
    """Every file that the module is built from, by name: its own, the scenarios in code, and a list of these."""
    files = {
        path.name: path.read_bytes()
        for path in sorted(SOURCES.iterdir())
        if path.suffix in (".c", ".h") or path.name == "Kbuild"
    }
    scenarios = sorted(scenario.DIRECTORY.glob("*.c"))
    files |= {f"scenario-{path.name}": path.read_bytes() for path in scenarios}
    entries = (f'ORCH_ENTRY("{path.stem}", {path.stem.replace("-", "_")})\n' for path in scenarios)
    return files | {"scenarios.h": "".join(entries).encode()}


def build(kernel: Kernel) -> Path:
    """The module for `kernel`, cached by the kernel's content and the module's sources.

    Raises BuildError, with the compiler's first complaint, when it does not build.
    """
    if kernel.kbuild is None:
        raise BuildError(
            f"{kernel.name} has no build tree or headers, so the test module cannot be built for it"
        )
    content = [kernel.digest.encode(), *(name.encode() + text for name, text in sources().items())]
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
            kept = cache_dir() / "modules" / f"{digest}.log"
            kept.write_text(error.output)
            first = lines[0].strip() if lines else "make failed"
            raise BuildError(
                f"the test module does not build for {kernel.name}: {first} (see {kept})"
            ) from error
        for file in directory.iterdir():  # objects take ten times as much
            if file.suffix not in (".ko", ".c", ".h"):
                file.unlink() if not file.is_dir() else shutil.rmtree(file)

    return cached_dir(target, make) / NAME


def _with_warnings(flags: str) -> str:
    """`flags` without -w: an old kernel's own code is full of what today's compiler warns of, but ours is not."""
    return " ".join(flag for flag in flags.split() if flag != "-w")


def files(kernel: Kernel) -> dict[str, Path]:
    """What goes into the guest, by its path there: the test module, and the one that a scenario loads beside it."""
    return {f"/{path.name}": path for path in sorted(build(kernel).parent.glob("*.ko"))}
