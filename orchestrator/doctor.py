# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator doctor`: what this host has, what is missing, and what that means for a run.

The probes are independent: one that fails costs a line of the report, never the rest of it. Nothing
is installed or downloaded here, and nothing is examined that a run would not use.
"""

from __future__ import annotations

import contextlib
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
from orchestrator.host import debian, keeper, proc, tools, version
from orchestrator.host.distributions import install_line
from orchestrator.host.paths import DATA, PACKAGE, cache_dir, state_dir
from orchestrator.kernel.model import KernelRequest
from orchestrator.machine import accel
from orchestrator.ui import SafeConsole
from orchestrator.watch import recorder

State = Literal["ok", "note", "warn", "miss"]
"""ok: as it should be. note: worth knowing. warn: runs work, but are slower or can do less. miss:
no run is possible."""
STYLES: dict[State, str] = {"ok": "green", "note": "cyan", "warn": "yellow", "miss": "bold red"}

BUILD_MIB = 4000
"""Free space needed to fetch, unpack and build a kernel (kernel/sources.py)."""
MEMORY_MIB = 1536
"""Memory for a guest of the default size and its observers; a kernel build needs less."""
PROBE_SECONDS = 20.0
"""Time limit for one command of a probe."""
MIRROR_SECONDS = 8.0

DATA_FILES = ("guest/module/Kbuild", "guest/scenarios/nop5.yaml", "kernels/6.1-int3.yaml")
"""One of each kind of file that the program needs beside its code."""

EVIDENCE: dict[str, str] = {
    "binutils": "ld",
    "debian-archive-keyring": str(debian.KEYRING),
    "libc6-dev": "/usr/include/stdio.h",
    "libelf-dev": "/usr/include/gelf.h",
    "libssl-dev": "/usr/include/openssl/ssl.h",
    "util-linux": "setpriv",
    "xz-utils": "xz",
}
"""The program or file that a run needs from a package of tools.HOST_PACKAGES, if its name differs.

