# SPDX-License-Identifier: GPL-2.0-only
"""What a person meets who types: help, examples, corrections, completion."""

from __future__ import annotations

import argparse
import importlib
import shlex
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from orchestrator import cli
from orchestrator.commands import completion, parser

MODULES = [importlib.import_module(f"orchestrator.commands.{name}") for name in parser.COMMANDS]


def name_of(module: ModuleType) -> str:
    return str(module.NAME)


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_the_help_ends_with_examples_that_work_and_exit_statuses(
    module: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.parser().parse_args([module.NAME, "--help"])
    text = capsys.readouterr().out
    for line, _ in module.EXAMPLES:
        assert f"\n  orchestrator {line}\n" in text
        options = cli.parser().parse_args(shlex.split(line.partition(" >")[0]))
        assert options.command is module.main
    assert text.index("examples:") < text.index("exit status:")
    assert "  129  wrong usage" in text


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        ("rnu", "run"),
        ("historry", "history"),
        ("run --smpp 4", "--smp"),
        ("run --dry_run", "--dry-run"),
        ("run --scenarios=nop5", "--scenario"),
        ("run --accel kmv", "kvm"),
        ("run --scenario nop55", "nop5"),
        ("kernels lits", "list"),
        ("kernels build --pach x", "--patch"),
        ("mutants --only no-int4", "no-int3"),
        ("mutants --kernel 6.1-int4", "6.1-int3"),
        ("completion bsh", "bash"),
    ],
)
def test_a_mistyped_word_is_corrected(
    arguments: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments.split()) == 129
    assert f"(did you mean {meant}?)" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", ["run --bogus", "history --quick", "run foo"])
def test_a_word_that_is_like_none_gets_no_guess(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments.split()) == 129
    error = capsys.readouterr().err
    assert "unrecognized arguments" in error and "did you mean" not in error


def test_an_option_that_takes_no_value_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["history", "--json=1"]) == 129
    assert capsys.readouterr().err == "orchestrator: --json takes no value, such as '1'\n"


@pytest.mark.parametrize("arguments", ["run --scen nop5", "kernels clean --older 3d", "--vers"])
def test_abbreviations_are_refused(arguments: str) -> None:
    assert cli.main(arguments.split()) == 129


def test_the_usage_shown_is_that_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["kernels", "clean", "--nonsense"]) == 129
    assert "usage: orchestrator kernels clean" in capsys.readouterr().err


def test_help_fits_into_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for module in MODULES:
        with pytest.raises(SystemExit):
            cli.parser().parse_args([module.NAME, "--help"])
        body = capsys.readouterr().out.partition("examples:")[0]
        assert max(map(len, body.splitlines())) <= 80, module.NAME


def test_explore_tells_its_own_default_duration(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["explore", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert cli.parser().parse_args(["explore"]).duration == 0.3
    assert "(default: 0.3)" in text and "default: 3" not in text


def test_the_help_of_the_program_says_where_to_begin(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        cli.parser().parse_args(["--help"])
    text = capsys.readouterr().out
    assert "\n    scenarios   list" in text and "\n    completion  print" in text
    assert "\nfirst steps:\n" in text and "\n  orchestrator doctor\n" in text


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_completion_knows_commands_options_scenarios_and_kernels(shell: str) -> None:
    text = completion.script(shell)
    for word in (*parser.COMMANDS, "nop5", "6.1-int3"):
        assert word in text
    assert "dry-run" in text


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not installed")
def test_bash_completes(tmp_path: Path) -> None:
    (tmp_path / "script").write_text(completion.script("bash"))
    ask = (
        "source ./script; COMP_WORDS=(orchestrator run --scenario no); COMP_CWORD=3; "
        "$(complete -p orchestrator | sed 's/.*-F \\([^ ]*\\).*/\\1/'); echo ${COMPREPLY[@]}"
    )
    done = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True)
    assert "nop5" in done.stdout.split(), done.stderr


def test_the_parser_is_as_it_was_after_completion() -> None:
    completion.script("bash")
    (action,) = (
        one for one in cli.parser()._actions if isinstance(one, argparse._SubParsersAction)
    )
    assert not any(one.choices for one in action.choices["run"]._actions if one.dest == "skip")
