# SPDX-License-Identifier: GPL-2.0-only
"""What all trials of a campaign share: a cache of their own, what a normal run leaves, helpers."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
"""The checkout whose program is tested."""
HERE = Path(__file__).resolve().parent

KERNEL = "6.1-int3"
RUN = ("run", "--smp", "2", "--scenario", "nop5", "--duration", "0.3")
"""The shortest run that has a part under GDB and one that runs free."""

BROKEN_EDIT = """\
title: the round of syncs after the tail is written is left out
violates: "after each write every CPU syncs before the next write or the end"
caught-by: [sync]
kernels: ["6.1-int3"]
edits:
  - function: text_poke_bp
    find: 'call.* <on_each_cpu_cond_mask>'
    number: 2
    put: nop
"""

LINKED = ("apt", "debs", "sources", "ccache")
"""Folders of the cache that are big: their files are linked, so that removing one loses nothing."""

USUAL_SECONDS = 13.0
"""What an undisturbed run takes on an idle machine of two cores."""


class Unusable(Exception):
    """The campaign cannot start, because even an undisturbed run does not do what it should."""


class World:
    """Made once for a campaign. `scratch` is an empty directory with a short path."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.cache = scratch / "cache"
        """XDG_CACHE_HOME of the trials."""
        self.broken_edit = scratch / "broken.yaml"
        """For --edit-text: makes KERNEL a broken kernel."""
        self.scale = 1.0
        """How much slower than usual this machine is at the moment; stretches every limit."""
        self.files: tuple[str, ...] = ()
        """Names of the files that a normal run leaves in its directory."""
        self.qemu: tuple[str, ...] = ()
        """How QEMU is started: `NAME=VALUE` words, its path, and where its firmware is."""
        self.namespace = _namespace()
        """Command that gives a process its own mounts; empty where that is not possible."""
        self._lock = threading.Lock()
        self._provoke: Path | None = None

    @classmethod
    def fresh(cls) -> World:
        """With a new directory in /tmp, whatever $TMPDIR says: a socket's path must be short."""
        return cls(Path(tempfile.mkdtemp(prefix="orch-faults-", dir="/tmp")))

    def remove(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)

    # -- before the trials

    def prepare(self) -> None:
        """Build the kernel if needed, fill the cache, do an undisturbed run. Raises Unusable."""
        self.broken_edit.write_text(BROKEN_EDIT)
        image = Path(self._ask("kernels", "build", "--kernel", KERNEL).splitlines()[-1])
        self._fill_cache(image.parent)
        directory = self.scratch / "normal" / "run"
        self._ask(*RUN, "--output", str(directory), cache=self.cache)  # makes module, helpers, …
        shutil.rmtree(directory)
        start = time.monotonic()
        self._ask(*RUN, "--output", str(directory), cache=self.cache)
        self.scale = max(1.0, (time.monotonic() - start) / USUAL_SECONDS)
        self.files = tuple(sorted(path.name for path in directory.iterdir()))
        self.qemu = _qemu(shlex.split((directory / "qemu.cmd").read_text()))

    def _ask(self, *arguments: str, cache: Path | None = None) -> str:
        env = self.environment(self.scratch / "normal")
        if cache:
            env["XDG_CACHE_HOME"] = str(cache)
        command = [sys.executable, "-m", "orchestrator", *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=self.scratch)
        if done.returncode:
            said = (done.stdout + done.stderr)[-2000:]
            raise Unusable(f"`orchestrator {shlex.join(arguments)}` without any fault: {said}")
        return done.stdout.strip()

    def _fill_cache(self, kernel: Path) -> None:
        real, ours = kernel.parent.parent, self.cache / "orchestrator"
        ours.mkdir(parents=True)
        for name in LINKED:
            if (real / name).is_dir():  # cp, since Python takes much longer for 100,000 files
                subprocess.run(["cp", "-al", str(real / name), str(ours / name)], check=True)
        (ours / "kernels").mkdir()
        for path in kernel.parent.glob(f"*{kernel.name}*"):  # and what is said about it beside it
            if "partial" not in path.name:
                _copy(path, ours / "kernels" / path.name)
        (ours / "tools").mkdir()
        for link in (real / "tools").iterdir():
            if link.is_symlink():  # the versions in use
                for path in (link, link.resolve()):
                    _copy(path, ours / "tools" / path.name)

    @staticmethod
    def environment(directory: Path) -> dict[str, str]:
        """The caller's environment with state, temporary files and sockets below `directory`."""
        env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("GITHUB_", "MAKE", "MFLAGS", "PYTEST_", "ORCHESTRATOR_"))
        }
        for name, folder in (
            ("XDG_STATE_HOME", "state"),
            ("TMPDIR", "tmp"),
            ("XDG_RUNTIME_DIR", "r"),
        ):
            (directory / folder).mkdir(parents=True, exist_ok=True)
            env[name] = str(directory / folder)
        return {**env, "PYTHONPATH": str(ROOT)}

    # -- for the trials

    def private_cache(self, directory: Path) -> Path:
        """A copy of the cache that a trial may damage. Replace files, never write into them."""
        copy = directory / "cache"
        (copy / "orchestrator").mkdir(parents=True)
        for path in (self.cache / "orchestrator").iterdir():
            target = copy / "orchestrator" / path.name
            if path.name in LINKED:
                target.symlink_to(path)
            else:
                subprocess.run(["cp", "-al", str(path), str(target)], check=True)
        return copy

    def private_program(self, directory: Path) -> Path:
        """A copy of the program, for PYTHONPATH, in which a trial may change what it likes."""
        copy = directory / "program"
        for part in ("orchestrator", "guest", "kernels"):
            shutil.copytree(
                ROOT / part,
                copy / part,
                ignore=shutil.ignore_patterns("__pycache__"),
                symlinks=True,
            )
        return copy

    @staticmethod
    def fake_tree(directory: Path) -> Path:
        """A tree that stands in for a kernel's. Each object takes $FAULT_SLEEP seconds more."""
        tree = directory / "linux"
        shutil.copytree(ROOT / "tests" / "unit" / "fakekernel", tree, symlinks=True)
        makefile = tree / "Makefile"
        slower = '\t@sleep "$${FAULT_SLEEP:-0}"; $(CC) '
        makefile.write_text(makefile.read_text().replace("\t@$(CC) ", slower))
        return tree

    def provoke(self) -> bytes:
        """provoke.ko, a module that makes the kernel report a fault; without debug symbols."""
        with self._lock:
            if self._provoke is None:
                directory = self.scratch / "provoke"
                shutil.copytree(ROOT / "tests" / "vm" / "provoke", directory)
                (kbuild,) = (self.cache / "orchestrator" / "kernels").glob("*/kbuild")
                make = ["make", "-s", "-C", str(kbuild), f"M={directory}", "modules"]
                subprocess.run(make, check=True, capture_output=True)
                subprocess.run(["strip", "--strip-debug", directory / "provoke.ko"], check=True)
                self._provoke = directory / "provoke.ko"
            return self._provoke.read_bytes()


def _copy(source: Path, target: Path) -> None:
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target, follow_symlinks=False)


def _qemu(words: list[str]) -> tuple[str, ...]:
    """The words of qemu.cmd that are about which QEMU is started and what it needs to run.

    words: `cd DIRECTORY && env NAME=VALUE... PROGRAM ARGUMENT...`, the environment only if needed.
    """
    words = words[words.index("&&") + 1 :]
    words = words[1:] if words[0] == "env" else words
    start = next(at for at, word in enumerate(words) if "=" not in word)
    end = start + 1
    while words[end] == "-L":
        end += 2
    return tuple(words[:end])


def _namespace() -> tuple[str, ...]:
    for command in (("unshare", "-m"), ("unshare", "-Urm")):
        script = "mount -t tmpfs -o size=1m none /tmp"
        try:
            if not subprocess.run([*command, "sh", "-c", script], capture_output=True).returncode:
                return command
        except OSError:
            continue
    return ()
