# SPDX-License-Identifier: GPL-2.0-only
"""`--bzimage FILE --headers DIR`: a finished kernel, and what its modules are built against."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from orchestrator.errors import UsageError
from orchestrator.host import userfile
from orchestrator.host.paths import real
from orchestrator.kernel.kinds.kind import Kind, refuse_changes, register
from orchestrator.kernel.model import Kernel, KernelRequest

# The boot protocol's header (Documentation/arch/x86/boot.rst): field offsets in the file.
MAGIC, MAGIC_OFFSET = b"HdrS", 0x202
VERSION_OFFSET = 0x20E
"""16 bits: where the version string begins (`uname -r`, then the builder), relative to 0x200."""
HEADER = 0x200 + 0xFFFF + 256
"""Bytes at the beginning of the file that contain all of that."""


@register
class ImageKind(Kind):
    def matches(self, request: KernelRequest) -> bool:
        return request.bzimage is not None

    def check(self, request: KernelRequest) -> None:
        """Only what concerns the request: obtain() checks the files, which it just reads."""
        refuse_changes(request, request.bzimage)

    def identify(self, request: KernelRequest) -> tuple[str, Path]:
        kernel = self.obtain(request)
        return kernel.digest, kernel.bzimage.parent

    def obtain(self, request: KernelRequest) -> Kernel:
        """The kernel in the bzImage; no file is copied or changed."""
        assert request.bzimage is not None
        image, headers = real(request.bzimage), request.headers
        with userfile.opened(image, "bzImage") as file:
            release = _release(image, file.read(HEADER))
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256")
        content = digest.hexdigest()
        # Beside the image as in /boot or in our cache, or at the top of its build tree
        # (arch/x86/boot/bzImage).
        configs = [image.with_name(f"config-{release}"), image.with_name("config")]
        configs += [image.parents[3] / ".config"] if len(image.parents) > 3 else []
        if headers is not None:
            headers = real(headers)
            _check_headers(headers, release)
            configs.insert(0, headers / ".config")
            files = (file for file in _identifying_files(headers) if file.is_file())
            digest.update(b"".join(file.read_bytes() for file in files))
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
                "content": content,
            },
        )


def _release(image: Path, content: bytes) -> str:
    """The release that the header of the bzImage names.

    content: the first HEADER bytes of the file.
    """
    if content[MAGIC_OFFSET : MAGIC_OFFSET + 4] != MAGIC:
        elf = content[:4] == b"\x7fELF"
        hint = ": it is an ELF file, and QEMU boots arch/x86/boot/bzImage" if elf else ""
        raise UsageError(f"{image} is not an x86 bzImage{hint}")
    offset = 0x200 + int.from_bytes(content[VERSION_OFFSET : VERSION_OFFSET + 2], "little")
    version = content[offset : offset + 256].partition(b"\0")[0].decode(errors="replace")
    if not re.match(r"\d+\.\d+\S* ", version):
        raise UsageError(f"{image} has no version string in its header")
    return version.split()[0]


def _identifying_files(headers: Path) -> tuple[Path, ...]:
    """The files that differ between the headers of two builds."""
    return headers / ".config", headers / "include/generated/autoconf.h", headers / "Module.symvers"


def _check_headers(headers: Path, release: str) -> None:
    """Raise UsageError unless modules for `release` can be built in `headers`."""
    if not (headers / "Makefile").is_file():
        raise UsageError(f"{headers} is neither headers nor a build tree: it has no Makefile")
    release_file = headers / "include/config/kernel.release"
    if not release_file.is_file():
        raise UsageError(
            f"{headers} is not prepared for modules (make modules_prepare): "
            f"it has no {release_file.name}"
        )
    if (theirs := release_file.read_text().strip()) != release:
        raise UsageError(
            f"{headers} belongs to {theirs}, the image is {release}: no module would load"
        )