It is searched for instead of the package, so that a host that is not Debian, or has its own GDB, is
judged by what it has.
"""


@dataclass(frozen=True)
class Diagnosis:
    """One line of the report."""

    state: State
    name: str
    """What was examined, in one word."""
    text: str


class HostProbes:
    """The probes of this host. Cached properties are what several probes need."""

    def groups(self) -> list[tuple[str, list[Callable[[], Iterable[Diagnosis]]]]]:
        """Titles and probes, in the order of the report."""
        return [
            ("host", [self.program, self.system, self.cpus, self.memory, self.disk]),
            ("packages", [self.packages, self.static_libc, self.ccache, self.clang]),
            (
                "programs",
                [self.gdb, self.mirror, self.emulator, self.accelerator, self.guest_programs],
            ),
            ("cache", [self.kernels, self.sizes, self.locks]),
        ]

    # -- host

    def program(self) -> Iterator[Diagnosis]:
        missing = [name for name in DATA_FILES if not (DATA / name).is_file()]
        text = f"{version.version()}, "
        if missing:
            text += f"incomplete, {DATA} has no {' and no '.join(missing)}: install it again"
        else:
            text += f"complete, in {PACKAGE}"
        yield Diagnosis("miss" if missing else "ok", "program", text)

    def system(self) -> Iterator[Diagnosis]:
        release = _fields(Path("/etc/os-release"), "=")
        name = release.get("PRETTY_NAME", "").strip('"') or platform.system()
        machine = platform.machine()
        text = f"{name}, {platform.release()}, {machine}, Python {platform.python_version()}"
        if machine != "x86_64":
            yield Diagnosis(
                "miss", "system", f"{text}: kernels and guests are built for and on x86_64"
            )
        elif not shutil.which("apt-get"):
            yield Diagnosis(
                "warn",
                "system",
                f"{text}: no apt, so Debian's kernels cannot be fetched; --tree, --bzimage and "
                "git: work with this host's own QEMU, busybox and dropbear (docs/install.md)",
            )
        else:
            yield Diagnosis("ok", "system", text)

    def cpus(self) -> Iterator[Diagnosis]:
        count = len(os.sched_getaffinity(0))
        model = _fields(Path("/proc/cpuinfo"), ":").get("model name", "")
        text = f"{count} available{f' ({model})' if model else ''}"
        if count == 1:
            yield Diagnosis(
                "warn",
                "CPUs",
                f"{text}: the guest's CPUs share it, and a kernel build takes long",
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
                "warn", "memory", f"{text}: a run needs {_size(MEMORY_MIB)} (see run --memory)"
            )
        else:
            yield Diagnosis("ok", "memory", text)

    def disk(self) -> Iterator[Diagnosis]:
        try:
            cache = cache_dir()
            with tempfile.TemporaryFile(dir=cache):
                pass
            free = shutil.disk_usage(cache).free >> 20
        except (OSError, InfraError) as error:
            yield Diagnosis(
                "miss",
                "disk",
                f"the cache is not writable ({error}): point XDG_CACHE_HOME elsewhere",
            )
            return
        text = f"{_size(free)} free in {cache}"
        if free >= BUILD_MIB:
            yield Diagnosis("ok", "disk", text)
        elif self.default_ready:
            yield Diagnosis(
                "warn",
                "disk",
                f"{text}: fetching and building another kernel needs {_size(BUILD_MIB)}",
            )
        else:
            yield Diagnosis(
                "miss", "disk", f"{text}: fetching and building a kernel needs {_size(BUILD_MIB)}"
            )

    # -- packages

    def packages(self) -> Iterator[Diagnosis]:
        missing = missing_packages()
        present = [package for package in tools.HOST_PACKAGES if package not in missing]
        if present:
            yield Diagnosis("ok", "present", ", ".join(present))
        for package in missing:
            purpose = tools.HOST_PACKAGES[package]
            optional = "(optional)" in purpose
            remedy = f"{install_line([package])} (has {EVIDENCE.get(package, package)})"
            yield Diagnosis("warn" if optional else "miss", package, f"{purpose}: {remedy}")

    def static_libc(self) -> Iterator[Diagnosis]:
        # Other distributions have it in a package of its own.
        if shutil.which("gcc") and _output(["gcc", "-print-file-name=libc.a"]).strip() == "libc.a":
            yield Diagnosis(
                "miss",
                "libc.a",
                "the guest's programs are linked with the static C library: "
                f"{install_line(['libc6-dev'])}",
            )

    def ccache(self) -> Iterator[Diagnosis]:
        if shutil.which("ccache"):
            version = re.search(r"\d+(?:\.\d+)+", _output(["ccache", "--version"]))
            prefix = f"{version[0]}: " if version else ""
            yield Diagnosis(
                "ok", "ccache", f"{prefix}a changed kernel is only rebuilt where it changed"
            )

    # -- programs

    def clang(self) -> Iterator[Diagnosis]:
        names = ("clang", "ld.lld", "llvm-ar")
        if all(shutil.which(name) for name in names):
            version = re.search(r"\d+(?:\.\d+)+", _output(["clang", "--version"]))
            yield Diagnosis("ok", "clang", f"{version[0] if version else ''} for --make LLVM=1")
        else:
            yield Diagnosis(
                "note", "clang", "not complete, for --make LLVM=1: apt-get install clang lld llvm"
            )

    def gdb(self) -> Iterator[Diagnosis]:
        if not shutil.which("gdb"):
            return  # packages() reports it
        commands = ["-ex", "show version", "-ex", "python print('py' + 'thon')"]
        output = _output(["gdb", "-nx", "-batch", "-iex", "set auto-load off", *commands])
        match = re.search(r"^GNU gdb .*?(\d+(?:\.\d+)+)\D*$", output, re.MULTILINE)
        version = match[1] if match else "unknown version"
        if "\npython" in output:
            yield Diagnosis("ok", "GDB", f"{version}, with Python")
        else:
            remedy = "install Debian's gdb instead of gdb-minimal"
            yield Diagnosis(
                "miss", "GDB", f"{version}, without Python, which the watch needs: {remedy}"
            )

    @cached_property
    def offline(self) -> str:
        """One sentence about why the mirror cannot be used; empty when it can."""
        suite = debian.STABLE[-1]
        try:
            mirror, _ = debian._mirrors()
        except OrchestratorError as error:
            return str(error)
        # Kernels are fetched from any of Debian's suites, whatever this host runs.
        with contextlib.suppress(OrchestratorError):
            suite = debian.host_suites()[0]
        # apt's own helper uses the same proxies, certificates and logins as a run.
        helper = Path("/usr/lib/apt/apt-helper")
        if not helper.exists():
            return f"{helper} is missing, so the mirror cannot be checked"
        options = ["-o", f"Acquire::http::Timeout={MIRROR_SECONDS:.0f}", "-o", "Acquire::Retries=0"]
        with keeper.temporary_directory() as directory:
            release = directory / "Release"
            url = f"{mirror.rstrip('/')}/dists/{suite}/Release"
            try:
                output = _output(
                    [str(helper), *options, "download-file", url, str(release)], MIRROR_SECONDS
                )
            except subprocess.TimeoutExpired:
                return f"{mirror} does not answer within {MIRROR_SECONDS:.0f} s"
            if not release.exists():
                error_line = re.search(r"^E: Failed to fetch \S+\s+(.*)", output, re.MULTILINE)
                why = f" ({error_line[1]})" if error_line else ""
                return f"{mirror} does not answer with Debian's {suite}{why}"
        return ""

    @cached_property
    def no_programs(self) -> str:
        """Why Debian's QEMU, busybox and dropbear cannot be fetched, in a few words; or empty."""
        if self.offline:
            return "the mirror is not reachable"
        try:
            debian.host_suites()
        except OrchestratorError:
            return "programs of Debian do not run on another distribution"
        return ""

    def mirror(self) -> Iterator[Diagnosis]:
        if not self.offline:
            yield Diagnosis("ok", "mirror", f"{debian._mirrors()[0].rstrip('/')} answers")
        else:
            effect = "cached kernels and --tree work, other kernels cannot be fetched"
            yield Diagnosis("warn", "mirror", f"{self.offline}: {effect}")

    @cached_property
    def qemu(self) -> tools.Qemu | None:
        """The QEMU that a run would use; None when a run would have to fetch it first."""
        if os.environ.get(tools.QEMU_VARIABLE) or (cache_dir() / "tools" / "qemu").is_dir():
            return tools.qemu()
        path = shutil.which("qemu-system-x86_64")
        system = tools.qemu(Path(path)) if path else None
        return system if system and (system.good or self.no_programs) else None

    def emulator(self) -> Iterator[Diagnosis]:
        try:
            qemu = self.qemu
        except OrchestratorError as error:
            yield Diagnosis("miss", "QEMU", str(error))
            return
        if qemu:
            state, ability = _counts_int3(qemu)
            version = ".".join(map(str, qemu.version))
            yield Diagnosis(state, "QEMU", f"{version}, {qemu.binary}: {ability}")
        elif self.no_programs:
            remedy = install_line(["qemu-system-x86"])
            yield Diagnosis("miss", "QEMU", f"not installed, and {self.no_programs}: {remedy}")
        else:
            yield Diagnosis(
                "note",
                "QEMU",
                "the first run fetches Debian's newest into the cache",
            )

    def accelerator(self) -> Iterator[Diagnosis]:
        if not Path("/dev/kvm").exists():
            yield Diagnosis("note", "KVM", "there is no /dev/kvm: guest code is translated (TCG)")
        elif not self.qemu:
            yield Diagnosis("note", "KVM", "there is a /dev/kvm; checking it needs a QEMU")
        else:
            trouble = accel.kvm_trouble(self.qemu)
            text = (
                f"{trouble}; TCG is used"
                if trouble
                else "runs two CPUs with timers, int3 and hardware breakpoints"
            )
            yield Diagnosis("note" if trouble else "ok", "KVM", text)
        if self.qemu:
            yield Diagnosis(
                "ok", "--accel", f"auto means {accel.choose('auto', self.qemu).option} here"
            )

    def guest_programs(self) -> Iterator[Diagnosis]:
        cached = cache_dir() / "tools"
        system = shutil.which("busybox")
        available = {
            "busybox": (cached / "busybox").is_dir() or (system and tools._is_static(Path(system))),
            "dropbear": (cached / "dropbear").is_dir()
            or shutil.which("dropbear", path=f"{os.environ.get('PATH', '')}:/usr/sbin"),
        }
        for name, is_available in available.items():
            if is_available:
                yield Diagnosis("ok", name, "for the guest: available")
            elif self.no_programs:
                package = {"busybox": "busybox-static", "dropbear": "dropbear-bin"}[name]
                remedy = install_line([package])
                yield Diagnosis(
                    "miss", name, f"for the guest: missing, and {self.no_programs}: {remedy}"
                )
            else:
                yield Diagnosis(
                    "note",
                    name,
                    "for the guest: the first run fetches it into the cache",
                )

    # -- cache

    @cached_property
    def ready(self) -> list[str]:
        """The kernels that can be run without fetching or building."""
        from orchestrator.kernel import cache

        return sorted({kernel.name for kernel in cache.kernels()})

    @property
    def default_ready(self) -> bool:
        try:
            return KernelRequest.selector in self.ready
        except Exception:  # the kernels probe reports what is wrong with the list
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
                f"{name}, the default, is not in the cache, and its source cannot be fetched",
            )
        else:
            yield Diagnosis(
                "note",
                "kernels",
                f"the first run fetches and builds the default, {name} (minutes)",
            )

    def sizes(self) -> Iterator[Diagnosis]:
        for name, directory in (("cache", cache_dir()), ("runs", state_dir() / "runs")):
            if not directory.is_dir():
                continue
            output = _output(["du", "-xm", "--max-depth=1", str(directory)])
            sizes = {
                Path(path): int(size)
                for size, path in re.findall(r"^(\d+)\t(.*)$", output, re.MULTILINE)
            }
            total = sizes.pop(directory, 0)
            parts = (
                sorted(sizes.items(), key=lambda entry: -entry[1])[:6] if name == "cache" else []
            )
            detail = ", ".join(f"{path.name} {_size(size)}" for path, size in parts if size > 1)
            yield Diagnosis(
                "ok",
                name,
                f"{_size(total)} in {directory}{f' ({detail})' if detail else ''}; safe to delete",
            )

    def locks(self) -> Iterator[Diagnosis]:
        held = dict(_held_locks(cache_dir()))
        for path, holder in held.items():
            where = path.relative_to(cache_dir())
            yield Diagnosis(
                "note",
                "lock",
                f"process {holder} holds {where}: a run that needs it waits",
            )
        if not held:
            yield Diagnosis("ok", "locks", "none held")


