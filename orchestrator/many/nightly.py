# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator nightly`: a sweep that is repeated every night and reports only what is new.

The sweep does not repeat cells whose packages, branches, definitions and program have not changed.
The report is the difference between the verdicts of this night and the last known ones: a night
that could not build or run a cell erases nothing.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from orchestrator import ui
from orchestrator.errors import EXIT_KERNEL_FAILED, EXIT_PASS, EXIT_UNTESTABLE
from orchestrator.host.files import write_report, write_whole
from orchestrator.kernel.checkout import PREFIX, split
from orchestrator.kernel.model import CHANGES
from orchestrator.options import argv
from orchestrator.rundir import replay_command
from orchestrator.spec import MACHINE, POKING
from orchestrator.verdict import result
from orchestrator.verdict.signature import signatures

if TYPE_CHECKING:
    from orchestrator.many.sweep.matrix import Cell
    from orchestrator.many.sweep.sweep import CellResult

Kind = Literal["broken", "differs", "untested", "fixed", "tested", "new", "gone"]
HEADINGS: dict[Kind, str] = {
    "broken": "newly failing",
    "differs": "failing in another way",
    "untested": "no verdict any more",
    "fixed": "passing again",
    "tested": "with a verdict again",
    "new": "new and passing",
    "gone": "no longer in the matrix",
}
"""The heading of each kind of news, the most serious kind first."""
NIGHTS = 30
"""Number of nights whose records are kept. Run directories are kept for the last two."""
SCHEMA = 3
"""Version of the records. A record of another version is ignored, as if that night had not been."""


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """The result of a cell in one night."""

    kernel: str
    """The kernel as it was requested: a name, or the path of a tree."""
    outcome: str
    exit_status: int
    reason: str
    signatures: tuple[str, ...] = ()
    """Fingerprints of everything that failed."""
    version: str = ""
    """The kernel's version: that of a package, or what git calls the commit."""
    commit: str = ""
    """The commit that was run; empty if it is none, or was changed."""
    directory: str = ""
    """Directory of the run."""
    arguments: tuple[str, ...] = ()
    """The arguments for a bisection of this cell, without those that name kernels."""

    @property
    def conclusive(self) -> bool:
        """Whether it says anything about the kernel."""
        return self.exit_status in (EXIT_PASS, EXIT_KERNEL_FAILED)


@dataclass(frozen=True)
class CellHistory:
    """What is known about a cell after a night."""

    last: CellRecord
    """The result of that night."""
    known: CellRecord | None = None
    """The last result with a verdict."""
    good: CellRecord | None = None
    """The last result that is a pass."""

    def followed_by(self, now: CellRecord) -> CellHistory:
        """What is known after another night."""
        good = now if now.exit_status == EXIT_PASS else self.good
        return CellHistory(now, now if now.conclusive else self.known, good)


def first(record: CellRecord) -> CellHistory:
    """What is known after the first night of a cell."""
    return CellHistory(record).followed_by(record)


@dataclass(frozen=True)
class News:
    """A change in one cell."""

    kind: Kind
    cell: str
    before: CellRecord | None
    """What it is compared with: the last good record of a cell that is broken, otherwise the last
    one with a verdict, or the last one at all. None if the cell was not in the matrix."""
    now: CellRecord | None
    """This night's record, None if the cell is no longer in the matrix."""


def compare(before: Mapping[str, CellHistory], now: Mapping[str, CellRecord]) -> list[News]:
    """Everything that changed with a night, the most serious first.

    Nothing did in the first night of a matrix.
    """
    news = []
    for cell, record in now.items() if before else ():
        history = before.get(cell)
        if kind := _kind(history, record):
            earlier = _compared_with(history, kind) if history else None
            news.append(News(kind, cell, earlier, record))
    gone = (cell for cell in before if cell not in now)
    news += [News("gone", cell, before[cell].known or before[cell].last, None) for cell in gone]
    return sorted(news, key=lambda item: list(HEADINGS).index(item.kind))


def _compared_with(history: CellHistory, kind: Kind) -> CellRecord:
    known = history.known or history.last
    return history.good or known if kind == "broken" else known


