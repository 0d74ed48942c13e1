# SPDX-License-Identifier: GPL-2.0-only
"""One run of one candidate, and what a bisection needs to know about it."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from orchestrator.errors import sentence
from orchestrator.kernel.model import KernelRequest
from orchestrator.many.bisect.candidates import Candidates
from orchestrator.many.children import PROGRAM, Children, Stopped
from orchestrator.rundir import BRANCHES
from orchestrator.spec import RunSpec
from orchestrator.verdict.signature import signatures


@dataclass(frozen=True)
class RunSummary:
    """What a bisection needs to know about a run. The log keeps it."""

    outcome: str
    """The outcome of the verdict."""
    signatures: tuple[str, ...] = ()
    """Fingerprints of everything that failed, the most important one first."""
    reason: str = ""
    seconds: float = 0.0
    directory: str = ""
    """Directory of the run."""
    passed: tuple[str, ...] = ()
    """Names of the checks that passed."""


class Tester(Protocol):
    """Runs candidates. A bisection calls it from several threads at once."""

    def test(self, number: int, attempt: int) -> RunSummary:
        """Run candidate `number` to its end. `attempt` counts its runs, from 0."""

    def test_without(self, number: int, attempt: int) -> RunSummary:
        """Run the bad end without what candidate `number` changes.

        Raises UsageError, with the reason, if there is no such kernel.
        """

    def stop(self) -> None:
        """End all runs. test() returns soon after, and starts no other."""

    def go_on(self) -> None:
        """Allow runs again, when those that stop() has ended are over."""


def property_signature(shows: str) -> str:
    """The signature of a run whose output matches the regular expression `shows`."""
    return f"shows: {shows}"


@dataclass
class ChildTester:
    """Runs each candidate as `orchestrator run` in a child process."""

    candidates: Candidates
    spec: RunSpec
    """The run, apart from its kernel. The first run of a candidate has this seed, the next one the
    next seed, and so on, in case one seed hides the fault."""
    directory: Path
    """Where the runs keep their directories."""
    shows: str | None = None
    """A regular expression. If there is one, a candidate is bad if its console or report matches,
    whatever its verdict."""
    program: Sequence[str] = PROGRAM
    _children: Children = field(default_factory=Children)

    def test(self, number: int, attempt: int) -> RunSummary:
        name = f"{number}-{self.candidates.candidates[number].name}"
        return self._test(name, self.candidates.request(number), attempt)

    def test_without(self, number: int, attempt: int) -> RunSummary:
        self.directory.mkdir(parents=True, exist_ok=True)
        request = self.candidates.without(number, self.directory)
        return self._test(f"without-{number}", contextlib.nullcontext(request), attempt)

    def _test(
        self, name: str, request: AbstractContextManager[KernelRequest], attempt: int
    ) -> RunSummary:
        try:
            return self._run(name, request, attempt)
        except OSError as error:  # a full disk says nothing about the candidate
            return RunSummary("infra", reason=sentence(error), directory=str(self.directory))

    def _run(
        self, name: str, request: AbstractContextManager[KernelRequest], attempt: int
    ) -> RunSummary:
        directory = self._new_directory(name)
        with request as kernel:
            spec = replace(self.spec, kernel=kernel, seed=self.spec.seed + attempt)
            try:
                ended = self._children.run(
                    spec, directory / "run", directory / "log", program=self.program
                )
            except Stopped:
                return RunSummary(
                    "infra", reason="the bisection was stopped", directory=str(directory)
                )
        seconds, verdict = round(ended.seconds, 1), ended.verdict
        if verdict is None:
            # The request is wrong for this candidate alone. Its kernel may be built for fewer CPUs,
            # or missing from the mirror.
            outcome = "build-error" if ended.wrong_request else "infra"
            return RunSummary(outcome, reason=ended.why, seconds=seconds, directory=str(directory))
        summary = RunSummary(
            outcome=verdict.outcome,
            signatures=signatures(verdict),
            reason=verdict.reason,
            seconds=seconds,
            directory=str(directory / "run"),
            passed=tuple(check.check for check in verdict.with_status("pass")),
        )
        if self.shows is None:
            return summary
        return _judged_by_property(summary, self.shows, directory / "run")

    def stop(self) -> None:
        self._children.stop()

    def go_on(self) -> None:
        self._children.go_on()

    def _new_directory(self, name: str) -> Path:
        """Make a directory that no earlier run has used, not even one that was cut short."""
        name = re.sub(r"[^\w.]+", "-", name)[:100]
        for attempt in range(100_000):
            directory = self.directory / f"{name}.{attempt}"
            with contextlib.suppress(FileExistsError):
                directory.mkdir(parents=True)
                return directory
        raise AssertionError(f"{name} has 100,000 directories")


def _judged_by_property(summary: RunSummary, shows: str, directory: Path) -> RunSummary:
    """`summary`, as if output that matches `shows` were the only possible fault."""
    of_branches = (directory / BRANCHES).glob("*")
    for guest, name in itertools.product((directory, *of_branches), ("console.log", "guest.ktap")):
        with contextlib.suppress(FileNotFoundError):
            text = (guest / name).read_text(errors="replace")
            if match := re.search(f".*({shows}).*", text):
                return replace(
                    summary,
                    outcome="fail",
                    signatures=(property_signature(shows),),
                    reason=match[0].strip(),
                )
    # A crash may have come before the property would have shown, so it remains a crash.
    return replace(summary, outcome="pass") if summary.outcome in ("fail", "warn") else summary
