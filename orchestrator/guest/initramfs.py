# SPDX-License-Identifier: GPL-2.0-only
"""The guest's root file system: a cpio archive of busybox, dropbear, guest/init/ and run files.

We write the archive ourselves for two reasons. It takes no root privileges to add device nodes, and
the same input yields the same bytes, without times, owners and inode numbers of the host. It is not
compressed: under TCG decompression takes longer than loading, and the kernel needs no decompressor.

The kernel unpacks consecutive archives as one (Documentation/driver-api/early-userspace/
buffer-format.rst). The first is the same for all runs and cached. The second has the keys, the test
module and the scenarios.
"""

from __future__ import annotations

import hashlib
import shutil
import stat
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from orchestrator.errors import InfraError
from orchestrator.host import proc
from orchestrator.host.paths import DATA, cache_dir, cached_dir

INIT = DATA / "guest" / "init"
HELPERS = ("ttylink", "trapper", "tailcaller")
CFLAGS = ("-static", "-Os", "-Wall", "-s")

DIRECTORIES = ("dev", "proc", "root", "run", "sys", "tmp")
ETC = {
    "/etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n",
    "/etc/group": b"root:x:0:\n",
    "/etc/shells": b"/bin/sh\n",
    # Without this file glibc's getpwnam() also loads NIS libraries.
    "/etc/nsswitch.conf": b"passwd: files\ngroup: files\nshadow: files\n",
}


@dataclass(frozen=True)
class ArchiveEntry:
    """One member of an archive."""

    path: str
    """Without a leading slash."""
    mode: int
    """Type and permissions, as in stat(2)."""
    content: bytes = b""
    device: tuple[int, int] = (0, 0)
    """Major and minor number of a device node."""


def build(
    target: Path,
    *,
    busybox: Path,
    dropbear: Sequence[tuple[Path, str]],
    files: Mapping[str, bytes | Path],
) -> Path:
    """Write the initramfs of one run to `target` and return it.

    busybox: a static one.
    dropbear: the server and all of its libraries, as (path on the host, path in the guest).
    files: content, or a file of the host, by absolute path in the guest. Scripts and ELF programs
        become executable.

    Raises InfraError if busybox does not run on this host or a helper does not compile.
    """
    # A new file, and not what somebody else may have put there: a FIFO would keep us waiting.
    target.unlink(missing_ok=True)
    with target.open("xb") as out:
        with _base(busybox, dropbear).open("rb") as base:
            shutil.copyfileobj(base, out)
        out.writelines(archive(_with_parents(_entries(files))))
    return target


def archive(entries: Iterable[ArchiveEntry]) -> Iterator[bytes]:
    """The bytes of a "newc" cpio archive of `entries`. A directory must precede its content."""
    for number, entry in enumerate(entries, start=1):
        yield from _member(number, entry)
    yield from _member(0, ArchiveEntry("TRAILER!!!", 0))


def _member(inode: int, entry: ArchiveEntry) -> Iterator[bytes]:
    name = entry.path.encode() + b"\0"
    fields = (
        inode,
        entry.mode,
        0,  # uid
        0,  # gid
        2 if stat.S_ISDIR(entry.mode) else 1,  # links
        0,  # mtime
        len(entry.content),
        0,  # major and minor number of the device that the file is on
        0,
        *entry.device,
        len(name),
        0,  # checksum, unused in this variant
    )
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    yield header + name + b"\0" * (-(len(header) + len(name)) % 4)
    yield entry.content + b"\0" * (-len(entry.content) % 4)


def _entries(files: Mapping[str, bytes | Path]) -> Iterator[ArchiveEntry]:
    """Members for regular files, by path in the guest."""
    for path, source in files.items():
        content = source if isinstance(source, bytes) else source.read_bytes()
        program = content.startswith((b"#!", b"\x7fELF"))
        yield ArchiveEntry(path.lstrip("/"), stat.S_IFREG | (0o755 if program else 0o644), content)


def _with_parents(entries: Iterable[ArchiveEntry]) -> list[ArchiveEntry]:
    """Every directory that `entries` need, then `entries`, sorted by path."""
    named = {entry.path: entry for entry in entries}
    parents = {str(parent) for path in named for parent in PurePosixPath(path).parents} - {"."}
    return [*_directories(sorted(parents - named.keys())), *(named[path] for path in sorted(named))]


def _directories(paths: Iterable[str]) -> Iterator[ArchiveEntry]:
    return (ArchiveEntry(path, stat.S_IFDIR | 0o755) for path in paths)


def _base(busybox: Path, dropbear: Sequence[tuple[Path, str]]) -> Path:
    """The cached archive that is the same for all runs."""
    files: dict[str, bytes | Path] = {
        **ETC,
        "/init": INIT / "init",
        "/sbin/steps": INIT / "steps",
        "/sbin/branch": INIT / "branch",
        "/sbin/flip": INIT / "flip",
        "/bin/busybox": busybox,
        **{f"/sbin/{name}": _compiled(name) for name in HELPERS},
        **{inside: outside for outside, inside in dropbear},
    }
    members = [
        *_applets(busybox),
        *_entries(files),  # after the applets, which they replace
        *_directories(DIRECTORIES),
        # The kernel opens /dev/console for init, which can mount devtmpfs only later. Without this
        # node init has no output.
        ArchiveEntry("dev/console", stat.S_IFCHR | 0o600, device=(5, 1)),
        ArchiveEntry("dev/null", stat.S_IFCHR | 0o666, device=(1, 3)),
    ]
    content = b"".join(archive(_with_parents(members)))
    digest = hashlib.sha256(content).hexdigest()[:16]
    return (
        cached_dir(cache_dir() / "initramfs" / digest, lambda d: _write(d / "base.cpio", content))
        / "base.cpio"
    )


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _applets(busybox: Path) -> Iterator[ArchiveEntry]:
    """Symbolic links for all applets. They save the guest a slow `busybox --install` at boot."""
    try:
        names = proc.ask([busybox, "--list-full"]).split()
    except InfraError as error:
        raise InfraError(f"busybox does not run on this host: {error}") from error
    return (
        ArchiveEntry(name, stat.S_IFLNK | 0o777, b"/bin/busybox") for name in names if "/" in name
    )


def _compiled(name: str) -> Path:
    """The static program built from guest/init/`name`.c. Cached by source, flags and compiler."""
    source = INIT / f"{name}.c"
    gcc = proc.need("gcc", "gcc")
    version = proc.ask([gcc, "--version"])
    digest = hashlib.sha256(
        b"\0".join([source.read_bytes(), *map(str.encode, (*CFLAGS, version))])
    ).hexdigest()[:16]

    def make(directory: Path) -> None:
        try:
            proc.run([gcc, *CFLAGS, "-o", directory / name, source])
        except subprocess.CalledProcessError as error:
            first = error.output.strip().splitlines()[:1]
            raise InfraError(
                f"the guest's {name} does not compile ({''.join(first)}): is libc6-dev installed?"
            ) from error

    return cached_dir(cache_dir() / "helpers" / f"{name}-{digest}", make) / name