def _kind(history: CellHistory | None, now: CellRecord) -> Kind | None:
    failed, passed = now.exit_status == EXIT_KERNEL_FAILED, now.exit_status == EXIT_PASS
    if history is None:
        return "broken" if failed else "new" if passed else "untested"
    known, again = history.known, not history.last.conclusive
    if not now.conclusive:
        return None if again else "untested"
    if known is None:
        return "broken" if failed else "tested"
    if failed and known.exit_status == EXIT_KERNEL_FAILED:
        # One fault can show in several ways, and which of them come first differs between runs.
        # So one signature in common means that it is the same fault.
        same = set(now.signatures) & set(known.signatures) or now.signatures == known.signatures
        return "differs" if not same else "tested" if again else None
    if failed:
        return "broken"
    if known.exit_status == EXIT_KERNEL_FAILED:
        return "fixed"
    return "tested" if again else None


def exit_status(news: Sequence[News], now: Mapping[str, CellRecord], *, strict: bool) -> int:
    """The exit status of a night.

    - 1: a cell is newly failing or fails in another way; with `strict`, any cell fails.
    - 125: none does, but a cell lost its verdict or no cell has one.
    - 0: otherwise.
    """
    kinds, statuses = {one.kind for one in news}, {record.exit_status for record in now.values()}
    if kinds & {"broken", "differs"} or (strict and EXIT_KERNEL_FAILED in statuses):
        return EXIT_KERNEL_FAILED
    if "untested" in kinds or not statuses & {EXIT_PASS, EXIT_KERNEL_FAILED}:
        return EXIT_UNTESTABLE
    return EXIT_PASS


def report(
    news: Sequence[News], now: Mapping[str, CellRecord], *, first_night: bool = False
) -> list[str]:
    """The lines of the report: everything that is new, and a summary of all cells in one line."""
    lines: list[str] = []
    if first_night:
        bad = {cell: record for cell, record in now.items() if record.exit_status != EXIT_PASS}
        lines = ["the first night: there is nothing to compare with", *([""] if bad else [])]
        for cell, one in bad.items():
            lines += [f"  {cell}: {one.outcome}", f"      {one.reason}", f"      {one.directory}"]
    for kind, heading in HEADINGS.items():
        items = [item for item in news if item.kind == kind]
        if items:
            lines += ["", f"{heading}:"]
        for item in items:
            record = item.now or item.before
            assert record
            records = [one for one in (item.before, item.now) if one and one.version]
            versions = " -> ".join(dict.fromkeys(one.version for one in records))
            lines.append(f"  {item.cell}{f' ({versions})' if versions else ''}: {record.outcome}")
            if item.now and item.now.exit_status != EXIT_PASS:
                lines += [f"      {item.now.reason}", f"      {item.now.directory}"]
                if item.now.directory and (again := replay_command(Path(item.now.directory))):
                    lines.append(f"      {again}")
            if command := bisection(item):
                lines.append(f"      {command}")
    count = Counter(record.exit_status for record in now.values())
    passed, failed = count[EXIT_PASS], count[EXIT_KERNEL_FAILED]
    rest = len(now) - passed - failed
    lines += ["", f"{len(now)} cells: {passed} pass, {failed} fail, {rest} without a verdict"]
    return lines if news or first_night else ["nothing is new", *lines]


def bisection(news: News) -> str | None:
    """The command that finds what broke a cell, or None if an end has no name to bisect by."""
    before, now = news.before, news.now
    if news.kind != "broken" or not before or not now or before.exit_status != EXIT_PASS:
        return None
    if (before.commit or before.version) == (now.commit or now.version):
        return None
    if not before.version or not now.version:
        return None
    first = ""
    if match := re.fullmatch(r"debian:\d+\.\d+(?:\.\d+)?(-\w+)?", now.kernel):
        flavour = match[1] or ""
        ends = [f"debian:{_upstream(one.version)}{flavour}" for one in (before, now)]
    elif before.commit and now.commit:
        tree = now.kernel
        if tree.startswith(PREFIX):
            tree = split(tree)[0]
        if not Path(tree).expanduser().is_dir():  # a URL
            clone = re.sub(r"(\.git)?/*$", "", tree).replace(":", "/").rpartition("/")[2]
            first, tree = f"git clone {shlex.quote(tree)} {shlex.quote(clone)} && ", clone
        ends = ["--tree", tree, "--good", before.commit, "--bad", now.commit]
    else:
        return None
    return first + shlex.join(["orchestrator", "bisect", *ends, *now.arguments])


