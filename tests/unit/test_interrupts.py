# SPDX-License-Identifier: GPL-2.0-only
"""Signals: the program ends in order and with 128+N, whenever they come and how often."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from processes import SECONDS, marked, within

from orchestrator.errors import SIGNALS as ENDING
from orchestrator.host import failures
from orchestrator.host.paths import PROJECT
from orchestrator.many import history

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

RUN = """
import subprocess, sys, time
from pathlib import Path
import orchestrator.run as run
import orchestrator.attach.owner, orchestrator.report.page
from orchestrator import cli, rundir
from orchestrator.commands import run as command
from orchestrator.host import interrupts, keeper, proc

ready, log = Path(sys.argv[1]), Path(sys.argv[2])

def wait(request=None):
    subprocess.Popen(proc.mortal(["sh", "-c", "sleep 60 & wait"]), start_new_session=True)
    ready.touch()
    time.sleep(30)
    sys.exit("nobody sent a signal")

def obtain(request):
    with keeper.temporary_directory() as directory:
        log.write_text(str(directory))
        {body}

run.obtain = obtain
{more}
del sys.argv[1:3]
sys.exit(cli.main())
"""
"""`orchestrator run` with a kernel that is never ready."""


class Program:
    """A script that runs the program, with a private state directory."""

    def __init__(self, directory: Path, script: str, *arguments: object, **options: Any) -> None:
        self.ready, self.log = directory / "ready", directory / "log"
        self.state = directory / "state"
        environment = {**os.environ, "XDG_STATE_HOME": str(self.state), "COLUMNS": "200"}
        environment.pop(failures.DEBUG, None)
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(self.ready), str(self.log), *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            **options,
        )

    def wait_ready(self) -> None:
        assert within(20, self.ready.exists), self.end()

    def end(self) -> tuple[int, str, str]:
        """Exit status, standard output and standard error."""
        output, errors = self.process.communicate(timeout=30)
        assert "Traceback" not in errors
        return self.process.returncode, output, errors

    def verdict(self) -> dict[str, Any]:
        (file,) = (self.state / "orchestrator" / "runs").glob("*/verdict.json")
        content: dict[str, Any] = json.loads(file.read_text())
        return content


def script(body: str = "wait()", more: str = "") -> str:
    return RUN.replace("{body}", body).replace("{more}", more)


@pytest.mark.parametrize("number", [signal.Signals(number) for number in ENDING])
def test_a_signal_ends_a_run_with_a_verdict_reports_and_a_row(
    number: signal.Signals, tmp_path: Path, mark: str
) -> None:
    program = Program(tmp_path, script(), "run")
    program.wait_ready()
    program.process.send_signal(number)
    status, output, messages = program.end()
    assert status == 128 + number
    assert messages.splitlines()[-1] == f"orchestrator: interrupted by {number.name}"
    verdict = program.verdict()
    assert verdict["outcome"] == "infra" and verdict["exit_status"] == 125
    assert verdict["reason"] == f"interrupted by {number.name}"
    assert output.splitlines()[-1] == f"INFRA  interrupted by {number.name}"
    (run,) = history.past(path=program.state / "orchestrator" / "history.sqlite")
    assert run.reason == f"interrupted by {number.name}"
    assert (Path(run.directory) / "report.html").exists()
    assert not Path(program.log.read_text()).exists()


@pytest.mark.parametrize("second", SIGNALS)
def test_a_second_signal_does_not_disturb_the_end(
    second: signal.Signals, tmp_path: Path, mark: str
) -> None:
    """timeout(1) sends each signal twice, and a terminal that goes away may do so too."""
    program = Program(tmp_path, script(), "run")
    program.wait_ready()
    for number in (signal.SIGTERM, second, second, second):
        program.process.send_signal(number)
        time.sleep(0.02)
    assert program.end()[0] == 143
    assert program.verdict()["reason"] == "interrupted by SIGTERM"


STUBBORN = """try:
            wait()
        finally:
            Path(f"{log}.unwinding").touch()
            time.sleep(30)
"""


def test_an_end_that_takes_too_long_is_cut_short(tmp_path: Path, mark: str) -> None:
    program = Program(tmp_path, script(STUBBORN, "interrupts.PATIENCE = 0.5"), "run")
    program.wait_ready()
    program.process.send_signal(signal.SIGINT)
    assert within(5, (tmp_path / "log.unwinding").exists)
    time.sleep(0.2)
    program.process.send_signal(signal.SIGINT)  # too early
    time.sleep(0.5)
    assert program.process.poll() is None
    program.process.send_signal(signal.SIGINT)
    start = time.monotonic()
    status, _, errors = program.end()
    assert status == 130 and time.monotonic() - start < 1
    assert errors.splitlines()[-1].startswith("orchestrator: interrupted by SIGINT")
    directory = Path(program.log.read_text())
    assert within(SECONDS, lambda: not directory.exists() and not marked(mark))


def test_a_signal_after_the_verdict_changes_only_the_status(tmp_path: Path, mark: str) -> None:
    more = """
