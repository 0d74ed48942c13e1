# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator site`: the history as a static page."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from test_hostile_text import EVIL, Tags

from orchestrator import cli
from orchestrator.many.history import Flaky, PastRun
from orchestrator.report import site

DAY = 86400.0
RUN = PastRun(
    id=1, ended=1_795_700_000.0, kernel="6.1-int3", release="6.1.192", digest="d", smp=4,
    accel="tcg", seed=1, seconds=20.0, outcome="pass", reason="every promise held", exit_status=0,
    directory="/nonexistent", failed=(),
)  # fmt: skip


def made(directory: Path, *runs: PastRun) -> str:
    site.write(directory, runs, [])
    return (directory / site.INDEX).read_text()


def test_a_kernel_has_a_row_with_its_days_and_when_it_was_last_good(tmp_path: Path) -> None:
    bad = replace(RUN, id=3, ended=RUN.ended + DAY, outcome="fail", exit_status=1, reason="sync")
    other = replace(RUN, id=2, ended=RUN.ended + DAY, kernel="debian:6.1", outcome="infra",
                    exit_status=125)  # fmt: skip
    text = made(tmp_path, bad, other, RUN)
    grid = text.partition('<tbody id="grid">')[2].partition("</tbody>")[0]
    assert re.findall(r'<td class="(\w+)" [^>]*>([^<]*)</td>', grid) == [
        ("pass", "1/1"), ("fail", "0/1 ✗"), ("none", ""), ("error", "0/1 ?"),
    ]  # fmt: skip
    assert re.findall(r"<td>([^<]+)</td></tr>", grid) == ["2026-11-26", "never"]
    assert "3 runs of 2 kernels: 1 passed, in 1 the kernel failed, 1 have no verdict" in text


def test_reports_are_copied_so_that_the_folder_can_be_published(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "report.html").write_text("the report")
    past = replace(RUN, directory=str(run))
    text = made(tmp_path / "site", past, replace(RUN, id=2))
    assert Tags(text).links == ["runs/1/report.html"]
    assert (tmp_path / "site" / "runs/1/report.html").read_text() == "the report"
    # It stays when the run is pruned, and goes when the run leaves the list.
    (run / "report.html").unlink()
    assert Tags(made(tmp_path / "site", past)).links == ["runs/1/report.html"]
    (tmp_path / "site" / "runs" / "mine").mkdir()
    assert Tags(made(tmp_path / "site", replace(RUN, id=2))).links == []
    assert [path.name for path in (tmp_path / "site" / "runs").iterdir()] == ["mine"]


def test_what_the_history_says_is_text(tmp_path: Path) -> None:
    evil = replace(RUN, kernel=EVIL, release=EVIL, reason=EVIL, outcome=EVIL, exit_status=1,
                   directory=EVIL)  # fmt: skip
    flaky = Flaky(EVIL, "d", 4, "tcg", "claim", EVIL, 1, 1)
    rows = [site._row(evil, "")]
    text = site.render(rows, [flaky])
    found = Tags(text)
    assert text.count("<script") == 1, "the page's own"
    assert "img" not in found.tags and not any(name.startswith("on") for name in found.attributes)


def test_a_damaged_number_costs_a_date_and_nothing_else(tmp_path: Path) -> None:
    assert "?" in made(tmp_path, replace(RUN, ended=1e300), replace(RUN, directory="\0"))


def test_an_empty_history_has_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert cli.main(["site", str(tmp_path / "site")]) == 0
    assert "0 runs" in capsys.readouterr().out
    assert "No runs so far" in (tmp_path / "site" / site.INDEX).read_text()


def test_a_page_of_somebody_else_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "index.html").write_text("mine")
    for folder in ("", str(tmp_path)):
        assert cli.main(["site", folder]) == 129
    assert (tmp_path / "index.html").read_text() == "mine"
    assert "none of ours" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_is_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    (tmp_path / "file").write_text("")
    assert cli.main(["site", str(tmp_path / "file")]) == 129
    assert "cannot be written" in capsys.readouterr().err
