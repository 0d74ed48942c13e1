# SPDX-License-Identifier: GPL-2.0-only
"""A run's results for other programs: junit.xml, results.ktap, and GitHub Actions.

JUnit distinguishes a failure (the kernel is at fault) from an error (no verdict) and from a skipped
test. KTAP is version 1 (Documentation/dev-tools/ktap.rst). It has no result for an error, only the
directive of that name; kunit.py counts such a line as a failure, so a consumer of the KTAP alone
must look for `# ERROR`.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import junitparser

from orchestrator.errors import EXIT_KERNEL_FAILED
from orchestrator.host.files import write_report
from orchestrator.report import tables
from orchestrator.rundir import replay_command
from orchestrator.verdict.cases import Case, cases
from orchestrator.verdict.result import RunResult, VerdictRecord, record

UNPRINTABLE = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold, but a guest's console may."""
ANNOTATIONS = 10
"""Maximum number of annotations; GitHub drops the rest of a step."""


def write(result: RunResult) -> None:
    """Write the files into the run's directory."""
    all_cases, title = cases(result), name(result)
    seconds = sum(result.seconds.values())
    about = About(record(result), result.directory)
    write_report(result.directory / "junit.xml", junit(title, all_cases, seconds, about))
    write_report(result.directory / "results.ktap", ktap(title, all_cases))


def name(result: RunResult) -> str:
    """The cell: kernel and number of CPUs."""
    return f"{result.name} smp{result.spec.smp}"


@dataclass(frozen=True)
class About:
    """What a test suite says about its run."""

    verdict: VerdictRecord
    directory: Path

    @property
    def properties(self) -> dict[str, str]:
        """Empty ones are not known."""
        verdict, machine = self.verdict, self.verdict.machine
        return {
            "version": verdict.version,
            "command": shlex.join(("orchestrator", *verdict.command)),
            "kernel": verdict.kernel.release if verdict.kernel else "",
            "kernel digest": verdict.kernel.digest if verdict.kernel else "",
            "accelerator": machine.accelerator if machine else "",
            "qemu": machine.qemu if machine else "",
            "smp": str(verdict.smp or ""),
            "seed": str(verdict.seed if verdict.seed is not None else ""),
            "directory": str(self.directory),
        }


def junit(title: str, cases: Sequence[Case], seconds: float, about: About | None = None) -> str:
    """One JUnit test suite.

    seconds: duration of the run. The first case, the verdict, gets what no other case took.
    """
    others = sum(case.seconds for case in cases[1:])
    timed = [
        (case, case.seconds if number else max(seconds - others, 0.0))
        for number, case in enumerate(cases)
    ]
    return suites("orchestrator", {title: timed}, about)


def suites(
    title: str,
    cases_by_suite: Mapping[str, Iterable[tuple[Case, float]]],
    about: About | None = None,
) -> str:
    """A JUnit document: test suites by name, each with its cases and their seconds.

    about: the run that all of them are from; None for several runs.
    """
    notes = {"fail": junitparser.Failure, "error": junitparser.Error, "skip": junitparser.Skipped}
    document: Any = junitparser.JUnitXml(title)
    for name, timed in cases_by_suite.items():
        suite: Any = junitparser.TestSuite(name)
        suite.hostname = platform.node()
        suite.timestamp = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        if about:
            suite.hostname = about.verdict.host
            suite.timestamp = about.verdict.started or suite.timestamp
            for key, value in about.properties.items():
                if value:
                    suite.add_property(key, UNPRINTABLE.sub("?", value))
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
    github_summary(_summary(title, all_cases), environment)
    failed = result.verdict.exit_status == EXIT_KERNEL_FAILED
    if failed and (command := replay_command(result.directory)):
        github_summary(f"`{command}`\n", environment)
    # A failed check says more than the verdict, which repeats it. Without one, the verdict has the
    # cause. What is skipped is a consequence.
    bad = [case for case in all_cases if case.status in ("fail", "error")]
    shown = [case for case in bad if case.group != "run"] or bad
    shown.sort(key=lambda case: case.status != "fail")
    annotations = []
    for group in tables.said_once(shown, lambda case: case.unseen):
        case = group[0]
        level = "error" if case.status == "fail" else "warning"
        heading = _property(f"{title}: {tables.listed([one.name for one in group])}")
        annotations.append(f"::{level} title={heading}::{_data(case.text)}")
    return annotations[:ANNOTATIONS]


def github_summary(text: str, environment: Mapping[str, str] = os.environ) -> None:
    """Append Markdown to the summary of a GitHub Actions step, if this is one."""
    if summary := environment.get("GITHUB_STEP_SUMMARY"):
        with Path(summary).open("a") as file:
            file.write(f"{text}\n")


def _summary(title: str, cases: list[Case]) -> str:
    """A heading with the verdict, and a table of what did not pass, or of everything."""
    mark = {"pass": "✅", "fail": "❌", "error": "⚠️", "skip": "⏭️"}
    verdict, *others = cases
    shown = [case for case in others if case.status != "pass"] or others
    rows = [
        [
            mark[group[0].status],
            f"{group[0].group} {tables.listed([case.name for case in group])}",
            tables.escape(group[0].text),
        ]
        for group in tables.said_once(shown, lambda case: case.unseen)
    ]
    heading = f"### {mark[verdict.status]} {tables.escape(title)}"
    table = tables.markdown(["", "", ""], rows)
    return "\n".join([heading, "", tables.escape(verdict.text), "", *table]) + "\n"


def _data(text: str) -> str:
    """`text` escaped for the message of a workflow command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """`text` escaped for a property of a workflow command."""
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _line(text: str) -> str:
    """`text` in one line, with no `#`, which would begin a directive."""
    return " ".join(text.split()).replace("#", "\\#")
