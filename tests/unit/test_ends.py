# SPDX-License-Identifier: GPL-2.0-only
"""A run ends with a verdict and the exit status that it deserves, whatever its host is like."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest
import test_cli

import orchestrator.run
from orchestrator import cli
from orchestrator.errors import BootError, InfraError
from orchestrator.host import failures, keeper, paths
from orchestrator.host.debian import Package
from orchestrator.host.tools import Qemu
from orchestrator.kernel import versions
from orchestrator.kernel.model import Kernel, KernelRequest
from orchestrator.machine import accel
from orchestrator.machine.machine import _socket_directories
from orchestrator.many import history
from orchestrator.spec import RunSpec
from orchestrator.verdict import result as result_file
from orchestrator.verdict.evidence import Evidence
from orchestrator.verdict.result import RunResult

# -- standard output and standard error

SCRIPT = """
import dataclasses, os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
import orchestrator.run
from orchestrator import cli, ui
from test_cli import result

def run(spec):
    with ui.step("looking at it \\u2026"):
        ui.say("\\u2713 ok")
    done = result(Path(directory), spec=spec)
    reason = "\\u00d7 no \\udcff sync \\u2026"
    verdict = dataclasses.replace(done.verdict, outcome="fail", reason=reason)
    return dataclasses.replace(done, verdict=verdict)

orchestrator.run.run = run
directory, sys.argv[1:] = sys.argv[2], ["run"]
sys.exit(cli.main())
"""


@pytest.fixture
def failing_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.CompletedProcess[bytes]]:
    """`orchestrator run` of a kernel that fails, without a kernel, started by a line of shell."""
    monkeypatch.delenv(failures.DEBUG)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "run").mkdir()

    def start(shell: str = '"$@"', **environment: str) -> subprocess.CompletedProcess[bytes]:
        program = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(tmp_path / "run")]
        return subprocess.run(
            ["bash", "-c", shell, "bash", *program],
            capture_output=True,
            check=False,
            env={**os.environ, **environment},
        )

    return start


@pytest.mark.parametrize(
    "shell",
    [
        '"$@"',
        '"$@" >&-',
        '"$@" 2>&-',
        '"$@" >&- 2>&-',
        '"$@" <&- >&- 2>&-',
        '"$@" >/dev/full',
        '"$@" 2>/dev/full',
        '"$@" >/dev/full 2>/dev/full',
        '"$@" | head -c 0; exit ${PIPESTATUS[0]}',
        '"$@" | head -1; exit ${PIPESTATUS[0]}',
        '"$@" 2>&1 | head -c 0; exit ${PIPESTATUS[0]}',
        '"$@" 2> >(exec true)',
    ],
)
def test_streams_that_fail_do_not_change_the_exit_status(
    shell: str, failing_run: Callable[..., subprocess.CompletedProcess[bytes]], tmp_path: Path
) -> None:
    done = failing_run(shell)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr
    assert "sync …" in (tmp_path / "run" / "report.txt").read_text()
    if ">/dev/full" in shell and "2>" not in shell:
        assert b"standard output: No space left on device" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        "scenarios",
        "history --json",
        "--version",
        "run --help",
        "run --dry-run --quiet",  # or it says that it fetches lists of packages, if there are none
    ],
)
def test_a_command_that_cannot_print_what_it_was_asked_for_has_not_done_it(words: str) -> None:
    shell = f"{sys.executable} -m orchestrator {words}"
    done = subprocess.run(["bash", "-c", f"{shell} >/dev/full"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        125,
        "orchestrator: standard output: No space left on device\n",
    )
    gone = subprocess.run(["bash", "-c", f"{shell} | head -c 0; exit ${{PIPESTATUS[0]}}"])
    assert gone.returncode == 0  # that reader has all that it wants


@pytest.mark.parametrize(
    "environment",
    [
        {"LANG": "C", "LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1:strict"},
        {"PYTHONIOENCODING": "utf-8:strict"},
        {"TERM": "dumb", "COLUMNS": "1"},
        {"COLUMNS": "no number"},
        {"COLUMNS": "0"},
        {"PYTHONINSPECT": "1"},
        {"PYTHONWARNINGS": "error"},
        {"PYTHONDEVMODE": "1", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
    ids=lambda environment: " ".join(f"{name}={value}" for name, value in environment.items()),
)
def test_no_locale_and_no_setting_of_python_changes_the_exit_status(
    environment: dict[str, str],
    failing_run: Callable[..., subprocess.CompletedProcess[bytes]],
    tmp_path: Path,
) -> None:
    done = failing_run(**environment)
    assert (done.returncode, b"Traceback" in done.stderr) == (1, False)
    assert b"FAIL  " in done.stdout.splitlines()[-1] and b"Warning" not in done.stderr
    assert "×" in (tmp_path / "run" / "report.txt").read_text(encoding="utf-8")


def test_a_pipe_that_somebody_made_non_blocking_loses_nothing(
    failing_run: Callable[..., subprocess.CompletedProcess[bytes]],
) -> None:
    """ssh and others do that to the pipes that they share with us."""
    prepare = (
        "import fcntl, os; fcntl.fcntl(1, fcntl.F_SETFL, os.O_NONBLOCK); "
        "fcntl.fcntl(1, fcntl.F_SETPIPE_SZ, 4096)"
    )
    whole = failing_run().stdout
    done = failing_run(
        f'{{ {sys.executable} -c "{prepare}"; "$@"; echo status $?; }} | {{ sleep 2; cat; }}'
    )
    assert done.stdout.endswith(b"status 1\n") and len(done.stdout) > len(whole)


# -- a full disk, and a host without the usual places


def test_a_disk_that_takes_nothing_costs_a_line_for_each_report(
    failing_run: Callable[..., subprocess.CompletedProcess[bytes]],
) -> None:
    done = failing_run('ulimit -f 0; "$@"')
    assert done.returncode == 1
    lines = done.stderr.decode().splitlines()
    failed = [line.split(" could not be written")[0] for line in lines if "could not be" in line]
    assert failed == [
        f"orchestrator: {name}"
        for name in ("junit.xml and results.ktap", "report.html", "report.txt", "trace.json")
    ]
    assert any("this run is not in the history" in line for line in lines)
    *_, where, verdict = done.stdout.decode().splitlines()
    assert where.startswith("results: /") and verdict.startswith("FAIL  ")


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"XDG_STATE_HOME": "/dev/null/state"}, "set XDG_STATE_HOME"),
        ({"XDG_STATE_HOME": "/proc/state"}, "set XDG_STATE_HOME"),
        ({"XDG_STATE_HOME": "", "HOME": "/proc/home"}, "set XDG_STATE_HOME"),
        (
            {
                "TMPDIR": "/proc/nowhere",
                "XDG_RUNTIME_DIR": "/proc/nowhere",
                "HOME": "/proc/nowhere",
            },
            "",
        ),
    ],
)
def test_missing_places_do_not_change_the_exit_status(
    environment: dict[str, str],
    says: str,
    failing_run: Callable[..., subprocess.CompletedProcess[bytes]],
) -> None:
    done = failing_run(**environment)
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr and says in done.stderr.decode()


@pytest.mark.parametrize("variable", ["XDG_STATE_HOME", "XDG_CACHE_HOME"])
def test_a_place_that_depends_on_the_current_directory_is_refused(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Newer versions of platformdirs refuse it themselves."""
    function = "user_state_dir" if variable == "XDG_STATE_HOME" else "user_cache_dir"
    monkeypatch.setattr(platformdirs, function, lambda name: f"~/x/{name}")
    place = paths.state_dir if variable == "XDG_STATE_HOME" else paths.cache_dir
    with pytest.raises(InfraError, match=f"~/x/orchestrator depends on.*set {variable}"):
        place()


