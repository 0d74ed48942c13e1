# SPDX-License-Identifier: GPL-2.0-only
"""MATRIX.yaml: which kernels to run on which machines.

    kernels:                          # rows: a name as --kernel takes it, or a mapping
      - 6.1-int3
      - debian:6.12
      - {name: mine, tree: ~/linux, patches: [fix.patch], config: [more.config], set: [CONFIG_X=y]}
      - {name: fixed, kernel: 6.1-plain, patches: [fix.patch]}
      - {name: built, bzimage: build/bzImage, headers: build}
    smp: [2, 8]                       # number of guest CPUs
    accel: [auto]                     # as for --accel
    cpu: [default]                    # QEMU CPU models; `default` suits the accelerator
    scenarios: ["*"]                  # each entry is a run: one pattern, or several with blanks
    repeats: 1                        # runs of each combination, with the seeds SEED, SEED + 1, ...
    seed: 1
    duration: 3                       # seconds of free-running pokes
    memory: 1024                      # MiB
    soak: 30m                         # as for --soak
    append: [threadirqs]              # kernel parameters, as for --append
    qemu: ~/qemu/qemu-system-x86_64   # as for --qemu
    edit-text: edits.yaml             # as for --edit-text
    exclude:                          # leave out the cells that match all keys of an entry
      - {kernel: "debian:*", smp: 8}

Only `kernels` is required. The other values above are the defaults, apart from smp (8), and soak,
append, qemu, edit-text and exclude (none). Paths are relative to the directory of the file.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pydantic

from orchestrator.errors import UsageError
from orchestrator.host import yamlfile
from orchestrator.kernel import definition
from orchestrator.kernel.model import KernelRequest
from orchestrator.many.sweep import matrixfile
from orchestrator.many.sweep.matrixfile import AXES, KERNEL, SINGLE
from orchestrator.options import declared, to_json
from orchestrator.scenarios import scenario
from orchestrator.spec import RunSpec

MOST = 10_000
"""Most cells of a sweep. They take a day on two cores."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a sweep."""

    kernel: str
    """Label of its row."""
    spec: RunSpec

    @property
    def seed(self) -> int:
        return self.spec.seed

    @property
    def words(self) -> dict[str, Any]:
        """The value on each axis, as the file spells it."""
        return {name: matrixfile.word_of(getattr(self.spec, name)) for name in AXES}

    @property
    def shape(self) -> tuple[str, ...]:
        """The value on each axis. Repeats share it, and each shape is a column of the table."""
        return tuple(
            f"{name}{word}" if isinstance(word, int) else word for name, word in self.words.items()
        )

    @property
    def name(self) -> str:
        """Identifies the cell in its sweep. A default is left out, unless it is a number."""
        usual = [matrixfile.word_of(matrixfile.default_of(RunSpec, name)) for name in AXES]
        words = [word for word, default in zip(self.shape, usual, strict=True) if word != default]
        return " ".join((self.kernel, *words, f"seed{self.seed}"))

    def to_json(self) -> dict[str, Any]:
        """What is asked for, as JSON values. `kernel` is the label of the row."""
        content = to_json(self.spec)
        del content["directory"]
        return {**content, "kernel": self.kernel}


@dataclass(frozen=True)
class SweepPlan:
    """The cells of a matrix, in its order."""

    cells: tuple[Cell, ...]

    @property
    def kernels(self) -> dict[str, KernelRequest]:
        """The kernels, by the label of their row."""
        return {cell.kernel: cell.spec.kernel for cell in self.cells}


def read(file: Path) -> SweepPlan:
    """Read the matrix in `file`. Raises UsageError, which names file, key and problem."""
    try:
        matrix = matrixfile.Matrix.model_validate(
            yamlfile.mapping(file, "matrix", "a matrix is a mapping (kernels: [...], smp: [2, 8])")
        )
    except pydantic.ValidationError as error:
        sentence = yamlfile.explained(error, matrixfile.Matrix, matrixfile.INNER)
        raise UsageError(f"{file}: {sentence}") from error
    return SweepPlan(tuple(_Reader(file, vars(matrix)).cells()))


