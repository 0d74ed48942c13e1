# SPDX-License-Identifier: GPL-2.0-only
"""Tables for a terminal and for Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table


def terminal(
    columns: Sequence[str],
    *,
    left: int = 1,
    fold: Sequence[str] = (),
) -> Table:
    """An empty table in the style of all reports; add rows with add_row().

    columns: the headings.
    left: number of left-aligned columns; the others are right-aligned.
    fold: headings of columns whose text may wrap.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, heading in enumerate(columns):
        table.add_column(
            heading,
            justify="left" if number < left else "right",
            no_wrap=heading not in fold,
            overflow="fold",
        )
    return table


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
