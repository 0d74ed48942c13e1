# SPDX-License-Identifier: GPL-2.0-only
"""Tables for a terminal and for Markdown."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table

PLAIN_WIDTH = 120
"""Width of text that goes to no terminal, unless its console has another one."""
NARROWEST = 16
"""Least width of a column whose text may wrap."""

T = TypeVar("T")


def said_once(items: Iterable[T], reason: Callable[[T], str | None]) -> list[list[T]]:
    """The items, with all that have the same reason in the place of the first.

    reason: why an item says nothing, None if it says something: then it is alone.
    """
    groups: list[list[T]] = []
    by_reason: dict[str, list[T]] = {}
    for item in items:
        why = reason(item)
        if why is not None and why in by_reason:
            by_reason[why].append(item)
        else:
            groups.append([item])
            if why is not None:
                by_reason[why] = groups[-1]
    return groups


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


class ReportTable(Table):
    """A table that cuts no number.

    If it is too wide, text wraps. If that is not enough, columns go: those of `optional`, in this
    order. If it is still too wide, the terminal wraps its lines. Without a terminal, lines are as
    long as they have to be. show() prints it.
    """

    optional: Sequence[str] = ()
    """Headings of the columns that may go."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        plain = not console.is_terminal
        available = max(options.max_width, PLAIN_WIDTH) if plain else options.max_width
        table, gone = self, [] if plain else list(self.optional)
        while (needed := table._needed(console, options)) > available and gone:
            table = table._without(gone.pop(0))
        width = max(available, needed)
        yield from Table.__rich_console__(table, console, options.update(width=width))

    def _needed(self, console: Console, options: ConsoleOptions) -> int:
        """The width at which nothing is cut."""
        widths = []
        for column in self.columns:
            cells = [column.header, *column.cells]
            sizes = [Measurement.get(console, options.update(width=9999), cell) for cell in cells]
            if column.no_wrap:
                widths.append(max(size.maximum for size in sizes))
            else:
                least = max(size.minimum for size in sizes)
                widths.append(min(least, max(NARROWEST, sizes[0].maximum)))
        return sum(widths) + self._extra_width + 2 * len(widths)

    def _without(self, heading: str) -> ReportTable:
        kept = [column for column in self.columns if column.header != heading]
        table = ReportTable(box=self.box, pad_edge=self.pad_edge)
        table.columns = [replace(column, _index=number) for number, column in enumerate(kept)]
        for old, new in zip(kept, table.columns, strict=True):
            new._cells = old._cells
        table.rows = list(self.rows)
        return table


def terminal(
    columns: Sequence[str],
    *,
    left: int = 1,
    fold: Sequence[str] = (),
    optional: Sequence[str] = (),
) -> ReportTable:
    """An empty table in the style of all reports; add rows with add_row().

    columns: the headings.
    left: number of left-aligned columns; the others are right-aligned.
    fold: headings of columns whose text may wrap. Not for numbers.
    optional: headings of columns that may go on a narrow terminal, in this order.
    """
    table = ReportTable(box=box.SIMPLE_HEAD, pad_edge=False)
    table.optional = optional
    for number, heading in enumerate(columns):
        table.add_column(
            heading,
            justify="left" if number < left else "right",
            no_wrap=heading not in fold,
            overflow="fold",
        )
    return table


def show(table: Table, console: Console) -> None:
    """Print `table`. rich would cut what is wider than the console."""
    console.print(table, crop=False)


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table. Cells are taken as they are: see escape()."""
    lines = [_row(columns), "|---" * len(columns) + "|"]
    return lines + [_row(row) for row in rows]


def escape(text: str) -> str:
    """`text` for a cell of a Markdown table, in which it has no meaning as Markdown or HTML."""
    escaped = re.sub(r"([\\|`*\[\]])", r"\\\1", " ".join(text.splitlines()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;")


def _row(cells: Sequence[str]) -> str:
    return "|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|"
