"""What the rest of the program knows of a kernel, whatever it was made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.options import argv, option

SOURCE, CHANGES = "kernel", "changes"
"""Groups of options: which kernel, and what is done to its source or configuration before it is built."""


@dataclass(frozen=True, kw_only=True)
class KernelRequest:
    """Which kernel the user wants. `bzimage` and `tree` win over `selector`."""

    selector: str = option(
        "--kernel",
        "6.1-int3",
        metavar="NAME",
        group=SOURCE,
        key="kernel",
        help="a definition in kernels/, debian:VERSION, debian-source:SERIES or git:WHERE@REF (default: 6.1-int3)",
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
        parse=Path,
        metavar="FILE",
        group=CHANGES,
        help="apply a diff, a mail, or an mbox with a series (repeatable)",
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

    def argv(self) -> list[str]:
        """The options of `orchestrator run` that ask for this kernel."""
        words = argv(self)
        if self.tree or self.bzimage:  # which win
            at = words.index("--kernel")
            del words[at : at + 2]
        return words


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel that can be booted, and a module built for.

    name: as the user asked for it. release: `uname -r`. digest: hex, identifies the content (source, patches, config,
    compiler), so whatever is derived from the kernel can be cached under it. bzimage: the bootable image. config: its
    .config, None where it is not to be had. kbuild: the directory that `make -C KBUILD M=...` takes (build tree or
    unpacked headers), None when modules cannot be built. vmlinux: ELF file with symbols, None when there is none.
    origin: where it came from, in words and versions, for the report. make: variables that make wants on its command
    line for modules, too.
    """

    name: str
    release: str
    digest: str
    bzimage: Path
    config: Path | None
    kbuild: Path | None = None
    vmlinux: Path | None = None
    origin: dict[str, str] = field(default_factory=dict)
    make: dict[str, str] = field(default_factory=dict)

    def option(self, name: str) -> str | None:
        """The value of CONFIG_`name` (`y`, `m`, `64`, `"text"`), or None where it is not set (or not known)."""
        if self.config is None:
            return None
        prefix = f"CONFIG_{name}="
        for line in self.config.read_text().splitlines():
            if line.startswith(prefix):
                return line[len(prefix) :]
        return None
