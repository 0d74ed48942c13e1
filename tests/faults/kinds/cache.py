# SPDX-License-Identifier: GPL-2.0-only
"""Damaged entries of the cache. What can be made again must be, so the verdict must not suffer."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from faults.fault import NOTICED, SURVIVED, Fault
from faults.trial import Trial

ENTRIES: dict[str, tuple[str, ...]] = {
    "bzImage": ("kernels/*/bzImage",),
    "vmlinux": ("kernels/*/vmlinux",),
    "config": ("kernels/*/config",),
    "kernel.json": ("kernels/*/kernel.json",),
    "release": ("kernels/*/release",),
    "symvers": ("kernels/*/kbuild/Module.symvers",),
    "kbuild": ("kernels/*/kbuild/include/generated/autoconf.h", "kernels/*/kbuild/Makefile"),
    "module": ("modules/*/orch.ko",),
    "base": ("initramfs/*/base.cpio",),
    "ttylink": ("helpers/ttylink-*/ttylink",),
    "trapper": ("helpers/trapper-*/trapper",),
    "recorder": ("recorder/*/recorder.so",),
    "busybox": ("tools/busybox-*/**/busybox",),
    "dropbear": ("tools/dropbear-*/**/dropbear",),
    "library": ("tools/*/**/*.so.*",),
    "qemu": ("tools/qemu-*/**/qemu-system-x86_64",),
    "firmware": ("tools/qemu-*/**/bios-256k.bin",),
    "sums": ("*/*/.sums",),
}
"""Files by what they are for; the first pattern that matches a file counts."""

REBUILT = ("bzImage", "vmlinux", "config", "kernel.json", "release", "symvers", "kbuild")
"""Making these again may take a kernel build."""
FETCHED = ("busybox", "dropbear", "library", "qemu", "firmware")


def faults() -> Iterator[Fault]:
    for entry in ENTRIES:
        for damage in DAMAGES:
            yield Fault(
                name=f"cache/{entry}-{damage}",
                prepare=_damaged(entry, damage),
                allowed=NOTICED if damage == "unreadable" or entry in FETCHED else SURVIVED,
                limit=700 if entry in REBUILT else 200,
                short=(entry, damage) in (("module", "flipped"), ("base", "cut")),
            )
    for name, change in WHOLE.items():
        yield Fault(name=f"cache/{name}", prepare=_private(change), limit=700, allowed=SURVIVED)


def _private(change: Callable[[Trial, Path], None]) -> Callable[[Trial], None]:
    def prepare(trial: Trial) -> None:
        cache = trial.world.private_cache(trial.directory)
        trial.env["XDG_CACHE_HOME"] = str(cache)
        change(trial, cache / "orchestrator")

    return prepare


def _damaged(entry: str, damage: str) -> Callable[[Trial], None]:
    def change(trial: Trial, cache: Path) -> None:
        for pattern in ENTRIES[entry]:
            found = [
                path for path in cache.glob(pattern) if path.is_file() and not path.is_symlink()
            ]
            if found:
                victim = trial.rng.choice(sorted(found))
                trial.note = str(victim.relative_to(cache))
                DAMAGES[damage](trial, victim)
                return
        trial.happened = lambda: False

    return _private(change)


# -- to one file, which may have other names outside of the trial: it is replaced, not written into


def _replace(path: Path, content: bytes) -> None:
    mode = path.stat().st_mode
    path.unlink()
    path.write_bytes(content)
    path.chmod(mode)


def _flipped(trial: Trial, path: Path) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(trial.rng.choice((1, 1, 16))):
        at = trial.rng.randrange(len(content))
        content[at] ^= 1 << trial.rng.randrange(8)
        trial.note += f" byte {at}"
    _replace(path, bytes(content))


def _cut(trial: Trial, path: Path) -> None:
    content = path.read_bytes()
    _replace(path, content[: trial.rng.randrange(1, len(content))])


def _emptied(trial: Trial, path: Path) -> None:
    _replace(path, b"")


def _longer(trial: Trial, path: Path) -> None:
    _replace(path, path.read_bytes() + trial.rng.randbytes(100))


def _missing(trial: Trial, path: Path) -> None:
    path.unlink()


def _unreadable(trial: Trial, path: Path) -> None:
    path.unlink()
    match trial.rng.choice(("directory", "loop", "nowhere")):
        case "directory":
            path.mkdir()
        case "loop":
            path.symlink_to(path.name)
        case _:
            path.symlink_to("/nonexistent/of/a/fault")


DAMAGES: dict[str, Callable[[Trial, Path], None]] = {
    "flipped": _flipped,
    "cut": _cut,
    "emptied": _emptied,
    "longer": _longer,
    "missing": _missing,
    "unreadable": _unreadable,
}


# -- to more than one file


def _unfinished(trial: Trial, cache: Path) -> None:
    """What killed processes leave behind."""
    for folder in ("kernels", "modules", "helpers", "initramfs", "recorder", "tools"):
        (partial,) = [cache / folder / f".{next((cache / folder).iterdir()).name}.partial-x1y2z3"]
        partial.mkdir(parents=True)
        (partial / "half").write_bytes(b"half of it")


def _locks_are_directories(trial: Trial, cache: Path) -> None:
    for lock in cache.glob("*/.*.lock"):
        if not lock.parent.is_symlink():  # shared with the other trials
            lock.unlink()
            lock.mkdir()


def _entries_are_files(trial: Trial, cache: Path) -> None:
    for folder in ("modules", "helpers", "initramfs", "recorder"):
        for entry in (cache / folder).iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
                entry.touch()


def _entries_are_empty(trial: Trial, cache: Path) -> None:
    for folder in ("modules", "helpers", "initramfs", "recorder"):
        for entry in (cache / folder).iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
                entry.mkdir()


def _strangers(trial: Trial, cache: Path) -> None:
    for folder in ("kernels", "modules", "helpers", "initramfs"):
        stranger = cache / folder / "0123456789abcdef01234567"
        stranger.mkdir()
        (stranger / "kernel.json").write_bytes(trial.rng.randbytes(50))
        (cache / folder / "notes.txt").write_text("somebody else's")


WHOLE: dict[str, Callable[[Trial, Path], None]] = {
    "unfinished": _unfinished,
    "locks-are-directories": _locks_are_directories,
    "entries-are-files": _entries_are_files,
    "entries-are-empty": _entries_are_empty,
    "strangers": _strangers,
}
