"""MATRIX.yaml: which kernels to run on which machines. Its format is the model Matrix, nothing is implied.

    kernels:                          # rows: a name as --kernel takes it, or a mapping
      - 6.1-int3
      - debian:6.12
      - {name: mine, tree: ~/linux, patches: [fix.patch], config: [more.config], set: [CONFIG_X=y]}
      - {name: fixed, kernel: 6.1-plain, patches: [fix.patch]}
      - {name: built, bzimage: build/bzImage, headers: build}
    smp: [2, 8]                       # CPUs of the guest
    accel: [auto]                     # as --accel
    cpu: [default]                    # QEMU's models; default is the one that fits the accelerator
    scenarios: ["*"]                  # each entry is a run: a pattern, or several with blanks between them
    repeats: 1                        # of each, with the seeds SEED, SEED + 1, ...
    seed: 1
    duration: 3                       # seconds of the free-running part
    memory: 1024                      # MiB
    exclude:                          # cells to leave out: those that match all keys of an entry
      - {kernel: "debian:*", smp: 8}

Only kernels must be there; the other values above are the defaults, apart from smp: [8]. Paths are relative to the
folder of the file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from orchestrator.errors import UsageError
from orchestrator.host import yamlfile
from orchestrator.host.yamlfile import Strict
from orchestrator.kernel import definition
from orchestrator.kernel.model import KernelRequest
from orchestrator.machine.qemu import MAX_SMP
from orchestrator.scenarios import scenario

Word = Annotated[str, pydantic.Field(min_length=1)]
Accel = Literal["auto", "kvm", "tcg", "tcg-multi", "tcg-single"]
Smp = Annotated[int, pydantic.Field(ge=1, le=MAX_SMP)]
DEFAULT = "default"
USUAL = ("", "auto", DEFAULT, "*")


class KernelEntry(Strict):
    """One row. name: in the table, if not that of the kernel. The rest as in KernelRequest."""

    name: Word | None = None
    kernel: Word | None = None
    tree: Word | None = None
    bzimage: Word | None = None
    headers: Word | None = None
    patches: list[Word] = pydantic.Field(default=[])
    config: list[Word] = pydantic.Field(default=[])
    set: list[Word] = pydantic.Field(default=[])

    @pydantic.model_validator(mode="before")
    @classmethod
    def _a_name_alone(cls, value: Any) -> Any:
        return {"kernel": value} if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _one_of_them(self) -> KernelEntry:
        if [self.kernel, self.tree, self.bzimage].count(None) != 2:
            what = (
                "a name (kernel: 6.1-plain), a source tree (tree: PATH) or an image (bzimage: FILE)"
            )
            raise ValueError(f"a kernel is {what}, one of these")
        if self.headers and not self.bzimage:
            raise ValueError("headers belong to a bzimage")
        return self

    @property
    def label(self) -> str:
        return self.name or self.kernel or Path(str(self.tree or self.bzimage)).name


class Exclusion(Strict):
    """Cells to leave out. kernel: a shell pattern for the row's name."""

    kernel: Word | None = None
    smp: Smp | None = None
    accel: Accel | None = None
    cpu: Word | None = None
    scenarios: Word | None = None

    def matches(self, cell: Cell) -> bool:
        return (
            (self.kernel is None or fnmatchcase(cell.kernel, self.kernel))
            and self.smp in (None, cell.smp)
            and self.accel in (None, cell.accel)
            and self.cpu in (None, cell.cpu or DEFAULT)
            and self.scenarios in (None, " ".join(cell.scenarios))
        )


class Matrix(Strict):
    """The file."""

    kernels: list[KernelEntry] = pydantic.Field(min_length=1)
    smp: list[Smp] = pydantic.Field(default=[8], min_length=1)
    accel: list[Accel] = pydantic.Field(default=["auto"], min_length=1)
    cpu: list[Word] = pydantic.Field(default=[DEFAULT], min_length=1)
    scenarios: list[Word] = pydantic.Field(default=["*"], min_length=1)
    repeats: int = pydantic.Field(default=1, ge=1)
    seed: int = pydantic.Field(default=1, ge=0)
    duration: float = pydantic.Field(default=3.0, gt=0, allow_inf_nan=False)
    memory: int = pydantic.Field(default=1024, ge=128)
    exclude: list[Exclusion] = pydantic.Field(default=[])


