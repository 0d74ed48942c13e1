# SPDX-License-Identifier: GPL-2.0-only
"""The command line: which options there are, what they become, and every exit status."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from good_run import Run

import orchestrator.run
from orchestrator import cli, errors, rundir
from orchestrator.commands import run as run_command
from orchestrator.commands.options import run_spec
from orchestrator.kernel.model import KernelRequest
from orchestrator.options import from_json
from orchestrator.spec import RunSpec
from orchestrator.verdict.outcome import Verdict, judge
from orchestrator.verdict.result import RunResult


@pytest.fixture
def requested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """The specs of all runs that were requested. Each run passes at once."""
    specs: list[RunSpec] = []

    def run(spec: RunSpec) -> RunResult:
        specs.append(spec)
        return result(tmp_path, spec=spec)

    monkeypatch.setattr(orchestrator.run, "run", run)
    return specs


def result(
    directory: Path, spec: RunSpec | None = None, verdict: Verdict | None = None
) -> RunResult:
    evidence = Run().evidence()
    return RunResult(
        spec=spec or RunSpec(),
        name="6.1-plain",
        directory=directory,
        kernel=None,
        machine=None,
        evidence=evidence,
        verdict=verdict or judge(evidence),
        seconds={"booting": 11.0},
    )


def status(*arguments: str) -> int:
    """The exit status that a shell would see."""
    try:
        return cli.main(arguments)
    except SystemExit as end:
        assert isinstance(end.code, int)
        return end.code


# -- wrong usage


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["run", "--nonsense"],
        ["run", "stray"],
        ["run", "--smp"],
        ["run", "--smp", "many"],
        ["run", "--smp", "0"],
        ["run", "--smp", "-1"],
        ["run", "--smp", "65"],
        ["run", "--accel", "warp"],
        ["run", "--duration", "0"],
        ["run", "--duration", "-1"],
        ["run", "--duration", "nan"],
        ["run", "--duration", "inf"],
        ["run", "--duration", "long"],
        ["run", "--seed", "x"],
        ["run", "--seed", "-1"],
        ["run", "--memory", "64"],
        ["run", "--scen", "nop5"],
        ["kernels"],
        ["kernels", "burn"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_129_in_one_sentence(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*arguments) == errors.EXIT_USAGE
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("orchestrator: ")


def test_an_unknown_scenario_is_wrong_usage_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert status("run", "--scenario", "nop55") == errors.EXIT_USAGE
    assert "did you mean nop5?" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_directory_in_use_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "existing").write_text("precious")
    assert status("run", "--output", str(tmp_path)) == errors.EXIT_USAGE
    assert [path.name for path in tmp_path.iterdir()] == ["existing"]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["run", "--help"], ["scenarios"]], ids=" ".join
)
def test_printing_information_exits_with_0(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*arguments) == 0
    assert capsys.readouterr().out


HEAVY = (
    "asyncio", "capstone", "jinja2", "numpy", "paramiko", "pexpect", "platformdirs", "pydantic",
    "pygdbmi", "rich", "sqlite3", "yaml",
)  # fmt: skip
"""Modules that take long to import. --help and completion must not wait for them."""


@pytest.mark.parametrize("arguments", [["--help"], ["bisect", "--help"]], ids=" ".join)
def test_help_imports_no_heavy_module(arguments: list[str]) -> None:
    script = f"""
import sys
from orchestrator import cli
try:
    cli.main({arguments!r})