from orchestrator.errors import BootError
from orchestrator.report import page
def write(result):
    Path(sys.argv[0]) and ready.touch()
    time.sleep(0.5)
page.write = write
"""
    program = Program(tmp_path, script("raise BootError('no init')", more), "run")
    program.wait_ready()
    program.process.send_signal(signal.SIGTERM)
    status, output, errors = program.end()
    assert status == 143 and errors.splitlines()[-1] == "orchestrator: interrupted by SIGTERM"
    assert program.verdict()["reason"] == "no init" and "BOOT-ERROR  no init" in output
    (run,) = history.past(path=program.state / "orchestrator" / "history.sqlite")
    assert run.outcome == "boot-error"


@pytest.mark.parametrize(
    "body",
    [
        "Finaliser() and None; gone = Finaliser(); del gone; time.sleep(30)",
        "swallow(); time.sleep(30)",
    ],
    ids=["in a destructor", "turned into another exception"],
)
def test_a_signal_whose_exception_gets_lost_ends_the_run_all_the_same(
    body: str, tmp_path: Path, mark: str
) -> None:
    more = """
import signal
class Finaliser:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0)
def swallow():
    try:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(5)
    except BaseException:
        raise ImportError("half a module")
"""
    program = Program(tmp_path, script(body, more), "run")
    status, _, errors = program.end()
    assert status == 143 and errors.splitlines()[-1] == "orchestrator: interrupted by SIGTERM"
    assert program.verdict()["reason"] == "interrupted by SIGTERM"


def test_a_signal_that_our_parent_ignores_stays_ignored(tmp_path: Path, mark: str) -> None:
    """As under nohup, and for SIGINT in a shell's background job."""
    program = Program(
        tmp_path, script(), "run", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    )
    program.wait_ready()
    program.process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert program.process.poll() is None
    program.process.send_signal(signal.SIGTERM)
    assert program.end()[0] == 143


@pytest.mark.parametrize("number", SIGNALS)
def test_a_kept_guest_is_ended_by_ctrl_c_as_usual_and_by_others_with_their_status(
    number: signal.Signals, tmp_path: Path, mark: str
) -> None:
    more = """
from orchestrator.attach import owner
from orchestrator.errors import BootError
def keep(machine, directory):
    try:
        wait()
    except KeyboardInterrupt:
        print("ended", file=sys.stderr)
owner.keep = keep
"""
    program = Program(tmp_path, script("raise BootError('no init')", more), "run", "--keep")
    program.wait_ready()
    program.process.send_signal(number)
    status, output, errors = program.end()
    assert status == (125 if number == signal.SIGINT else 128 + number)
    assert "ended" in errors and "BOOT-ERROR  no init" in output


def test_an_interrupted_run_does_not_keep_its_guest(tmp_path: Path, mark: str) -> None:
    more = """
from orchestrator.attach import owner
owner.keep = lambda *_: time.sleep(60)
"""
    program = Program(tmp_path, script(more=more), "run", "--keep", "always")
    program.wait_ready()
    program.process.send_signal(signal.SIGTERM)
    assert program.end()[0] == 143


# -- at any moment

UNNOTICED = """
import signal, sys, threading, time
from orchestrator.host import failures, interrupts
interrupts.install()
def unnoticed():
    time.sleep(0.2)
    signal.raise_signal(signal.SIGTERM)  # reaches this thread, and leaves the main thread asleep
threading.Thread(target=unnoticed, daemon=True).start()
try:
    threading.Lock().acquire(), threading.Event().wait()
except BaseException as exception:
    print(type(exception).__name__)
"""


SWALLOWED = """
import os, signal, sys, time
from orchestrator.host import interrupts
interrupts.install()
def unwind():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    finally:
        time.sleep(1)
        print("not disturbed")
try:
    unwind()
except BaseException:
    pass
try:
    time.sleep(5)
except BaseException as exception:
    print(type(exception).__name__)
"""


def test_a_signal_whose_exception_gets_lost_is_sent_again_but_not_while_it_unwinds(
    tmp_path: Path,
) -> None:
    status, output, _ = Program(tmp_path, SWALLOWED).end()
    assert (status, output) == (0, "not disturbed\nInterrupted\n")


FOR_ANOTHER = """
import os, signal, time
from orchestrator.host import interrupts
interrupts.install()
with interrupts.sigint_for_another():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
time.sleep(0.5)
print(interrupts.received())
"""


def test_a_ctrl_c_for_another_program_is_not_sent_again(tmp_path: Path) -> None:
    assert Program(tmp_path, FOR_ANOTHER).end()[:2] == (0, "None\n")


def test_a_signal_that_does_not_wake_the_main_thread_is_sent_again(tmp_path: Path) -> None:
    """As one that comes just before the main thread sleeps in a lock: seen once in a few tests."""
    status, output, _ = Program(tmp_path, UNNOTICED).end()
    assert (status, output) == (0, "Interrupted\n")


