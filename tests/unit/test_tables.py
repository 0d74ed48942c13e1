# SPDX-License-Identifier: GPL-2.0-only
"""Reports at any width: no digit is cut, and no result is lost."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from good_run import Run
from test_json import run_result

from orchestrator import run as run_module
from orchestrator import ui
from orchestrator.kernel import build
from orchestrator.many.mutants import Mutant, MutantResult
from orchestrator.many.sweep.matrix import Cell
from orchestrator.many.sweep.sweep import CellResult
from orchestrator.report import mutants, sweep, tables, terminal
from orchestrator.spec import RunSpec
from orchestrator.ui import SafeConsole

WIDTHS = (40, 60, 80, 100, 120, 200)


def shown(show: object, width: int, *, is_terminal: bool) -> str:
    content = io.StringIO()
    console = SafeConsole(file=content, width=width, force_terminal=is_terminal, color_system=None)
    show(console)  # type: ignore[operator]
    return content.getvalue()


def big(digits: int) -> tables.ReportTable:
    table = tables.terminal(
        ("name", "what", "a", "b", "c"), left=2, fold=("what",), optional=("b",)
    )
    number = f"{10**digits - 1:,}"
    table.add_row("x" * 30, "some words that may wrap", number, number, number)
    return table


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_no_digit_is_cut(width: int, is_terminal: bool) -> None:
    text = shown(lambda console: tables.show(big(12), console), width, is_terminal=is_terminal)
    numbers = re.findall(r"\b999,999,999,999\b", text)
    assert "…" not in text
    assert len(numbers) in ((2, 3) if is_terminal else (3,))


def test_columns_go_when_there_is_no_room() -> None:
    lines = shown(lambda console: tables.show(big(9), console), 80, is_terminal=True).splitlines()
    assert max(map(len, lines)) <= 80
    assert " b " not in lines[0] + lines[1]


def test_without_a_terminal_lines_are_as_long_as_they_have_to_be() -> None:
    lines = shown(lambda console: tables.show(big(60), console), 80, is_terminal=False).splitlines()
    assert len(max(lines, key=len)) > 200


@pytest.mark.parametrize("is_terminal", [False, True])
@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_of_a_run_has_all_counts_at_any_width(
    width: int, is_terminal: bool, tmp_path: Path
) -> None:
    run = Run()
    run.report = [line.replace("int3=", "int3=11111111") for line in run.report]
    result = run_result(tmp_path, run)
    wide = shown(lambda console: terminal.show(result, console), 300, is_terminal=False)
    text = shown(lambda console: terminal.show(result, console), width, is_terminal=is_terminal)
    assert "…" not in text.partition("free-running:")[0]
    heading = "passes by CPU: while held in each phase | free-running"
    # On a terminal, columns of counts without a comma may go.
    count = r"\d[\d,]*,[\d,]+" if is_terminal else r"[\d,]{9,}"
    counts = re.findall(count, wide.partition(heading)[2].partition("free-running:")[0])
    assert counts
    for count in counts:
        assert count in text


def test_a_sweep_with_a_long_name_keeps_its_results() -> None:
    name = "git:https://example.org/a/very/long/path/to/a/repository.git@a-branch-of-some-length"
    results = {
        Cell(kernel=name, spec=RunSpec(smp=smp)): CellResult("pass", 0, "r") for smp in (1, 2, 4, 8)
    }
    for is_terminal in (False, True):
        text = shown(lambda console: sweep.show(results, 1.0, console), 80, is_terminal=is_terminal)
        assert len(re.findall(r"\bpass\b", text)) == 4


def test_a_mutants_table_at_80_columns() -> None:
    mutant = Mutant("6.1-int3", "sync-after-tail-missing", Path("/p"), "t", caught_by=("sync",))
    result = MutantResult("6.1-int3", mutant.name, "caught", ("sync",), "r", 123456.0, "/d")
    for is_terminal in (False, True):
        text = shown(
            lambda console: mutants.show([(mutant, result)], 1.0, console),
            80,
            is_terminal=is_terminal,
        )
        assert "caught" in text and mutant.name in text and "123456" in text


# -- sentences


def test_the_times_are_one_sentence() -> None:
    seconds = {"booting": 10.6, "GDB watches: holding the poker": 2.5, "a": 0.1, "loading": 5.44}
    assert terminal._times(seconds) == (
        "18.6 s, of them 10.6 s for booting, 5.4 s for loading and 2.5 s for holding the poker"
    )
    assert terminal._times({"booting": 1.0}) == "1.0 s, of them 1.0 s for booting"


def test_a_long_reason_for_an_accelerator_is_cut_where_a_sentence_ends() -> None:
    long = "a small guest did not reach 64-bit mode on CPU 0: QEMU died (" + "x" * 90
    assert run_module._in_short("there is no /dev/kvm") == "there is no /dev/kvm"
    assert run_module._in_short(long) == (
        "a small guest did not reach 64-bit mode on CPU 0; see `orchestrator doctor`"
    )


class _Shown:
    """A rich status that keeps what it was last told."""

    text = ""

    def update(self, text: object) -> None:
        self.text = str(text)


def test_the_first_build_is_estimated_and_the_next_one_known(tmp_path: Path) -> None:
    config = tmp_path / ".config"
    config.write_text("CONFIG_A=y\n" * 471 + "CONFIG_B=m\n" * 900)
    for total in (1078, 3):
        status = _Shown()
        step = ui.Progress("building", status)  # type: ignore[arg-type]
        counter = build._ObjectCounter(tmp_path / "objects", config, step)
        for line in ("  CC  a.o\n", "  GEN  x\n", "  AS  b.o\n", "  LD  c.o\n"):
            counter.line(line)
        assert f" 1 of about {total} objects" in status.text
        counter.finish()
        assert (tmp_path / "objects").read_text() == "3"


def test_a_build_has_a_bar_a_total_and_an_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    status = _Shown()
    progress = ui.Progress("building 6.1-int3", status)  # type: ignore[arg-type]
    monkeypatch.setattr(ui.time, "monotonic", lambda: progress._start + 30)
    progress.count(5, 400, "objects")
    assert status.text.endswith(" 5 of about 400 objects")
    progress.count(100, 400, "objects")
    assert status.text == (
        "building 6.1-int3: ━━━━━━────────────────── 100 of about 400 objects, about 2 min left"
    )
    progress.count(500, 400, "objects")
    assert status.text == "building 6.1-int3: 500 objects"
    progress.count(7, None, "objects")
    assert status.text == "building 6.1-int3: 7 objects"