class _Reader:
    """Makes cells of a matrix whose types are right. Raises UsageError for any other mistake."""

    def __init__(self, file: Path, matrix: Mapping[str, Any]) -> None:
        self._file, self._matrix = file, matrix
        self._directory = file.resolve().parent

    def cells(self) -> list[Cell]:
        """All cells that are not excluded."""
        self._check_size()
        cells = list(self._combinations())
        words = [cell.words for cell in cells]
        excluded: set[int] = set()
        for number, exclusion in enumerate(map(vars, self._matrix["exclude"])):
            matching = {
                index
                for index, cell in enumerate(cells)
                if _matches(exclusion, cell.kernel, words[index])
            }
            if not matching:
                raise self._error(f"exclude.{number}", "matches no cell")
            excluded |= matching
        kept = [cell for index, cell in enumerate(cells) if index not in excluded]
        if not kept:
            raise self._error("exclude", "leaves no cell")
        twice = next((cell for cell, count in Counter(kept).items() if count > 1), None)
        if twice:
            raise UsageError(f"{self._file}: asks twice for {twice.name}")
        return kept

    def _check_size(self) -> None:
        """Raise UsageError for more than MOST cells, before there are any."""
        axes = {matrixfile.key_of(name, opt): len(self._matrix[name]) for name, opt in AXES.items()}
        sizes = {"kernels": len(self._matrix["kernels"]), **axes}
        sizes["repeats"] = self._matrix["repeats"]
        if math.prod(sizes.values()) > MOST:
            factors = " x ".join(f"{size} {key}" for key, size in sizes.items() if size > 1)
            raise UsageError(f"{self._file}: {factors} are more than {MOST} cells")

    def _combinations(self) -> Iterator[Cell]:
        rows, single = self._rows(), self._single_values()
        for patterns in self._matrix["scenarios"]:
            with self._naming("scenarios"):
                scenario.select(patterns.split())
        axes = itertools.product(*(self._matrix[name] for name in AXES))
        first_seed = single.pop("seed", RunSpec.seed)
        for (label, kernel), words in itertools.product(rows.items(), axes):
            values = {
                name: matrixfile.axis_value(name, word)
                for name, word in zip(AXES, words, strict=True)
            }
            for seed in range(first_seed, first_seed + self._matrix["repeats"]):
                spec = self._spec(kernel=kernel, seed=seed, **values, **single)
                yield Cell(kernel=label, spec=spec)

    def _spec(self, **values: Any) -> RunSpec:
        """RunSpec, whose `--smp takes ...` is reported as `FILE: smp: takes ...`."""
        try:
            return RunSpec(**values)
        except UsageError as error:
            flag, _, sentence = str(error).partition(" ")
            for name, opt in declared(RunSpec).items():
                if opt.flag == flag:
                    raise self._error(matrixfile.key_of(name, opt), sentence) from error
            raise

    def _single_values(self) -> dict[str, Any]:
        """The values that the file gives for options without an axis, by field."""
        values: dict[str, Any] = {}
        for name, opt in SINGLE.items():
            value, key = self._matrix[name], matrixfile.key_of(name, opt)
            if value is None:
                continue
            if isinstance(value, list):
                values[name] = tuple(value)
                continue
            if matrixfile.item_type(RunSpec, name) is Path:
                value = self._path(value, key)
            elif isinstance(value, str):
                try:
                    value = opt.parse(value)
                except (ValueError, argparse.ArgumentTypeError) as error:
                    raise self._error(key, str(error)) from error
            values[name] = value
        return values

    def _rows(self) -> dict[str, KernelRequest]:
        rows: dict[str, KernelRequest] = {}
        for number, row in enumerate(self._matrix["kernels"]):
            label, request = self._row(f"kernels.{number}", vars(row))
            if label in rows:
                raise self._error(
                    "kernels", f"two are called {label}: give one of them another name:"
                )
            rows[label] = request
        return rows

    def _row(self, key: str, row: Mapping[str, Any]) -> tuple[str, KernelRequest]:
        """The label and the kernel of a row."""
        selector, tree, bzimage = row["selector"], row["tree"], row["bzimage"]
        if [selector, tree, bzimage].count(None) != 2:
            raise self._error(
                key,
                "a kernel is a name (kernel: 6.1-plain), a source tree (tree: PATH) or an image "
                "(bzimage: FILE), one of these",
            )
        if row["headers"] and not bzimage:
            raise self._error(key, "headers belong to a bzimage")
        label = row["name"] or selector or Path(tree or bzimage).name
        values: dict[str, Any] = {}
        for name, opt in KERNEL.items():
            value, where = row[name], f"kernels: {label}: {matrixfile.key_of(name, opt)}"
            if not value:
                continue
            if name == "selector":
                value = self._selector(value, where)
            elif matrixfile.item_type(KernelRequest, name) is Path:
                paths = [
                    self._path(path, where)
                    for path in (value if isinstance(value, list) else [value])
                ]
                value = paths if isinstance(value, list) else paths[0]
            values[name] = tuple(value) if isinstance(value, list) else value
        return label, KernelRequest(**values)

    def _selector(self, text: str, key: str) -> str:
        """`text`, which may be the path of a definition. Raises UsageError for an unknown name."""
        if text.endswith((".yaml", ".yml")):
            text = str(self._path(text, key))
        if ":" not in text:
            with self._naming("kernels"):
                definition.load(text)
        return text

    def _path(self, text: str, key: str) -> Path:
        path = self._directory / os.path.expanduser(text)  # noqa: PTH111 (never raises)
        if not os.path.exists(path):  # noqa: PTH110 (never raises)
            raise self._error(key, f"there is no {path}")
        return path

    @contextlib.contextmanager
    def _naming(self, key: str) -> Iterator[None]:
        """Put the file and the key in front of a UsageError."""
        try:
            yield
        except UsageError as error:
            raise self._error(key, str(error)) from error

    def _error(self, key: str, sentence: str) -> UsageError:
        return UsageError(f"{self._file}: {key}: {sentence}")


def _matches(exclusion: Mapping[str, Any], kernel: str, words: Mapping[str, Any]) -> bool:
    """words: those of the cell."""
    if exclusion["kernel"] is not None and not fnmatchcase(kernel, exclusion["kernel"]):
        return False
    return all(exclusion[name] in (None, word) for name, word in words.items())
