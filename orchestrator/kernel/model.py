# SPDX-License-Identifier: GPL-2.0-only
"""What the rest of the program knows about a kernel, whatever kind it is."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.options import argv, check_texts, option

MOST_NAMED = 3
"""Most changes that a name has in full."""
SOURCE, CHANGES = "kernel", "changes"
"""Option groups: which kernel, and changes to its source or configuration."""


def _patch(text: str) -> Path:
    from orchestrator.kernel import patches  # rarely needed, and --help must not wait for it

    return patches.argument(text)


@dataclass(frozen=True, kw_only=True)
class KernelRequest:
    """Which kernel the user requests. `bzimage` and `tree` override `selector`.

    Raises UsageError for text with control characters.
    """

    selector: str = option(
        "--kernel",
        "6.1-int3",
        metavar="NAME",
        group=SOURCE,
        key="kernel",
        help="a definition in kernels/, debian:VERSION, debian-source:SERIES or git:WHERE@REF "
        "(default: 6.1-int3)",
    )
    tree: Path | None = option(
        "--tree",
        None,
        parse=Path,
        metavar="PATH",
        group=SOURCE,
        help="build this source tree or tarball (never written to)",
    )
    bzimage: Path | None = option(
        "--bzimage",
        None,
        parse=Path,
        metavar="FILE",
        group=SOURCE,
        help="a kernel image that is already built",
    )
    headers: Path | None = option(
        "--headers",
        None,
        parse=Path,
        metavar="DIR",
        group=SOURCE,
        help="headers or build tree of the --bzimage, for the test module",
    )
    patches: tuple[Path, ...] = option(
        "--patch",
        (),
        parse=_patch,
        metavar="FILE",
        group=CHANGES,
        help="apply a diff, a mail, the mbox of a thread, a directory of them, a quilt series, "
        "or - for standard input (repeatable)",
    )
    fragments: tuple[Path, ...] = option(
        "--config",
        (),
        parse=Path,
        metavar="FILE",
        group=CHANGES,
        key="config",
        help="merge a config fragment (repeatable)",
    )
    settings: tuple[str, ...] = option(
        "--set",
        (),
        metavar="CONFIG_X=y",
        group=CHANGES,
        key="set",
        help="set one config option (repeatable)",
    )

    make: tuple[str, ...] = option(
        "--make",
        (),
        metavar="VAR=VALUE",
        group=CHANGES,
        key="make",
        help="set one variable of make, such as LLVM=1 (repeatable)",
    )

    def __post_init__(self) -> None:
        check_texts(self)

    @property
    def source(self) -> str:
        """What people call the kernel that is asked for, without the changes to it."""
        path = self.bzimage or self.tree
        return (Path(os.path.realpath(path)).name or str(path)) if path else self.selector

    @property
    def changes(self) -> str:
        """What is changed: ` + fix.patch + CONFIG_X=y`; empty if nothing is."""
        files = (*self.patches, *self.fragments)
        names = (*(file.name for file in files), *self.settings, *self.make)
        more = (f"{len(names) - MOST_NAMED} more",) if len(names) > MOST_NAMED + 1 else ()
        return "".join(f" + {name}" for name in (*names[: MOST_NAMED + 1 - len(more)], *more))

    @property
    def name(self) -> str:
        """What a run of this kernel is called, as far as the request tells."""
        return self.source + self.changes

    def argv(self) -> list[str]:
        """The options of `orchestrator run` that request this kernel."""
        arguments = argv(self)
        if self.tree or self.bzimage:  # the selector has no effect
            index = arguments.index("--kernel")
            del arguments[index : index + 2]
        return arguments


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel that is ready to boot, with what is needed to build modules for it."""

    name: str
    """What was asked for: `linux v6.12-3-g0123456789ab + fix.patch`."""
    release: str
    """As `uname -r` prints it."""
    digest: str
    """Hexadecimal, identifies the content: source, patches, config and compiler.

    Everything derived from the kernel can be cached under it.
    """
    bzimage: Path
    """The image to boot."""
    config: Path | None
    """Its .config, if available."""
    kbuild: Path | None = None
    """The directory for `make -C KBUILD M=...`: a build tree or unpacked headers.

    None if modules cannot be built.
    """
    vmlinux: Path | None = None
    """The ELF file with symbols, if available."""
    origin: dict[str, str] = field(default_factory=dict)
    """Where the kernel comes from, as label -> text for the report."""
    make: dict[str, str] = field(default_factory=dict)
    """Variables for make's command line, needed for modules as well."""
    pinned: str = ""
    """The selector that always means this kernel, if that of the request may mean another one."""

    def option(self, name: str) -> str | None:
        """The value of CONFIG_`name` (`y`, `m`, `64`, `"text"`), None if not set or not known."""
        if self.config is None:
            return None
        prefix = f"CONFIG_{name}="
        for line in self.config.read_text().splitlines():
            if line.startswith(prefix):
                return line[len(prefix) :]
        return None
