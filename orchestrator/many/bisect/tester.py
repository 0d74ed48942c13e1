"""One run of one candidate, in a process of its own, and what it said as far as a bisection wants to know."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from orchestrator.errors import EXIT_USAGE
from orchestrator.many.bisect.candidates import Candidates
from orchestrator.many.children import PROGRAM, Children, Stopped
from orchestrator.verdict.checks import KERNEL_FAILED
from orchestrator.verdict.model import CLAIMS


@dataclass(frozen=True)
class RunSummary:
    """outcome: the verdict's word. signatures: of all that failed, the one to look for first. reason: a sentence.
    seconds: it took. directory: of the run. passed: checks that held."""

    outcome: str
    signatures: tuple[str, ...] = ()
    reason: str = ""
    seconds: float = 0.0
    directory: str = ""
    passed: tuple[str, ...] = ()


class Tester(Protocol):
    """What a bisection runs. Called from several threads at once."""

    def test(self, number: int, attempt: int) -> RunSummary:
        """Run candidate `number` for the `attempt`th time (from 0), to its end."""

    def stop(self) -> None:
        """End what is under way; test() returns soon after."""


def signatures(verdict: dict[str, Any]) -> tuple[str, ...]:
    """Fingerprints of what failed in a verdict.json: equal for the same fault in another run.

    A broken claim of the phase model is named by the claim alone: which CPU, site and scenario show it differs from run
    to run. Whatever else failed is its check with numbers and addresses left out, a console finding each on its own.
    """
    found: list[str] = []
    for check in verdict["checks"]:
        if check["status"] != "fail":
            continue
        if check["check"] in CLAIMS:
            found.append(check["check"])
        elif check["check"] == "console":
            found += [
                f"console: {_plain(re.sub(r'^line [0-9]+: ', '', line))}"
                for line in check["details"]
            ]
        else:
            found.append(f"{check['check']}: {_plain(check['text'])}")
    if not found and verdict["outcome"] in KERNEL_FAILED:  # a hang that only our deadline noticed
        found.append(f"{verdict['outcome']}: {_plain(verdict['reason'])}")
    return tuple(dict.fromkeys(found))


def property_signature(shows: str) -> str:
    return f"shows: {shows}"


def _shown(told: RunSummary, shows: str, directory: Path) -> RunSummary:
    """`told` as if to show what matches `shows` were the only fault there is."""
    for name in ("console.log", "guest.ktap"):
        with contextlib.suppress(FileNotFoundError):
            if match := re.search(f".*({shows}).*", (directory / name).read_text(errors="replace")):
                return replace(
                    told,
                    outcome="fail",
                    signatures=(property_signature(shows),),
                    reason=match[0].strip(),
                )
    # A crash may have come before it would have been shown, and stays one.
    return replace(told, outcome="pass") if told.outcome in ("fail", "warn") else told


def _plain(text: str) -> str:
    """`text` without what differs between two runs of one fault: numbers, addresses, offsets."""
    return re.sub(r"\b(0x)?[0-9a-f]*[0-9][0-9a-f]*\b", "#", text)


@dataclass
class ChildTester:
    """`orchestrator run` in a child each. options: its options apart from the kernel, --seed and --output.

    seed: of each candidate's first run; the next has the next one, for a fault that one seed hides. directory: where
    the runs keep what they saw. shows: what counts as bad in place of a fault: that the guest's console or report
    matches this regular expression.
    """

    candidates: Candidates
    options: Sequence[str]
    directory: Path
    seed: int = 1
    shows: str | None = None
    program: Sequence[str] = PROGRAM
    _children: Children = field(default_factory=Children)

    def test(self, number: int, attempt: int) -> RunSummary:
        directory = self._new_directory(number)
        with self.candidates.request(number) as request:
            arguments = [
                *request.argv(),
                *self.options,
                "--seed",
                str(self.seed + attempt),
            ]
            try:
                ended = self._children.run(
                    arguments, directory / "run", directory / "log", program=self.program
                )
            except Stopped:
                return RunSummary(
                    "infra", reason="the bisection was stopped", directory=str(directory)
                )
        seconds, verdict = round(ended.seconds, 1), ended.verdict
        if verdict is None:
            # A request that is wrong for this candidate alone: its kernel has fewer CPUs, or is not in the mirror.
            outcome = "build-error" if ended.status == EXIT_USAGE else "infra"
            return RunSummary(outcome, reason=ended.why, seconds=seconds, directory=str(directory))
        told = RunSummary(
            verdict["outcome"],
            signatures(verdict),
            verdict["reason"],
            seconds,
            str(directory / "run"),
            tuple(check["check"] for check in verdict["checks"] if check["status"] == "pass"),
        )
        return told if self.shows is None else _shown(told, self.shows, directory / "run")

    def stop(self) -> None:
        self._children.stop()

    def _new_directory(self, number: int) -> Path:
        """A folder that no run before had, also not one that was cut short."""
        name = re.sub(r"[^\w.]+", "-", self.candidates.candidates[number].name)
        for attempt in range(100_000):
            directory = self.directory / f"{number}-{name}.{attempt}"
            with contextlib.suppress(FileExistsError):
                directory.mkdir(parents=True)
                return directory
        raise AssertionError("more runs than anybody would do")
