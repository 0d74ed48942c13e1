# SPDX-License-Identifier: GPL-2.0-only
"""Runs as a report for KCIDB, the kernel community's database of test results: I/O schema 5.3.

A report is made from run directories, so it can combine runs of any day and machine. Nothing is
sent: that is the job of `kcidb-submit`, which has the credentials.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import UsageError, sentence, shortened
from orchestrator.options import declared, from_json, to_json
from orchestrator.rundir import files_of
from orchestrator.spec import RunSpec
from orchestrator.verdict import result as result_file
from orchestrator.verdict.checks import KERNEL_FAILED
from orchestrator.verdict.result import KernelRecord, VerdictRecord

VERSION = {"major": 5, "minor": 3}
ORIGIN = re.compile(r"[a-z0-9_]+")
RESULT = re.compile(r"(not ok|ok) \d+ (\S+?)\.(\S+)(?: # (SKIP|ERROR) ?(.*))?$")
"""A line of results.ktap, which report/files.py writes."""
EXCERPT = 16384
"""Maximum length of a log excerpt in KCIDB, in characters."""


@dataclass(frozen=True)
class _Run:
    """What a run directory holds."""

    directory: Path
    start: float
    """Seconds since the epoch."""
    spec: RunSpec
    verdict: VerdictRecord

    @property
    def kernel(self) -> KernelRecord:
        """The kernel that was run, or the one that could not be had."""
        name = self.verdict.name or self.spec.kernel.name
        return self.verdict.kernel or KernelRecord(name=name, release="", digest="")


def report(runs: Iterable[Path], origin: str) -> dict[str, Any]:
    """The report on the runs in these directories.

    origin: the name of the submitter, as KCIDB knows it.

    The status of a test is FAIL when the kernel is at fault, ERROR when the run says nothing about
    the kernel, and MISS for a test that was not run to its end.

    Raises UsageError for a directory that holds no run, or an origin that KCIDB would refuse.
    """
    if not ORIGIN.fullmatch(origin):
        raise UsageError(f"--origin takes lower-case letters, digits and _, not {origin!r}")
    checkouts: dict[str, dict[str, Any]] = {}
    builds: dict[str, dict[str, Any]] = {}
    tests: list[dict[str, Any]] = []
    for directory in runs:
        run = _read(directory)
        kernel, request = run.kernel, to_json(run.spec)["kernel"]
        checkout = f"{origin}:{_hash(kernel.origin or kernel.name)}"
        applies = " does not apply: " not in run.verdict.reason
        checkouts[checkout] = {
            "id": checkout,
            "origin": origin,
            "valid": applies or bool(kernel.digest),
            **_source(kernel.origin),
            "comment": " ".join(filter(None, (kernel.name, kernel.release))),
            "misc": kernel.origin,
        }
        build = f"{origin}:{kernel.digest or _hash(request)}"
        builds[build] = {
            "id": build,
            "checkout_id": checkout,
            "origin": origin,
            "architecture": "x86_64",
            "status": _build_status(run),
        }
        if "compiler" in kernel.origin:
            builds[build]["compiler"] = kernel.origin["compiler"]
        tests += _tests(run, build, origin)
    return {
        "version": VERSION,
        "checkouts": list(checkouts.values()),
        "builds": list(builds.values()),
        "tests": tests,
    }


def _source(origin: dict[str, str]) -> dict[str, str]:
    """The fields of a checkout that name its source, as far as they are known."""
    found = {"git_commit_hash": origin.get("commit", "")}
    if origin.get("git", "").endswith(" with changes"):
        found = {}
    if found:
        found["patchset_hash"] = origin.get("patchset", "")
    tree = origin.get("tree", "")
    if origin.get("kind") == "git":
        where, _, ref = tree.rpartition("@")
        found["git_commit_name"] = ref
        if "://" in where:
            found["git_repository_url"] = where
        tree = where
    found["tree_name"] = re.sub(r"(\.git)?/*$", "", tree).rpartition("/")[2]
    return {name: value for name, value in found.items() if value or name == "patchset_hash"}


def _build_status(run: _Run) -> str:
    if run.kernel.digest:  # a build-error is that of our test module then
        return "PASS"
    return "FAIL" if run.verdict.outcome == "build-error" else "MISS"


def _tests(run: _Run, build: str, origin: str) -> Iterator[dict[str, Any]]:
    """The run as a whole, then each check and each scenario."""
    spec, verdict = to_json(run.spec), run.verdict
    common = {
        "build_id": build,
        "origin": origin,
        "environment": {
            "comment": f"QEMU, {run.spec.smp} CPUs",
            "misc": {name: spec[name] for name in declared(RunSpec)}
            | ({"accel": verdict.accel} if verdict.accel else {}),
        },
        "start_time": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(run.start)),
    }
    identity = _hash([str(run.directory.resolve()), run.start, verdict.seconds])
    failed = verdict.outcome in KERNEL_FAILED
    whole = {
        **common,
        "id": f"{origin}:{identity}",
        "path": "orchestrator",
        "status": "PASS" if verdict.outcome == "pass" else "FAIL" if failed else "ERROR",
        "comment": f"{verdict.outcome}: {verdict.reason}"[:EXCERPT],
        "duration": sum(verdict.seconds.values()),
        "misc": {"outcome": verdict.outcome, "exit_status": verdict.exit_status},
    }
    failure = verdict.failure
    console = files_of(run.directory, failure.guest if failure else "") / "console.log"
    if verdict.outcome != "pass" and console.is_file():
        whole["log_excerpt"] = console.read_text(errors="replace").replace("\0", "?")[-EXCERPT:]
    yield whole
    results = run.directory / "results.ktap"
    for line in results.read_text(errors="replace").splitlines() if results.is_file() else []:
        if not (match := RESULT.match(line)) or match[2] == "run":
            continue
        result, group, name, directive, reason = match.groups()
        status = {"SKIP": "SKIP", "ERROR": "MISS" if not failed else "ERROR"}.get(directive or "")
        test = {
            **common,
            "id": f"{origin}:{identity}.{group}.{name}",
            "path": f"orchestrator.{group}.{name}",
            "status": status or ("PASS" if result == "ok" else "FAIL"),
        }
        yield {**test, "comment": reason} if reason else test


def _read(directory: Path) -> _Run:
    spec_file = directory / "spec.json"
    try:
        return _Run(
            directory=directory,
            start=spec_file.stat().st_mtime,
            spec=from_json(RunSpec, json.loads(spec_file.read_text())),
            verdict=result_file.read(directory),
        )
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, UsageError) as error:
        raise UsageError(
            f"{directory} is not the directory of a run with a verdict: "
            f"{shortened(sentence(error) if isinstance(error, OSError) else str(error))}"
        ) from error


def _hash(content: object) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
