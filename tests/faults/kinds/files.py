# SPDX-License-Identifier: GPL-2.0-only
"""Files of the run's directory that go away or change while the run goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from faults.fault import NOTICED, Fault
from faults.trial import Trial

NAMES = (
    "spec.json", "repeat.sh", "initramfs.cpio", "qemu.cmd", "qemu.log", "qemu.stderr", "qmp.jsonl",
    "console.log", "console.jsonl", "int3.ledger", "recorder.log.gz", "symbols.json", "watch.json",
    "gdb.log", "events.jsonl", "guest.ktap", "verdict.json", "report.txt", "report.html",
    "junit.xml", "results.ktap", "cpus.json", "live.json",
)  # fmt: skip
"""What docs/architecture.md lists; those that a normal run has besides are in `World.files`."""
RESULTS = ("verdict.json", "report.txt", "report.html", "junit.xml", "results.ktap", "guest.ktap")

WHILE = ("made", "boot", "ready", "watch", "free", "end")


def faults() -> Iterator[Fault]:
    for name in (*NAMES, "another"):
        for action in ACTIONS:
            yield _on_file(name, action)
    for name, damage in DIRECTORY.items():
        yield Fault(
            name=f"files/directory-{name}",
            inject=_to_directory(damage),
            allowed=NOTICED,
            keeps_result=False,
            silence=100,
        )


def _on_file(name: str, action: str) -> Fault:
    def inject(trial: Trial) -> None:
        path = trial.run_directory / (_another(trial) if name == "another" else name)
        if name in RESULTS:  # a name that is taken already, and then one that has been written
            ready = trial.moment(*WHILE[:-1]) if trial.rng.random() < 0.7 else trial.moment("end")
        else:
            ready = trial.moment(*WHILE)
        if ready and trial.now():
            ACTIONS[action](trial, path)

    return Fault(
        name=f"files/{name}-{action}",
        inject=inject,
        allowed=NOTICED,
        keeps_result=name not in ("verdict.json", "another"),
        silence=100,
        short=(name, action) in (("int3.ledger", "removed"), ("events.jsonl", "emptied")),
    )


def _another(trial: Trial) -> str:
    return trial.rng.choice([name for name in trial.world.files if name not in NAMES] or NAMES)


# -- to a file


def _removed(trial: Trial, path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _emptied(trial: Trial, path: Path) -> None:
    path.write_bytes(b"")


def _halved(trial: Trial, path: Path) -> None:
    with path.open("ab") as file:
        file.truncate(path.stat().st_size // 2)


def _with_garbage(trial: Trial, path: Path) -> None:
    with path.open("ab") as file:
        file.write(trial.rng.randbytes(trial.rng.choice((1, 100, 100_000))))


def _overwritten(trial: Trial, path: Path) -> None:
    path.write_bytes(trial.rng.randbytes(max(4096, path.stat().st_size if path.exists() else 0)))


def _directory_instead(trial: Trial, path: Path) -> None:
    _removed(trial, path)
    path.mkdir()
    (path / "inside").touch()


def _fifo_instead(trial: Trial, path: Path) -> None:
    """Whoever opens it waits for a process at its other end."""
    _removed(trial, path)
    os.mkfifo(path)


def _link_to_nowhere(trial: Trial, path: Path) -> None:
    _removed(trial, path)
    path.symlink_to("/nonexistent/of/a/fault")


def _link_to_full(trial: Trial, path: Path) -> None:
    _removed(trial, path)
    path.symlink_to("/dev/full")


def _read_only(trial: Trial, path: Path) -> None:
    path.touch()
    path.chmod(0o400)
    _immutable(trial, path)


def _immutable(trial: Trial, path: Path) -> None:
    """What keeps root from writing, too; where the file system has no such flag nothing happens."""
    if not subprocess.run(["chattr", "+i", path], capture_output=True).returncode:
        trial.undo.append(lambda: subprocess.run(["chattr", "-i", path], capture_output=True))


ACTIONS: dict[str, Callable[[Trial, Path], None]] = {
    "removed": _removed,
    "emptied": _emptied,
    "halved": _halved,
    "with-garbage": _with_garbage,
    "overwritten": _overwritten,
    "directory-instead": _directory_instead,
    "fifo-instead": _fifo_instead,
    "link-to-nowhere": _link_to_nowhere,
    "link-to-full": _link_to_full,
    "read-only": _read_only,
}


# -- to the whole directory


def _to_directory(damage: Callable[[Trial], None]) -> Callable[[Trial], None]:
    def inject(trial: Trial) -> None:
        if trial.moment(*WHILE) and trial.now():
            damage(trial)

    return inject


def _gone(trial: Trial) -> None:
    shutil.rmtree(trial.run_directory, ignore_errors=True)


def _renamed(trial: Trial) -> None:
    trial.run_directory.rename(trial.directory / "elsewhere")


def _file_instead(trial: Trial) -> None:
    _renamed(trial)
    trial.run_directory.touch()


def _all_emptied(trial: Trial) -> None:
    for path in trial.run_directory.iterdir():
        _emptied(trial, path)


def _all_removed(trial: Trial) -> None:
    for path in trial.run_directory.iterdir():
        _removed(trial, path)


def _closed(trial: Trial) -> None:
    trial.run_directory.chmod(0)
    _immutable(trial, trial.run_directory)


DIRECTORY: dict[str, Callable[[Trial], None]] = {
    "gone": _gone,
    "renamed": _renamed,
    "file-instead": _file_instead,
    "all-emptied": _all_emptied,
    "all-removed": _all_removed,
    "closed": _closed,
    "state-gone": lambda trial: shutil.rmtree(trial.directory / "state"),
    "runtime-gone": lambda trial: shutil.rmtree(trial.directory / "r"),
    "tmp-gone": lambda trial: shutil.rmtree(trial.directory / "tmp"),
}