@pytest.mark.parametrize("variable", ["XDG_STATE_HOME", "XDG_CACHE_HOME"])
def test_a_place_that_cannot_be_made_is_one_sentence(
    variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "/dev/null")
    place = paths.state_dir if variable == "XDG_STATE_HOME" else paths.cache_dir
    with pytest.raises(InfraError, match=f"/dev/null/orchestrator cannot be made.*{variable}"):
        place()


@pytest.mark.parametrize(
    "name", ["", "relative", "/proc/nowhere", "/dev/null", "/proc", f"/{'x' * 90}"]
)
def test_sockets_get_a_short_path_wherever_the_runtime_directory_is(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", name)
    with keeper.temporary_directory(*_socket_directories()) as directory:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(directory / "gdb"))
        assert directory.stat().st_mode & 0o777 == 0o700


def test_what_only_saves_time_needs_no_state_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(accel, "probe", lambda *_: "it hung")
    (tmp_path / "kvm").touch()
    qemu = Qemu(binary=tmp_path / "kvm", version=(10, 0))
    assert accel.kvm_trouble(qemu, device=tmp_path / "kvm") == "it hung"
    packages = [Package("linux-source-6.1", "6.1.176-1", "bookworm")]
    assert versions.chosen("6.1", "linux-source-6.1", [], lambda: packages) == packages
    paths.cached_dir(paths.cache_dir() / "entry", lambda partial: None)
    assert not paths.remembered("runs").exists()


