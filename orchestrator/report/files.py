"""A run's results as files that other programs read: junit.xml and results.ktap in the run's directory, and what GitHub
Actions takes.

JUnit tells a failure (the kernel's fault) from an error (no verdict) and from what was skipped. KTAP is version 1
(Documentation/dev-tools/ktap.rst), which has no word for an error but the directive of that name; kunit.py takes such a
line for a failure, so a consumer of KTAP alone must look for `# ERROR`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import junitparser

from orchestrator.host.paths import write_whole
from orchestrator.verdict.cases import Case, cases
from orchestrator.verdict.result import RunResult

UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 cannot hold, and a guest's console may."""
ANNOTATIONS = 10
"""GitHub shows so many of a step and drops the rest."""


def write(result: RunResult) -> None:
    """Write the files into the run's directory."""
    told = cases(result)
    title = name(result)
    write_whole(result.directory / "junit.xml", junit(title, told, sum(result.seconds.values())))
    write_whole(result.directory / "results.ktap", ktap(title, told))


def name(result: RunResult) -> str:
    """The cell, in a few words."""
    spec = result.spec
    kernel = result.kernel.name if result.kernel else spec.kernel.selector
    return f"{kernel} smp{spec.smp}"


def junit(title: str, told: Iterable[Case], seconds: float) -> str:
    """One test suite. seconds: of the run, given to its first case, as the cases share one guest."""
    return suites(
        "orchestrator",
        {title: [(case, 0.0 if number else seconds) for number, case in enumerate(told)]},
    )


def suites(title: str, told: Mapping[str, Iterable[tuple[Case, float]]]) -> str:
    """A document of test suites by their names, each with its cases and the seconds that these took."""
    notes = {"fail": junitparser.Failure, "error": junitparser.Error, "skip": junitparser.Skipped}
    document: Any = junitparser.JUnitXml(title)
    for name, timed in told.items():
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


def ktap(title: str, told: Iterable[Case]) -> str:
    """KTAP version 1, one result line a case, what is wrong in diagnostic lines before it."""
    told = list(told)
    lines = ["KTAP version 1", f"1..{len(told)}", f"# {_line(title)}"]
    for number, case in enumerate(told, 1):
        words = f"{number} {case.group}.{case.name}"
        if case.status == "skip":
            lines.append(f"ok {words} # SKIP {_line(case.text)}")
            continue
        if case.status != "pass":
            lines += [f"# {_line(line)}" for line in (case.details or (case.text,))]
        directive = f" # ERROR {_line(case.text)}" if case.status == "error" else ""
        lines.append(f"{'ok' if case.status == 'pass' else 'not ok'} {words}{directive}")
    return "\n".join(lines) + "\n"


def github(result: RunResult, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Under GitHub Actions: a section for the step's summary, and the annotations to print. Elsewhere nothing."""
    if environment.get("GITHUB_ACTIONS") != "true":
        return []
    told, title = cases(result), name(result)
    if summary := environment.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a") as file:
            file.write(_summary(title, told))
    said = []
    for case in told:
        if case.group != "run" and case.status in ("fail", "error"):
            level = "error" if case.status == "fail" else "warning"
            said.append(f"::{level} title={_property(f'{title}: {case.name}')}::{_data(case.text)}")
    return said[:ANNOTATIONS]


def _summary(title: str, told: list[Case]) -> str:
    mark = {"pass": "✅", "fail": "❌", "error": "⚠️", "skip": "⏭️"}
    lines = [
        f"### {mark[told[0].status]} {_cell(title)}",
        "",
        _cell(told[0].text),
        "",
        "| | | |",
        "|---|---|---|",
    ]
    shown = [case for case in told[1:] if case.status != "pass"] or told[1:]
    lines += [
        f"| {mark[case.status]} | {case.group} {case.name} | {_cell(case.text)} |" for case in shown
    ]
    return "\n".join(lines) + "\n\n"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _line(text: str) -> str:
    return " ".join(text.split()).replace("#", "\\#")
