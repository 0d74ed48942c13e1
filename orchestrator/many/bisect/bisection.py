# SPDX-License-Identifier: GPL-2.0-only
"""A bisection of real kernels: runs feed the search, and a log lets a later call continue."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator import ui
from orchestrator.errors import InfraError, UsageError
from orchestrator.many.bisect.candidates import Candidates
from orchestrator.many.bisect.search import MIN_P, RunOutcome, Search, SearchAnswer
from orchestrator.many.bisect.tester import RunSummary, Tester
from orchestrator.verdict.checks import KERNEL_FAILED

VERSION = 2
"""Version of the log's format."""
PATIENCE = 5
"""After this many inconclusive runs in a row, somebody has to look at the host."""


@dataclass(frozen=True)
class LogEntry:
    """A line of the log: one run of a candidate."""

    candidate: str
    outcome: RunOutcome
    """What the run counts as in the search."""
    summary: RunSummary


class Bisection:
    """A search for the first bad candidate, whose runs are logged.

    - candidates, tester: what to run, and how.
    - log: a file of JSON lines. If it exists, its runs are judged anew, so that they can answer for
      another signature or confidence as well.
    - signature: what counts as bad; None for the signature of the bad end's first failure.
    - jobs: runs at a time.
    - build: cost of one build, in runs; None to measure it.

    Raises UsageError if the log belongs to another bisection or is damaged.
    """

    def __init__(
        self,
        candidates: Candidates,
        tester: Tester,
        log: Path,
        *,
        confidence: float = 0.95,
        signature: str | None = None,
        jobs: int = 1,
        build: float | None = None,
    ) -> None:
        self.candidates, self.tester = candidates, tester
        self.signature, self.jobs = signature, jobs
        self.search = Search(
            len(candidates.candidates),
            build=candidates.build if build is None else build,
            confidence=confidence,
        )
        self.entries: list[LogEntry] = []
        self._log = log
        self._fixed_cost = build is not None
        self._numbers = {
            candidate.name: number for number, candidate in enumerate(candidates.candidates)
        }
        self._identity = hashlib.sha256(
            candidates.identity.encode(errors="surrogateescape")
        ).hexdigest()
        for candidate, summary in _read(log, self._identity):
            self._take(self._numbers[candidate], summary)
        if self.entries:
            ui.say(f"continues after {len(self.entries)} runs ({log})")

    def run(self) -> SearchAnswer:
        """Run candidates until the answer is sure enough, or nothing more can be learnt.

        Raises UsageError if an end turns out not to be good or bad, and InfraError if too many runs
        in a row are inconclusive. The log has all runs then, and the same bisection can continue.
        """
        pending: dict[Future[RunSummary], int] = {}
        attempts = [tally.usable + tally.other + tally.infra for tally in self.search.tallies]
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                while True:
                    self._check_ends()
                    idle = 0 if self.search.done else self.jobs - len(pending)
                    for number in self.search.propose(idle, pending.values()):
                        pending[pool.submit(self.tester.test, number, attempts[number])] = number
                        attempts[number] += 1
                    if self.search.done or not pending:
                        break
                    for future in wait(pending, return_when=FIRST_COMPLETED).done:
                        self._finish(pending.pop(future), future.result())
            finally:
                self.tester.stop()
        return self.search.answer()

    def reason(self, candidate: str) -> str:
        """The reason that the last run of `candidate` gave for its verdict."""
        return next(
            entry.summary.reason for entry in reversed(self.entries) if entry.candidate == candidate
        )

    # -- one run

    def _finish(self, number: int, summary: RunSummary) -> None:
        entry = self._take(number, summary)
        self._write(entry)
        answer = self.search.answer()
        unclear = entry.outcome in (RunOutcome.OTHER, RunOutcome.INFRA)
        why = f" ({summary.reason})" if unclear else ""
        best = self.candidates.candidates[answer.last].name
        ui.say(
            f"run {len(self.entries)}: {entry.candidate} {entry.outcome}{why}; "
            f"most likely {best}, {100 * answer.probability:.1f} %"
        )
        last = self.entries[-PATIENCE:]
        if len(last) == PATIENCE and all(run.outcome is RunOutcome.INFRA for run in last):
            raise InfraError(
                f"{PATIENCE} runs in a row said nothing about the kernel: {summary.reason} "
                f"({summary.directory}); fix that and repeat the command, which continues from here"
            )

    def _take(self, number: int, summary: RunSummary) -> LogEntry:
        name, outcome = self.candidates.candidates[number].name, self._outcome(number, summary)
        entry = LogEntry(name, outcome, summary)
        self.entries.append(entry)
        if outcome is RunOutcome.FAIL and self.signature is None:
            self.signature = summary.signatures[0]
        self.search.record(number, outcome)
        self._measure()
        return entry

    def _outcome(self, number: int, summary: RunSummary) -> RunOutcome:
        if summary.outcome == "pass":
            return RunOutcome.PASS
        if summary.outcome in ("build-error", "boot-error"):
            return RunOutcome.UNTESTABLE
        if summary.outcome not in KERNEL_FAILED:
            return RunOutcome.INFRA
        if self.signature is None:
            # The bad end defines the signature. A failure elsewhere before that counts for nothing.
            return RunOutcome.FAIL if number == self.search.bad_end else RunOutcome.OTHER
        if self.signature in summary.signatures:
            return RunOutcome.FAIL
        # A run that ended normally has looked for this fault as well, whatever else it found.
        check = self.signature.partition(":")[0]
        absent = summary.outcome in ("fail", "warn") and check in summary.passed
        return RunOutcome.PASS if absent else RunOutcome.OTHER

    def _measure(self) -> None:
        """Tell the search what a build and a run cost. Only a candidate's first run builds."""
        if self._fixed_cost:
            return
        seconds: dict[str, list[float]] = {}
        for entry in self.entries:
            if entry.outcome in (RunOutcome.PASS, RunOutcome.FAIL):
                seconds.setdefault(entry.candidate, []).append(entry.summary.seconds)
        later = [value for durations in seconds.values() for value in durations[1:]]
        if later and (run := statistics.median(later)) > 0:
            build = statistics.median(durations[0] for durations in seconds.values()) - run
            self.search.cost(build=max(build, 0.0), run=run)

    def _check_ends(self) -> None:
        names = self.candidates.candidates
        good, bad = self.search.tallies[0], self.search.tallies[self.search.bad_end]
        problems = (
            (good.untestable, "good", 0, "cannot be tested, choose another one"),
            (bad.untestable, "bad", -1, "cannot be tested, choose another one"),
            (good.failed, "good", 0, "is bad itself, choose an older one"),
        )
        for applies, end, number, problem in problems:
            if applies:
                name = names[number].name
                raise UsageError(f"the {end} end {name} {problem}: {self.reason(name)}")
        if not bad.failed and bad.passed >= 1 / MIN_P:
            raise UsageError(
                f"the bad end {names[-1].name} passed {bad.passed} runs: a fault that shows so "
                "rarely cannot be bisected; make it show more often (--smp, --duration, --scenario)"
            )

    # -- the log

    def _write(self, entry: LogEntry) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a") as file:
            if not file.tell():
                file.write(json.dumps({"version": VERSION, "identity": self._identity}) + "\n")
            file.write(json.dumps(asdict(entry)) + "\n")


