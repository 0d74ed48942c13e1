"""A bisection of real kernels: the search, fed with runs, written down as it goes, and taken up again."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from orchestrator import ui
from orchestrator.errors import InfraError, UsageError
from orchestrator.many.bisect.candidates import Candidates
from orchestrator.many.bisect.search import MIN_P, RunOutcome, Search, SearchAnswer
from orchestrator.many.bisect.tester import RunSummary, Tester
from orchestrator.verdict.checks import KERNEL_FAILED

VERSION = 1
"""Of the log's format."""
PATIENCE = 5
"""Runs in a row that say nothing about any kernel, after which the host has to be looked at."""


@dataclass(frozen=True)
class LogEntry:
    """A line of the log: what a run of a candidate said, and what that was taken for."""

    candidate: str
    seen: RunOutcome
    told: RunSummary


class Bisection:
    """candidates, tester: what is run. log: a file of JSON lines, judged anew if it is there, so that another signature
    or confidence can be asked of the same runs. signature: what counts as bad, None for that of the bad end's first
    failure. jobs: runs at a time. build: what a build costs, in runs; None to go by what is measured."""

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
        self.candidates, self.tester, self.signature, self.jobs = (
            candidates,
            tester,
            signature,
            jobs,
        )
        self.search = Search(
            len(candidates.candidates),
            build=candidates.build if build is None else build,
            confidence=confidence,
        )
        self.entries: list[LogEntry] = []
        self._log = log
        self._fixed_cost = build is not None
        self._numbers = {one.name: number for number, one in enumerate(candidates.candidates)}
        self._identity = hashlib.sha256(
            candidates.identity.encode(errors="surrogateescape")
        ).hexdigest()
        for candidate, told in _read(log, self._identity):
            self._take(self._numbers[candidate], told)
        if self.entries:
            ui.say(f"goes on after {len(self.entries)} runs ({log})")

    def run(self) -> SearchAnswer:
        """Run candidates until the answer is sure enough, or nothing more can be learnt.

        UsageError: an end is not what it is said to be. InfraError: the host lets no run say anything. What was seen is
        in the log then, and the same bisection goes on from there.
        """
        pending: dict[Future[RunSummary], int] = {}
        begun = [tally.usable + tally.other + tally.infra for tally in self.search.tallies]
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                while True:
                    self._check_ends()
                    wanted = 0 if self.search.done else self.jobs - len(pending)
                    for number in self.search.propose(wanted, pending.values()):
                        pending[pool.submit(self.tester.test, number, begun[number])] = number
                        begun[number] += 1
                    if self.search.done or not pending:
                        break
                    for future in wait(pending, return_when=FIRST_COMPLETED).done:
                        self._finish(pending.pop(future), future.result())
            finally:
                self.tester.stop()
        return self.search.answer()

    def reason(self, candidate: str) -> str:
        """What the last run of `candidate` told."""
        return next(
            entry.told.reason for entry in reversed(self.entries) if entry.candidate == candidate
        )

    # -- one run

    def _finish(self, number: int, told: RunSummary) -> None:
        entry = self._take(number, told)
        self._write(entry)
        answer = self.search.answer()
        what = f"{entry.candidate} {entry.seen}" + (
            f" ({told.reason})" if entry.seen in ("other", "infra") else ""
        )
        best = self.candidates.candidates[answer.last].name
        ui.say(
            f"run {len(self.entries)}: {what}; likeliest {best}, {100 * answer.probability:.1f} %"
        )
        last = self.entries[-PATIENCE:]
        if len(last) == PATIENCE and all(one.seen is RunOutcome.INFRA for one in last):
            raise InfraError(
                f"{PATIENCE} runs in a row said nothing about the kernel: {told.reason} ({told.directory}); "
                "when that is mended, the same command goes on from here"
            )

    def _take(self, number: int, told: RunSummary) -> LogEntry:
        entry = LogEntry(self.candidates.candidates[number].name, self._seen(number, told), told)
        self.entries.append(entry)
        if entry.seen is RunOutcome.FAIL and self.signature is None:
            self.signature = told.signatures[0]
        self.search.record(number, entry.seen)
        self._measure()
        return entry

    def _seen(self, number: int, told: RunSummary) -> RunOutcome:
        if told.outcome == "pass":
            return RunOutcome.PASS
        if told.outcome in ("build-error", "boot-error"):
            return RunOutcome.UNTESTABLE
        if told.outcome not in KERNEL_FAILED:
            return RunOutcome.INFRA
        if self.signature is None:
            # The bad end says what to look for. What another one shows before that, nobody asked for.
            return RunOutcome.FAIL if number == self.search.bad_end else RunOutcome.OTHER
        if self.signature in told.signatures:
            return RunOutcome.FAIL
        # A run that went to its end looked for our fault as well, whatever else it found.
        held = told.outcome in ("fail", "warn") and self.signature.partition(":")[0] in told.passed
        return RunOutcome.PASS if held else RunOutcome.OTHER

    def _measure(self) -> None:
        """From what was measured, what a build costs (a candidate's first run has it) and what a run does."""
        if self._fixed_cost:
            return
        seconds: dict[str, list[float]] = {}
        for entry in self.entries:
            if entry.seen in (RunOutcome.PASS, RunOutcome.FAIL):
                seconds.setdefault(entry.candidate, []).append(entry.told.seconds)
        later = [one for run in seconds.values() for one in run[1:]]
        if later and (run := statistics.median(later)) > 0:
            build = statistics.median(runs[0] for runs in seconds.values()) - run
            self.search.cost(build=max(build, 0.0), run=run)

    def _check_ends(self) -> None:
        names = self.candidates.candidates
        good, bad = self.search.tallies[0], self.search.tallies[self.search.bad_end]
        wrong = (
            (good.untestable, "good", 0, "cannot be tested, choose another one"),
            (bad.untestable, "bad", -1, "cannot be tested, choose another one"),
            (good.failed, "good", 0, "is bad itself, choose an older one"),
        )
        for is_so, which, end, what in wrong:
            if is_so:
                raise UsageError(
                    f"the {which} end {names[end].name} {what}: {self.reason(names[end].name)}"
                )
        if not bad.failed and bad.passed >= 1 / MIN_P:
            raise UsageError(
                f"the bad end {names[-1].name} passed {bad.passed} runs: a fault that shows so rarely cannot be "
                "bisected; make it show more often (--smp, --duration, --scenario)"
            )

    # -- the log

    def _write(self, entry: LogEntry) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a") as file:
            if not file.tell():
                file.write(json.dumps({"version": VERSION, "identity": self._identity}) + "\n")
            file.write(json.dumps(asdict(entry)) + "\n")


