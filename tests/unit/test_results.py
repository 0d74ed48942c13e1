# SPDX-License-Identifier: GPL-2.0-only
"""Results for other programs and people: cases, JUnit, KTAP, GitHub, the page, the history."""

from __future__ import annotations

import io
import multiprocessing
import os
import platform
import sqlite3
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from good_run import NOP5_ON, Run

from orchestrator import ui
from orchestrator.errors import BuildError, InfraError
from orchestrator.guest import ktap
from orchestrator.guest.klog import Finding
from orchestrator.kernel.model import KernelRequest
from orchestrator.many import history
from orchestrator.report import files, mail, page, terminal
from orchestrator.rundir import BRANCHES, files_of
from orchestrator.spec import RunSpec
from orchestrator.verdict import result as result_file
from orchestrator.verdict.cases import Case, cases
from orchestrator.verdict.evidence import Evidence
from orchestrator.verdict.outcome import judge
from orchestrator.verdict.result import RunResult


def result_of(run: Run, directory: Path, evidence: Evidence | None = None) -> RunResult:
    evidence = evidence or run.evidence()
    return RunResult(
        spec=RunSpec(kernel=KernelRequest(selector="debian:6.1"), smp=2),
        name="debian:6.1",
        directory=directory,
        kernel=None,
        machine=None,
        evidence=evidence,
        verdict=judge(evidence),
        seconds={"booting": 3.5, "free": 1.25},
    )


def broken() -> Run:
    run = Run()
    run.find(NOP5_ON, "write").update(irqs=False)
    return run


def by_name(run: Run, tmp_path: Path) -> dict[str, Case]:
    return {f"{case.group}.{case.name}": case for case in cases(result_of(run, tmp_path))}


def test_every_case_of_a_healthy_run_passes(tmp_path: Path) -> None:
    found = by_name(Run(), tmp_path)
    assert {case.status for case in found.values()} == {"pass"}
    assert {
        "run.verdict",
        "claim.sync",
        "claim.ledgers",
        "scenario.nop5",
        "scenario.key",
    } <= found.keys()


def test_a_fault_fails_only_its_claim_its_scenario_and_the_verdict(
    tmp_path: Path,
) -> None:
    found = by_name(broken(), tmp_path)
    failed = {name for name, case in found.items() if case.status != "pass"}
    assert failed == {"run.verdict", "claim.irqs", "scenario.nop5"}
    assert all(found[name].status == "fail" for name in failed)


def test_a_run_without_a_verdict_is_an_error_and_not_a_failure(tmp_path: Path) -> None:
    run = Run()
    run.error = InfraError("GDB ended")
    run.report = run.report[:3]
    found = by_name(run, tmp_path)
    assert found["run.verdict"].status == "error"
    assert "fail" not in {case.status for case in found.values()}
    # The verdict has the cause.
    assert found["scenario.nop5"] == Case(
        "scenario", "nop5", "skip", "the run ended in this scenario: GDB ended"
    )


def test_a_scenario_in_which_the_kernel_went_down_has_failed(tmp_path: Path) -> None:
    run = Run()
    run.error = InfraError("the guest is gone")
    run.report = run.report[:3]
    run.findings = [Finding("oops", 7, "Oops: int3: 0000 [#1]", 9)]
    assert by_name(run, tmp_path)["scenario.nop5"].status == "fail"


# -- JUnit


def test_junit_distinguishes_failures_errors_and_skips() -> None:
    found = [
        Case("claim", "a", "pass", "well"),
        Case("claim", "b", "fail", "not <well> \x1b[31m", ("first & last", "second")),
        Case("claim", "c", "error", "unknown"),
        Case("scenario", "d", "skip", "no tracefs"),
    ]
    suite = ET.fromstring(files.junit("6.1 smp2", found, 4.5)).find("testsuite")
    assert suite is not None
    assert [suite.get(name) for name in ("name", "tests", "failures", "errors", "skipped")] == [
        "6.1 smp2", "4", "1", "1", "1"
    ]  # fmt: skip
    a, b, c, d = suite.findall("testcase")
    assert (a.get("classname"), a.get("time"), b.get("time")) == (
        "orchestrator.claim",
        "4.5",
        "0.0",
    )
    failure = b.find("failure")
    assert failure is not None
    assert (failure.get("message"), failure.text) == ("not <well> ?[31m", "first & last\nsecond")
    assert c.find("error") is not None and d.find("skipped") is not None


