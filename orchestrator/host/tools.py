# SPDX-License-Identifier: GPL-2.0-only
"""The programs a run needs, without root: QEMU, and busybox and dropbear for the guest's initramfs.

The system's program is used if it is good enough. Otherwise Debian's package, with the libraries
that the system lacks, is unpacked into cache_dir()/tools/NAME-DIGEST and run from there.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator import ui
from orchestrator.errors import InfraError, OrchestratorError, UsageError, shortened
from orchestrator.host import debian, files, proc, seal
from orchestrator.host.files import lock_of
from orchestrator.host.notices import waiting_for, warn
from orchestrator.host.paths import cache_dir, cached_dir, is_intact, locked, need_space

HOST_PACKAGES: dict[str, str] = {
    "bc": "kernel build: time constants (kernel/time/timeconst.bc)",
    "binutils": "kernel and module build: assembler, linker",
    "bison": "kernel build: kconfig's parser",
    "ccache": "makes rebuilding a patched kernel fast (optional)",
    "cpio": "guest image; kernel headers archive",
    "debian-archive-keyring": "verifies Debian's packages",
    "flex": "kernel build: kconfig's scanner",
    "gcc": "kernel and module build",
    "gdb": "watches the guest",
    "git": "applies patches, identifies trees",
    "libc6-dev": "kernel build: host programs",
    "libelf-dev": "kernel build: objtool",
    "libssl-dev": "kernel build: certificate tools",
    "make": "kernel and module build",
    "patch": "applies patch series",
    "util-linux": "setpriv: child processes end with the orchestrator",
    "xz-utils": "unpacks kernel sources",
}
"""Debian package that must be installed on the host -> what needs it.

QEMU, busybox and dropbear are fetched when needed.
"""

QEMU_VARIABLE = "ORCHESTRATOR_QEMU"
"""Environment variable with the qemu-system-x86_64 to use, whatever its version."""
QEMU_GOOD = (9, 2)
"""The first version whose plugin interface supports the recorder (watch/in_qemu/)."""
LIBRARIES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
"""Where Debian's packages put shared libraries. Before trixie, some (libfuse3) use the second."""


@dataclass(frozen=True, kw_only=True)
class Qemu:
    """A QEMU to run."""

    binary: Path
    version: tuple[int, ...]
    firmware: tuple[Path, ...] = ()
    """Directories for -L; empty if it finds its firmware itself."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that it needs in addition."""
    qboot: Path | None = None
    """The firmware qboot, which takes a second less than SeaBIOS, and has an MP table for more than
    16 CPUs; None if this QEMU came without it."""

    @property
    def good(self) -> bool:
        """Whether its version is new enough to count int3 under TCG.

        Whether it does count is known once it has loaded the plugin: see watch/recorder.py.
        """
        return self.version >= QEMU_GOOD

    @property
    def command(self) -> list[str]:
        """The beginning of its command line; it also needs `env`.

        Paths are absolute, since QEMU runs in the directory of its run. A bare name stays one: it
        is looked up in $PATH.
        """
        bare = len(self.binary.parts) == 1
        return [
            str(self.binary if bare else self.binary.absolute()),
            *(argument for path in self.firmware for argument in ("-L", str(path.absolute()))),
        ]

    @property
    def identity(self) -> str:
        """Identifies this build of QEMU on this machine.

        A distribution replaces a QEMU by another one with the same path and version.
        """
        status = self.binary.stat()
        return f"{self.binary} {_dotted(self.version)} {status.st_size} {status.st_mtime_ns}"


def qemu(override: Path | None = None) -> Qemu:
    """The QEMU to use.

    This is `override` or $ORCHESTRATOR_QEMU if given, the system's if it is 9.2 or newer, and
    otherwise Debian's newest. An older one is returned if there is no other: see Qemu.good.
    Raises UsageError for an override that is not a program, InfraError if there is no QEMU at all.
    """
    named = override or (Path(os.environ[QEMU_VARIABLE]) if os.environ.get(QEMU_VARIABLE) else None)
    if named:
        binary = shutil.which(named)
        if not binary:
            raise UsageError(f"{named} is not a program: give the path of a qemu-system-x86_64")
        return _inspected(Path(binary).absolute())
    path = shutil.which("qemu-system-x86_64")
    system = _inspected(Path(path)) if path else None
    if system and system.good:
        return system
    try:
        # 100 MB, which are not read at each use
        fetched = _qemu_in(_unpacked("qemu", ["qemu-system-x86"], _qemu_in, vital=()))
    except InfraError as error:
        if not system:
            raise
        warn(f"staying with the system's QEMU {_dotted(system.version)}: {error}")
        return system
    return system if system and system.version >= fetched.version else fetched


def busybox() -> Path:
    """A statically linked busybox: the system's, or that of Debian's busybox-static."""
    system = shutil.which("busybox")
    if system and _is_static(Path(system)):
        return Path(system).resolve()
    return _busybox_in(_unpacked("busybox", ["busybox-static"], _busybox_in))


