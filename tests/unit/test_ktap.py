# SPDX-License-Identifier: GPL-2.0-only
"""The parser of the test module's report, as a file and from the console."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from orchestrator.guest import ktap

GOLDEN = Path(__file__).with_name("golden")


def lines(name: str) -> list[str]:
    return (GOLDEN / name).read_text().splitlines()


def test_a_complete_report() -> None:
    report = ktap.parse(lines("pass-smp2.guest.ktap"))
    assert report.whole
    assert report.planned == 9
    assert [step.name for step in report.steps][:3] == [
        "nop5.direct.on",
        "nop5.direct.off",
        "one.direct.on",
    ]
    step = report.step(1)
    assert step is not None
    assert step.ok
    assert step.skip is None
    assert step.integer("len") == 5
    assert step.integer("addr", 16) == 0xFFFFFFFFC020200B
    assert step.counts[1, "2"] == {"old": 0, "new": 0, "int3": 1, "torn": 0}
    assert step.total("int3") == 4
    assert report.steps[6].counts.keys() == {(0, "free"), (1, "free")}


def test_the_console_has_the_results_but_not_the_counters() -> None:
    report = ktap.parse(lines("pass-smp2.console.log"))
    assert report.whole
    assert [step.ok for step in report.steps] == [True] * 9
    assert not any(step.counts or step.values for step in report.steps)


def test_a_report_that_ends_early_is_not_whole() -> None:
    report = ktap.parse(lines("oops-int3-not-taken.console.log"))
    assert report.planned == 9
    assert [step.number for step in report.steps] == [1, 2, 3, 4, 5, 6]
    assert not report.whole


@pytest.mark.parametrize("number", range(9))
def test_a_lost_result_is_noticed(number: int) -> None:
    text = lines("pass-smp2.console.log")
    text = [line for line in text if f" ok {number + 1} " not in line]
    report = ktap.parse(text)
    assert not report.whole
    assert report.step(number + 1) is None
    assert all(step.number == n for n in range(1, 10) if (step := report.step(n)))


def test_a_repeated_result_is_no_result() -> None:
    report = ktap.parse(["KTAP version 1", "1..2", "ok 1 a", "ok 1 a"])
    assert not report.whole
    assert report.step(1) is None


PREFIXES = ["", "<6>", "[    6.749218] ", "[    6.749218][  T123] ", "<6>[    6.749218][    C1] "]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_the_prefix_of_printk_is_skipped(prefix: str) -> None:
    report = ktap.parse(
        prefix + line for line in ("KTAP version 1", "1..1", "not ok 1 nop5.direct.on")
    )
    assert report.whole
    assert not report.steps[0].ok


def test_a_failed_step_says_why() -> None:
    report = ktap.parse(
        ["1..1", "# cpu=1 stale=3", "# a CPU executed a torn one", "not ok 1 jmp32.direct.free"]
    )
    (step,) = report.steps
    assert not step.ok
    assert step.complaints == ["a CPU executed a torn one"]
    assert step.stale == {1: 3}


@pytest.mark.parametrize(
    "sentence",
    [
        "the kernel was booted with nokaslr=1 and has no site",
        "CPU 1 saw key=on in phase 2",
        "it says cpu=0 phase=1 and stale=3",
        "a byte is =cc",
    ],
)
def test_a_sentence_with_an_equals_sign_is_not_a_list_of_values(sentence: str) -> None:
    (step,) = ktap.parse(["# addr=10", f"# {sentence}", "not ok 1 x"]).steps
    assert step.complaints == [sentence]
    assert step.values == {"addr": "10"}
    assert not step.counts and not step.stale


@pytest.mark.parametrize("sentence", ["x=1 is missing", "x=1", "cpu=0 phase=1 old=0 new=0", "! y"])
def test_a_marked_sentence_is_one_whatever_it_begins_with(sentence: str) -> None:
    (step,) = ktap.parse(["# addr=10", f"# ! {sentence}", "not ok 1 x"]).steps
    assert step.complaints == [sentence]
    assert step.values == {"addr": "10"} and not step.counts


def test_so_is_an_old_modules_sentence_that_begins_with_a_value() -> None:
    (step,) = ktap.parse(["# nokaslr=1 is not on the command line", "not ok 1 x"]).steps
    assert step.complaints == ["nokaslr=1 is not on the command line"]
    assert not step.values


def test_a_skipped_step_says_why() -> None:
    (step,) = ktap.parse(["ok 1 key.key.on # SKIP CONFIG_JUMP_LABEL is not set"]).steps
    assert step.ok
    assert step.skip == "CONFIG_JUMP_LABEL is not set"
    assert step.name == "key.key.on"


def test_a_step_that_could_not_be_done_is_neither_skipped_nor_ok() -> None:
    (step,) = ktap.parse(["not ok 1 contexts.free # ERROR no NMI came to CPU 1"]).steps
    assert not step.ok
    assert step.skip is None
    assert step.missed == "no NMI came to CPU 1"
    assert step.name == "contexts.free"


def test_earlier_reports_of_others_are_skipped() -> None:
    kunit = [
        "KTAP version 1",
        "1..2",
        "    KTAP version 1",
        "    1..1",
        "    ok 1 y",
        "not ok 1 list",
        "ok 2 x",
    ]
    report = ktap.parse([*kunit, *lines("pass-smp2.guest.ktap")])
    assert report.whole
    assert report.planned == 9


@pytest.mark.parametrize(
    "line",
    [
        "# cpu=0 phase=1 old=0 new=0 int3=1 to[    7.1] clocksource: x",
        "# cpu=0 phase=1 old=0 new=0",
        "# cpu=x phase=1 old=0 new=0 int3=1 torn=0",
        "# stale=1",
        f"# cpu=0 stale={'9' * 5000}",
        f"# cpu={'1' * 21} stale=1",
        "# cpu=-1 stale=1",
        "# cpu=0 phase=1 old=0 new=0 int3=1 torn=" + "9" * 4000,
        f"# addr=1 {'x' * 10_000}",
    ],
)
def test_a_damaged_line_of_counters_is_noticed(line: str) -> None:
    report = ktap.parse(["KTAP version 1", "1..1", line, "ok 1 nop5.direct.on"])
    assert report.damaged == [line[:4096]]
    assert not report.whole
    assert report.step(1) is not None


def test_a_value_that_is_not_a_number_reads_as_0() -> None:
    (step,) = ktap.parse(["# len=5x pokes=", "ok 1 x"]).steps
    assert step.integer("len") == 0
    assert step.integer("pokes") == 0
    assert step.integer("missing") == 0


def test_durations_are_counted_by_bucket() -> None:
    (step,) = ktap.parse(["# from_ns=655360 pokes=4", "# from_ns=786432 pokes=7", "ok 1 x"]).steps
    assert step.durations == {655360: 4, 786432: 7} and step.values == {}
    report = ktap.parse(["# from_ns=1 pokes=-1", "ok 1 x"])
    assert report.damaged and not report.steps[0].durations


def test_no_lines_are_no_report() -> None:
    report = ktap.parse([])
    assert report.planned is None
    assert not report.whole


@pytest.mark.parametrize("number", ["9" * 10, "9" * 5000, "1" * 1_000_000])
@pytest.mark.parametrize("line", ["1..{}", "ok {} nop5", "not ok {} - nop5", "ok {}"])
def test_a_number_of_thousands_of_digits_is_damage(line: str, number: str) -> None:
    report = ktap.parse(["KTAP version 1", "1..1", "ok 1 x", line.format(number)])
    assert report.planned == 1 and len(report.steps) == 1
    assert len(report.damaged) == 1 and not report.whole


def test_a_value_of_thousands_of_digits_reads_as_0() -> None:
    (step,) = ktap.parse([f"# addr={'f' * 4000} pokes={'9' * 4000}", "ok 1 x"]).steps
    assert step.integer("addr", 16) == step.integer("pokes") == 0


@pytest.mark.parametrize("planned", [0, 2, 999_999_999])
def test_a_plan_that_lies_is_noticed(planned: int) -> None:
    report = ktap.parse(["KTAP version 1", f"1..{planned}", "ok 1 x"])
    assert report.planned == planned and not report.whole


def test_more_results_than_a_run_can_have_are_not_kept() -> None:
    report = ktap.parse(f"ok {number} x" for number in range(50_000))
    assert len(report.steps) <= ktap.MANY + 1 and not report.whole


@pytest.mark.parametrize(
    "pattern",
    ["a", " ", "a=", "a=1 ", "=", "#", "# ", "ok 1 ", "1..", "[ 1.0]", "not ok 1 x # SKIP "],
)
@pytest.mark.parametrize(
    "begin", ["", "# ", "# !", "ok 1 ", "not ok 1 - ", "<6>[    1.0] ok 1 x #"]
)
def test_long_lines_and_many_of_them_take_no_time(begin: str, pattern: str) -> None:
    long = begin + pattern * (1_000_000 // len(pattern))
    start = time.process_time()
    ktap.parse([long, *[(begin + pattern * 4000)[:4000]] * 300])
    assert time.process_time() - start < 2
