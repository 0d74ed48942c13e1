# SPDX-License-Identifier: GPL-2.0-only
"""Odd environments: closed streams, missing variables and programs, names of directories, load."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from faults.fault import NOTICED, SURVIVED, USAGE, Fault
from faults.trial import Trial

REFUSED: frozenset[int | str] = NOTICED | {USAGE}

STREAMS: dict[str, str] = {
    "stdin-closed": 'exec "$@" <&-',
    "stdout-closed": 'exec "$@" >&-',
    "stderr-closed": 'exec "$@" 2>&-',
    "all-closed": 'exec "$@" <&- >&- 2>&-',
    "stdout-full": 'exec "$@" >/dev/full',
    "stderr-full": 'exec "$@" 2>/dev/full',
    "both-full": 'exec "$@" >/dev/full 2>&1',
    "stdout-read-only": 'exec "$@" 1</dev/null',
    "reader-gone": '{ "$@"; echo $? >"$STATUS"; } | head -c 100; exit "$(cat "$STATUS")"',
    "umask-0777": 'umask 0777; exec "$@"',
    "umask-0": 'umask 0; exec "$@"',
    "directory-gone": 'mkdir gone; cd gone; rmdir ../gone; exec "$@"',
    "signals-ignored": "trap '' INT QUIT HUP TERM PIPE CHLD; exec \"$@\"",
    "one-cpu": 'exec taskset -c 0 "$@"',
    "nice": 'exec nice -n 19 "$@"',
}
"""What the shell does with the command."""

VARIABLES: dict[str, dict[str, str | None]] = {
    "LANG-C": {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "LANG-unknown": {"LANG": "xx_YY.nonsense", "LC_ALL": "xx_YY.nonsense"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "no-HOME": {"HOME": None},
    "no-runtime-dir": {"XDG_RUNTIME_DIR": "{}/nowhere"},
    "runtime-dir-a-file": {"XDG_RUNTIME_DIR": "/etc/passwd"},
    "runtime-dir-full": {"XDG_RUNTIME_DIR": "/dev/full"},
    "runtime-dir-empty": {"XDG_RUNTIME_DIR": ""},
    "runtime-dir-relative": {"XDG_RUNTIME_DIR": "r"},
    "runtime-dir-unwritable": {"XDG_RUNTIME_DIR": "/proc"},
    "no-tmp": {"TMPDIR": "{}/nowhere"},
    "state-a-file": {"XDG_STATE_HOME": "/etc/passwd"},
    "state-unwritable": {"XDG_STATE_HOME": "/proc"},
    "state-relative": {"XDG_STATE_HOME": "state"},
    "cache-a-file": {"XDG_CACHE_HOME": "/etc/passwd"},
    "cache-unwritable": {"XDG_CACHE_HOME": "/proc"},
    "terminal-unknown": {"TERM": "nonsense", "COLUMNS": "x", "LINES": "-1"},
    "terminal-tiny": {"COLUMNS": "1", "LINES": "1", "FORCE_COLOR": "1"},
    "terminal-none": {"TERM": None, "COLUMNS": "0", "NO_COLOR": "1"},
    "no-PATH": {"PATH": None},
    "PATH-empty": {"PATH": ""},
    "preload": {"LD_PRELOAD": "/nonexistent/lib.so"},
    "optimized": {"PYTHONOPTIMIZE": "2"},
    "inspected": {"PYTHONINSPECT": "1"},
    "warnings": {"PYTHONWARNINGS": "error"},
    "developer": {"PYTHONDEVMODE": "1"},
    "github": {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": "/dev/full"},
    "github-nowhere": {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": "/nonexistent/x"},
    "qemu-nonsense": {"ORCHESTRATOR_QEMU": "/etc/passwd"},
    "not-unicode": {"NAME": "\udcff\udcfe"},
    "make": {"MAKEFLAGS": "-n --jobserver-auth=3,4", "ARCH": "arm64", "KBUILD_OUTPUT": "/nowhere"},
    "ccache": {"CCACHE_DIR": "/proc/nowhere", "CCACHE_DISABLE": "x"},
    "time-zone": {"TZ": "Nonsense/\udcff"},
}

REFUSABLE = (
    "cache-a-file", "cache-unwritable", "no-PATH", "PATH-empty", "qemu-nonsense", "directory-gone",
    "umask-0777", "state-relative", "no-tmp",
)  # fmt: skip

NAMES: tuple[str, ...] = (
    "a,b", "a%b%s%n", "new\nline", "sp ace", "ünïcode→", "\udcff\udcfe", "--dash", "it's", 'q"uote',
    "$(touch x);`id`", "a:b", "~x", "[bold]x[/]", "back\\slash", "x" * 120, "a=b", "*", "tab\there",
    "<b>&amp;", "#x", ";",
)  # fmt: skip

MISSING = ("gdb", "setpriv", "gcc", "make", "sh", "ldd", "ld", "ccache", "xz")


def faults() -> Iterator[Fault]:
    for name, script in STREAMS.items():
        yield Fault(
            name=f"env/{name}",
            prepare=_by_shell(script),
            allowed=REFUSED if name in REFUSABLE else SURVIVED,
            prints_result=name.startswith(("umask", "stdin", "one", "nice", "signals")),
            short=name in ("stdout-closed", "both-full"),
        )
    for name, variables in VARIABLES.items():
        yield Fault(
            name=f"env/{name}",
            prepare=_with(variables),
            allowed=REFUSED if name in REFUSABLE else SURVIVED,
            short=name in ("no-runtime-dir", "LANG-C"),
        )
    for name in NAMES:
        safe = ascii(name)[1:-1].replace("/", "_")[:20]
        yield Fault(
            name=f"env/output-{safe}",
            prepare=_named(name),
            allowed=SURVIVED | {USAGE} if "\udcff" in name else SURVIVED,
            short=name == "a,b",
        )
    for name in MISSING:
        yield Fault(name=f"env/without-{name}", prepare=_without(name))
    yield Fault(name="env/busy-host", inject=_busy, silence=100, limit=400, repeats=False)
    yield Fault(name="env/two-in-one-directory", inject=_second, allowed=SURVIVED, silence=100)


def _by_shell(script: str) -> Callable[[Trial], None]:
    def prepare(trial: Trial) -> None:
        trial.env["STATUS"] = str(trial.directory / "status")
        trial.wrapper += ["sh", "-c", script, "sh"]

    return prepare


def _with(variables: dict[str, str | None]) -> Callable[[Trial], None]:
    def prepare(trial: Trial) -> None:
        for name, value in variables.items():
            if value is None:
                trial.env.pop(name, None)
            else:
                trial.env[name] = value.format(trial.directory)

    return prepare


def _named(name: str) -> Callable[[Trial], None]:
    def prepare(trial: Trial) -> None:
        trial.run_directory = trial.run_directory.parent / name

    return prepare


def _without(program: str) -> Callable[[Trial], None]:
    """A PATH with everything that there is but for one program."""

    def prepare(trial: Trial) -> None:
        folder = trial.directory / "bin"
        folder.mkdir()
        for place in os.environ["PATH"].split(":"):
            for path in Path(place).iterdir() if Path(place).is_dir() else ():
                if path.name != program and not (folder / path.name).is_symlink():
                    (folder / path.name).symlink_to(path)
        trial.env["PATH"] = str(folder)

    return prepare


def _busy(trial: Trial) -> None:
    """Four times as much to do as there are CPUs."""
    trial.now()
    loops = [
        subprocess.Popen(["sh", "-c", "while :; do :; done"])
        for _ in range(4 * (os.cpu_count() or 1))
    ]
    trial.ended.wait()
    for loop in loops:
        loop.kill()
        loop.wait()


def _second(trial: Trial) -> None:
    """Another run that is to have its results in the same directory."""
    if trial.moment("boot", "ready") and trial.now():
        done = subprocess.run(trial.command(), env=trial.env, cwd=trial.cwd, capture_output=True)
        if done.returncode != USAGE:
            raise AssertionError(f"the second run in one directory ended with {done.returncode}")
