# SPDX-License-Identifier: GPL-2.0-only
"""Disks that are full, too small or read-only, and limits on files."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from faults.fault import NOTICED, SURVIVED, Fault
from faults.trial import Trial

WHILE = ("made", "boot", "ready", "watch", "free", "end")
FILLER = "filler"


def faults() -> Iterator[Fault]:
    for size in ("64k", "4m", "8200k", "10m", "12m"):
        yield Fault(
            name=f"disk/out-{size}",
            prepare=_small("out", f"size={size}"),
            inject=_wait,
            keeps_result=size != "64k",
            silence=150,
        )
    for folder, allowed in (("out", NOTICED), ("state", NOTICED), ("tmp", NOTICED)):
        yield Fault(
            name=f"disk/{folder}-full-4s",
            prepare=_small(folder, "size=64m"),
            inject=_full(folder, seconds=4.0),
            allowed=allowed,
            silence=100,
            short=folder == "out",
        )
        yield Fault(
            name=f"disk/{folder}-full",
            prepare=_small(folder, "size=64m"),
            inject=_full(folder, seconds=None),
            allowed=allowed,
            silence=100,
        )
    yield Fault(
        name="disk/out-full-to-the-last-byte",
        prepare=_small("out", "size=64m"),
        inject=_full("out", seconds=None, leave=8192),
        silence=100,
    )
    yield Fault(
        name="disk/out-no-inodes",
        prepare=_small("out", "size=64m,nr_inodes=14"),
        inject=_wait,
        silence=150,
    )
    yield Fault(
        name="disk/out-read-only",
        prepare=_small("out", "size=64m"),
        inject=_read_only("out"),
        keeps_result=False,
        silence=100,
    )
    yield Fault(
        name="disk/state-read-only",
        prepare=_small("state", "size=64m"),
        inject=_read_only("state"),
        allowed=SURVIVED,
        silence=100,
    )
    yield Fault(name="disk/cache-read-only", prepare=_cache_read_only, allowed=SURVIVED)
    for limit in ("--fsize=4096", "--fsize=300000", "--fsize=1000000", "--fsize=8100000"):
        yield Fault(
            name=f"disk/limit{limit.replace('--', '-')}",
            prepare=_limited(limit),
            keeps_result=False,
        )
    for limit in ("--nofile=12", "--nofile=20", "--nofile=32", "--core=0", "--as=2000000000"):
        yield Fault(
            name=f"disk/limit{limit.replace('--', '-')}",
            prepare=_limited(limit),
            short=limit == "--nofile=20",
        )


def _small(folder: str, options: str) -> Callable[[Trial], None]:
    """Make `folder` a file system of its own, in a mount namespace that only the command sees."""

    def prepare(trial: Trial) -> None:
        if not trial.world.namespace:
            _limited(f"--fsize={trial.rng.choice((4096, 300_000, 8_100_000))}")(trial)
            return
        script = 'mount -t tmpfs -o "$1" none "$2"'
        _mount(trial, script, options, str(trial.directory / folder))

    return prepare


def _cache_read_only(trial: Trial) -> None:
    """As that of another user, or of a CI's image: nothing can be made in it, all is there."""
    if trial.world.namespace:
        script = 'mount --bind "$1" "$1" && mount -o remount,ro,bind "$1"'
        _mount(trial, script, str(trial.world.cache))


def _mount(trial: Trial, script: str, *arguments: str) -> None:
    """Run `script`, which mounts something, where only the command sees it."""
    script = f"{script} && echo ready && exec sleep 1000"
    keeper = subprocess.Popen(
        [*trial.world.namespace, "sh", "-c", script, "sh", *arguments],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    trial.undo += [keeper.wait, keeper.kill]
    assert keeper.stdout is not None
    if keeper.stdout.readline() != b"ready\n":
        raise OSError("the file system could not be mounted")
    trial.root = Path(f"/proc/{keeper.pid}/root")
    user = ["-U", "--preserve-credentials"] if os.getuid() else []
    trial.wrapper += ["nsenter", "-t", str(keeper.pid), *user, "-m", "--wd=/"]


def _limited(option: str) -> Callable[[Trial], None]:
    def prepare(trial: Trial) -> None:
        trial.wrapper += ["prlimit", option, "--"]

    return prepare


def _wait(trial: Trial) -> None:
    """The disk is too small from the beginning."""
    trial.now()


def _full(folder: str, *, seconds: float | None, leave: int = 0) -> Callable[[Trial], None]:
    """At a random moment, fill the file system of `folder` for some seconds, save `leave` bytes."""

    def inject(trial: Trial) -> None:
        if not trial.moment(*WHILE) or not trial.now():
            return
        filler = trial.seen(trial.directory / folder) / FILLER
        if not trial.world.namespace:
            return
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError:
                size = file.tell()
                file.truncate(max(0, size - leave))
        if seconds is None:
            trial.ended.wait()
        else:
            trial.pause(seconds * trial.world.scale)
        filler.unlink(missing_ok=True)

    return inject


def _read_only(folder: str) -> Callable[[Trial], None]:
    def inject(trial: Trial) -> None:
        if not trial.world.namespace or not trial.moment(*WHILE) or not trial.now():
            return
        enter = trial.wrapper[: trial.wrapper.index("-m") + 1]
        target = str(trial.directory / folder)
        subprocess.run([*enter, "mount", "-o", "remount,ro", target], capture_output=True)
        # A file that is open for writing keeps it from becoming read-only; then cover it.
        subprocess.run(
            [*enter, "mount", "-t", "tmpfs", "-o", "ro", "none", target], capture_output=True
        )

    return inject
