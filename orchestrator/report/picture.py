# SPDX-License-Identifier: GPL-2.0-only
"""Draws a timeline as SVG. Its colours are those of the page (base.html.j2)."""

from __future__ import annotations

from collections.abc import Iterator

from markupsafe import Markup

from orchestrator.report.timeline import Mark, Phase, Timeline
from orchestrator.verdict.model import cpu_names

LEFT, RIGHT, WIDTH = 64, 16, 1000
"""Room for the names of the CPUs, the right margin, and the width of the whole picture."""
BEFORE = 112
"""Room for phase 0, in which nothing happens."""
HEAD, FOOT = 52, 46
"""Room for the phases above the lanes, and for the rounds below them."""
LANES = 560
"""The lanes are this high altogether, if there are many."""
PHASES = {0: "0 old", 1: "1 cc + old tail", 2: "2 cc + new tail", 3: "3 new", -1: "?"}
NARROW = 92
"""A phase with less room than this only gets its number."""
FOLD = 22
"""The longest text below a phase, in characters, for each 140 units of room."""


def svg(timeline: Timeline) -> Markup:
    """The picture. A table beside it says the same in words, for those who do not see it."""
    return Markup("\n").join(_Picture(timeline).draw())


def wrong_at(timeline: Timeline) -> float | None:
    """Where the first thing that is wrong is from left to right, in percent; None for nothing."""
    columns = [mark.column for mark in timeline.marks if mark.wrong]
    return round(100 * _Picture(timeline).x(min(columns)) / WIDTH, 1) if columns else None


class _Picture:
    def __init__(self, timeline: Timeline) -> None:
        self._line = timeline
        count = max(len(timeline.cpus), 1)
        self._lane = max(11.0, min(30.0, LANES / count))
        self._bottom = HEAD + self._lane * count
        self._step = (WIDTH - LEFT - BEFORE - RIGHT) / max(timeline.columns, 1)
        self._radius = min(6.0, self._lane * 0.36, max(self._step * 0.48, 2.6))

    def draw(self) -> Iterator[Markup]:
        height = self._bottom + FOOT
        yield Markup(
            '<svg class="poke" viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">'
        ).format(WIDTH, height, self._label())
        for number, phase in enumerate(self._line.phases):
            yield from self._phase(number, phase)
        for cpu in self._line.cpus:
            y = self._y(cpu)
            yield Markup('<line class="lane" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
                LEFT, WIDTH - RIGHT, y, y
            )
            yield Markup('<text class="{}" x="{}" y="{:.1f}">CPU {}</text>').format(
                "cpu small" if self._lane < 14 else "cpu", LEFT - 8, y + 3.5, cpu
            )
        for mark in self._line.marks:
            yield self._mark(mark)
        yield Markup("</svg>")

    def _label(self) -> str:
        missing = [phase for phase in self._line.phases if phase.missing]
        text = f"The poke over time, a lane for each of {len(self._line.cpus)} CPUs."
        for phase in missing:
            text += f" In phase {phase.number} {cpu_names(phase.missing)} did not sync."
        return text

    def x(self, column: float) -> float:
        return LEFT + BEFORE + self._step * column

    def _y(self, cpu: int) -> float:
        return HEAD + self._lane * (cpu + 0.5)

    def _phase(self, number: int, phase: Phase) -> Iterator[Markup]:
        """The background of a phase, its name above and its sync round below."""
        phases = self._line.phases
        start = self.x(phase.start) if number else float(LEFT)
        last = number + 1 == len(phases)
        end = float(WIDTH - RIGHT) if last else self.x(phases[number + 1].start)
        width = max(end - start, 0.0)
        yield Markup(
            '<rect class="phase p{}{}" x="{:.1f}" y="{}" width="{:.1f}" height="{:.1f}"/>'
        ).format(
            max(phase.number, 0), " bad" if phase.missing else "", start, HEAD, width,
            self._bottom - HEAD,
        )  # fmt: skip
        wide = width >= NARROW
        name = PHASES[phase.number] if wide else PHASES[phase.number][0]
        yield _text("phase-name", start + 5, 18, name)
        if wide:
            held = " ".join(phase.memory[at : at + 2] for at in range(0, len(phase.memory), 2))
            yield _text("bytes", start + 5, 36, held if len(held) * 6.4 < width else phase.memory)
        if not number or phase.number < 0:
            return
        count = len(self._line.cpus)
        if phase.missing:
            for row, line in enumerate(_missing(phase, count, width)):
                yield _text("round bad", min(start + 5, WIDTH - 190), self._bottom + 18 + 16 * row,
                            line)  # fmt: skip
        elif wide:
            yield _text(
                "round", start + 5, self._bottom + 18, f"synced: {len(phase.synced)} of {count}"
            )

    def _mark(self, mark: Mark) -> Markup:
        x, r = self.x(mark.column), self._radius
        number = f" [{'event' if self._line.source.startswith('events') else 'record'} "
        number = f"{number}{mark.number}]" if mark.number >= 0 else ""
        who = f"CPU {mark.cpu} " if mark.cpu >= 0 else ""
        title = Markup("<title>{}{}{}</title>").format(who, mark.text, number)
        wrong = " wrong" if mark.wrong else ""
        if mark.kind in ("write", "hold", "end"):
            shape = Markup('<line x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2:.1f}"/>').format(
                x, HEAD, self._bottom
            )
            if mark.kind == "write" and mark.cpu in self._line.cpus:
                y = self._y(mark.cpu)
                shape += Markup(
                    '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>'
                ).format(x - r, y - r, 2 * r, 2 * r)
        elif mark.cpu not in self._line.cpus:
            return Markup()
        else:
            shape = _shape(mark.kind, mark.text, x, self._y(mark.cpu), r)
            if mark.wrong and mark.kind != "missing":  # whose lane it is may be out of sight
                right = min(x + r + 4, WIDTH - 60)
                shape += _text("who", right, self._y(mark.cpu) + 3.5, f"CPU {mark.cpu}")
        return Markup('<g class="m {}{}">{}{}</g>').format(mark.kind, wrong, title, shape)