def _upstream(version: str) -> str:
    """The upstream part of a Debian version."""
    return re.sub(r"^\d+:|[-+~].*$", "", version)


# -- records of nights


@dataclass(frozen=True)
class Night:
    """What came of a night."""

    news: list[News]
    text: str
    """The news for people."""
    exit_status: int


def finish(directory: Path, results: Mapping[Cell, CellResult], *, strict: bool) -> Night:
    """Compare the results with the last night's, and keep a record.

    directory: of the sweep.
    """
    nights = directory / "nights"
    nights.mkdir(exist_ok=True)
    before = last(nights)
    now = {cell.name: _record(cell, result) for cell, result in results.items()}
    after = {
        cell: before[cell].followed_by(record) if cell in before else first(record)
        for cell, record in now.items()
    }
    news = compare(before, now)
    text = "\n".join(report(news, now, first_night=not before))
    stamp = time.strftime("%Y%m%d-%H%M%S")
    content = {
        "schema": SCHEMA,
        "news": [{"kind": item.kind, "cell": item.cell} for item in news],
        "cells": {cell: asdict(history) for cell, history in after.items()},
    }
    with ui.saying_what_fails("the record of this night"):
        write_whole(nights / f"{stamp}.json", json.dumps(content, indent=1) + "\n")
        write_report(directory / "news.txt", text + "\n")
        kept = [one for history in (*before.values(), *after.values()) for one in _all(history)]
        _clean(directory, nights, {one.directory for one in kept})
    return Night(news, text, exit_status(news, now, strict=strict))


def _all(history: CellHistory) -> list[CellRecord]:
    return [one for one in (history.last, history.known, history.good) if one]


def last(nights: Path) -> dict[str, CellHistory]:
    """What is known after the last finished night, by cell; empty if there was none."""
    for file in sorted(nights.glob("*.json"), reverse=True):
        try:
            content = json.loads(file.read_text())
            if content["schema"] == SCHEMA:
                return {name: _cell_history(cell) for name, cell in content["cells"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # it is damaged: use the night before
    return {}


def _cell_history(content: Mapping[str, Any]) -> CellHistory:
    records = {name: _cell_record(one) for name, one in content.items() if one}
    return CellHistory(**records)


def _cell_record(content: Mapping[str, Any]) -> CellRecord:
    record = CellRecord(**content)
    return replace(record, signatures=tuple(record.signatures), arguments=tuple(record.arguments))


def _record(cell: Cell, cell_result: CellResult) -> CellRecord:
    kernel = cell.spec.kernel
    record = CellRecord(
        kernel=str(kernel.tree) if kernel.tree else kernel.selector,
        outcome=cell_result.outcome,
        exit_status=cell_result.exit_status,
        reason=cell_result.reason,
        directory=cell_result.directory,
        arguments=(*argv(kernel, CHANGES), *argv(cell.spec, MACHINE, POKING)),
    )
    try:
        verdict = result.read(Path(cell_result.directory))
    except (OSError, ValueError):  # the run ended without a verdict
        return record
    origin = verdict.kernel.origin if verdict.kernel else {}
    version = origin.get("version") or origin.get("git", "")
    changed = origin.get("git", "").endswith(" with changes")
    commit = "" if changed else origin.get("commit", "")
    return replace(record, signatures=signatures(verdict), version=version, commit=commit)


def _clean(directory: Path, nights: Path, needed: set[str]) -> None:
    """Remove old records, and the cells whose runs are not below a directory that is `needed`."""
    from orchestrator.many.sweep.sweep import cells_of

    for file in sorted(nights.glob("*.json"))[:-NIGHTS]:
        file.unlink()
    for cell in cells_of(directory):
        if not any(Path(path).is_relative_to(cell) for path in needed if path):
            shutil.rmtree(cell, ignore_errors=True)
