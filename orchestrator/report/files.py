# SPDX-License-Identifier: GPL-2.0-only
"""A run's results for other programs: junit.xml, results.ktap, and GitHub Actions.

JUnit distinguishes a failure (the kernel is at fault) from an error (no verdict) and from a skipped
test. KTAP is version 1 (Documentation/dev-tools/ktap.rst). It has no result for an error, only the
directive of that name; kunit.py counts such a line as a failure, so a consumer of the KTAP alone
must look for `# ERROR`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import junitparser

from orchestrator.host.files import write_report
from orchestrator.report import tables
from orchestrator.verdict.cases import Case, cases
from orchestrator.verdict.result import RunResult

UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, but a guest's console may."""
ANNOTATIONS = 10
"""Maximum number of annotations; GitHub drops the rest of a step."""


def write(result: RunResult) -> None:
    """Write the files into the run's directory."""
    all_cases, title = cases(result), name(result)
    seconds = sum(result.seconds.values())
    write_report(result.directory / "junit.xml", junit(title, all_cases, seconds))
    write_report(result.directory / "results.ktap", ktap(title, all_cases))


def name(result: RunResult) -> str:
    """The cell: kernel and number of CPUs."""
    return f"{result.name} smp{result.spec.smp}"


def junit(title: str, cases: Iterable[Case], seconds: float) -> str:
    """One JUnit test suite.

    seconds: duration of the run. The first case gets it, as all cases share one guest.
    """
    timed = [(case, 0.0 if number else seconds) for number, case in enumerate(cases)]
    return suites("orchestrator", {title: timed})


def suites(title: str, cases_by_suite: Mapping[str, Iterable[tuple[Case, float]]]) -> str:
    """A JUnit document: test suites by name, each with its cases and their seconds."""
    notes = {"fail": junitparser.Failure, "error": junitparser.Error, "skip": junitparser.Skipped}
    document: Any = junitparser.JUnitXml(title)
    for name, timed in cases_by_suite.items():
        suite: Any = junitparser.TestSuite(name)
        for case, seconds in timed:
            entry: Any = junitparser.TestCase(
                case.name, f"orchestrator.{case.group}", round(seconds, 3)
            )
            if case.status == "pass":
                entry.system_out = UNPRINTABLE.sub("?", case.text)
            else:
                note: Any = notes[case.status](UNPRINTABLE.sub("?", case.text))
                note.text = UNPRINTABLE.sub("?", "\n".join(case.details)) or None
                entry.result = [note]
            suite.add_testcase(entry)
        document.add_testsuite(suite)
        suite.update_statistics()
    document.update_statistics()
    content = document.tostring()
    return content.decode() if isinstance(content, bytes) else str(content)


def ktap(title: str, cases: Iterable[Case]) -> str:
    """KTAP version 1: one result line per case, preceded by diagnostic lines on what failed."""
    cases = list(cases)
    lines = ["KTAP version 1", f"1..{len(cases)}", f"# {_line(title)}"]
    for number, case in enumerate(cases, 1):
        test = f"{number} {case.group}.{case.name}"
        if case.status == "skip":
            lines.append(f"ok {test} # SKIP {_line(case.text)}")
            continue
        if case.status != "pass":
            lines += [f"# {_line(line)}" for line in (case.details or (case.text,))]
        directive = f" # ERROR {_line(case.text)}" if case.status == "error" else ""
        lines.append(f"{'ok' if case.status == 'pass' else 'not ok'} {test}{directive}")
    return "\n".join(lines) + "\n"


def github(result: RunResult, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Append a section to the summary of a GitHub Actions step. Returns the annotations to print.

    Does nothing outside GitHub Actions.
    """
    if environment.get("GITHUB_ACTIONS") != "true":
        return []
    all_cases, title = cases(result), name(result)
    if summary := environment.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a") as file:
            file.write(_summary(title, all_cases))
    annotations = []
    for case in all_cases:
        if case.group != "run" and case.status in ("fail", "error"):
            level = "error" if case.status == "fail" else "warning"
            heading = _property(f"{title}: {case.name}")
            annotations.append(f"::{level} title={heading}::{_data(case.text)}")
    return annotations[:ANNOTATIONS]


def _summary(title: str, cases: list[Case]) -> str:
    """A heading with the verdict, and a table of what did not pass, or of everything."""
    mark = {"pass": "✅", "fail": "❌", "error": "⚠️", "skip": "⏭️"}
    verdict, *others = cases
    shown = [case for case in others if case.status != "pass"] or others
    rows = [
        [mark[case.status], f"{case.group} {case.name}", tables.escape(case.text)] for case in shown
    ]
    heading = f"### {mark[verdict.status]} {tables.escape(title)}"
    table = tables.markdown(["", "", ""], rows)
    return "\n".join([heading, "", tables.escape(verdict.text), "", *table]) + "\n\n"


def _data(text: str) -> str:
    """`text` escaped for the message of a workflow command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """`text` escaped for a property of a workflow command."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _line(text: str) -> str:
    """`text` in one line, with no `#`, which would begin a directive."""
    return " ".join(text.split()).replace("#", "\\#")