def _read(log: Path, identity: str) -> Iterator[tuple[str, RunSummary]]:
    """The candidates and summaries in the log. Cuts off an unfinished line of a killed process."""
    if not log.exists():
        return
    text = log.read_bytes()
    os.truncate(log, text.rfind(b"\n") + 1)
    lines = text.split(b"\n")[:-1]
    try:
        for head in map(json.loads, lines[:1]):
            if head["version"] != VERSION or head["identity"] != identity:
                raise UsageError(
                    f"{log} belongs to another bisection, or to another version: "
                    "remove it, or use --restart"
                )
        for line in map(json.loads, lines[1:]):
            summary = RunSummary(**line["summary"])
            yield (
                line["candidate"],
                replace(
                    summary,
                    signatures=tuple(summary.signatures),
                    passed=tuple(summary.passed),
                ),
            )
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{log} cannot be read ({error}): remove it, or use --restart") from error


# -- the answer


def explained(bisection: Bisection, answer: SearchAnswer) -> str:
    """The answer as text for a mail: the culprit, how certain that is, and the runs behind it."""
    search = bisection.search
    lines: list[str] = []
    if answer.first == answer.last:
        lines.append(f"the first bad candidate is {_described(bisection, answer.first)}")
    else:
        lines.append("the first bad candidate is one of these; only the last can be tested:")
        lines += [
            f"  {_described(bisection, number)}" for number in range(answer.first, answer.last + 1)
        ]
    probability = f"{100 * answer.probability:.1f} %"
    if answer.probability < search.confidence:
        probability += " (less than requested, but nothing more can be learnt)"
    lines += [f"probability: {probability}", f"signature:   {bisection.signature}"]
    bad = search.tallies[answer.last :]
    failed, usable = sum(tally.failed for tally in bad), sum(tally.usable for tally in bad)
    lines += [f"it shows in  {failed} of {usable} runs from there on", ""]
    if answer.first == answer.last:
        lines += [bisection.candidates.reference(answer.last).rstrip(), ""]
    lines += ["runs:", *_table(bisection, answer)]
    failures = [entry for entry in bisection.entries if entry.outcome is RunOutcome.FAIL]
    if failures:
        entry = failures[-1]
        lines += ["", f"a failing run of {entry.candidate}: {entry.summary.reason}"]
        lines += [f"  {entry.summary.directory}"]
    return "\n".join(lines) + "\n"


