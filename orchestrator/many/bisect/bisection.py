# SPDX-License-Identifier: GPL-2.0-only
"""A bisection of real kernels: runs feed the search, and a log lets a later call continue."""

from __future__ import annotations

import hashlib
import json
import math
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from orchestrator import ui
from orchestrator.errors import BuildError, InfraError, UsageError
from orchestrator.many.bisect.candidates import Candidates
from orchestrator.many.bisect.search import MIN_P, RunOutcome, Search, SearchAnswer
from orchestrator.many.bisect.tester import RunSummary, Tester
from orchestrator.rundir import replay_command
from orchestrator.verdict.checks import KERNEL_FAILED

VERSION = 2
"""Version of the log's format."""
HEARTBEAT = 60.0
"""Seconds between two lines while a run goes on."""
DOUBT = 0.05
"""Probability of a pass in all runs of the confirmation if the fault is still there."""
MOST_RUNS = 30
"""Most runs of one kernel for the confirmation."""
PATIENCE = 5
"""After this many inconclusive runs in a row, somebody has to look at the host."""


@dataclass(frozen=True)
class LogEntry:
    """A line of the log: one run of a candidate."""

    candidate: str
    outcome: RunOutcome
    """What the run counts as in the search."""
    summary: RunSummary


@dataclass(frozen=True)
class Confirmation:
    """Whether the first bad candidate is to blame, tried apart from the search."""

    holds: bool | None
    """None if the runs do not show it."""
    text: str


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
        self._costs: tuple[float, float] | None = None  # seconds of a build and of a run
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
                        self._announce(number, attempts[number])
                        pending[pool.submit(self.tester.test, number, attempts[number])] = number
                        attempts[number] += 1
                    if self.search.done or not pending:
                        break
                    for future in self._wait(pending):
                        self._finish(pending.pop(future), future.result())
            finally:
                self.tester.stop()
        self.tester.go_on()  # for confirm()
        return self.search.answer()

    def confirm(self, answer: SearchAnswer) -> Confirmation:
        """Whether the first bad candidate fails again, and the bad end without it passes.

        Its own runs are logged like all others.
        """
        if answer.first != answer.last:
            return Confirmation(None, "it cannot be told which of them it is")
        number, runs = answer.first, _enough(answer.p)
        name = self.candidates.candidates[number].name
        ui.say(f"confirming {name}: it must fail again, and {runs} runs without it must pass")
        attempt = self.search.tallies[number].usable
        for count in range(1, runs + 1):
            again = self._finish(number, self.tester.test(number, attempt + count))
            if again is RunOutcome.FAIL:
                break
        else:
            return Confirmation(None, f"{name} did not fail again in {runs} runs")
        return self._without(number, runs)

    def _without(self, number: int, runs: int) -> Confirmation:
        passed = inconclusive = 0
        while passed < runs:
            try:
                summary = self.tester.test_without(number, passed + inconclusive)
            except UsageError as error:
                return Confirmation(None, f"it failed again; {error}")
            outcome = self._outcome(self.search.bad_end, summary)
            ui.say(f"the bad end without it: {outcome} ({summary.seconds:.0f} s)")
            if outcome is RunOutcome.FAIL:
                text = "it failed again, but the bad end without it fails in the same way"
                return Confirmation(False, f"{text} ({summary.directory})")
            if outcome is RunOutcome.UNTESTABLE:
                why = _first_error(summary.reason)
                return Confirmation(
                    None, f"it failed again; without it the bad end is no test: {why}"
                )
            passed += outcome is RunOutcome.PASS
            inconclusive += outcome is not RunOutcome.PASS
            if inconclusive == PATIENCE:
                why = f"{PATIENCE} runs of the bad end without it said nothing: {summary.reason}"
                return Confirmation(None, f"it failed again; {why}")
        return Confirmation(
            True, f"it failed again, and the bad end without it passed {passed} of {passed} runs"
        )

    def reason(self, candidate: str) -> str:
        """The reason that the last run of `candidate` gave for its verdict."""
        return next(
            entry.summary.reason for entry in reversed(self.entries) if entry.candidate == candidate
        )

    # -- one run

    def _announce(self, number: int, attempt: int) -> None:
        one = self.candidates.candidates[number]
        title = f' ("{one.title}")' if one.title else ""
        what = f"running {one.name} again" if attempt else f"building and running {one.name}{title}"
        ui.say(f"{what}{self._remaining()}")

    def _remaining(self) -> str:
        """How much is left to do, as far as that can be told: the likely candidates are halved."""
        shares = sorted(self.search.posterior(), reverse=True)
        likely = 1
        while sum(shares[:likely]) < self.search.confidence and likely < len(shares):
            likely += 1
        if likely == 1 or not self.search.verified:
            return ""
        builds = math.ceil(math.log2(likely))
        text = f"; {likely} candidates are likely, about {builds} more to build"
        if self._costs:
            build, run = self._costs
            seconds = builds * (build + run / max(self.search.answer().p, MIN_P))
            text += f", {max(1.0, seconds / 60):.0f} min"
        return text

    def _wait(self, pending: Mapping[Future[RunSummary], int]) -> Iterator[Future[RunSummary]]:
        """The runs that have ended, at least one."""
        start = time.monotonic()
        while not (done := wait(pending, timeout=HEARTBEAT, return_when=FIRST_COMPLETED).done):
            names = {self.candidates.candidates[number].name for number in pending.values()}
            ui.say(f"{', '.join(sorted(names))}: {time.monotonic() - start:.0f} s so far")
        yield from done

    def _finish(self, number: int, summary: RunSummary) -> RunOutcome:
        entry = self._take(number, summary)
        self._write(entry)
        answer = self.search.answer()
        unclear = entry.outcome in (RunOutcome.OTHER, RunOutcome.INFRA)
        why = f" ({summary.reason})" if unclear else ""
        best = self.candidates.candidates[answer.last].name
        ui.say(
            f"run {len(self.entries)}: {entry.candidate} {entry.outcome}{why}, "
            f"{summary.seconds:.0f} s; most likely {best}, {100 * answer.probability:.1f} %"
        )
        last = self.entries[-PATIENCE:]
        if len(last) == PATIENCE and all(run.outcome is RunOutcome.INFRA for run in last):
            raise InfraError(
                f"{PATIENCE} runs in a row said nothing about the kernel: {summary.reason} "
                f"({summary.directory}); fix that and repeat the command, which continues from here"
            )
        return entry.outcome

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
            self._costs = (max(build, 0.0), run)
            self.search.cost(build=max(build, 0.0), run=run)

    def _check_ends(self) -> None:
        names = self.candidates.candidates
        good, bad = self.search.tallies[0], self.search.tallies[self.search.bad_end]
        for tally, end, number in ((good, "good", 0), (bad, "bad", -1)):
            name = names[number].name
            if tally.untestable:
                raise BuildError(
                    f"the {end} end {name} cannot be tested, choose another one: "
                    f"{self.reason(name)}"
                )
        if good.failed:
            name = names[0].name
            raise UsageError(
                f"the good end {name} is bad itself, choose an older one: {self.reason(name)}"
            )
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