def diagnoses() -> Iterator[tuple[str, Diagnosis]]:
    """Every diagnosis of this host as it is made, with the title of its group."""
    for title, probes in HostProbes().groups():
        for probe in probes:
            for diagnosis in examine(probe):
                yield title, diagnosis


def exit_status(found: Iterable[Diagnosis]) -> int:
    """Tells whether a run is possible here."""
    missing = any(diagnosis.state == "miss" for diagnosis in found)
    return EXIT_UNTESTABLE if missing else EXIT_PASS


def report() -> int:
    """Print the report. Returns the exit status, which tells whether a run is possible here."""
    console = SafeConsole(highlight=False)
    found: list[Diagnosis] = []
    last = ""
    for title, diagnosis in diagnoses():
        if title != last:
            console.print(f"{chr(10) if last else ''}{title}", style="bold")
            last = title
        _show(console, diagnosis)
        found.append(diagnosis)
    console.print()
    if exit_status(found) == EXIT_PASS:
        console.print("A run is possible here.", style="green")
        return EXIT_PASS
    console.print("Fix everything marked 'miss' before running.", style="red")
    needed = [
        package
        for package in missing_packages()
        if "(optional)" not in tools.HOST_PACKAGES[package]
    ]
    if needed:
        console.print(Text(f"As root: {install_line(needed)}"), soft_wrap=True)
    return EXIT_UNTESTABLE


