"""A kernel that somebody else built: a bzImage, and the headers or build tree that modules for it are built with."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from orchestrator.errors import UsageError
from orchestrator.kernel.model import Kernel

MAGIC, MAGIC_AT = b"HdrS", 0x202
VERSION_AT = 0x20E
"""Of the 16 bits that lead, from 0x200 on, to what `uname -r` and the builder say (Documentation/arch/x86/boot.rst)."""


def obtain(image: Path, headers: Path | None) -> Kernel:
    """The kernel in the bzImage `image`; nothing of it is copied or changed.

    headers: where `make -C HEADERS M=...` works, None when there are none. UsageError says which file is not what it
    must be, or that the two do not belong together.
    """
    image = image.resolve()
    if not image.is_file():
        raise UsageError(f"there is no bzImage {image}")
    content = image.read_bytes()
    release = _release(image, content)
    digest = hashlib.sha256(content)
    # As in /boot, as in our cache, and as in a build tree (arch/x86/boot/bzImage).
    configs = [image.with_name(f"config-{release}"), image.with_name("config")]
    configs += [image.parents[3] / ".config"] if len(image.parents) > 3 else []
    if headers is not None:
        headers = headers.resolve()
        _check_headers(headers, release)
        configs.insert(0, headers / ".config")
        digest.update(b"".join(file.read_bytes() for file in _telling(headers) if file.is_file()))
    return Kernel(
        name=image.name,
        release=release,
        digest=digest.hexdigest(),
        bzimage=image,
        config=next((file for file in configs if file.is_file()), None),
        kbuild=headers,
        origin={
            "kind": "image",
            "tree": str(image),
            "headers": str(headers or "none"),
            "content": hashlib.sha256(content).hexdigest(),
        },
    )


def _release(image: Path, content: bytes) -> str:
    if content[MAGIC_AT : MAGIC_AT + 4] != MAGIC:
        hint = (
            ": it is an ELF file, and QEMU boots arch/x86/boot/bzImage"
            if content[:4] == b"\x7fELF"
            else ""
        )
        raise UsageError(f"{image} is not an x86 bzImage{hint}")
    at = 0x200 + int.from_bytes(content[VERSION_AT : VERSION_AT + 2], "little")
    said = content[at : at + 256].partition(b"\0")[0].decode(errors="replace")
    if not re.match(r"\d+\.\d+\S* ", said):
        raise UsageError(f"{image} does not say which kernel it is")
    return said.split()[0]


def _telling(headers: Path) -> tuple[Path, ...]:
    """The files that differ between the headers of two builds."""
    return headers / ".config", headers / "include/generated/autoconf.h", headers / "Module.symvers"


def _check_headers(headers: Path, release: str) -> None:
    if not (headers / "Makefile").is_file():
        raise UsageError(f"{headers} is neither headers nor a build tree: it has no Makefile")
    named = headers / "include/config/kernel.release"
    if not named.is_file():
        raise UsageError(
            f"{headers} is not prepared for modules (make modules_prepare): it has no {named.name}"
        )
    if (theirs := named.read_text().strip()) != release:
        raise UsageError(
            f"{headers} belongs to {theirs}, the image is {release}: no module would load"
        )
