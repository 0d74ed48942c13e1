"""`orchestrator doctor`: what this host has, what is missing, and what that means for a run.

Every point is found out on its own: a probe that fails is one line of the report, never its end. Nothing is installed
or downloaded here, and nothing is looked at that a run would not use.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from orchestrator.errors import EXIT_PASS, EXIT_UNTESTABLE, InfraError, OrchestratorError
from orchestrator.host import debian, proc, tools
from orchestrator.host.paths import cache_dir, state_dir
from orchestrator.kernel.model import KernelRequest
from orchestrator.machine import accel

State = Literal["ok", "note", "warn", "miss"]
"""ok: as it should be. note: worth knowing. warn: a run works, but slower or with less. miss: no run is possible."""
STYLES: dict[State, str] = {"ok": "green", "note": "cyan", "warn": "yellow", "miss": "bold red"}

BUILD_MIB = 4000
"""Free space that fetching, unpacking and building a kernel asks for (kernel/sources.py)."""
MEMORY_MIB = 1536
"""A guest of the default size and what watches it; a kernel build is content with less."""
PROBE_SECONDS = 20.0
MIRROR_SECONDS = 8.0

EVIDENCE: dict[str, str] = {
    "binutils": "ld",
    "debian-archive-keyring": str(debian.KEYRING),
    "libc6-dev": "/usr/include/stdio.h",
    "libelf-dev": "/usr/include/gelf.h",
    "libssl-dev": "/usr/include/openssl/ssl.h",
    "util-linux": "setpriv",
    "xz-utils": "xz",
}
"""A package of tools.HOST_PACKAGES -> the program or file that a run wants from it, where it is not named like it.