# -- run()


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], RunResult]:
    """The result of a run in which an exception is raised where the kernel is obtained."""

    def run(error: BaseException) -> RunResult:
        def obtain(request: KernelRequest) -> Kernel:
            raise error

        monkeypatch.setattr(orchestrator.run, "obtain", obtain)
        return orchestrator.run.run(RunSpec(directory=tmp_path / "run"))

    return run


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (BootError("no init"), "boot-error", "no init"),
        (OSError(28, "No space left on device", "/x"), "infra", "No space left on device: /x"),
        (PermissionError(13, "Permission denied"), "infra", "Permission denied"),
        (sqlite3.OperationalError("disk I/O error"), "infra", "OperationalError: disk I/O error"),
        (ValueError("invalid literal"), "infra", "ValueError: invalid literal"),
        (KeyError("rip"), "infra", "KeyError: 'rip'"),
        (UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"), "infra", "UnicodeDecodeError"),
        (MemoryError(), "infra", "MemoryError"),
        (RecursionError("too deep"), "infra", "RecursionError"),
        (AssertionError(), "infra", "AssertionError"),
        (Exception("x" * 100_000), "infra", "Exception: xxx"),
        (KeyboardInterrupt(), "infra", "interrupted by SIGINT"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_whatever_is_raised_becomes_a_verdict(
    error: BaseException,
    outcome: str,
    reason: str,
    ended: Callable[[BaseException], RunResult],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv(failures.DEBUG)
    result = ended(error)
    assert result.verdict.outcome == outcome and result.verdict.exit_status == 125
    assert reason in result.verdict.reason and len(result.verdict.reason) < 500
    assert result_file.read(result.directory).reason == result.verdict.reason
    assert "Traceback" not in capsys.readouterr().err
    internal = result.directory / failures.FILE
    assert internal.exists() == (not isinstance(error, BootError | KeyboardInterrupt))
    if "itself failed" in result.verdict.reason:
        assert str(internal) in result.verdict.reason
        assert "in obtain\n" in internal.read_text()


def test_a_mistake_of_the_program_fails_its_tests(
    ended: Callable[[BaseException], RunResult],
) -> None:
    """tests/conftest.py asks for it."""
    with pytest.raises(ValueError, match="a mistake"):
        ended(ValueError("a mistake"))


def test_evidence_that_cannot_be_judged_is_infra(
    ended: Callable[[BaseException], RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(evidence: Evidence) -> None:
        raise OverflowError("int too large to convert to float")

    monkeypatch.delenv(failures.DEBUG)
    monkeypatch.setattr(orchestrator.run, "judge", judge)
    result = ended(BootError("no init"))
    assert result.verdict.outcome == "infra" and "OverflowError" in result.verdict.reason
    assert result_file.read(result.directory).outcome == "infra"


def test_a_verdict_that_cannot_be_written_stands(
    ended: Callable[[BaseException], RunResult],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def write(result: RunResult) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(result_file, "write", write)
    assert ended(BootError("no init")).verdict.outcome == "boot-error"
    assert "verdict.json could not be written: No space left" in capsys.readouterr().err


def test_a_request_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_text(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(InfraError, match=r"cannot be written \(No space left.*--output"):
        orchestrator.run.run(RunSpec(directory=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("debug", [True, False])
@pytest.mark.parametrize("report", ["files.write", "page.write", "terminal.show"])
def test_a_report_that_fails_changes_no_verdict(
    report: str,
    debug: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("t")

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(orchestrator.run, "run", lambda spec: test_cli.result(tmp_path, spec))
    monkeypatch.setattr(f"orchestrator.report.{report}", fail)
    if not debug:
        monkeypatch.delenv(failures.DEBUG)
    assert cli.main(["run"]) == (125 if debug else 0)
    shown = capsys.readouterr()
    assert ("Traceback" in shown.err) == debug
    if not debug:
        assert "KeyError: 't'" in shown.err and "PASS  " in shown.out
        assert str(tmp_path) in shown.out
        assert len(history.past()) == 1


def test_a_failure_outside_of_a_run_is_one_line_with_the_place_of_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def past(**_: object) -> None:
        raise TypeError("a mistake")

    monkeypatch.delenv(failures.DEBUG)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(history, "past", past)
    assert cli.main(["history"]) == 125
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("orchestrator: itself failed") and "TypeError: a mistake" in line
    assert "in past\n" in (tmp_path / "orchestrator" / failures.FILE).read_text()


def test_a_thread_that_fails_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(failures.DEBUG)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(threading, "excepthook", cli._on_thread_failure)
    thread = threading.Thread(target=int, args=("x",), name="console")
    thread.start()
    thread.join()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("orchestrator: console: ") and "ValueError" in line
