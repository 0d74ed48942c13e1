"""`orchestrator nightly`: a sweep that is done night after night, and only what is new about it.

What did not change since (packages, branches, definitions, this program) is not run again: that is the sweep's rule.
What is told is the difference between this night's verdicts and the last ones.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator.errors import EXIT_KERNEL_FAILED, EXIT_PASS, EXIT_UNTESTABLE
from orchestrator.host.paths import write_whole

if TYPE_CHECKING:
    from orchestrator.many.sweep.matrix import Cell, SweepPlan
    from orchestrator.many.sweep.sweep import CellResult

What = Literal["broken", "differs", "untested", "fixed", "tested", "new", "gone"]
HEADINGS: dict[What, str] = {
    "broken": "fails now, and did not",
    "differs": "fails in another way",
    "untested": "has no verdict now, and had one",
    "fixed": "passes now, and did not",
    "tested": "has a verdict now, and had none",
    "new": "is new, and passes",
    "gone": "is not in the matrix any more",
}
"""Of each kind of news, the gravest first."""
NIGHTS = 30
"""Of which the records are kept. Of run directories this night's and the last one's are."""


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """What a cell came to in one night. signatures: of what failed. version: of the kernel, in its own words.

    directory: of the run; arguments: its options, those that name the kernel apart.
    """

    kernel: str
    outcome: str
    exit_status: int
    reason: str
    signatures: tuple[str, ...] = ()
    version: str = ""
    directory: str = ""
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True)
class News:
    """A cell of which there is something to say. before, now: None where it was not there."""

    what: What
    cell: str
    before: CellRecord | None
    now: CellRecord | None


def compare(before: Mapping[str, CellRecord], now: Mapping[str, CellRecord]) -> list[News]:
    """What is new, the gravest first. A cell that fails, or has no verdict, as it did is not."""
    found = []
    for cell, seen in now.items():
        if what := _what(before.get(cell), seen):
            found.append(News(what, cell, before.get(cell), seen))
    found += [News("gone", cell, seen, None) for cell, seen in before.items() if cell not in now]
    return sorted(found, key=lambda news: list(HEADINGS).index(news.what))


def _what(before: CellRecord | None, now: CellRecord) -> What | None:
    failed, passed = now.exit_status == EXIT_KERNEL_FAILED, now.exit_status == EXIT_PASS
    if before is None:
        return "broken" if failed else "new" if passed else "untested"
    if failed and before.exit_status == EXIT_KERNEL_FAILED:
        # What fails first differs from run to run when a fault shows in several ways: one in common is the same fault.
        same = set(now.signatures) & set(before.signatures) or now.signatures == before.signatures
        return None if same else "differs"
    if now.exit_status == before.exit_status:
        return None
    if failed:
        return "broken"
    if not passed:
        return "untested"
    return "fixed" if before.exit_status == EXIT_KERNEL_FAILED else "tested"


def exit_status(news: Sequence[News], now: Mapping[str, CellRecord], *, strict: bool) -> int:
    """1: something fails that did not, or with `strict` anything does. 125: nothing does, but something that had a
    verdict has none, or nothing has one. Else 0."""
    kinds, statuses = {one.what for one in news}, {seen.exit_status for seen in now.values()}
    if kinds & {"broken", "differs"} or (strict and EXIT_KERNEL_FAILED in statuses):
        return EXIT_KERNEL_FAILED
    return (
        EXIT_UNTESTABLE
        if "untested" in kinds or not statuses & {EXIT_PASS, EXIT_KERNEL_FAILED}
        else EXIT_PASS
    )


def told(news: Sequence[News], now: Mapping[str, CellRecord]) -> list[str]:
    """The lines for a person, or a mail: what is new, and one line on all of it."""
    lines: list[str] = []
    for what, heading in HEADINGS.items():
        chosen = [one for one in news if one.what == what]
        if chosen:
            lines += ["", f"{heading}:"]
        for one in chosen:
            seen = one.now or one.before
            assert seen
            version = " -> ".join(
                dict.fromkeys(s.version for s in (one.before, one.now) if s and s.version)
            )
            lines.append(f"  {one.cell}{f' ({version})' if version else ''}: {seen.outcome}")
            if one.now and one.now.exit_status != EXIT_PASS:
                lines += [f"      {one.now.reason}", f"      {one.now.directory}"]
            if search := bisection(one):
                lines.append(f"      {search}")
    count = Counter(seen.exit_status for seen in now.values())
    passed, failed = count[EXIT_PASS], count[EXIT_KERNEL_FAILED]
    rest = len(now) - passed - failed
    lines += ["", f"{len(now)} cells: {passed} pass, {failed} fail, {rest} without a verdict"]
    return lines if news else ["nothing is new", *lines]


def bisection(news: News) -> str | None:
    """The command that finds what broke a cell, where both ends have a name."""
    before, now = news.before, news.now
    if news.what != "broken" or not before or not now or before.exit_status != EXIT_PASS:
        return None
    if not before.version or not now.version or before.version == now.version:
        return None
    if match := re.fullmatch(r"debian:\d+\.\d+(?:\.\d+)?(-\w+)?", now.kernel):
        ends = [f"debian:{_upstream(seen.version)}{match[1] or ''}" for seen in (before, now)]
    elif now.kernel.startswith("git:"):
        where = now.kernel.removeprefix("git:").rpartition("@")[0]
        if "://" in where or not Path(where).expanduser().is_dir():
            return None
        ends = ["--tree", where, "--good", before.version, "--bad", now.version]
    else:
        return None
    return shlex.join(["orchestrator", "bisect", *ends, *now.arguments])


def _upstream(version: str) -> str:
    return re.sub(r"^\d+:|[-+~].*$", "", version)


# -- records of nights


def finish(
    plan: SweepPlan, directory: Path, results: Mapping[Cell, CellResult], *, strict: bool
) -> int:
    """Compare a night's results with the last night's, print and keep what is new. Returns the exit status."""
    nights = directory / "nights"
    nights.mkdir(exist_ok=True)
    before = last(nights)
    now = {cell.name: _seen(cell, plan, result) for cell, result in results.items()}
    news = compare(before, now)
    text = told(news, now)
    print("\n".join(text))
    stamp = time.strftime("%Y%m%d-%H%M%S")
    content = {
        "schema": 1,
        "news": [{"what": one.what, "cell": one.cell} for one in news],
        "cells": {cell: asdict(seen) for cell, seen in now.items()},
    }
    write_whole(nights / f"{stamp}.json", json.dumps(content, indent=1) + "\n")
    write_whole(directory / "news.txt", "\n".join(text) + "\n")
    _forget(directory, nights, {seen.directory for seen in (*before.values(), *now.values())})
    return exit_status(news, now, strict=strict)


def last(nights: Path) -> dict[str, CellRecord]:
    """What the last night that came to its end saw, by cell; nothing when there was none."""
    for file in sorted(nights.glob("*.json"), reverse=True):
        try:
            cells: dict[str, Any] = json.loads(file.read_text())["cells"]
            return {
                name: CellRecord(
                    **{
                        **cell,
                        "signatures": tuple(cell["signatures"]),
                        "arguments": tuple(cell["arguments"]),
                    }
                )
                for name, cell in cells.items()
            }
        except (OSError, ValueError, KeyError, TypeError):
            continue  # of another version of this program, or damaged: the one before it is worth as much
    return {}


def _seen(cell: Cell, plan: SweepPlan, result: CellResult) -> CellRecord:
    from orchestrator.many.bisect.tester import signatures

    verdict: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):  # it may not have come to a verdict
        verdict = json.loads((Path(result.directory) / "verdict.json").read_text())
    origin = (verdict.get("kernel") or {}).get("origin", {})
    request = plan.kernels[cell.kernel]
    arguments = cell.arguments()
    at = arguments.index("--seed")
    return CellRecord(
        kernel=str(request.tree) if request.tree else request.selector,
        outcome=result.outcome,
        exit_status=result.exit_status,
        reason=result.reason,
        signatures=signatures(verdict) if verdict else (),
        version=origin.get("version") or origin.get("git", ""),
        directory=result.directory,
        arguments=(*arguments[:at], *arguments[at + 2 :]),
    )


def _forget(directory: Path, nights: Path, needed: set[str]) -> None:
    """Remove what no night needs any more."""
    for file in sorted(nights.glob("*.json"))[:-NIGHTS]:
        file.unlink()
    for folder in (directory / "cells").glob("[!.]*"):
        if not any(Path(path).is_relative_to(folder) for path in needed if path):
            shutil.rmtree(folder, ignore_errors=True)
