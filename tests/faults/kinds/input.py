# SPDX-License-Identifier: GPL-2.0-only
"""Command lines and input files that are wrong. None of them is a reason to boot anything."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from faults.fault import HEALTHY, INFRA, TRUTH, USAGE, Fault
from faults.trial import Trial

WRONG: frozenset[int | str] = frozenset({USAGE})
WRONG_OR_INFRA: frozenset[int | str] = frozenset({USAGE, INFRA})

LONG = "9" * 5000
NAME = "x" * 300

USAGES: tuple[str, ...] = (
    "", "nonsense", "run stray", "run --nonsense", "run --smp", "run --smp 0", "run --smp -1",
    "run --smp 65", "run --smp 1e3", f"run --smp {LONG}", "run --smp ٣٣٣", "run --duration 0",
    "run --duration nan", "run --duration inf", "run --duration -1", "run --duration 1e400",
    "run --soak x", "run --soak -5s", "run --soak 1e400", "run --seed x", "run --seed 1.5",
    f"run --seed {LONG}", "run --memory 0", "run --memory -5", "run --memory x",
    "run --accel warp", "run --scenario zzz", "run --scenario [", f"run --scenario {NAME}",
    "run --kernel nope", "run --kernel debian:", "run --kernel debian:x", "run --kernel git:",
    "run --kernel git:/nonexistent@x", "run --kernel git:/etc@HEAD", "run --kernel built:x",
    "run --kernel built:../../../etc", "run --kernel debian-source:", f"run --kernel {NAME}",
    "run --kernel ../../etc/passwd", "run --tree /nonexistent", "run --tree /etc",
    "run --tree /etc/passwd", "run --bzimage /nonexistent", "run --bzimage /etc",
    "run --headers /etc", "run --bzimage /etc/passwd --tree /etc", "run --patch /nonexistent",
    "run --patch /etc", "run --config /nonexistent", "run --config /etc", "run --set X",
    "run --set =y", "run --edit-text /nonexistent", "run --edit-text /etc",
    "run --qemu /nonexistent", "run --qemu /etc", "run --qemu /etc/passwd", "run --keep never",
    "kernels", "kernels burn", "kernels show --kernel nope", "kernels build --kernel nope",
    "kernels fetch nope", "kernels fetch", "kernels clean --older-than x",
    "kernels clean --keep -1", "kernels clean --keep nan",
    "sweep", "sweep /nonexistent", "sweep /etc", "nightly", "nightly /nonexistent",
    "bisect", "bisect 6.1-int3", "bisect --tree /nonexistent --good a --bad b",
    "bisect --tree /etc --good a --bad b", "bisect --kernel 6.1-int3 --series /nonexistent",
    "bisect --simulate --probability 2", "bisect --simulate --commits -1",
    "bisect --confidence 2 a b", "history --count x", "history --count -1", "mutants --only zzz",
    "mutants --kernel zzz", "mutants --jobs 0", "mutants --healthy -1", "gdb /nonexistent",
    "gdb --now --smp 0", "export", "export --kcidb --origin x /nonexistent",
    "export --kcidb --origin x /etc", "doctor stray",
)  # fmt: skip

FINE: tuple[str, ...] = (
    "--help",
    "--version",
    "run --help",
    "scenarios",
    "history",
    "doctor --help",
)


def faults() -> Iterator[Fault]:
    for words in USAGES:
        allowed = WRONG_OR_INFRA if "git:/" in words else WRONG  # it might have been a network's
        yield _command(words, allowed, short=words in ("run --smp 65", "run --kernel nope"))
    for words in FINE:
        yield _command(words, frozenset({TRUTH}))
    for name, (content, words) in FILES.items():
        yield Fault(
            name=f"input/{name}",
            prepare=_with_file(content, words),
            allowed=WRONG_OR_INFRA | ({TRUTH} if name == "patch-absolute" else set()),
            kernel=HEALTHY,
            keeps_result=False,
            prints_result=False,
            limit=60,
            repeats=False,
            short=name in ("matrix-many-repeats", "edit-deep"),
        )
    for name, prepare in OUTPUTS.items():
        yield Fault(
            name=f"input/output-{name}",
            prepare=prepare,
            allowed=WRONG_OR_INFRA,
            kernel=HEALTHY,
            keeps_result=False,
            limit=60,
            repeats=False,
        )
    for name in RUNS:
        for command in ("export --kcidb --origin x {}", "gdb {}"):
            yield Fault(
                name=f"input/{command.split()[0]}-{name}",
                prepare=_with_run(name, command),
                allowed=WRONG_OR_INFRA,
                kernel=HEALTHY,
                limit=60,
                repeats=False,
            )


def _command(words: str, allowed: frozenset[int | str], short: bool = False) -> Fault:
    def prepare(trial: Trial) -> None:
        trial.arguments = words.split()
        trial.truth = 0
        if words.startswith("kernels clean"):  # what is not refused would remove what others need
            trial.env["XDG_CACHE_HOME"] = str(trial.directory / "cache")

    return Fault(
        name=f"input/{words[:50].replace(' ', '_') or 'empty'}",
        prepare=prepare,
        allowed=allowed,
        kernel=HEALTHY,
        limit=60,
        repeats=False,
        short=short,
    )


# -- files

Content = Callable[[Path], object]


def _text(text: str) -> Content:
    return lambda path: path.write_text(text)


def _bytes(content: bytes) -> Content:
    return lambda path: path.write_bytes(content)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(f'*{a}' for _ in range(9))}]\n"
    for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
EDIT = "run --edit-text {}"
PATCH = "kernels build --tree {tree} --patch {}"
CONFIG = "kernels build --tree {tree} --config {}"
SWEEP = "sweep {}"

FILES: dict[str, tuple[Content, str]] = {
    "matrix-empty": (_text(""), SWEEP),
    "matrix-list": (_text("[1, 2]\n"), SWEEP),
    "matrix-binary": (_bytes(bytes(range(256)) * 9), SWEEP),
    "matrix-no-yaml": (_text("a: b: c: [\n"), SWEEP),
    "matrix-unknown-key": (_text("kernels: [6.1-int3]\nnonsense: 1\n"), SWEEP),
    "matrix-no-kernels": (_text("kernels: []\n"), SWEEP),
    "matrix-kernels-null": (_text("kernels:\n"), SWEEP),
    "matrix-kernels-map": (_text("kernels: {a: b}\n"), SWEEP),
    "matrix-kernels-nested": (_text("kernels: [[6.1-int3]]\n"), SWEEP),
    "matrix-many-repeats": (_text("kernels: [6.1-int3]\nrepeats: 1e8\n"), SWEEP),
    "matrix-very-many-repeats": (_text("kernels: [6.1-int3]\nrepeats: 100000000\n"), SWEEP),
    "matrix-repeats-negative": (_text("kernels: [6.1-int3]\nrepeats: -1\n"), SWEEP),
    "matrix-repeats-text": (_text("kernels: [6.1-int3]\nrepeats: often\n"), SWEEP),
    "matrix-smp-0": (_text("kernels: [6.1-int3]\nsmp: [0]\n"), SWEEP),
    "matrix-smp-text": (_text("kernels: [6.1-int3]\nsmp: many\n"), SWEEP),
    "matrix-smp-true": (_text("kernels: [6.1-int3]\nsmp: [true]\n"), SWEEP),
    "matrix-duration-nan": (_text("kernels: [6.1-int3]\nduration: .nan\n"), SWEEP),
    "matrix-bomb": (_text(BOMB + "kernels: *i\n"), SWEEP),
    "matrix-loop": (_text("kernels: &a [*a]\n"), SWEEP),
    "matrix-tag": (_text("kernels: !!python/object/apply:os.system [id]\n"), SWEEP),
    "matrix-date": (_text("kernels: [2026-01-01]\nsmp: [2026-01-01]\n"), SWEEP),
    "matrix-deep": (_text("[" * 20_000), SWEEP),
    "matrix-nul": (_bytes(b"kernels: [a\0b]\n"), SWEEP),
    "edit-empty": (_text(""), EDIT),
    "edit-list": (_text("[]\n"), EDIT),
    "edit-binary": (_bytes(bytes(range(256))), EDIT),
    "edit-deep": (_text("[" * 20_000), EDIT),
    "edit-bad-regex": (_text("edits: [{function: a, find: '(', put: nop}]\n"), EDIT),
    "edit-slow-regex": (
        _text("edits: [{function: text_poke_bp, find: '(.*.*.*.*)*$x', number: 1, put: nop}]\n"),
        "run --smp 65 --edit-text {}",
    ),
    "edit-number-text": (_text("edits: [{function: a, find: b, number: x, put: nop}]\n"), EDIT),
    "edit-put-unknown": (_text("edits: [{function: a, find: b, number: 1, put: magic}]\n"), EDIT),
    "patch-empty": (_text(""), PATCH),
    "patch-binary": (_bytes(bytes(range(256)) * 99), PATCH),
    "patch-text": (_text("this is no patch\n"), PATCH),
    "patch-other-file": (_text("--- a/nope.c\n+++ b/nope.c\n@@ -1 +1 @@\n-a\n+b\n"), PATCH),
    "patch-outside": (
        _text("--- /dev/null\n+++ b/../../outside.c\n@@ -0,0 +1 @@\n+pwned\n"), PATCH,
    ),
    "patch-absolute": (
        _text("--- /dev/null\n+++ /tmp/orch-faults-outside.c\n@@ -0,0 +1 @@\n+pwned\n"), PATCH,
    ),
    "patch-long-subject": (_text("From: a\nSubject: " + "Re: " * 50_000 + "\n\n---\n"), PATCH),
    "patch-brackets": (_text("From: a\nSubject: " + "[" * 100_000 + "\n\n---\n"), PATCH),
    "patch-encoded-subject": (
        _text("From: a\nSubject: " + "=?utf-8?b?" * 30_000 + "\n\n---\n"), PATCH,
    ),
    "patch-many-headers": (_text("X-a: y\n" * 100_000 + "\n---\n"), PATCH),
    "patch-mbox-of-nothing": (_text("From a@b Mon Sep 17 00:00:00 2001\n\n" * 20_000), PATCH),
    "patch-huge-hunk": (
        _text("--- a/Kconfig\n+++ b/Kconfig\n@@ -1,99999999999 +1,99999999999 @@\n x\n"), PATCH,
    ),
    "config-binary": (_bytes(bytes(range(256))), CONFIG),
    "config-text": (_text("hello\n"), CONFIG),
    "config-lost": (_text("CONFIG_NO_SUCH_THING=y\n"), CONFIG),
}  # fmt: skip
"""What a file has in it, and the command that is given the file ({}) or a tree ({tree}), too."""


def _with_file(content: Content, words: str) -> Callable[[Trial], None]:
    def prepare(trial: Trial) -> None:
        path = trial.directory / "input"
        content(path)
        tree = trial.world.fake_tree(trial.directory) if "{tree}" in words else ""
        if tree:
            trial.env["XDG_CACHE_HOME"] = str(trial.directory / "cache")
        trial.arguments = [word.format(path, tree=tree) for word in words.split()]
        trial.truth = 0

    return prepare


# -- places for results


def _occupied(trial: Trial) -> None:
    trial.run_directory.mkdir()
    (trial.run_directory / "theirs").write_text("precious")


def _a_file(trial: Trial) -> None:
    trial.run_directory.write_text("precious")


def _below_a_file(trial: Trial) -> None:
    (trial.run_directory.parent / "run").write_text("precious")
    trial.run_directory = trial.run_directory / "below"


def _in_proc(trial: Trial) -> None:
    trial.run_directory = Path("/proc/self/run")


def _too_long(trial: Trial) -> None:
    trial.run_directory = trial.run_directory.parent / NAME


def _far_too_long(trial: Trial) -> None:
    trial.run_directory = trial.run_directory.joinpath(*["x" * 200] * 25)


OUTPUTS: dict[str, Callable[[Trial], None]] = {
    "occupied": _occupied,
    "a-file": _a_file,
    "below-a-file": _below_a_file,
    "in-proc": _in_proc,
    "too-long": _too_long,
    "far-too-long": _far_too_long,
}


# -- directories of runs that are none

VERDICT = {"schema": 2, "outcome": "pass", "reason": "x", "exit_status": 0}
RUNS: dict[str, dict[str, str]] = {
    "nothing-in-it": {},
    "empty-files": {"spec.json": "", "verdict.json": "", "live.json": "", "symbols.json": ""},
    "lists": {"spec.json": "[]", "verdict.json": "[]", "live.json": "[]", "symbols.json": "[]"},
    "numbers": {"spec.json": "1", "verdict.json": "1", "live.json": "1", "symbols.json": "1"},
    "fields-missing": {"spec.json": "{}", "verdict.json": json.dumps(VERDICT), "live.json": "{}"},
    "deep": {"spec.json": "[" * 99_999, "verdict.json": "[" * 99_999, "live.json": "[" * 99_999},
    "long-numbers": {"spec.json": LONG, "verdict.json": LONG, "live.json": LONG},
    "not-unicode": {"spec.json": "\udcff", "verdict.json": "\udcff", "live.json": "\udcff"},
}


def _with_run(name: str, command: str) -> Callable[[Trial], None]:
    def prepare(trial: Trial) -> None:
        folder = trial.directory / "theirs"
        folder.mkdir()
        for file, content in RUNS[name].items():
            (folder / file).write_bytes(content.encode(errors="surrogateescape"))
        trial.arguments = command.format(folder).split()

    return prepare
