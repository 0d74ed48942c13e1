# SPDX-License-Identifier: GPL-2.0-only
"""What a trial has shown: every way in which the command did not do as it should."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults import processes
from faults.fault import USAGE
from faults.trial import ORPHAN_SECONDS, Trial
from orchestrator.errors import printable

KERNEL_FAILED = ("fail", "oops", "panic", "hang", "warn", "timeout")
"""Outcomes that blame the kernel."""

SEVERITIES = (
    "wrong verdict", "hangs", "traceback", "orphan", "lost result", "wrong status", "not healed",
    "left behind", "memory", "slow", "harness",
)  # fmt: skip
"""Kinds of findings, the most severe first."""

FOREIGN = ("ccache-tmp",)
"""Files that other programs keep among temporary ones."""

MEMORY = 1024
"""MiB that the program itself may take."""

TRACES = re.compile(
    r"Traceback \(most recent call last\)|Exception ignored|Exception in thread|"
    r"fault of orchestrator itself|Fatal Python error"
)


@dataclass(frozen=True)
class Finding:
    kind: str
    """One of SEVERITIES."""
    text: str


def judge(trial: Trial) -> list[Finding]:
    """Everything that is wrong, the most severe first. Gives processes time to end."""
    orphans = _orphans(trial)
    findings = [
        *_verdict(trial),
        *_end(trial),
        *_traces(trial),
        *(Finding("orphan", str(process)) for process in orphans),
        *_left(trial),
        *(Finding("harness", text) for text in trial.trouble),
    ]
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.kind))


def outcome(trial: Trial) -> str | None:
    """The word of verdict.json; None when there is none or it is damaged."""
    record = _record(trial)
    return record["outcome"] if record else None


def _record(trial: Trial) -> dict[str, Any] | None:
    try:
        record = json.loads(trial.text("verdict.json"))
        return record if isinstance(record["outcome"], str) else None
    except (ValueError, KeyError, TypeError):
        return None


# -- the verdict and the end


def _verdict(trial: Trial) -> list[Finding]:
    word, status = outcome(trial), trial.status
    printed = re.findall(r"^([A-Z][A-Z-]+) {2}", trial.stdout, re.MULTILINE)
    words = [*((word and [word]) or []), *(text.lower() for text in printed)]
    findings = []
    if not trial.broken and (status == 1 or any(word in KERNEL_FAILED for word in words)):
        if 1 not in trial.allowed():
            findings.append(
                Finding("wrong verdict", f"a healthy kernel is blamed: {_reason(trial)}")
            )
    elif trial.broken and (status == 0 or "pass" in words):
        findings.append(Finding("wrong verdict", f"a broken kernel passes: {_reason(trial)}"))
    elif status is not None and status not in trial.allowed():
        text = f"status {status}, not {sorted(trial.allowed())}: {_reason(trial)}"
        blamed = status == 0 and 1 in trial.allowed()
        findings.append(Finding("wrong verdict" if blamed else "wrong status", text))
    return findings


def _reason(trial: Trial) -> str:
    record = _record(trial)
    if record:
        return f"{record['outcome']}: {record.get('reason')}"
    lines = [line for line in (trial.stdout + trial.stderr).splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it said nothing"


def _end(trial: Trial) -> list[Finding]:
    fault = trial.fault
    if trial.status is None:
        return [Finding("hangs", f"still there after {trial.over - trial.started:.0f} s")]
    findings = []
    silent = trial.over - trial.injected
    if trial.fault.injects and trial.took_place and silent > fault.silence * trial.world.scale:
        findings.append(Finding("slow", f"it ended {silent:.0f} s after the fault"))
    if trial.memory > MEMORY:
        findings.append(Finding("memory", f"{trial.memory} MiB"))
    if trial.status > 0 and trial.fault.prints_result and not (trial.stdout + trial.stderr).strip():
        findings.append(Finding("lost result", f"status {trial.status} without a word"))
    if trial.arguments[:1] == ["run"] and "--help" not in trial.arguments and not _excused(trial):
        findings += _result(trial)
    return findings


def _excused(trial: Trial) -> bool:
    """Whether there need be no result: the request was wrong, or the program had no chance."""
    killed = trial.status == -signal.SIGKILL
    usage = trial.status == USAGE and signal.SIGHUP not in trial.signalled
    early = not _is_directory(trial.seen(trial.run_directory)) and trial.status not in (0, 1)
    return killed or usage or early


def _is_directory(path: Path) -> bool:
    """False also for a path that is too long to be one."""
    with contextlib.suppress(OSError):
        return path.is_dir()
    return False


def _result(trial: Trial) -> list[Finding]:
    findings = []
    record = _record(trial)
    if trial.fault.keeps_result or not trial.took_place:
        if record is None:
            findings.append(Finding("lost result", f"no verdict.json with status {trial.status}"))
        elif trial.status in (0, 1, 125) and record.get("exit_status") != trial.status:
            text = f"verdict.json says {record.get('exit_status')}, the status is {trial.status}"
            findings.append(Finding("lost result", text))
    if trial.fault.prints_result or not trial.took_place:
        flat = trial.stdout.replace("\n", "")
        if not re.search(r"^(PASS|FAIL|[A-Z][A-Z-]+) {2}", trial.stdout, re.MULTILINE):
            findings.append(Finding("lost result", "no verdict on stdout"))
        elif printable(str(trial.run_directory)).replace("\n", "") not in flat:
            findings.append(Finding("lost result", "stdout does not name the run's directory"))
    return findings


# -- what is left


def _traces(trial: Trial) -> list[Finding]:
    if trial.fault.traces:
        return []
    for name, text in (("stdout", trial.stdout), ("stderr", trial.stderr)):
        if found := TRACES.search(text):
            last = [line for line in text[found.start() :].splitlines() if line[:1].strip()]
            error = next(
                (
                    line
                    for line in last[1:]
                    if re.match(r"[\w.]+(Error|Exception|Interrupt|Exit|Full)\b", line)
                ),
                found[0],
            )
            return [Finding("traceback", f"{name}: {error[:150]}")]
    return []


def _orphans(trial: Trial) -> list[processes.Process]:
    if trial.status is None:
        return []
    deadline = trial.over + ORPHAN_SECONDS * trial.world.scale
    while (left := processes.marked(trial.marker)) and time.monotonic() < deadline:
        time.sleep(0.1)
    if left:
        processes.end_all(trial.marker)
    return left


def _left(trial: Trial) -> list[Finding]:
    """Temporary files, sockets, and files outside of the run's own directory."""
    if trial.status is None or trial.fault.traces:
        return []
    found: list[Path] = []
    for folder in ("tmp", "r"):
        top = trial.seen(trial.directory / folder)
        found += (
            [path for path in top.iterdir() if path.name not in FOREIGN] if top.is_dir() else []
        )
    out = trial.seen(trial.directory / "out")  # not where a wrong --output points: /proc, say
    if trial.seen(trial.run_directory).parent == out and out.is_dir():
        found += [path for path in out.iterdir() if path.name != trial.run_directory.name]
    found += [path for path in _walk(out) if stat.S_ISSOCK(path.lstat().st_mode)]
    names = [str(path.relative_to(trial.seen(trial.directory))) for path in found]
    return [Finding("left behind", ", ".join(sorted(names)[:5]))] if names else []


def _walk(top: Path) -> list[Path]:
    return [Path(folder) / name for folder, _, names in os.walk(top) for name in names]
