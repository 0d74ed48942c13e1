"""The command line: what is accepted, what it becomes, and the exit status of everything that can happen."""

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
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[RunSpec]:
    """The specs for which a run was asked; each passes at once."""
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
        directory=directory,
        kernel=None,
        machine=None,
        evidence=evidence,
        verdict=verdict or judge(evidence),
        seconds={"booting": 11.0},
    )


def status(*arguments: str) -> int:
    """What the shell would see."""
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


def test_an_unknown_scenario_is_wrong_usage_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert status("run", "--scenario", "nop55") == errors.EXIT_USAGE
    assert "did you mean nop5?" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_directory_in_use_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("precious")
    assert status("run", "--output", str(tmp_path)) == errors.EXIT_USAGE
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["run", "--help"], ["scenarios"]], ids=" ".join
)
def test_what_only_tells_is_0(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert status(*arguments) == 0
    assert capsys.readouterr().out


# -- what the options become


def test_the_defaults(asked: list[RunSpec]) -> None:
    assert status("run") == 0
    (spec,) = asked
    assert spec == RunSpec()
    assert (spec.smp, spec.accel, spec.seed, spec.scenarios) == (8, "auto", 1, ())


def test_every_option(asked: list[RunSpec], tmp_path: Path) -> None:
    options = (
        "--kernel debian:6.1 --patch a.patch --patch b.patch --config c.config --set KASAN=y --smp 4 "
        "--accel tcg-single --cpu qemu64 --memory 512 --scenario nop5 --scenario key* --duration 0.5 --seed 7 "
        "--qemu /q --output /o"
    )
    assert status("run", *options.split()) == 0
    assert asked == [
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


def test_the_tree(asked: list[RunSpec]) -> None:
    assert status("run", "--tree", ".", "--smp", "8") == 0
    assert asked[0].kernel.tree == Path()


# -- what becomes of a run


@pytest.mark.parametrize(
    ("outcome", "wanted"),
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
def test_the_verdict_is_the_status(
    outcome: str,
    wanted: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    verdict = dataclasses.replace(
        judge(Run().evidence()), outcome=outcome, reason="for a [bold]reason[/]"
    )
    monkeypatch.setattr(orchestrator.run, "run", lambda spec: result(tmp_path, verdict=verdict))
    assert status("run") == wanted
    for report in (capsys.readouterr().out, (tmp_path / "report.txt").read_text()):
        assert report.strip().splitlines()[-1] == f"{outcome.upper()}  for a [bold]reason[/]"


def raising(error: BaseException) -> Callable[[RunSpec], Any]:
    def run(spec: RunSpec) -> Any:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "wanted"),
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
def test_what_ends_the_program(
    error: BaseException,
    wanted: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(orchestrator.run, "run", raising(error))
    assert status("run") == wanted
    said = capsys.readouterr().err.strip()
    assert said.splitlines()[-1].startswith("orchestrator: ")
    assert ("Traceback" in said) == isinstance(error, ValueError | AssertionError)


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


def test_a_reader_that_goes_away_does_not_change_the_verdict(tmp_path: Path) -> None:
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


def test_the_script_that_repeats_the_run(tmp_path: Path) -> None:
    directory = tmp_path / "a run"
    spec = RunSpec(smp=2, scenarios=("key*",), seed=7, directory=directory)
    assert rundir.create(spec) == directory
    script = (directory / "repeat.sh").read_text()
    words = shlex.split(script.splitlines()[-1])[1:-1]
    assert words[:4] == [sys.executable, "-m", "orchestrator", "run"]
    assert os.access(directory / "repeat.sh", os.X_OK)
    options = cli.parser().parse_args(words[3:])
    assert run_spec(options) == replace(spec, directory=None)


def test_the_request_is_kept_and_read_back(tmp_path: Path) -> None:
    kernel = KernelRequest(tree=Path("/t"), patches=(Path("/p"),), settings=("CONFIG_X=y",))
    spec = RunSpec(kernel=kernel, smp=2, scenarios=("key*",), directory=tmp_path / "run")
    kept = json.loads((rundir.create(spec) / "spec.json").read_text())
    assert from_json(RunSpec, kept) == spec


def test_a_report_that_cannot_be_written_leaves_the_verdict_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("report.files.write", "report.page.write", "many.history.record"):
        monkeypatch.setattr(f"orchestrator.{name}", full)
    monkeypatch.setattr("orchestrator.report.terminal.show", lambda *_: None)
    monkeypatch.setattr("orchestrator.report.files.github", lambda *_: [])
    run_command._report(cast(RunResult, SimpleNamespace(directory=tmp_path)))
    said = capsys.readouterr().err
    assert "report.html could not be written" in said and "the history could not be written" in said