INNER: Mapping[str, type[pydantic.BaseModel]] = {"kernels": KernelEntry, "exclude": Exclusion}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run. kernel: the name of its row. The rest as in RunSpec."""

    kernel: str
    smp: int
    accel: str
    cpu: str | None
    scenarios: tuple[str, ...]
    seed: int
    duration: float
    memory: int

    @property
    def shape(self) -> tuple[str, ...]:
        """smp, accel, cpu and scenarios: what repeats have in common, and a column of the table."""
        return (f"smp{self.smp}", self.accel, self.cpu or DEFAULT, " ".join(self.scenarios))

    @property
    def name(self) -> str:
        """Tells it from all others of its sweep: what is not as it is by default."""
        words = [word for word, usual in zip(self.shape, USUAL, strict=True) if word != usual]
        return " ".join((self.kernel, *words, f"seed{self.seed}"))

    def arguments(self) -> list[str]:
        """The options of `orchestrator run` for it, those that name the kernel apart."""
        words = ["--smp", str(self.smp), "--accel", self.accel, "--memory", str(self.memory)]
        words += ["--duration", f"{self.duration:g}", "--seed", str(self.seed)]
        words += [word for pattern in self.scenarios for word in ("--scenario", pattern)]
        return words + (["--cpu", self.cpu] if self.cpu else [])


@dataclass(frozen=True)
class SweepPlan:
    """What a matrix comes to. kernels: by the name of their row."""

    kernels: Mapping[str, KernelRequest]
    cells: tuple[Cell, ...]


def read(file: Path) -> SweepPlan:
    """The plan that is in `file`. UsageError says what is wrong with it, with the file and the key."""
    if not file.is_file():
        raise UsageError(f"there is no matrix {file}")
    try:
        matrix = Matrix.model_validate(
            yamlfile.mapping(file, "a matrix is a mapping (kernels: [...], smp: [2, 8])")
        )
    except pydantic.ValidationError as error:
        raise UsageError(f"{file}: {yamlfile.explained(error, Matrix, INNER)}") from error
    folder = file.resolve().parent
    kernels: dict[str, KernelRequest] = {}
    for entry in matrix.kernels:
        if entry.label in kernels:
            raise UsageError(
                f"{file}: kernels: two are called {entry.label}: give one of them another name:"
            )
        kernels[entry.label] = _request(entry, folder, file)
    for words in matrix.scenarios:
        try:
            scenario.select(words.split())
        except UsageError as error:
            raise UsageError(f"{file}: scenarios: {error}") from error
    cells = list(_cells(matrix))
    for number, exclusion in enumerate(matrix.exclude):
        if not any(exclusion.matches(cell) for cell in cells):
            raise UsageError(f"{file}: exclude.{number}: matches no cell")
    left = tuple(
        cell for cell in cells if not any(exclusion.matches(cell) for exclusion in matrix.exclude)
    )
    if not left:
        raise UsageError(f"{file}: exclude: leaves no cell")
    if len(set(left)) < len(left):
        twice = next(cell for cell in left if left.count(cell) > 1)
        raise UsageError(f"{file}: asks twice for {twice.name}")
    return SweepPlan(kernels, left)


def _request(entry: KernelEntry, folder: Path, file: Path) -> KernelRequest:
    def there(name: str, key: str) -> Path:
        path = folder / Path(name).expanduser()
        if not path.exists():
            raise UsageError(f"{file}: kernels: {entry.label}: {key}: there is no {path}")
        return path

    selector = entry.kernel or KernelRequest.selector
    if selector.endswith((".yaml", ".yml")):
        selector = str(there(selector, "kernel"))
    if ":" not in selector:
        try:
            definition.load(selector)
        except UsageError as error:
            raise UsageError(f"{file}: kernels: {error}") from error
    return KernelRequest(
        selector=selector,
        tree=there(entry.tree, "tree") if entry.tree else None,
        bzimage=there(entry.bzimage, "bzimage") if entry.bzimage else None,
        headers=there(entry.headers, "headers") if entry.headers else None,
        patches=tuple(there(name, "patches") for name in entry.patches),
        fragments=tuple(there(name, "config") for name in entry.config),
        settings=tuple(entry.set),
    )


def _cells(matrix: Matrix) -> Iterator[Cell]:
    machines = itertools.product(matrix.smp, matrix.accel, matrix.cpu, matrix.scenarios)
    for entry, (smp, accel, cpu, words) in itertools.product(matrix.kernels, machines):
        for seed in range(matrix.seed, matrix.seed + matrix.repeats):
            yield Cell(
                kernel=entry.label,
                smp=smp,
                accel=accel,
                cpu=None if cpu == DEFAULT else cpu,
                scenarios=tuple(words.split()),
                seed=seed,
                duration=matrix.duration,
                memory=matrix.memory,
            )