def examine(probe: Callable[[], Iterable[Diagnosis]]) -> list[Diagnosis]:
    """The diagnoses of `probe`. A probe that fails gives a warning and keeps what it had."""
    diagnoses: list[Diagnosis] = []
    name = probe.__name__.replace("_", " ")
    try:
        for diagnosis in probe():
            diagnoses.append(diagnosis)
    except OrchestratorError as error:
        diagnoses.append(Diagnosis("warn", name, str(error)))
    except subprocess.TimeoutExpired as error:
        command = " ".join(error.cmd).rpartition(" -- ")[2]  # without proc.mortal()
        diagnoses.append(
            Diagnosis("warn", name, f"`{command}` did not finish within {error.timeout:.0f} s")
        )
    except Exception as error:
        diagnoses.append(
            Diagnosis("warn", name, f"could not be checked ({type(error).__name__}: {error})")
        )
    return diagnoses


def _counts_int3(qemu: tools.Qemu) -> tuple[State, str]:
    """Whether `qemu` counts int3 under TCG. That is tried, unless the plugin cannot be compiled."""
    if not shutil.which("gcc"):
        return "note", "whether it counts int3 under TCG cannot be tried without gcc"
    try:
        recorder.plugin_for(qemu)
    except InfraError as error:
        return "warn", f"does not count int3 under TCG, so only the guest and GDB do: {error}"
    return "ok", "counts int3 under TCG"