def _shape(kind: str, text: str, x: float, y: float, r: float) -> Markup:
    if kind == "away":
        return _text("away", x + r + 1, y + 3.5, text.removeprefix("is "))
    if kind == "sync":
        return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="{:.1f}"/>').format(x, y, r)
    if kind == "missing":
        r = max(r, 4.5)
        path = f"M{x - r:.1f} {y - r:.1f}L{x + r:.1f} {y + r:.1f}"
        path += f"M{x - r:.1f} {y + r:.1f}L{x + r:.1f} {y - r:.1f}"
    elif kind == "int3":
        path = f"M{x - r:.1f} {y - r:.1f}h{2 * r:.1f}L{x:.1f} {y + r:.1f}z"
    elif kind == "return":
        path = f"M{x - r:.1f} {y + r:.1f}h{2 * r:.1f}L{x:.1f} {y - r:.1f}z"
    else:
        path = f"M{x:.1f} {y - r:.1f}L{x + r:.1f} {y:.1f}L{x:.1f} {y + r:.1f}L{x - r:.1f} {y:.1f}z"
    return Markup('<path d="{}"/>').format(path)


def _missing(phase: Phase, count: int, width: float) -> list[str]:
    """What is said below a phase in which CPUs did not sync."""
    if len(phase.missing) == count:
        return ["no CPU synced"]
    names = cpu_names(phase.missing)
    if len(names) > max(FOLD * width / 140, FOLD):
        names = f"{len(phase.missing)} of {count} CPUs"
    return [names, "did not sync"]


def _text(name: str, x: float, y: float, text: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>').format(name, x, y, text)
