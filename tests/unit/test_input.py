# SPDX-License-Identifier: GPL-2.0-only
"""Input that no careful user gives: always 129 and one sentence, at once and in little memory."""

from __future__ import annotations

import json
import os
import re
import socket
import time
import tracemalloc
from pathlib import Path

import pytest

from orchestrator import cli, rundir
from orchestrator.host import failures
from orchestrator.spec import RunSpec

DIGITS = "9" * 10_000
DIFF = "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n"
MAIL = "From x Mon\nFrom: A <a@b>\nSubject: [PATCH 1/2] s\n\n"
LONG = "x" * 5000
"""A name that no file can have."""
SECONDS = 2.0
"""Time of the processor for a wrong command, once everything is imported."""
MEMORY = 24 << 20
"""Most memory for such a command, in bytes."""

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
"""Few lines of YAML that stand for 9 to the power of 9 values, in `i`."""

MATRICES = {
    "repeats": "kernels: [6.1-int3]\nrepeats: 100000000\n",
    "axes": f"kernels: [6.1-int3]\nsmp: [{', '.join(['1'] * 5000)}]\nrepeats: 3\n",
    "float": "kernels: [6.1-int3]\nrepeats: 1e8\n",
    "bomb": f"{BOMB}kernels: *i\n",
    "merge": "x: &x {<<: [*x, *x]}\nkernels: [*x]\n",
    "cycle": "kernels: &k [*k]\n",
    "deep": f"kernels: {'[' * 50_000}",
    "digits": f"kernels: [6.1-int3]\nseed: {DIGITS}\n",
    "seed": f"kernels: [6.1-int3]\nseed: {DIGITS[:4000]}\n",
    "date": "kernels: [2026-13-32]\n",
    "nul": 'kernels: [{tree: "a\\0b"}]\n',
    "newline": 'kernels: [{kernel: 6.1-int3, name: "a\\nb"}]\n',
    "setting": 'kernels: [{kernel: 6.1-int3, set: ["A=y\\nB=y"]}]\n',
    "user": "kernels: [{tree: ~nobody-here/linux}]\n",
    "name": f"kernels: [{{tree: {LONG}}}]\n",
    "selector": f"kernels: [{LONG}]\n",
    "duration": "kernels: [6.1-int3]\nduration: 1.0e+308\n",
    "nan": "kernels: [6.1-int3]\nduration: .nan\n",
    "soak": "kernels: [6.1-int3]\nsoak: -5\n",
    "memory": "kernels: [6.1-int3]\nmemory: 1000000000000\n",
    "excludes": f"kernels: [6.1-int3]\nexclude: [{', '.join(['{smp: 8}'] * 5000)}]\n",
    "tag": "kernels: !!python/object/apply:os.system [true]\n",
    "controls": "kernels: [\x01]\n",
}
EDITS = {
    "text": "just text",
    "list": "[1, 2]",
    "number": f"edits: [{{function: f, find: a, put: nop, number: {DIGITS[:4000]}}}, 5]",
    "regex": "edits: [{function: f, find: 'a{99999999999}', put: nop}]",
    "pattern": f"edits: [{{function: f, find: '{'(' * 5000}', put: nop}}]",
    "bomb": f"{BOMB}edits: *i\n",
}
NESTED = "".join(
    f"--b{number}\nContent-Type: multipart/mixed; boundary=b{number + 1}\n\n"
    for number in range(2000)
)
FILES: dict[str, str | bytes] = {
    "binary": bytes(range(256)) * 40,
    "empty": "",
    "text": "just text\n",
    "garbage.tar.xz": os.urandom(5000),
    "good.patch": DIFF,
    "subject.eml": f"From: a\nSubject: {'s' * (1 << 20)}\n\n{DIFF}",
    "crowd.mbox": f"{MAIL}{DIFF}\n" * 100_000,
    "total.mbox": "".join(
        MAIL.replace("1/2", f"{number}/{DIGITS[:300]}") + DIFF for number in (1, 2)
    ),
    "nested.eml": f"From: a\nContent-Type: multipart/mixed; boundary=b0\n\n{NESTED}{DIFF}",
    "charset.eml": "From: a\nSubject: =?none?q?=41?=\n\nno diff\n",
    "long.series": f"{LONG}\n",
    "many.series": "good.patch\n" * 100_000,
    "bad.config": f"{LONG}\n",
    "kernel.yaml": "just text",
    **{f"{name}.yaml": text for name, text in MATRICES.items()},
    **{f"edits-{name}.yaml": text for name, text in EDITS.items()},
}
VERDICT: dict[str, object] = {
    "schema": 2,
    "outcome": "pass",
    "reason": "r",
    "exit_status": 0,
    "kernel": None,
    "edited": [],
    "hang_report": [],
    "soak": None,
    "checks": [],
    "seconds": {},
}
RUNS: dict[str, dict[str, str]] = {
    "no-verdict": {},
    "spec": {"spec.json": '{"smp": "many", "kernel": 5}', "verdict.json": json.dumps(VERDICT)},
    "deep": {"spec.json": "[" * 100_000},
    "list": {"verdict.json": "[1, 2]"},
    "types": {"verdict.json": json.dumps({**VERDICT, "seconds": {"a": "b"}})},
    "cut": {"verdict.json": json.dumps(VERDICT)[:40]},
    "no-checks": {
        "spec.json": "{}",
        "verdict.json": json.dumps({name: VERDICT[name] for name in VERDICT if name != "checks"}),
    },
    "schema": {"verdict.json": json.dumps({**VERDICT, "schema": 99})},
}
"""Runs with a damaged directory: what is in which file."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with everything that can take the place of a good file."""
    home = tmp_path_factory.mktemp("input")
    (home / "directory").mkdir()
    (home / "linux.tar.gz").mkdir()
    os.mkfifo(home / "fifo")
    os.mkfifo(home / "fifo.tar.gz")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(home / "socket"))
    (home / "loop").symlink_to("loop")
    (home / "dangling").symlink_to("nowhere")
    with (home / "huge").open("wb") as file:
        file.truncate(1 << 30)
    for name, content in FILES.items():
        (home / name).write_bytes(content.encode() if isinstance(content, str) else content)
    cli.parser()  # imports the commands
    for name, contents in RUNS.items():
        directory = rundir.create(RunSpec(smp=2, directory=home / f"run-{name}"))
        for file_name, text in contents.items():
            (directory / file_name).write_text(text)
    return home