def explained(
    bisection: Bisection, answer: SearchAnswer, confirmation: Confirmation | None = None
) -> str:
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
    lines += [f"it shows in  {failed} of {usable} runs from there on"]
    if confirmation:
        heading = {True: "confirmed:  ", False: "REFUTED:    ", None: "unconfirmed:"}
        lines += [f"{heading[confirmation.holds]} {confirmation.text}"]
    lines += [""]
    if answer.first == answer.last:
        lines += [bisection.candidates.reference(answer.last).rstrip(), ""]
    lines += ["runs:", *_table(bisection, answer)]
    failures = [entry for entry in bisection.entries if entry.outcome is RunOutcome.FAIL]
    if failures:
        entry = failures[-1]
        lines += ["", f"a failing run of {entry.candidate}: {entry.summary.reason}"]
        lines += [f"  {entry.summary.directory}"]
        if command := replay_command(Path(entry.summary.directory)):
            lines += [f"  {command}"]
    return "\n".join(lines) + "\n"


def as_json(
    bisection: Bisection, answer: SearchAnswer, confirmation: Confirmation | None
) -> dict[str, Any]:
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
        "confirmation": asdict(confirmation) if confirmation else None,
        "tested": tested,
    }


def _described(bisection: Bisection, number: int) -> str:
    candidate = bisection.candidates.candidates[number]
    return f'{candidate.name} ("{candidate.title}")' if candidate.title else candidate.name


def _enough(p: float) -> int:
    """The number of passes after which a fault with this probability is gone, most likely."""
    if p >= 1 - DOUBT:
        return 1
    return min(MOST_RUNS, math.ceil(math.log(DOUBT) / math.log1p(-max(p, MIN_P))))


def _first_error(reason: str) -> str:
    """The line of a reason that says what is wrong."""
    lines = reason.split("\n")
    return next((line for line in lines if "error:" in line), lines[0])


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
            error = _first_error(bisection.reason(names[number].name))
            notes.append(f"cannot be tested: {error}")
        if notes:
            notes += ["first bad"] if number == answer.first == answer.last else []
            share = f"{100 * posterior[number]:5.1f} %"
            yield f"  {names[number].name:<{width}} {share}  {', '.join(notes)}"