# -- KTAP


def test_our_own_parser_reads_the_ktap(tmp_path: Path) -> None:
    found = [
        *cases(result_of(broken(), tmp_path)),
        Case("scenario", "jcc", "skip", "this kernel has no # of them"),
    ]
    report = ktap.parse(files.ktap("6.1 smp2", found).splitlines())
    assert report.planned == len(found)
    assert [step.number for step in report.steps] == [*range(1, len(found) + 1)]
    failed = {step.name for step in report.steps if not step.ok}
    assert failed == {"run.verdict", "claim.irqs", "scenario.nop5"}
    assert report.steps[-1].skip


def test_a_case_without_a_verdict_is_not_ok_in_ktap() -> None:
    assert "not ok 1 claim.c # ERROR un known\n" in files.ktap(
        "t", [Case("claim", "c", "error", "un\nknown")]
    )


# -- GitHub


def test_only_github_gets_a_summary_and_annotations(tmp_path: Path) -> None:
    result = result_of(broken(), tmp_path)
    assert files.github(result, {}) == []
    summary = tmp_path / "summary.md"
    annotations = files.github(
        result, {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    )
    assert [line.split("::")[1] for line in annotations] == [
        "error title=debian%3A6.1 smp2%3A irqs", "error title=debian%3A6.1 smp2%3A nop5"
    ]  # fmt: skip
    assert summary.read_text().startswith("### ❌ debian:6.1 smp2\n")


def test_an_annotation_stays_one_workflow_command() -> None:
    assert files._data("50 %\nof it") == "50 %25%0Aof it"


def test_a_run_without_a_verdict_has_one_error_for_one_cause(tmp_path: Path) -> None:
    # A build error was ten errors and ten annotations: "no poke was watched", and so on.
    evidence = Evidence(requested_cpus=2, error=BuildError("gcc: no such file"))
    result = result_of(Run(), tmp_path, evidence)
    files.write(result)
    suite = ET.fromstring((tmp_path / "junit.xml").read_text()).find("testsuite")
    assert suite is not None
    assert (suite.get("errors"), suite.get("failures")) == ("1", "0")
    assert int(suite.get("skipped", 0)) == int(suite.get("tests", 0)) - 1
    (annotation,) = files.github(result, {"GITHUB_ACTIONS": "true"})
    assert annotation.startswith("::warning title=") and "gcc: no such file" in annotation


def test_a_check_without_its_evidence_is_an_error_if_nothing_else_explains_it(
    tmp_path: Path,
) -> None:
    run = Run()
    run.lost["gdb"] = "what GDB saw was not read"
    annotations = files.github(result_of(run, tmp_path), {"GITHUB_ACTIONS": "true"})
    (annotation,) = annotations  # once, though it is the reason of ten checks
    assert "what GDB saw was not read" in annotation and "writes%2C bytes%2C sync" in annotation


def test_why_checks_are_blind_is_said_once(tmp_path: Path) -> None:
    run = Run()
    run.lost["gdb"] = "what GDB saw was not read"
    result = result_of(run, tmp_path)
    output = io.StringIO()
    terminal.show(result, ui.SafeConsole(file=output, width=60))
    (line,) = [line for line in output.getvalue().splitlines() if line.startswith(" blind  writes")]
    assert "was not read; the same goes for bytes, sync" in line and line.endswith(" and watch")
    assert output.getvalue().count("what GDB saw was not read") == 2  # the verdict has it, too
    text = page.render(result)
    assert "<td>writes, bytes, sync, int3" in text
    assert text.count("<td>what GDB saw was not read") == 1
    mailed = mail.mail(tmp_path, result_file.record(result))
    assert mailed.count("GDB saw was not read") == 2 and "blind writes, bytes, sync" in mailed


def test_junit_says_when_where_and_how_the_run_was_made(tmp_path: Path) -> None:
    files.write(replace(result_of(Run(), tmp_path), started=1.7e9, seconds={"all": 30.0}))
    suite = ET.fromstring((tmp_path / "junit.xml").read_text()).find("testsuite")
    assert suite is not None
    assert suite.get("hostname") == platform.node()
    assert str(suite.get("timestamp")).startswith("2023-11-14T22:13:20")
    properties = {one.get("name"): one.get("value") for one in suite.iter("property")}
    assert "run" in str(properties["command"]) and properties["directory"] == str(tmp_path)
    times = [float(case.get("time", 0)) for case in suite.findall("testcase")]
    assert sum(times) == pytest.approx(30, abs=0.1) and sum(time > 0 for time in times) > 3


# -- the page


class _Balance(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.outside: list[str] = []

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        links = [value or "" for name, value in attrs if name in ("src", "href")]
        self.outside += [link for link in links if not link.startswith("#")]


def test_the_page_needs_no_other_file_and_marks_the_fault(tmp_path: Path) -> None:
    run = broken()
    run.findings = [Finding("oops", 2, "Oops: <int3>", 3)]
    (tmp_path / "console.log").write_text("fine\nOops: <int3>\nRIP\nfine again\n")
    text = page.render(result_of(run, tmp_path))
    parser = _Balance()
    parser.feed(text)
    assert not parser.outside
    assert '<mark id="line2">Oops: &lt;int3&gt;</mark><mark id="line3">RIP</mark>fine again' in text
    text = "".join(parser.text)
    assert "write 1 runs with interrupts disabled" in text and "Coverage" in text and "OOPS" in text


def test_the_page_shows_how_durations_are_distributed(tmp_path: Path) -> None:
    run = Run().take({524288: 60, 655360: 39, 4194304: 1})
    text = page.render(result_of(run, tmp_path))
    assert "Half of 100 pokes took at most 0.66 ms, 99 of 100 at most 0.79 ms, and the" in text
    assert text.count("<i") == 13 and text.count("<i style") == 3  # two octaves lie between
    assert 'title="0.655 to 0.786 ms: 39 pokes"' in text
    assert "Half of" not in page.render(result_of(Run(), tmp_path))


@pytest.mark.parametrize("durations", [{0: 1}, {1: 3, 10**19: 1}, {5001: 2, 5002: 3}, {655360: 0}])
def test_durations_of_a_hostile_guest_are_shown_somehow(
    tmp_path: Path, durations: dict[int, int]
) -> None:
    text = page.render(result_of(Run().take(durations), tmp_path))
    assert text.count("<span style") <= page.MAX_TICKS
    assert text.count("<i style") == len({ns // 4096 for ns, count in durations.items() if count})


def test_the_page_of_a_run_without_a_guest(tmp_path: Path) -> None:
    evidence = Evidence(requested_cpus=2, error=InfraError("no QEMU"))
    text = page.render(result_of(Run(), tmp_path, evidence))
    assert "no QEMU" in text and "Coverage" not in text and "Console" not in text


# -- the history


def test_the_history_returns_what_was_recorded(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    history.record(result_of(Run(), tmp_path), path)
    history.record(result_of(broken(), tmp_path), path)
    newest, older = history.past(path=path)
    assert (newest.outcome, newest.failed, older.outcome) == ("fail", ("irqs", "nop5"), "pass")
    assert [run.outcome for run in history.past(scenario="nop*", path=path)] == ["fail"]
    assert history.past(kernel="debian:6.12*", path=path) == []
    assert len(history.past(count=1, path=path)) == 1
    assert "irqs, nop5" in next(history.table([newest]))
    built = replace(newest, outcome="build-error", reason="it does not build:\n  CC  a.o\n")
    line, _ = history.table([built])
    assert line.endswith("it does not build: CC a.o")


def test_a_case_that_passed_and_failed_on_the_same_kernel_is_flaky(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    for run in (Run(), Run(), broken()):
        history.record(result_of(run, tmp_path), path)
    assert (
        history.flaky(path=path) == []
    )  # no digest, so nobody knows whether it was the same kernel
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE run SET digest = 'abc'")
    found = {(one.kind, one.name): (one.passed, one.failed) for one in history.flaky(path=path)}
    assert found == {
        ("run", "verdict"): (2, 1),
        ("claim", "irqs"): (2, 1),
        ("scenario", "nop5"): (2, 1),
    }


GARBAGE = b"no database, but long enough that it is taken for one that is damaged"


def _garbage(path: Path) -> None:
    path.write_bytes(GARBAGE)


def _directory(path: Path) -> None:
    path.mkdir()
    (path / "file").touch()


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _recorded(path: Path) -> bytes:
    """A history of many runs."""
    result = result_of(Run(), path.parent)
    for _ in range(5):
        history.record(result, path)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    return path.read_bytes()


def _cut(path: Path) -> None:
    path.write_bytes(_recorded(path)[:5000])


def _flipped(path: Path) -> None:
    content = _recorded(path)
    path.write_bytes(content[:4096] + os.urandom(len(content) - 4096))


def _of_another_program(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE run (name TEXT)")


@pytest.mark.parametrize(
    "damage", [_garbage, _directory, _fifo, _cut, _flipped, _of_another_program]
)
@pytest.mark.timeout(20)
def test_a_damaged_history_is_put_aside_and_a_new_one_begins(
    damage: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "history.sqlite"
    damage(path)
    capsys.readouterr()
    history.record(result_of(Run(), tmp_path), path)
    (aside,) = tmp_path.glob("history.sqlite.damaged-*")
    assert aside.name in "".join(capsys.readouterr())
    assert len(history.past(path=path)) == 1
    if damage is _garbage:
        assert aside.read_bytes() == GARBAGE


@pytest.mark.timeout(20)
def test_reading_a_damaged_history_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "history.sqlite"
    _garbage(path)
    assert history.past(path=path) == [] and history.flaky(path=path) == []
    assert "was damaged" in "".join(capsys.readouterr())


def test_an_empty_file_is_an_empty_history(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    path.touch()
    history.record(result_of(Run(), tmp_path), path)
    assert len(history.past(path=path)) == 1
    assert not list(tmp_path.glob("*damaged*"))


def _newer(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {history.SCHEMA + 1}")


def _locked(path: Path) -> sqlite3.Connection:
    history.record(result_of(Run(), path.parent), path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    return other


@pytest.mark.parametrize(("hinder", "why"), [(_newer, "newer version"), (_locked, "locked")])
def test_a_history_that_cannot_be_written_stays_and_does_no_harm(
    hinder: Callable[[Path], object],
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "history.sqlite"
    monkeypatch.setattr(history, "WAIT", 1.2)
    other = hinder(path)
    history.record(result_of(Run(), tmp_path), path)
    said = " ".join("".join(capsys.readouterr()).split())
    assert "this run is not in the history" in said and why in said
    if hinder is _newer:
        with pytest.raises(InfraError, match=why):
            history.past(path=path)
    assert not list(tmp_path.glob("*damaged*"))
    del other


def test_a_history_that_is_unlocked_in_time_gets_the_run(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    other = _locked(path)
    writer = threading.Thread(
        target=history.record, args=(result_of(Run(), tmp_path), path), daemon=True
    )
    writer.start()
    time.sleep(1.5)
    other.execute("COMMIT")
    writer.join()
    assert len(history.past(path=path)) == 2


def test_a_history_that_may_not_be_written_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "history.sqlite"
    _recorded(path)
    connect = sqlite3.connect

    def refuse(name: str, **options: Any) -> sqlite3.Connection:
        """As for a file of another user. The tests may run as root, who may write it."""
        if "mode=ro" not in name:
            error = sqlite3.OperationalError("attempt to write a readonly database")
            error.sqlite_errorcode = sqlite3.SQLITE_READONLY
            raise error
        return connect(name, **options)

    monkeypatch.setattr(sqlite3, "connect", refuse)
    assert len(history.past(path=path)) == 5
    history.record(result_of(Run(), tmp_path), path)
    assert "readonly" in "".join(capsys.readouterr())
    assert len(history.past(path=path)) == 5


def _record_many(directory: Path, count: int) -> None:
    result = result_of(Run(), directory)
    for _ in range(count):
        history.record(result, directory / "history.sqlite")


def test_concurrent_writers_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_record_many, args=(tmp_path, 10)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert len(history.past(count=100, path=tmp_path / "history.sqlite")) == 40


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"CREATE TABLE run", b"CREATE TABLE \xcc\xcc\xcc"),  # is quoted in the error
        (b"    outcome TEXT", b"    outcame TEXT"),
        (b"    kind TEXT", b"    kind TEX\xff"),
        (b"SQLite format 3", b"SQLite format 4"),
    ],
)
def test_a_history_with_a_damaged_schema_is_put_aside(
    old: bytes, new: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "history.sqlite"
    history.record(result_of(Run(), tmp_path), path)
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    assert len(history.past(path=path)) in (0, 1)
    history.record(result_of(Run(), tmp_path), path)
    assert 1 <= len(history.past(path=path)) <= 2
    assert "Traceback" not in capsys.readouterr().err


def test_damaged_content_of_a_history_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    history.record(result_of(Run(), tmp_path), path)
    connection = sqlite3.connect(path)
    connection.execute("UPDATE run SET kernel = CAST(x'ff41' AS TEXT), ended = 1e300")
    connection.commit()
    connection.close()
    line, _ = history.table(history.past(path=path))
    assert "\ufffdA" in line and "pass" in line


@pytest.mark.parametrize("look", [1, 2, 3, 4])
def test_a_database_that_another_process_makes_meanwhile_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look: int
) -> None:
    path = tmp_path / "history.sqlite"
    stat = Path.stat
    looks = 0

    def and_then_it_is_there(self: Path, **options: Any) -> os.stat_result:
        nonlocal looks
        try:
            return stat(self, **options)
        except FileNotFoundError:
            looks += 1
            if self == path and looks == look:
                monkeypatch.undo()
                history.past(path=path)
            raise

    monkeypatch.setattr(Path, "stat", and_then_it_is_there)
    history.record(result_of(Run(), tmp_path), path)
    monkeypatch.undo()
    assert [run.outcome for run in history.past(path=path)] == ["pass"]
    assert not [*tmp_path.glob("*.damaged-*")]


def test_the_files_of_the_same_result_are_identical(tmp_path: Path) -> None:
    result = replace(result_of(Run(), tmp_path), started=1.7e9)
    files.write(result)
    first = (tmp_path / "junit.xml").read_text()
    files.write(replace(result))
    assert (tmp_path / "junit.xml").read_text() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["junit.xml", "results.ktap"]


@pytest.mark.parametrize(
    "name", ["tab\there", "new\nline", "sp  ace", "[bold]x[/]", "x" * 200, "ü"]
)
def test_the_directory_of_the_results_is_printed_as_it_is(name: str, tmp_path: Path) -> None:
    output = io.StringIO()
    terminal.show(result_of(Run(), tmp_path / name), ui.SafeConsole(file=output, width=60))
    assert f"\nresults: {tmp_path / name}\nPASS  " in output.getvalue()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["events.jsonl", "console.log", "console.jsonl"])
def test_a_fifo_in_the_place_of_a_log_keeps_no_report_waiting(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    result = result_of(Run(), tmp_path)
    page.write(result)
    terminal.show(result, ui.SafeConsole(file=io.StringIO()))
    assert (tmp_path / "report.html").is_file()


def test_the_files_of_a_guest_are_those_of_its_branch(tmp_path: Path) -> None:
    (tmp_path / BRANCHES / "code").mkdir(parents=True)
    assert files_of(tmp_path, "code") == tmp_path / BRANCHES / "code"
    assert files_of(tmp_path, "watched") == files_of(tmp_path, "") == tmp_path