except SystemExit:
    print(*sorted(set(sys.modules) & set({HEAVY!r})), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stderr.split() == []


# -- from options to a request


def test_the_defaults(requested: list[RunSpec]) -> None:
    assert status("run") == 0
    (spec,) = requested
    assert spec == RunSpec()
    assert (spec.smp, spec.accel, spec.seed, spec.scenarios) == (8, "auto", 1, ())


def test_every_option(requested: list[RunSpec], tmp_path: Path) -> None:
    options = (
        "--kernel debian:6.1 --patch a.patch --patch b.patch --config c.config --set KASAN=y "
        "--smp 4 --accel tcg-single --cpu qemu64 --memory 512 --scenario nop5 --scenario key* "
        "--duration 0.5 --seed 7 --qemu /q --output /o"
    )
    assert status("run", *options.split()) == 0
    assert requested == [
        RunSpec(
            kernel=KernelRequest(
                selector="debian:6.1",
                patches=(Path("a.patch"), Path("b.patch")),
                fragments=(Path("c.config"),),
                settings=("KASAN=y",),
            ),
            smp=4,
            accel="tcg-single",
            cpu="qemu64",
            memory=512,
            scenarios=("nop5", "key*"),
            duration=0.5,
            seed=7,
            qemu=Path("/q"),
            directory=Path("/o"),
        )
    ]


def test_the_tree(requested: list[RunSpec]) -> None:
    assert status("run", "--tree", ".", "--smp", "8") == 0
    assert requested[0].kernel.tree == Path()


# -- verdicts and exceptions


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("pass", 0),
        ("fail", 1),
        ("panic", 1),
        ("hang", 1),
        ("infra", 125),
        ("boot-error", 125),
        ("lost-vm", 125),
    ],
)
def test_the_verdict_decides_the_exit_status(
    outcome: str,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    verdict = dataclasses.replace(
        judge(Run().evidence()), outcome=outcome, reason="for a [bold]reason[/]"
    )
    monkeypatch.setattr(orchestrator.run, "run", lambda spec: result(tmp_path, verdict=verdict))
    assert status("run") == expected
    for report in (capsys.readouterr().out, (tmp_path / "report.txt").read_text()):
        assert report.strip().splitlines()[-1] == f"{outcome.upper()}  for a [bold]reason[/]"


def raising(error: BaseException) -> Callable[[RunSpec], Any]:
    def run(spec: RunSpec) -> Any:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.UsageError("no such tree"), 129),
        (errors.BuildError("hunk 2 does not apply"), 125),
        (errors.BootError("no init"), 125),
        (errors.InfraError("no gdb"), 125),
        (errors.LostVM("QEMU died"), 125),
        (KeyboardInterrupt(), 130),
        (OSError(28, "No space left on device"), 125),
        (ValueError("a fault of ours"), 125),
        (AssertionError(), 125),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_every_exception_has_an_exit_status_and_a_message(
    error: BaseException,
    expected: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(orchestrator.run, "run", raising(error))
    assert status("run") == expected
    errors_shown = capsys.readouterr().err.strip()
    assert errors_shown.splitlines()[-1].startswith("orchestrator: ")
    assert ("Traceback" in errors_shown) == isinstance(error, ValueError | AssertionError)


SCRIPT = """
import sys
sys.path[:0] = [{here!r}]
import orchestrator.run
from pathlib import Path
from test_cli import result
from orchestrator import cli
orchestrator.run.run = lambda spec: result(Path({directory!r}))
sys.exit(cli.main(["run"]))
"""


def test_a_closed_pipe_does_not_change_the_verdict(tmp_path: Path) -> None:
    """`orchestrator run | head -1`"""
    ours, theirs = os.pipe()
    os.close(ours)
    script = SCRIPT.format(here=str(Path(__file__).parent), directory=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", script],
        stdout=theirs,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (0, "")
    assert "PASS" in (tmp_path / "report.txt").read_text()


# -- the run directory


def test_repeat_sh_requests_the_same_run(tmp_path: Path) -> None:
    directory = tmp_path / "a run"
    spec = RunSpec(smp=2, scenarios=("key*",), seed=7, directory=directory)
    assert rundir.create(spec) == directory
    script = (directory / "repeat.sh").read_text()
    command = shlex.split(script.splitlines()[-1])[1:-1]
    assert command[:4] == [sys.executable, "-m", "orchestrator", "run"]
    assert os.access(directory / "repeat.sh", os.X_OK)
    options = cli.parser().parse_args(command[3:])
    assert run_spec(options) == replace(spec, directory=None)


def test_spec_json_is_the_request(tmp_path: Path) -> None:
    kernel = KernelRequest(tree=Path("/t"), patches=(Path("/p"),), settings=("CONFIG_X=y",))
    spec = RunSpec(kernel=kernel, smp=2, scenarios=("key*",), directory=tmp_path / "run")
    kept = json.loads((rundir.create(spec) / "spec.json").read_text())
    assert from_json(RunSpec, kept) == spec
    for wrong in ([], {"kernel": []}, {"kernel": {"patches": "x"}}, {"kernel": {"tree": 5}}):
        with pytest.raises(TypeError):
            from_json(RunSpec, wrong)  # type: ignore[arg-type]


def test_a_report_that_cannot_be_written_does_not_change_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    writers = ("report.files.write", "report.page.write", "report.trace.write")
    for name in (*writers, "many.history.record"):
        monkeypatch.setattr(f"orchestrator.{name}", full)
    monkeypatch.setattr("orchestrator.report.terminal.show", lambda *_: None)
    monkeypatch.setattr("orchestrator.report.files.github", lambda *_: [])
    run_command._report(cast(RunResult, SimpleNamespace(directory=tmp_path)))
    output = capsys.readouterr().err
    assert "report.html could not be written" in output
    assert "the history could not be written" in output
