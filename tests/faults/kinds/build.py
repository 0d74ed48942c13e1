# SPDX-License-Identifier: GPL-2.0-only
"""Kernel builds that are interrupted, and odd trees; a small one stands in for a kernel's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from signal import Signals

from faults.fault import HEALTHY, INFRA, TRUTH, USAGE, Fault, killed_by
from faults.trial import Trial

BUILT_OR_NOT: frozenset[int | str] = frozenset({TRUTH, INFRA, USAGE})


def faults() -> Iterator[Fault]:
    yield _fault("none", allowed=frozenset({TRUTH}))
    for number in (Signals.SIGTERM, Signals.SIGHUP, Signals.SIGINT, Signals.SIGKILL):
        name = number.name.removeprefix("SIG")
        yield _fault(
            f"main-{name}",
            inject=_sent("main", number),
            sleep=20,
            allowed=killed_by(number),
            short=number is Signals.SIGTERM,
        )
        yield _fault(f"compiler-{name}", inject=_sent("compiler", number))
        yield _fault(f"shell-{name}", inject=_sent("shell", number))
    yield _fault(
        "main-INT-twice",
        inject=_sent("main", Signals.SIGINT, Signals.SIGINT),
        sleep=20,
        allowed=killed_by(Signals.SIGINT),
    )
    for name, change in TREES.items():
        yield _fault(name, change, again=False)
    for name, change in WHILE.items():
        yield _fault(name, inject=_changed(change), again=False)


def _fault(
    name: str,
    change: Callable[[Path], object] | None = None,
    *,
    inject: Callable[[Trial], None] | None = None,
    allowed: frozenset[int | str] = BUILT_OR_NOT,
    sleep: int = 1,
    again: bool = True,
    short: bool = False,
) -> Fault:
    def prepare(trial: Trial) -> None:
        tree = trial.world.fake_tree(trial.directory)
        if change:
            change(tree)
        trial.env["XDG_CACHE_HOME"] = str(trial.directory / "cache")
        trial.env["FAULT_SLEEP"] = str(sleep if inject else 0)
        trial.arguments = ["kernels", "build", "--tree", str(tree)]
        trial.truth = 0

    return Fault(
        name=f"build/{name}",
        prepare=prepare,
        **({"inject": inject} if inject else {}),
        allowed=allowed,
        kernel=HEALTHY,
        silence=10,
        limit=60,
        traces="gcc leaves its temporary files behind when it is killed" if inject else "",
        again=again,
        short=short,
    )


def _sent(role: str, *numbers: Signals) -> Callable[[Trial], None]:
    def inject(trial: Trial) -> None:
        compiling = trial.until(lambda: trial.find("compiler") is not None)
        if compiling and trial.pause(trial.rng.uniform(0, 3)):
            trial.signal(role, *numbers, gap=0.1)

    return inject


def _changed(change: Callable[[Path], object]) -> Callable[[Trial], None]:
    def inject(trial: Trial) -> None:
        if trial.until(lambda: trial.find("compiler") is not None) and trial.pause(
            trial.rng.uniform(0, 3)
        ):
            trial.now()
            change(trial.directory / "linux")

    return inject


def _written(name: str, text: str) -> Callable[[Path], object]:
    return lambda tree: (tree / name).write_text(text)


def _odd_names(tree: Path) -> None:
    for name in ("new\nline.c", "sp ace.h", "\udcff.c", "-rf", "a:b", "$(id)"):
        (tree / "drivers" / os.fsencode(name).decode(errors="surrogateescape")).write_text("x\n")


def _loops(tree: Path) -> None:
    (tree / "drivers" / "loop").symlink_to(tree)
    (tree / "drivers" / "self").symlink_to("self")


def _special(tree: Path) -> None:
    os.mkfifo(tree / "drivers" / "pipe.c")


TREES: dict[str, Callable[[Path], object]] = {
    "no-makefile": lambda tree: (tree / "Makefile").unlink(),
    "makefile-garbage": lambda tree: (tree / "Makefile").write_bytes(bytes(range(256))),
    "makefile-does-nothing": _written("Makefile", "%:\n\t@true\n"),
    "makefile-fails": _written("Makefile", "%:\n\t@echo no; exit 7\n"),
    "makefile-babbles": _written("Makefile", "%:\n\t@yes error: x | head -c 30000000\n"),
    "makefile-one-long-line": _written(
        "Makefile", "%:\n\t@head -c 30000000 /dev/zero | tr '\\0' x; exit 1\n"
    ),
    "compile-error": _written("drivers/console.c", "int main(void) { return nothing; }\n"),
    "no-kconfig": lambda tree: (tree / "Kconfig").unlink(),
    "source-missing": lambda tree: (tree / "drivers" / "console.c").unlink(),
    "source-a-directory": lambda tree: (
        (tree / "drivers/console.c").unlink(), (tree / "drivers/console.c").mkdir(),
    ),
    "odd-names": _odd_names,
    "loops": _loops,
    "special-files": _special,
    "git-garbage": lambda tree: (tree / ".git").write_text("gitdir: /nonexistent\n"),
}  # fmt: skip

WHILE: dict[str, Callable[[Path], object]] = {
    "tree-goes-away": lambda tree: shutil.rmtree(tree, ignore_errors=True),
    "tree-changes": lambda tree: (tree / "include/linux/kernel.h").write_text("#error changed\n"),
    "workspace-goes-away": lambda tree: shutil.rmtree(
        tree.parent / "cache/orchestrator/work", ignore_errors=True
    ),
    "cache-goes-away": lambda tree: shutil.rmtree(tree.parent / "cache", ignore_errors=True),
}
