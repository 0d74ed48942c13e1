# SPDX-License-Identifier: GPL-2.0-only
"""Text of strangers in what a run leaves behind: pages, summaries, annotations and scripts."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from good_run import Run
from test_results import broken, result_of

from orchestrator import rundir
from orchestrator.errors import InfraError
from orchestrator.guest.klog import Finding
from orchestrator.host import keeper
from orchestrator.host.paths import PROJECT
from orchestrator.kernel.model import KernelRequest
from orchestrator.machine import machine
from orchestrator.many.sweep.matrix import Cell
from orchestrator.many.sweep.sweep import CellResult
from orchestrator.report import files, page, sweep, tables
from orchestrator.spec import RunSpec

EVIL = "\"'><script>alert(1)</script><img src=x onerror=alert(1)> javascript:alert(1)"


class Tags(HTMLParser):
    """What a browser would see of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]


def assert_harmless(text: str) -> Tags:
    found = Tags(text)
    assert not found.tags & {"script", "img", "iframe", "object", "base", "meta refresh"}
    assert not any(name.startswith("on") for name in found.attributes)
    assert not any(":" in link.partition("/")[0] for link in found.links)
    return found


def test_a_page_shows_what_a_guest_says_as_text(tmp_path: Path) -> None:
    run = broken()
    run.findings = [Finding("oops", 1, EVIL, 2)]
    run.error = InfraError(EVIL)
    (tmp_path / "console.log").write_text(f"{EVIL}\n</pre></body>{EVIL}\n")
    result = result_of(run, tmp_path)
    spec = replace(result.spec, kernel=KernelRequest(selector=EVIL), cpu=EVIL)
    assert_harmless(page.render(replace(result, spec=spec)))


def test_a_sweeps_page_has_only_links_to_files(tmp_path: Path) -> None:
    directory = tmp_path / "cells" / 'javascript:alert(1)"#?x'
    directory.mkdir(parents=True)
    spec = RunSpec(kernel=KernelRequest(selector=EVIL), smp=2)
    cell = Cell(kernel=EVIL, spec=spec)
    results = {cell: CellResult("oops", 1, EVIL, (EVIL,), directory=str(directory))}
    sweep.write(results, 1.0, tmp_path)
    found = assert_harmless((tmp_path / "sweep.html").read_text())
    assert set(found.links) == {"cells/javascript%3Aalert%281%29%22%23%3Fx"}
    # A sweep's own directory may be the one with such a name.
    sweep.write(results, 1.0, directory.parent)
    found = assert_harmless((directory.parent / "sweep.html").read_text())
    assert found.links[0].startswith("javascript%3Aalert")


@pytest.mark.parametrize(
    "template", sorted((PROJECT / "orchestrator/report").glob("*.j2")), ids=lambda file: file.name
)
def test_every_value_of_a_template_is_escaped_and_in_quotes(template: Path) -> None:
    text = template.read_text()
    assert "|safe" not in text.replace(" ", "") and "autoescape" not in text
    assert not re.search(r"=\{\{", text)
    assert not re.search(r"<script[^>]*>[^<]*\{\{", text)


def test_a_summary_and_an_annotation_are_what_they_quote_and_no_more(tmp_path: Path) -> None:
    run = Run()
    run.error = InfraError(f"{EVIL}\n::add-mask::x\n# [x](javascript:y) `z` | w\r::error::v")
    summary = tmp_path / "summary.md"
    result = result_of(run, tmp_path)
    environment = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    annotations = files.github(result, environment)
    assert annotations and not any(re.search(r"[\r\n]", line) for line in annotations)
    text = summary.read_text()
    assert "<script" not in text and not re.search(r"(?m)^(::|# )", text)
    assert "\\[x\\](javascript:y) \\`z\\` \\| w" in text


def test_markdown_in_a_cell_is_text() -> None:
    assert tables.escape("a|b `c` [d](e) <f> &lt; \\\n**g**") == (
        "a\\|b \\`c\\` \\[d\\](e) &lt;f> &amp;lt; \\\\ \\*\\*g\\*\\*"
    )


def test_repeat_sh_runs_nothing_but_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cwd = tmp_path / "it's; touch PWNED; $(touch PWNED) `touch PWNED`\n#"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    program = tmp_path / "a 'python'"
    program.write_text('#!/bin/sh\nprintf "%s\\0" "$PWD" "$@" > "$OUTPUT"\n')
    program.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(program))
    evil = "x'\"; touch PWNED; $(touch PWNED) `touch PWNED` \\"
    kernel = KernelRequest(selector=evil, patches=(Path(evil),), settings=(evil,))
    spec = RunSpec(kernel=kernel, cpu=evil, scenarios=(evil,), directory=tmp_path / "run")
    directory = rundir.create(spec)
    output = tmp_path / "output"
    subprocess.run(
        [directory / "repeat.sh"], env={**os.environ, "OUTPUT": str(output)}, cwd="/", check=True
    )
    where, *arguments = output.read_text().split("\0")[:-1]
    assert where == str(cwd)
    assert arguments == ["-m", "orchestrator", "run", *spec.argv()]
    assert arguments.count(evil) >= 4
    assert not list(tmp_path.rglob("PWNED"))


def test_the_sockets_are_in_a_directory_that_nobody_else_can_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/tmp")
    before = os.umask(0)
    try:
        with (
            keeper.temporary_directory(*machine._socket_directories()) as first,
            keeper.temporary_directory(*machine._socket_directories()) as second,
        ):
            assert first != second
            for directory in (first, second):
                assert directory.stat().st_mode & 0o777 == 0o700
    finally:
        os.umask(before)
    assert not first.exists()
