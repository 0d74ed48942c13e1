"""What the rest of the program knows of a kernel, whatever it was made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class KernelRequest:
    """Which kernel the user wants. `bzimage` and `tree` win over `selector`.

    selector: the name of a definition in kernels/ (`6.1-int3`), or `debian:VERSION` (`debian:6.1`, `debian:6.1.192`).
    Also `debian-source:SERIES`, built from Debian's linux-source-SERIES, and `git:WHERE@REF`.
    tree: a kernel source tree, built out of tree and never written into.
    bzimage: an image that somebody else built; headers: what modules for it are built with, None without.
    patches: applied in order on top of the source. fragments: config fragments merged last. settings: CONFIG_X=y lines.
    """

    selector: str = "6.1-int3"
    tree: Path | None = None
    bzimage: Path | None = None
    headers: Path | None = None
    patches: tuple[Path, ...] = ()
    fragments: tuple[Path, ...] = ()
    settings: tuple[str, ...] = ()


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