def _read(log: Path, identity: str) -> Iterator[tuple[str, RunSummary]]:
    """Which candidates ran, and what they told. A line that a killed bisection did not finish is cut off."""
    if not log.exists():
        return
    text = log.read_bytes()
    os.truncate(log, text.rfind(b"\n") + 1)
    lines = text.split(b"\n")[:-1]
    try:
        for head in map(json.loads, lines[:1]):
            if head["version"] != VERSION or head["identity"] != identity:
                raise UsageError(
                    f"{log} is of another bisection, or of another version: remove it, or use --restart"
                )
        for line in map(json.loads, lines[1:]):
            told = RunSummary(**line["told"])
            yield (
                line["candidate"],
                replace(told, signatures=tuple(told.signatures), passed=tuple(told.passed)),
            )
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{log} cannot be read ({error}): remove it, or use --restart") from error


# -- what came out


def explained(bisection: Bisection, answer: SearchAnswer) -> str:
    """The answer as text that can be pasted into a mail: the culprit, how sure, and on what that rests."""
    search = bisection.search
    lines: list[str] = []
    if answer.first == answer.last:
        lines.append(f"the first bad one is {_named(bisection, answer.first)}")
    else:
        lines.append(
            "the first bad one is one of these; those before the last could not be tested:"
        )
        lines += [
            f"  {_named(bisection, number)}" for number in range(answer.first, answer.last + 1)
        ]
    enough = (
        ""
        if answer.probability >= search.confidence
        else " (less than was asked for: nothing more can be learnt)"
    )
    lines += [
        f"probability: {100 * answer.probability:.1f} %{enough}",
        f"signature:   {bisection.signature}",
    ]
    bad = [tally for number, tally in enumerate(search.tallies) if number >= answer.last]
    failed, usable = sum(tally.failed for tally in bad), sum(tally.usable for tally in bad)
    lines += [f"it shows in  {failed} of {usable} runs from there on", ""]
    if answer.first == answer.last:
        lines += [bisection.candidates.reference(answer.last).rstrip(), ""]
    lines += ["runs:", *_table(bisection, answer)]
    if failure := next(
        (entry for entry in reversed(bisection.entries) if entry.seen is RunOutcome.FAIL), None
    ):
        lines += ["", f"a run that shows it, of {failure.candidate}: {failure.told.reason}"]
        lines += [f"  {failure.told.directory}"]
    return "\n".join(lines) + "\n"


def _named(bisection: Bisection, number: int) -> str:
    one = bisection.candidates.candidates[number]
    return f'{one.name} ("{one.title}")' if one.title else one.name


def _table(bisection: Bisection, answer: SearchAnswer) -> Iterator[str]:
    names, posterior = bisection.candidates.candidates, bisection.search.posterior()
    width = max(len(one.name) for one in names)
    for number, tally in enumerate(bisection.search.tallies):
        told = [
            f"{count} {word}"
            for word, count in (
                ("passed", tally.passed), ("failed", tally.failed), ("crashed otherwise", tally.other),
                ("said nothing", tally.infra),
            )
            if count
        ]  # fmt: skip
        if tally.untestable:
            lines = bisection.reason(names[number].name).split("\n")
            told.append(
                f"cannot be tested: {next((line for line in lines if 'error:' in line), lines[0])}"
            )
        if told:
            told += ["first bad"] if number == answer.first == answer.last else []
            yield f"  {names[number].name:<{width}} {100 * posterior[number]:5.1f} %  {', '.join(told)}"
