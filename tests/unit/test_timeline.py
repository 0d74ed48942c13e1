# SPDX-License-Identifier: GPL-2.0-only
"""The picture of a poke: what is missing in it, and who did what in which order."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from good_run import NOP5_ON, Run
from recorded import AROUND, CPUS, Written
from test_results import result_of

from orchestrator.guest.klog import Finding
from orchestrator.report import page, picture, timeline
from orchestrator.report.failure import explain
from orchestrator.report.timeline import Timeline
from orchestrator.rundir import BRANCHES
from orchestrator.verdict.measures import Failure
from orchestrator.verdict.model import NAMED
from orchestrator.verdict.recorded.judge import judge
from orchestrator.verdict.recorded.judgement import LogName
from orchestrator.verdict.result import VerdictRecord, record


def watched(run: Run, directory: Path) -> Timeline | None:
    """The timeline of what fails in `run`."""
    lines = [json.dumps(event) for event in run.events]
    (directory / timeline.EVENTS).write_text("\n".join(lines) + "\n")
    result = result_of(run, directory)
    return timeline.of_failure(directory, record(result).failure, 2)


def recorded(log: Written, directory: Path) -> Timeline | None:
    """The timeline of what fails in a log of the recorder."""
    (directory / timeline.LOG).write_bytes(gzip.compress(log.records.tobytes()))
    first = judge(log.records, AROUND).violations[0]
    failure = Failure(
        check=first.claim, text=first.text, record=first.record, since=first.since, cpus=first.cpus
    )
    return timeline.of_failure(directory, failure, CPUS)


def without_sync(cpu: int = 1) -> Run:
    """A run in which a CPU does not sync after the first write of a poke."""
    run = Run()
    run.drop(run.find(NOP5_ON, "sync", cpu=cpu))
    for number, event in enumerate(run.events, 1):
        event["n"] = number
    return run


def test_a_cpu_that_did_not_sync_is_marked_in_its_phase(tmp_path: Path) -> None:
    line = watched(without_sync(), tmp_path)
    assert line
    assert [phase.number for phase in line.phases] == [0, 1, 2, 3]
    assert [phase.missing for phase in line.phases] == [(), (1,), (), ()]
    assert [phase.synced for phase in line.phases[1:]] == [{0}, {0, 1}, {0, 1}]
    assert line.phases[0].memory[:4] != "cc" and line.phases[1].memory.startswith("cc")
    missing = [mark for mark in line.marks if mark.kind == "missing"]
    assert [mark.cpu for mark in missing] == [1]
    hold = next(mark for mark in line.marks if mark.kind == "hold")
    assert hold.wrong and hold.column == missing[0].column + 1


def test_the_page_says_who_did_not_sync_in_its_first_sentence(tmp_path: Path) -> None:
    run = without_sync()
    watched(run, tmp_path)
    text = page.render(result_of(run, tmp_path))
    heading = re.sub("<[^>]*>", "", text.partition("<h1>")[2].partition("</h1>")[0])
    assert "CPU 1 did not sync" in heading and "phase 1" in heading
    assert "The poke that failed: nop5.direct.on" in text
    assert re.search(r'<g class="m missing wrong"><title>CPU 1 has not synced', text)
    # What a check says leads to the event in the table.
    number = re.search(r'<a href="#n(\d+)">\[event', text)
    assert number and f'<tr id="n{number[1]}"' in text


@pytest.mark.parametrize("check", NAMED)
def test_the_first_sentence_says_what_the_kernel_does_wrong(check: str) -> None:
    failure = Failure(check=check, text="CPU 1 did it")
    verdict = VerdictRecord(
        outcome="fail", reason="r", exit_status=1, name="linux", smp=2, failure=failure
    )
    assert page.headline(verdict) == f"linux {page.WRONG[check]}: CPU 1 did it."
    missing = replace(verdict, failure=replace(failure, check="sync", phase=2, cpus=(0, 1)))
    assert "none of the 2 CPUs synced after the tail was written (phase 2)" in page.headline(
        missing
    )


def test_a_failure_that_only_the_recorder_saw_is_explained(tmp_path: Path) -> None:
    log = Written()
    log.poke(syncs=(0, 2, 3))
    run = Run()
    run.record = judge(log.records, AROUND, name=LogName("sites"))
    run.findings = [Finding("oops", 1, "Oops", 1)]
    (tmp_path / BRANCHES / "sites").mkdir(parents=True)
    first, where, console = [*explain(result_of(run, tmp_path))][:3]
    assert first.startswith("First failure: sync: ") and "CPU 1" in first
    number = run.record.violations[0].record
    assert where == f"  See record {number} of branches/sites/recorder.log.gz."
    assert console.startswith("The console from line 1")


def test_a_run_that_passed_shows_how_a_poke_went(tmp_path: Path) -> None:
    run = Run()
    assert watched(run, tmp_path) is None
    text = page.render(result_of(run, tmp_path))
    assert "One poke of this run" in text and '"m missing' not in text


def test_a_failure_that_only_the_recorder_saw_is_drawn_from_its_log(tmp_path: Path) -> None:
    log = Written()
    log.poke()
    log.poke(new=bytes.fromhex("0f1f440000"), syncs=(0, 2, 3))
    line = recorded(log, tmp_path)
    assert line and line.source == timeline.LOG
    assert [phase.number for phase in line.phases] == [0, 1, 2, 3], "the second poke only"
    assert [phase.memory for phase in line.phases] == [
        "e9fb000000", "ccfb000000", "cc1f440000", "0f1f440000",
    ]  # fmt: skip
    assert line.phases[1].missing == (1,) and line.phases[1].synced == {0, 2, 3}
    assert line.marks[-1].kind == "end"


def test_a_check_leads_to_a_record_only_in_the_log_that_is_drawn(tmp_path: Path) -> None:
    log = Written()
    log.poke(syncs=(0, 2, 3))
    run = Run()
    run.record = judge(log.records, AROUND, name=LogName("sites", 3))
    run.record = judge(log.records, AROUND, run.record, LogName("code", 3))
    folder = tmp_path / BRANCHES / "sites"
    folder.mkdir(parents=True)
    (folder / timeline.LOG).write_bytes(gzip.compress(log.records.tobytes()))
    text = page.render(result_of(run, tmp_path))
    links = re.findall(r'<a href="#n(\d+)">(.*?)</a>', text)
    assert links and {text for _, text in links} == {
        f"[record {number} of sites, round 3]" for number, _ in links
    }
    assert all(f'<tr id="n{number}"' in text for number, _ in links)
    assert f"[record {links[0][0]} of code, round 3]" in text


def test_a_write_without_int3_has_no_phase_of_the_protocol(tmp_path: Path) -> None:
    log = Written()
    log.write(0xFFFFFFFF81001000, 0, bytes.fromhex("e9fb000000"))
    log.unlock()
    line = recorded(log, tmp_path)
    assert line and line.marks[0].wrong and line.marks[0].kind == "write"
    assert picture.svg(line).count("wrong") == 1


def test_sixty_four_cpus_fit_into_one_picture(tmp_path: Path) -> None:
    log = Written()
    every = (1 << 64) - 1
    for offset, data in ((0, "cc"), (1, "fb000000"), (0, "e9")):
        log.write(0xFFFFFFFF81001000, offset, bytes.fromhex(data), online=every)
        log.sync(*(cpu for cpu in range(64) if cpu != 63 or offset))
    log.unlock()
    (tmp_path / timeline.LOG).write_bytes(gzip.compress(log.records.tobytes()))
    failure = Failure(check="sync", text="", record=int(log.records["kind"].tolist().index(1, 2)),
                      since=0, cpus=(63,))  # fmt: skip
    line = timeline.of_failure(tmp_path, failure, 64)
    assert line
    text = picture.svg(line)
    assert text.count('class="lane"') == 64
    ends = [float(y) for y in re.findall(r'y2="([0-9.]+)"', text)]
    height = re.search(r'viewBox="0 0 1000 (\d+)"', text)
    assert height and max(ends) < int(height[1]) < 900


def test_int3_that_are_not_drawn_are_counted(tmp_path: Path) -> None:
    log = Written()
    site = 0xFFFFFFFF81001000
    log.write(site, 0, b"\xcc")
    for _ in range(10):
        log.trap(site, site)
    log.write(site, 1, bytes.fromhex("fb000000"))
    line = recorded(log, tmp_path)
    assert line and line.hidden == 8
    assert len([mark for mark in line.marks if mark.kind == "int3"]) == 2


def test_a_log_that_cannot_be_read_costs_the_picture_and_nothing_else(tmp_path: Path) -> None:
    failure = Failure(check="sync", text="", record=7, since=3, cpus=(1,))
    assert timeline.of_failure(tmp_path, failure, 2) is None
    (tmp_path / timeline.LOG).write_bytes(b"\x1f\x8bnonsense")
    assert timeline.of_failure(tmp_path, failure, 2) is None
    (tmp_path / timeline.EVENTS).write_text('{"n": 1}\nnonsense\n')
    failure = Failure(check="sync", text="", event=1)
    assert timeline.of_failure(tmp_path, failure, 2) is None
    assert timeline.of_example(tmp_path, 2) is None


def test_a_cpu_that_was_idle_is_named_where_it_did_not_sync(tmp_path: Path) -> None:
    log = Written()
    log.idle = 0b1011
    log.write(0xFFFFFFFF81001000, 0, b"\xcc")
    log.sync(0)
    log.write(0xFFFFFFFF81001000, 1, bytes.fromhex("fb000000"))
    (tmp_path / timeline.LOG).write_bytes(gzip.compress(log.records.tobytes()))
    second = [at for at, kind in enumerate(log.records["kind"].tolist()) if kind == 1][1]
    failure = Failure(check="sync", text="", record=second, since=0, cpus=(2,))
    line = timeline.of_failure(tmp_path, failure, CPUS)
    assert line
    away = [mark for mark in line.marks if mark.kind == "away" and mark.column <= 1]
    assert [(mark.cpu, mark.text) for mark in away] == [(1, "is idle"), (3, "is idle")]
    assert ">idle</text>" in picture.svg(line)