def dropbear() -> list[tuple[Path, str]]:
    """The guest's SSH server and its shared libraries: (path on the host, path in the guest).

    The first is the server itself, /usr/sbin/dropbear in the guest.
    """
    system = shutil.which("dropbear", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if system:
        return _with_libraries(Path(system), {})
    return _dropbear_in(_unpacked("dropbear", ["dropbear-bin"], _dropbear_in))


# --- programs in an unpacked tree; InfraError if one does not work -------------------------------


def _qemu_in(root: Path) -> Qemu:
    shares = ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu")
    return _inspected(
        root / "usr/bin/qemu-system-x86_64",
        firmware=tuple(root / share for share in shares if (root / share).is_dir()),
        env={
            **_library_path(root),
            # By default it finds the system's modules and complains that they are of another build.
            "QEMU_MODULE_DIR": str(root / LIBRARIES[0] / "qemu"),
        },
    )


def _busybox_in(root: Path) -> Path:
    for place in ("usr/bin/busybox", "bin/busybox"):  # /usr since trixie
        if (root / place).is_file():
            if not _is_static(root / place):
                raise InfraError(
                    f"{root / place} is not statically linked, so it cannot run in the guest"
                )
            return root / place
    raise InfraError(f"Debian's busybox-static has no busybox in /usr/bin or /bin, in {root}")


def _dropbear_in(root: Path) -> list[tuple[Path, str]]:
    return _with_libraries(root / "usr/sbin/dropbear", _library_path(root))


def _inspected(
    binary: Path, *, firmware: tuple[Path, ...] = (), env: Mapping[str, str] | None = None
) -> Qemu:
    """The Qemu at `binary`. Raises InfraError if it does not run (a library is missing)."""
    output = proc.ask([binary, "--version"], env=env)
    match = re.search(r"version (\d{1,9}(?:\.\d{1,9})+)", output, re.ASCII)
    if not match:
        raise InfraError(f"{binary} --version prints no version: {shortened(output.strip())!r}")
    found = Qemu(
        binary=binary,
        version=tuple(int(part) for part in match[1].split(".")),
        firmware=firmware,
        env=env or {},
    )
    return replace(found, qboot=_qboot(found))


def _qboot(qemu: Qemu) -> Path | None:
    """The firmware qboot, if it is where `qemu` looks for firmware."""
    try:
        directories = proc.ask([*qemu.command, "-L", "help"], env=qemu.env).splitlines()
    except InfraError:
        return None
    roms = (Path(directory) / "qboot.rom" for directory in directories)
    return next((rom for rom in roms if rom.is_file()), None)


def _library_path(root: Path) -> dict[str, str]:
    return {"LD_LIBRARY_PATH": ":".join(str(root / part) for part in LIBRARIES)}


def _with_libraries(binary: Path, env: Mapping[str, str]) -> list[tuple[Path, str]]:
    """`binary`, its shared libraries and the loader, as (host, guest) paths."""
    ldd = proc.run([proc.need("ldd", "libc-bin"), binary], env=env, check=False).stdout
    if missing := re.findall(r"(\S+) => not found", ldd):
        raise InfraError(
            f"{binary} lacks {', '.join(missing)}: its package's dependencies are incomplete"
        )
    files = [(binary.resolve(), f"/usr/sbin/{binary.name}")]
    libraries = re.findall(r"=> (/\S+)", ldd)
    for library in libraries:
        files.append((Path(library).resolve(), f"/lib/x86_64-linux-gnu/{Path(library).name}"))
        # glibc before 2.34 loads this at run time, for getpwnam(), so ldd does not list it.
        nss = Path(library).with_name("libnss_files.so.2")
        if Path(library).name.startswith("libc.so") and nss.is_file():
            files.append((nss.resolve(), f"/lib/x86_64-linux-gnu/{nss.name}"))
    loader = re.search(r"^\s*(/\S*/ld-\S+)", ldd, re.MULTILINE)
    if not libraries or not loader:
        raise InfraError(f"ldd lists no libraries of {binary}: {ldd.strip()[:200]}")
    files.append((Path(loader[1]).resolve(), loader[1]))
    return files


def _is_static(binary: Path) -> bool:
    """Whether the ELF file needs no loader (has no PT_INTERP segment)."""
    data = binary.read_bytes()[:4096]
    if data[:5] != b"\x7fELF\x02":
        return False
    offset, size, count = (
        int.from_bytes(data[start : start + length], "little")
        for start, length in ((32, 8), (54, 2), (56, 2))
    )
    return all(
        data[offset + i * size : offset + i * size + 4] != b"\x03\0\0\0" for i in range(count)
    )


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


# --- unpacking -----------------------------------------------------------------------------------


def _unpacked(
    name: str,
    packages: Sequence[str],
    works: Callable[[Path], object],
    vital: Sequence[str] = seal.ALL,
) -> Path:
    """The directory in which `packages` and their missing libraries are unpacked.

    works: raises an OrchestratorError if the programs in a directory do not work.
    vital: as for cached_dir().

    cache_dir()/tools/`name` links to the latest such directory. It is used as long as it is intact
    and works, and made again when it does not, for example after the system has lost a library.
    """
    tools = cache_dir() / "tools"
    link = tools / name
    with locked(lock_of(link), waiting_for(f"another run's {name}")):
        if is_intact(link.resolve(), vital=vital):
            try:
                works(link.resolve())
                return link.resolve()
            except OrchestratorError as error:
                warn(f"{name} is fetched again: {error}")
                files.remove(link.resolve())
        debs = _closure(packages)
        versions = "\n".join(sorted(deb.name for deb in debs))
        final = tools / f"{name}-{hashlib.sha256(versions.encode()).hexdigest()[:16]}"

        def make(partial: Path) -> None:
            need_space(tools, 400, f"unpacking {name}")
            for deb in debs:
                debian.unpack(deb, partial)
            works(partial)

        with ui.step(f"unpack {name}"):
            cached_dir(final, make, vital=vital)
        fresh = tools / f".{name}{files.PARTIAL}link"
        files.remove(fresh)
        fresh.symlink_to(final.name)
        fresh.replace(link)
        return final


def _closure(packages: Sequence[str]) -> list[Path]:
    """The .debs of `packages` and missing dependencies, from backports if possible."""
    suites = debian.host_suites()
    try:
        return debian.closure(packages, suites)
    except InfraError:
        if len(suites) == 1:
            raise
    return debian.closure(packages, suites[:1])