@pytest.fixture
def launcher(tmp_path: Path) -> Path:
    """bin/orchestrator, as in an environment of this Python."""
    directory = tmp_path / "bin"
    directory.mkdir()
    shutil.copy(PROJECT / "bin" / "orchestrator", directory)
    python = directory / "python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return directory / "orchestrator"


def test_ctrl_c_at_any_moment_of_the_start_is_130_and_a_sentence(
    launcher: Path, tmp_path: Path, mark: str
) -> None:
    random.seed(13)
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": str(PROJECT)}
    environment.pop(failures.DEBUG, None)
    for _ in range(25):
        process = subprocess.Popen(
            [launcher, "bisect", "--simulate", "--times", "100000"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        time.sleep(random.uniform(0.0, 0.6))
        process.send_signal(signal.SIGINT)
        if random.random() < 0.5:
            time.sleep(random.uniform(0.0, 0.1))
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        # -2: the shell that starts Python was still there, and dies as shells do.
        assert (process.returncode, errors) in (
            (130, "orchestrator: interrupted by SIGINT\n"),
            (-2, ""),
        )


SIMULATION = """
import sys
from pathlib import Path
from orchestrator import cli
from orchestrator.many.bisect import simulate
ready, log = Path(sys.argv[1]), Path(sys.argv[2])
def slow(commits, p, build, run):
    ready.touch()
    import time
    time.sleep(30)
simulate.STRATEGIES = {"slow": slow}
sys.argv[1:] = ["bisect", "--simulate"]
sys.exit(cli.main())
"""


@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGKILL])
def test_a_simulation_ends_with_its_processes(
    number: signal.Signals, tmp_path: Path, mark: str
) -> None:
    program = Program(tmp_path, SIMULATION, start_new_session=True)
    program.wait_ready()
    if number == signal.SIGINT:
        os.killpg(program.process.pid, number)  # as a terminal does
    else:
        program.process.send_signal(number)
    status, _, errors = program.end()
    if number == signal.SIGKILL:
        assert status == -9
    else:
        assert status == 128 + number
        assert errors == f"orchestrator: interrupted by {number.name}\n"


# -- builds

BUILD = """
import sys
from pathlib import Path
from orchestrator import cli
from orchestrator.kernel import build, from_source
from_source.TREE_FRAGMENT = Path(sys.argv[3])
build._NEEDED = {}
sys.argv[1:] = ["kernels", "build", "--tree", sys.argv[4]]
sys.exit(cli.main())
"""


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str) -> Program:
    """A build whose compiler takes for ever, and has processes of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fragment = tmp_path / "trim.config"
    fragment.write_text("CONFIG_SMP=y\n")
    tree = shutil.copytree(Path(__file__).parent / "fakekernel", tmp_path / "linux")
    makefile = tree / "Makefile"
    ready = tmp_path / "ready"
    makefile.write_text(
        makefile.read_text().replace(
            "@$(CC) -Iinclude", f"@setsid sleep 50 & touch {ready}; sleep 50; $(CC) -Iinclude"
        )
    )
    return Program(tmp_path, BUILD, fragment, tree)


@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGKILL])
def test_nothing_of_a_build_survives(
    number: signal.Signals, build: Program, tmp_path: Path, mark: str
) -> None:
    build.wait_ready()
    # `touch` comes before the shell's own sleep, which may take its time to start.
    assert within(SECONDS, lambda: len(marked(mark)) > 4)
    build.process.send_signal(number)
    status, _, errors = build.end()
    assert status == (-9 if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert errors.splitlines()[-1] == f"orchestrator: interrupted by {number.name}"
    assert within(SECONDS, lambda: not marked(mark))
    assert within(SECONDS, lambda: not list((tmp_path / "cache").rglob("*.partial-*")))


# -- many runs

CHILD = """
import subprocess, sys, time
from pathlib import Path
from orchestrator import cli
from orchestrator.many import children
children.PROGRAM = (sys.executable, "-c", {child!r}, sys.argv[1], sys.argv[2])
children.Children.run.__kwdefaults__["program"] = children.PROGRAM
sys.argv[1:] = ["mutants", "--only", "no-int3", "--kernel", "6.1-int3", "--again"]
sys.exit(cli.main())
"""


@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGKILL])
def test_mutants_end_their_runs(number: signal.Signals, tmp_path: Path, mark: str) -> None:
    program = Program(tmp_path, CHILD.replace("{child!r}", repr(script())))
    program.wait_ready()
    program.process.send_signal(number)
    status, _, errors = program.end()
    assert status == (-9 if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert errors.splitlines()[-1] == f"orchestrator: interrupted by {number.name}"
        (verdict,) = (program.state / "orchestrator" / "mutants").glob("*/verdict.json")
        assert json.loads(verdict.read_text())["reason"] == "interrupted by SIGTERM"
    directory = Path(program.log.read_text())
    assert within(SECONDS, lambda: not directory.exists() and not marked(mark))