OPTIONS = ("--patch", "--config", "--edit-text", "--tree", "--bzimage")
"""Options of `run` that take a file."""
PLACES = (
    "@/directory", "@/fifo", "@/socket", "@/loop", "@/dangling", "@/missing", "@/binary", "@/empty",
    "@/text", "@/huge", f"@/{LONG}", "@/text/below-a-file", "/dev/zero", "/dev/null",
)  # fmt: skip
"""What is no good file for any of them; an empty file is a configuration, though."""

COMMANDS = [
    # numbers
    ["run", "--smp", "1000000000"],
    ["run", "--smp", "1e9"],
    ["run", "--smp", DIGITS[:4000]],
    ["run", "--duration", "1e308"],
    ["run", "--duration", "1e-400"],
    ["run", "--seed", DIGITS],
    ["run", "--seed", DIGITS[:4000]],
    ["run", "--seed", str(1 << 63)],
    ["run", "--memory", "1"],
    ["run", "--memory", "1000000000000"],
    ["run", "--soak", "nan"],
    ["run", "--soak", "1e300d"],
    ["run", "--soak", "-1"],
    ["history", "--count", "-5"],
    ["history", "--count", "0"],
    ["history", "--count", DIGITS],
    ["mutants", "--jobs", "0"],
    ["mutants", "--jobs", "1000000000"],
    ["mutants", "--healthy", "-1"],
    ["mutants", "--healthy", "1000000000"],
    ["bisect", "a", "b", "--jobs", "0"],
    ["bisect", "a", "b", "--seed", "-1"],
    ["bisect", "a", "b", "--build-cost", "nan"],
    ["bisect", "a", "b", "--confidence", "nan"],
    ["bisect", "a", "b", "--shows", "a{99999999999}"],
    ["bisect", "--simulate", "--commits", "1000000000"],
    ["bisect", "--simulate", "--times", "-1"],
    ["bisect", "--simulate", "--probability", "nan"],
    ["kernels", "clean", "--older-than", "nan"],
    ["kernels", "clean", "--older-than", "-5"],
    ["kernels", "clean", "--keep", "nan"],
    ["kernels", "clean", "--keep", "-1"],
    ["kernels", "clean", "--keep", "inf"],
    ["sweep", "@/text", "--jobs", "0"],
    # names
    ["run", "--kernel", "a\nb"],
    ["run", "--kernel", LONG],
    ["run", "--kernel", f"./{LONG}.yaml"],
    ["run", "--kernel", "debian:\x1b[2J"],
    ["run", "--kernel", f"git:{LONG}"],
    ["run", "--scenario", LONG],
    ["run", "--scenario", "\n"],
    ["run", "--set", "A=y\nB=y"],
    ["run", "--set", LONG],
    ["run", "--cpu", "max\n"],
    ["kernels", "fetch", "a\nb"],
    ["bisect", "--tree", "@/directory", "--good", "a\nb", "--bad", "c"],
    # files
    *(
        ["run", option, place]
        for option in OPTIONS
        for place in PLACES
        if (option, place) != ("--config", "@/empty")
    ),
    ["run", "--patch", "@/subject.eml"],
    ["run", "--patch", "@/crowd.mbox"],
    ["run", "--patch", "@/total.mbox"],
    ["run", "--patch", "@/nested.eml"],
    ["run", "--patch", "@/charset.eml"],
    ["run", "--config", "@/bad.config"],
    ["run", "--tree", "@/linux.tar.gz"],
    ["run", "--tree", "@/fifo.tar.gz"],
    ["run", "--tree", "@/garbage.tar.xz"],
    ["run", "--tree", "/"],
    ["run", "--bzimage", "@/binary", "--headers", "@/text"],
    ["run", "--kernel", "@/kernel.yaml"],
    ["run", "--kernel", "@/bomb.yaml"],
    ["run", "--kernel", "/dev/zero.yaml"],
    *(["run", "--edit-text", f"@/edits-{name}.yaml"] for name in EDITS),
    *(["bisect", "--series", place] for place in PLACES if place != "/dev/null"),
    ["bisect", "--series", "@/long.series"],
    ["bisect", "--series", "@/many.series"],
    ["bisect", "a", "b", "--patch", "/dev/zero"],
    ["bisect", "a", "b", "--patch", "@/huge"],
    ["bisect", "a", "b", "--config", "@/fifo"],
    # matrices
    *(["sweep", place] for place in PLACES),
    *(["sweep", f"@/{name}.yaml"] for name in MATRICES),
    ["nightly", "@/repeats.yaml"],
    # runs
    *(["export", "--kcidb", "--origin", "o", place] for place in PLACES),
    *(["export", "--kcidb", "--origin", "o", f"@/run-{name}"] for name in RUNS),
    ["export", "--kcidb", "--origin", "O\n", "@/directory"],
    *(["gdb", name] for name in ("@/directory", "@/text", "none", LONG, "a\nb", "@/run-cut")),
    # results
    *(
        [*command, "--output", place]
        for command in (["run"], ["gdb", "--now"], ["mutants"], ["sweep", "@/axes.yaml"])
        for place in ("@/text", "@/text/below", "@/loop", "/dev/null", "/proc/x", f"@/{LONG}")
    ),
    ["run", "--output", "/"],
    ["sweep", "@/axes.yaml", "--output", "/"],
]
"""`@` stands for the directory of `files`."""


def shown(arguments: list[str]) -> str:
    return re.sub(r"[^\x20-\x7e]", "?", " ".join(arguments))[:70]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("arguments", COMMANDS, ids=shown)
def test_wrong_input_is_129_in_one_sentence(
    arguments: list[str],
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv(failures.DEBUG)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    arguments = [re.sub("^@", str(files), argument) for argument in arguments]
    tracemalloc.start()
    start = time.process_time()
    try:
        status = cli.main(arguments)
    finally:
        seconds = time.process_time() - start
        _, memory = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    lines = [
        line
        for line in capsys.readouterr().err.strip().splitlines()
        if line.startswith("orchestrator: ")
    ]
    assert status == 129 and len(lines) == 1
    assert len(lines[0]) < 7000
    assert not re.search("Traceback|Errno|itself failed", lines[0])
    assert memory < MEMORY and seconds < SECONDS
    assert not list((tmp_path / "state").rglob("spec.json"))