Looked for instead of the package, so that a host that is no Debian, or has its own GDB, is judged by what it has.
"""


@dataclass(frozen=True)
class Diagnosis:
    """One line of the report."""

    state: State
    name: str
    text: str


class HostProbes:
    """The probes, and what later ones need of earlier ones."""

    def groups(self) -> list[tuple[str, list[Callable[[], Iterable[Diagnosis]]]]]:
        """The report in its order: (title, probes)."""
        return [
            ("host", [self.system, self.cpus, self.memory, self.disk]),
            ("packages", [self.packages, self.ccache]),
            (
                "programs",
                [self.gdb, self.mirror, self.emulator, self.accelerator, self.guest_programs],
            ),
            ("cache", [self.kernels, self.sizes, self.locks]),
        ]

    # -- host

    def system(self) -> Iterator[Diagnosis]:
        release = _fields(Path("/etc/os-release"), "=")
        name = release.get("PRETTY_NAME", "").strip('"') or platform.system()
        machine = platform.machine()
        text = f"{name}, {platform.release()}, {machine}, Python {platform.python_version()}"
        if machine != "x86_64":
            yield Diagnosis(
                "miss", "system", f"{text}: kernels and guests are built for x86_64, on x86_64"
            )
        elif not shutil.which("apt-get"):
            yield Diagnosis(
                "warn",
                "system",
                f"{text}: no apt, so nothing of Debian's can be fetched (kernels, QEMU)",
            )
        else:
            yield Diagnosis("ok", "system", text)

    def cpus(self) -> Iterator[Diagnosis]:
        count = len(os.sched_getaffinity(0))
        model = _fields(Path("/proc/cpuinfo"), ":").get("model name", "")
        text = f"{count} to be used{f' ({model})' if model else ''}"
        if count == 1:
            yield Diagnosis(
                "warn",
                "CPUs",
                f"{text}: the guest's CPUs take turns on it, and a kernel build takes long",
            )
        else:
            yield Diagnosis("ok", "CPUs", text)

    def memory(self) -> Iterator[Diagnosis]:
        free, total = (
            int(_fields(Path("/proc/meminfo"), ":")[key].split()[0]) >> 10
            for key in ("MemAvailable", "MemTotal")
        )
        text = f"{_size(free)} available of {_size(total)}"
        if free < MEMORY_MIB:
            yield Diagnosis(
                "warn", "memory", f"{text}: a run wants {_size(MEMORY_MIB)} (see run --memory)"
            )
        else:
            yield Diagnosis("ok", "memory", text)

    def disk(self) -> Iterator[Diagnosis]:
        try:
            cache = cache_dir()
            with tempfile.TemporaryFile(dir=cache):
                pass
            free = shutil.disk_usage(cache).free >> 20
        except OSError as error:
            yield Diagnosis(
                "miss",
                "disk",
                f"the cache cannot be written ({error}): set XDG_CACHE_HOME elsewhere",
            )
            return
        text = f"{_size(free)} free in {cache}"
        if free >= BUILD_MIB:
            yield Diagnosis("ok", "disk", text)
        elif self.default_ready:
            yield Diagnosis(
                "warn",
                "disk",
                f"{text}: fetching and building another kernel wants {_size(BUILD_MIB)}",
            )
        else:
            yield Diagnosis(
                "miss", "disk", f"{text}: fetching and building a kernel wants {_size(BUILD_MIB)}"
            )

    # -- packages

    def packages(self) -> Iterator[Diagnosis]:
        apt = shutil.which("apt-get")
        lacking = missing_packages()
        present = [package for package in tools.HOST_PACKAGES if package not in lacking]
        if present:
            yield Diagnosis("ok", "present", ", ".join(present))
        for package in lacking:
            optional = "(optional)" in tools.HOST_PACKAGES[package]
            why = tools.HOST_PACKAGES[package]
            remedy = (
                install_line([package])
                if apt
                else f"install what brings {EVIDENCE.get(package, package)}"
            )
            yield Diagnosis("warn" if optional else "miss", package, f"{why}: {remedy}")

    def ccache(self) -> Iterator[Diagnosis]:
        if shutil.which("ccache"):
            version = re.search(r"\d+(?:\.\d+)+", _said(["ccache", "--version"]))
            known = f"{version[0]}: " if version else ""
            yield Diagnosis(
                "ok", "ccache", f"{known}of a changed kernel only what changed is compiled again"
            )

    # -- programs

    def gdb(self) -> Iterator[Diagnosis]:
        if not shutil.which("gdb"):
            return  # said among the packages
        ask = ["-ex", "show version", "-ex", "python print('py' + 'thon')"]
        said = _said(["gdb", "-nx", "-batch", "-iex", "set auto-load off", *ask])
        found = re.search(r"^GNU gdb .*?(\d+(?:\.\d+)+)\D*$", said, re.MULTILINE)
        version = found[1] if found else "of an unknown version"
        if "\npython" in said:
            yield Diagnosis("ok", "GDB", f"{version}, with Python")
        else:
            text = f"{version}, without Python, in which the watch is written: install Debian's gdb, not gdb-minimal"
            yield Diagnosis("miss", "GDB", text)

    @cached_property
    def offline(self) -> str:
        """Why the mirror cannot be used, in a sentence; empty when it can."""
        try:
            mirror, _ = debian._mirrors()
            suite = debian.host_suites()[0]
        except OrchestratorError as error:
            return str(error)
        # apt's own helper, so that proxies, certificates and logins are those that a run will use.
        helper = Path("/usr/lib/apt/apt-helper")
        if not helper.exists():
            return f"{helper} is missing, so it cannot be asked"
        options = ["-o", f"Acquire::http::Timeout={MIRROR_SECONDS:.0f}", "-o", "Acquire::Retries=0"]
        with tempfile.TemporaryDirectory(prefix="orchestrator-") as directory:
            release = Path(directory) / "Release"
            url = f"{mirror.rstrip('/')}/dists/{suite}/Release"
            try:
                said = _said(
                    [str(helper), *options, "download-file", url, str(release)], MIRROR_SECONDS
                )
            except subprocess.TimeoutExpired:
                return f"{mirror} does not answer within {MIRROR_SECONDS:.0f} s"
            if not release.exists():
                why = re.search(r"^E: Failed to fetch \S+\s+(.*)", said, re.MULTILINE)
                return (
                    f"{mirror} does not answer with Debian's {suite}{f' ({why[1]})' if why else ''}"
                )
        return ""

    def mirror(self) -> Iterator[Diagnosis]:
        if not self.offline:
            yield Diagnosis("ok", "mirror", f"{debian._mirrors()[0].rstrip('/')} answers")
        else:
            works = (
                "kernels in the cache and --tree work without it, other kernels cannot be fetched"
            )
            yield Diagnosis("warn", "mirror", f"{self.offline}: {works}")

    @cached_property
    def qemu(self) -> tools.Qemu | None:
        """The QEMU that a run would use; None when it has to be fetched first, which is not done here."""
        if os.environ.get(tools.QEMU_VARIABLE) or (cache_dir() / "tools" / "qemu").is_dir():
            return tools.qemu()
        found = shutil.which("qemu-system-x86_64")
        system = tools.qemu(Path(found)) if found else None
        return system if system and (system.good or self.offline) else None

    def emulator(self) -> Iterator[Diagnosis]:
        try:
            qemu = self.qemu
        except OrchestratorError as error:
            yield Diagnosis("miss", "QEMU", str(error))
            return
        if qemu:
            version = ".".join(map(str, qemu.version))
            counts = "counts int3 for us under TCG"
            lacks = "has no plugin interface that we can use, so under TCG a run has two ledgers of int3, not three"
            text = f"{version}, {qemu.binary}: {counts if qemu.good else lacks}"
            yield Diagnosis("ok" if qemu.good else "warn", "QEMU", text)
        elif self.offline:
            yield Diagnosis(
                "miss",
                "QEMU",
                "none here, and the mirror cannot be asked for it: install qemu-system-x86",
            )
        else:
            yield Diagnosis(
                "note",
                "QEMU",
                "Debian's newest is fetched by the first run, for itself, into the cache",
            )

    def accelerator(self) -> Iterator[Diagnosis]:
        if not Path("/dev/kvm").exists():
            yield Diagnosis(
                "note", "KVM", "there is no /dev/kvm: the guest's CPUs are translated (TCG)"
            )
        elif not self.qemu:
            yield Diagnosis(
                "note", "KVM", "there is a /dev/kvm; whether it works shows when there is a QEMU"
            )
        else:
            trouble = accel.kvm_trouble(self.qemu)
            text = f"{trouble}: TCG is used" if trouble else "runs 64-bit code and takes int3"
            yield Diagnosis("note" if trouble else "ok", "KVM", text)
        if self.qemu:
            yield Diagnosis(
                "ok", "--accel", f"auto means {accel.choose('auto', self.qemu).option} here"
            )

    def guest_programs(self) -> Iterator[Diagnosis]:
        kept = cache_dir() / "tools"
        system = shutil.which("busybox")
        here = {
            "busybox": (kept / "busybox").is_dir() or (system and tools._is_static(Path(system))),
            "dropbear": (kept / "dropbear").is_dir()
            or shutil.which("dropbear", path=f"{os.environ.get('PATH', '')}:/usr/sbin"),
        }
        for name, found in here.items():
            if found:
                yield Diagnosis("ok", name, "for the guest: here")
            elif self.offline:
                package = {"busybox": "busybox-static", "dropbear": "dropbear-bin"}[name]
                yield Diagnosis(
                    "miss",
                    name,
                    f"for the guest: not here, and the mirror cannot be asked: install {package}",
                )
            else:
                yield Diagnosis(
                    "note",
                    name,
                    "for the guest: fetched by the first run, for itself, into the cache",
                )

    # -- cache

    @cached_property
    def ready(self) -> list[str]:
        """The kernels that can be run at once."""
        from orchestrator.kernel import cache

        return sorted({kernel.name for kernel in cache.kernels()})

    @property
    def default_ready(self) -> bool:
        try:
            return KernelRequest.selector in self.ready
        except Exception:  # whatever ails the list of kernels is told in its own point
            return False

    def kernels(self) -> Iterator[Diagnosis]:
        if self.ready:
            yield Diagnosis("ok", "kernels", f"ready to run: {', '.join(self.ready)}")
        if self.default_ready:
            return
        name = KernelRequest.selector
        if self.offline:
            state: State = "warn" if self.ready else "miss"
            yield Diagnosis(
                state,
                "kernels",
                f"{name}, the default, is not here, and its source cannot be fetched",
            )
        else:
            yield Diagnosis(
                "note",
                "kernels",
                f"{name}, the default, is fetched and built by the first run (minutes)",
            )

    def sizes(self) -> Iterator[Diagnosis]:
        for name, directory in (("cache", cache_dir()), ("runs", state_dir() / "runs")):
            if not directory.is_dir():
                continue
            said = _said(["du", "-xm", "--max-depth=1", str(directory)])
            sizes = {
                Path(path): int(size)
                for size, path in re.findall(r"^(\d+)\t(.*)$", said, re.MULTILINE)
            }
            total = sizes.pop(directory, 0)
            parts = (
                sorted(sizes.items(), key=lambda entry: -entry[1])[:6] if name == "cache" else []
            )
            detail = ", ".join(f"{path.name} {_size(size)}" for path, size in parts if size > 1)
            yield Diagnosis(
                "ok",
                name,
                f"{_size(total)} in {directory}{f' ({detail})' if detail else ''}; may be deleted",
            )

    def locks(self) -> Iterator[Diagnosis]:
        held = dict(_held_locks(cache_dir()))
        for path, holder in held.items():
            where = path.relative_to(cache_dir())
            yield Diagnosis(
                "note",
                "lock",
                f"{where} is held by process {holder}: who needs the same waits for it",
            )
        if not held:
            yield Diagnosis("ok", "locks", "none held")


def report() -> int:
    """Print what there is to say, and return the exit status: whether a run is possible here."""
    console = Console(highlight=False)
    missing = 0
    host = HostProbes()
    for number, (title, probes) in enumerate(host.groups()):
        console.print(f"{'' if number == 0 else chr(10)}{title}", style="bold")
        for probe in probes:
            for point in examine(probe):
                _show(console, point)
                missing += point.state == "miss"
    console.print()
    if not missing:
        console.print("A run is possible here.", style="green")
        return EXIT_PASS
    console.print("No run is possible here before what is marked 'miss' is mended.", style="red")
    needed = [
        package
        for package in missing_packages()
        if "(optional)" not in tools.HOST_PACKAGES[package]
    ]
    if needed and shutil.which("apt-get"):
        console.print(Text(f"As root: {install_line(needed)}"), soft_wrap=True)
    return EXIT_UNTESTABLE


def examine(probe: Callable[[], Iterable[Diagnosis]]) -> list[Diagnosis]:
    """The points of `probe`; one that breaks costs its own points and no others."""
    points: list[Diagnosis] = []
    name = probe.__name__.replace("_", " ")
    try:
        for point in probe():
            points.append(point)
    except OrchestratorError as error:
        points.append(Diagnosis("warn", name, str(error)))
    except subprocess.TimeoutExpired as error:
        points.append(
            Diagnosis(
                "warn", name, f"no answer within {error.timeout:.0f} s from {' '.join(error.cmd)}"
            )
        )
    except Exception as error:
        points.append(Diagnosis("warn", name, f"cannot be told ({type(error).__name__}: {error})"))
    return points


def missing_packages() -> list[str]:
    """Those of tools.HOST_PACKAGES of which this host does not have what a run wants."""
    return [
        package for package in tools.HOST_PACKAGES if not _evident(EVIDENCE.get(package, package))
    ]


def install_line(packages: Iterable[str]) -> str:
    """The command that installs `packages`, in Debian's words."""
    return f"apt-get install -y --no-install-recommends {' '.join(packages)}"


