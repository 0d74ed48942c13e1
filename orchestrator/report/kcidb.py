"""Runs as a report for KCIDB, the kernel community's database of test results: I/O schema version 5.3.

Made from run directories, so that many runs, of whatever day and machine, can go into one report. Nothing is sent: that
is `kcidb-submit`'s work, with the credentials that it wants.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.verdict.checks import KERNEL_FAILED

VERSION = {"major": 5, "minor": 3}
ORIGIN = re.compile(r"[a-z0-9_]+")
RESULT = re.compile(r"(not ok|ok) \d+ (\S+?)\.(\S+)(?: # (SKIP|ERROR) ?(.*))?$")
"""A line of results.ktap: report/files.py writes it."""
EXCERPT = 16384
"""Characters of a log that KCIDB takes."""


def report(runs: Iterable[Path], origin: str) -> dict[str, Any]:
    """The report on the runs in these directories. origin: the name of whoever submits it, as KCIDB knows it.

    A test that failed is the kernel's fault; ERROR is one that told nothing about it, MISS one that was not run to its
    end. UsageError: what is no run, or an origin that KCIDB would refuse.
    """
    if not ORIGIN.fullmatch(origin):
        raise UsageError(f"--origin takes small letters, digits and _, not {origin!r}")
    checkouts: dict[str, dict[str, Any]] = {}
    builds: dict[str, dict[str, Any]] = {}
    tests: list[dict[str, Any]] = []
    for run in runs:
        verdict, spec = _read(run, "verdict.json"), _read(run, "spec.json")
        kernel = verdict["kernel"] or {
            "name": spec["kernel"]["selector"],
            "release": "",
            "digest": "",
            "origin": {},
        }
        source = _id(origin, kernel["origin"] or kernel["name"])
        checkouts[source] = {
            "id": source,
            "origin": origin,
            "valid": True,
            "comment": " ".join(filter(None, (kernel["name"], kernel["release"]))),
            "misc": kernel["origin"],
        }
        build = f"{origin}:{kernel['digest'] or _hash(spec['kernel'])}"
        builds[build] = {
            "id": build,
            "checkout_id": source,
            "origin": origin,
            "architecture": "x86_64",
            "status": {"build-error": "FAIL"}.get(
                verdict["outcome"], "PASS" if kernel["digest"] else "MISS"
            ),
            **(
                {"compiler": kernel["origin"]["compiler"]} if "compiler" in kernel["origin"] else {}
            ),
        }
        tests += _tests(run, verdict, spec, build, origin)
    return {
        "version": VERSION,
        "checkouts": list(checkouts.values()),
        "builds": list(builds.values()),
        "tests": tests,
    }


def _tests(
    run: Path, verdict: dict[str, Any], spec: dict[str, Any], build: str, origin: str
) -> Iterator[dict[str, Any]]:
    begun = (run / "spec.json").stat().st_mtime
    shape = {name: spec[name] for name in ("smp", "accel", "cpu", "memory", "seed", "duration")}
    common = {
        "build_id": build,
        "origin": origin,
        "environment": {"comment": f"QEMU, {spec['smp']} CPUs", "misc": shape},
        "start_time": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(begun)),
    }
    identity = _hash([str(run.resolve()), begun, verdict["seconds"]])
    failed = verdict["outcome"] in KERNEL_FAILED
    whole = {
        **common,
        "id": f"{origin}:{identity}",
        "path": "orchestrator",
        "status": "PASS" if verdict["outcome"] == "pass" else "FAIL" if failed else "ERROR",
        "comment": f"{verdict['outcome']}: {verdict['reason']}"[:EXCERPT],
        "duration": sum(verdict["seconds"].values()),
        "misc": {"outcome": verdict["outcome"], "exit_status": verdict["exit_status"]},
    }
    console = run / "console.log"
    if verdict["outcome"] != "pass" and console.is_file():
        whole["log_excerpt"] = console.read_text(errors="replace").replace("\0", "?")[-EXCERPT:]
    yield whole
    results = run / "results.ktap"
    for line in results.read_text().splitlines() if results.is_file() else []:
        if not (match := RESULT.match(line)) or match[2] == "run":
            continue
        word, group, name, directive, why = match.groups()
        status = {"SKIP": "SKIP", "ERROR": "MISS" if not failed else "ERROR"}.get(directive or "")
        test = {
            **common,
            "id": f"{origin}:{identity}.{group}.{name}",
            "path": f"orchestrator.{group}.{name}",
            "status": status or ("PASS" if word == "ok" else "FAIL"),
        }
        yield {**test, "comment": why} if why else test


def _read(run: Path, name: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((run / name).read_text())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{run} is not the directory of a run that came to a verdict: no {name} in it"
        ) from error
    return content


def _id(origin: str, content: object) -> str:
    return f"{origin}:{_hash(content)}"


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[
        :32
    ]