def missing_packages() -> list[str]:
    """The packages of tools.HOST_PACKAGES whose programs and files this host lacks."""
    return [
        package for package in tools.HOST_PACKAGES if not _exists(EVIDENCE.get(package, package))
    ]


def _exists(name: str) -> bool:
    """Whether this host has the file (an absolute path) or program."""
    return Path(name).is_file() if name.startswith("/") else shutil.which(name) is not None


def _held_locks(root: Path) -> Iterator[tuple[Path, int]]:
    """Our lock files below `root` that are held, each with the process that holds it.

    /proc/locks tells without taking a lock.
    """
    holders = {}
    for line in Path("/proc/locks").read_text().splitlines():
        if match := re.match(r"\d+: FLOCK\s+\S+\s+WRITE\s+(\d+) \w+:\w+:(\d+) ", line):
            holders[int(match[2])] = int(match[1])
    for pattern in ("*lock", "*/*lock", "*/*/*lock"):
        for path in sorted(root.glob(pattern)):
            if path.is_file() and path.stat().st_ino in holders:
                yield path, holders[path.stat().st_ino]


def _fields(file: Path, separator: str) -> dict[str, str]:
    """Lines of the form `name separator value` as a dictionary; the first value of a name counts.

    Empty when the file does not exist.
    """
    fields: dict[str, str] = {}
    if file.is_file():
        for line in file.read_text(errors="replace").splitlines():
            name, _, value = line.partition(separator)
            fields.setdefault(name.strip(), value.strip())
    return fields


def _output(command: list[str], seconds: float = PROBE_SECONDS) -> str:
    """Everything that `command` prints, whatever its exit status.

    Raises InfraError when it is not installed, TimeoutExpired after `seconds`.
    """
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


def _show(console: Console, diagnosis: Diagnosis) -> None:
    """Print `state name text`, wrapped on a terminal; elsewhere in one line, for grep."""
    encoding = sys.stdout.encoding or "ascii"
    text = " ".join(diagnosis.text.split()).encode(encoding, "replace").decode(encoding)
    if console.is_terminal:
        text = textwrap.fill(
            text, max(console.width - 20, 40), break_on_hyphens=False, break_long_words=False
        )
        text = text.replace("\n", "\n" + 20 * " ")
    line = Text.assemble(
        "  ", (f"{diagnosis.state:<5}", STYLES[diagnosis.state]), f" {diagnosis.name:<11} ", text
    )
    console.print(line, soft_wrap=True)