def _evident(what: str) -> bool:
    return Path(what).is_file() if what.startswith("/") else shutil.which(what) is not None


def _held_locks(root: Path) -> Iterator[tuple[Path, int]]:
    """Our lock files below `root` that a process holds, and which. From the kernel's table: asking takes no lock."""
    holders = {}
    for line in Path("/proc/locks").read_text().splitlines():
        if match := re.match(r"\d+: FLOCK\s+\S+\s+WRITE\s+(\d+) \w+:\w+:(\d+) ", line):
            holders[int(match[2])] = int(match[1])
    for pattern in ("*lock", "*/*lock", "*/*/*lock"):
        for path in sorted(root.glob(pattern)):
            if path.is_file() and path.stat().st_ino in holders:
                yield path, holders[path.stat().st_ino]


def _fields(file: Path, separator: str) -> dict[str, str]:
    """`name separator value` lines as a dictionary; of a repeated name the first. Empty when there is no such file."""
    found: dict[str, str] = {}
    if file.is_file():
        for line in file.read_text(errors="replace").splitlines():
            name, _, value = line.partition(separator)
            found.setdefault(name.strip(), value.strip())
    return found


def _said(command: list[str], seconds: float = PROBE_SECONDS) -> str:
    """What `command` prints, whatever its exit status, within `seconds`."""
    if not shutil.which(command[0]):
        raise InfraError(f"{command[0]} is not installed")
    wrapped = proc.mortal(command) if shutil.which("setpriv") else command
    done = subprocess.run(
        wrapped,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=seconds,
    )
    return done.stdout.decode(errors="replace")


def _size(mebibytes: int) -> str:
    return f"{mebibytes} MiB" if mebibytes < 1024 else f"{mebibytes / 1024:.1f} GiB"


def _show(console: Console, point: Diagnosis) -> None:
    """`state name text`, wrapped under itself on a terminal; elsewhere one line, for grep."""
    encoding = sys.stdout.encoding or "ascii"
    text = " ".join(point.text.split()).encode(encoding, "replace").decode(encoding)
    if console.is_terminal:
        text = textwrap.fill(
            text, max(console.width - 20, 40), break_on_hyphens=False, break_long_words=False
        )
        text = text.replace("\n", "\n" + 20 * " ")
    line = Text.assemble(
        "  ", (f"{point.state:<5}", STYLES[point.state]), f" {point.name:<11} ", text
    )
    console.print(line, soft_wrap=True)