def as_json(bisection: Bisection, answer: SearchAnswer) -> dict[str, Any]:
    """The answer as JSON values."""
    candidates, posterior = bisection.candidates.candidates, bisection.search.posterior()
    tested = [
        {
            "candidate": candidates[number].name,
            "title": candidates[number].title,
            "probability": round(float(posterior[number]), 6),
            "passed": tally.passed,
            "failed": tally.failed,
            "failed_otherwise": tally.other,
            "inconclusive": tally.infra,
            "untestable": bisection.reason(candidates[number].name) if tally.untestable else None,
        }
        for number, tally in enumerate(bisection.search.tallies)
        if tally.untestable or any((tally.passed, tally.failed, tally.other, tally.infra))
    ]
    suspects = candidates[answer.first : answer.last + 1]
    return {
        "suspects": [{"candidate": one.name, "title": one.title} for one in suspects],
        "probability": float(answer.probability),
        "confidence": bisection.search.confidence,
        "signature": bisection.signature,
        "tested": tested,
    }


def _described(bisection: Bisection, number: int) -> str:
    candidate = bisection.candidates.candidates[number]
    return f'{candidate.name} ("{candidate.title}")' if candidate.title else candidate.name


def _table(bisection: Bisection, answer: SearchAnswer) -> Iterator[str]:
    """A line for each candidate that was run: how likely it is the first bad one, and its runs."""
    names, posterior = bisection.candidates.candidates, bisection.search.posterior()
    width = max(len(candidate.name) for candidate in names)
    for number, tally in enumerate(bisection.search.tallies):
        counts = {
            "passed": tally.passed,
            "failed": tally.failed,
            "crashed otherwise": tally.other,
            "inconclusive": tally.infra,
        }
        notes = [f"{count} {word}" for word, count in counts.items() if count]
        if tally.untestable:
            lines = bisection.reason(names[number].name).split("\n")
            error = next((line for line in lines if "error:" in line), lines[0])
            notes.append(f"cannot be tested: {error}")
        if notes:
            notes += ["first bad"] if number == answer.first == answer.last else []
            share = f"{100 * posterior[number]:5.1f} %"
            yield f"  {names[number].name:<{width}} {share}  {', '.join(notes)}"
