# SPDX-License-Identifier: GPL-2.0-only
"""What is shown of text that somebody else wrote: a guest, a repository, a file."""

from __future__ import annotations

import io

import pytest
from rich.table import Table
from rich.text import Text

from orchestrator import cli, ui
from orchestrator.errors import InfraError, printable

CASES = {
    "\x1b[2J\x1b]0;title\x07": "\\x1b[2J\\x1b]0;title\\x07",
    "\x9b31m": "\\x9b31m",
    "one\r\ntwo\ttab": "one\\r\ntwo\ttab",
    "\x7f\x00": "\\x7f\\x00",
    "a\u202eb\u2066": "a\\u202eb\\u2066",
    "\udcff": "\\udcff",
    "Grüße ✅ 0f1f440000/e90b000000": "Grüße ✅ 0f1f440000/e90b000000",
}


@pytest.mark.parametrize("text", CASES)
def test_only_printable_text_reaches_a_terminal(text: str) -> None:
    assert printable(text) == CASES[text]


@pytest.mark.parametrize("wrap", [str, Text, lambda text: Text(text, style="red")])
def test_a_console_colours_what_it_shows_but_obeys_nothing_in_it(wrap: object) -> None:
    file = io.StringIO()
    console = ui.SafeConsole(
        file=file, force_terminal=True, width=200, color_system="standard", highlight=False
    )
    assert callable(wrap)
    table = Table("", "")
    table.add_row(wrap("evil [/red] \x1b]52;c;cm0gLXJm\x07 text"), Text("fail", style="red"))
    console.print(table)
    console.print(wrap("evil \x1b[2J"), markup=False)
    output = file.getvalue()
    assert "evil [/red] \\x1b]52;c;cm0gLXJm" in output and "\\x1b[2J" in output
    assert "\x1b]52" not in output and "\x1b[2J" not in output
    assert "\x1b[31mfail" in output


@pytest.mark.parametrize("columns", ["0", "1", "39", "00", "x", "-1", ""])
def test_no_width_of_the_terminal_hides_a_line(
    columns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    output = io.StringIO()
    table = Table("CPU", "passes")
    table.add_row("0", "31,415")
    console = ui.SafeConsole(file=output)
    console.print(table)
    console.print("PASS  every promise held", soft_wrap=True)
    assert "31,415" in output.getvalue() and "PASS  every promise held\n" in output.getvalue()


def test_markup_in_the_name_of_a_step_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    console = ui.SafeConsole(file=file, force_terminal=True, width=200)
    monkeypatch.setattr(ui, "console", console)
    with ui.step("fetch [/nonsense] of [link=https://example.org]x[/link]") as step:
        step.progress("[bold")
    assert "fetch [/nonsense] of [link=https://example.org]x[/link]" in file.getvalue()


@pytest.mark.parametrize("text", ["::add-mask::x", "   ::error title=x::y", "x ##[error]y"])
def test_a_guest_gives_no_commands_to_github(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for inside in (False, True):
        monkeypatch.setenv("GITHUB_ACTIONS", str(inside).lower())
        file = io.StringIO()
        ui.SafeConsole(file=file, width=200).print(text, markup=False, highlight=False)
        assert (text in file.getvalue()) != inside
        assert ("\\" in file.getvalue()) == inside


def test_an_error_that_quotes_a_stranger_is_printable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(options: object) -> int:
        raise InfraError("git says \x1b[2J")

    monkeypatch.setattr("orchestrator.commands.run.main", main)
    assert cli.main(["run"]) == 125
    assert capsys.readouterr().err == "orchestrator: git says \\x1b[2J\n"
