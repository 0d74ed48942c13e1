# SPDX-License-Identifier: GPL-2.0-only
"""Mutation testing: kernels that are broken on purpose.

Does the check that names the fault catch each mutant, and does no healthy kernel fail?

kernels/mutants/BASE/NAME.patch is a small fault in the kernel BASE of kernels/. Its head describes
it:

    Subject: x86/alternative: do not sync after writing int3
    Violates: after each write every CPU syncs before the next write
    Caught-by: sync

- Caught-by lists checks of a run's verdict: CHECK; guest/SCENARIO, what the guest asserts in a
  scenario; or console/SCENARIO, for a guest that went down in a scenario. One of them is enough. A
  mutant that fails in another way, such as a timeout, does not count as caught.
- Cannot-be-seen takes its place in a mutant that no test of this kind can tell from a healthy
  kernel, and gives the reason. Such a mutant is listed and not counted.

- Equivalent takes its place in a patch that changes how a kernel does it and breaks nothing, and
  gives the reason. Its run must pass.

kernels/mutants/stock/NAME.yaml is a fault in kernels that are not built here. It edits their code
in the guest's memory (text/edit.py), and has the fields title, violates, caught-by and kernels, the
names of the kernels to edit.

`orchestrator run` runs each mutant in a process of its own, like any kernel. No check knows of
mutants.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

from orchestrator import ui
from orchestrator.errors import (
    EXIT_KERNEL_FAILED,
    EXIT_PASS,
    EXIT_UNTESTABLE,
    InfraError,
    UsageError,
    nearest,
    sentence,
)
from orchestrator.host import proc
from orchestrator.host.paths import DATA, PROJECT, state_dir, write_whole
from orchestrator.kernel import definition, versions
from orchestrator.kernel.model import KernelRequest
from orchestrator.many import program
from orchestrator.many.children import Children, ChildResult
from orchestrator.spec import RunSpec
from orchestrator.text import edit as textedit
from orchestrator.verdict.result import VerdictRecord
from orchestrator.verdict.signature import failed_checks

DIRECTORY = DATA / "kernels" / "mutants"
HEAD = re.compile(r"^([A-Z][\w-]+): (.*(?:\n[ \t].*)*)$", re.MULTILINE)
RUN = RunSpec(smp=4, duration=1)
"""The run that each mutant gets. Four CPUs show as much as eight, in half the time."""
LONGEST = 900.0
"""Time limit for one run with its build, in seconds. The run itself gives up much sooner."""

MutantOutcome = Literal["caught", "otherwise", "hang", "missed", "untested", "healthy", "blamed"]
"""
- caught: a check that names the fault failed.
- otherwise: only other checks failed.
- hang: the run timed out.
- missed: the run passed.
- untested: there is no verdict on the kernel.
- healthy: nothing was broken, and the run passed; so does an equivalent kernel.
- blamed: nothing was broken, and the run failed.
"""


@dataclass(frozen=True)
class Mutant:
    """One fault in one kernel."""

    base: str
    """The kernel that it is in."""
    name: str
    fault: Path | None
    """The patch or file of edits; None if nothing is broken."""
    title: str
    violates: str = ""
    """The promise that it breaks."""
    caught_by: tuple[str, ...] = ()
    """The checks that name it."""
    unseen: str | None = None
    """Why no check can see it."""
    equivalent: str | None = None
    """Why it breaks nothing, if it is a kernel that must pass."""
    seed: int = 1

    @property
    def broken(self) -> bool:
        """Whether the kernel has a fault."""
        return self.fault is not None and self.equivalent is None

    def spec(self) -> RunSpec:
        """The run that tests it."""
        kernel, edits = KernelRequest(selector=self.base), None
        if self.fault and self.fault.suffix == ".patch":
            kernel = replace(kernel, patches=(self.fault,))
        else:
            edits = self.fault
        return replace(RUN, kernel=kernel, edits=edits, seed=self.seed)


@dataclass(frozen=True)
class MutantResult:
    """What the run of a mutant showed."""

    base: str
    name: str
    result: MutantOutcome
    checks: tuple[str, ...]
    """All failed checks, as Caught-by names them."""
    reason: str
    seconds: float
    """Duration of build, boot and run."""
    directory: str


def read(patch: Path) -> Mutant:
    """Read the mutant in the file `patch`. Raises UsageError for an incomplete head."""
    head = patch.read_text().split("\n---\n", 1)[0]
    fields = {name: " ".join(text.split()) for name, text in HEAD.findall(head)}
    caught_by = tuple(fields.get("Caught-by", "").replace(",", " ").split())
    given = [bool(caught_by), "Cannot-be-seen" in fields, "Equivalent" in fields]
    if sum(given) != 1:
        raise UsageError(
            f"{patch}: needs either Caught-by: CHECK, Cannot-be-seen: REASON or Equivalent: REASON"
        )
    return Mutant(
        base=patch.parent.name,
        name=patch.stem,
        fault=patch,
        title=fields.get("Subject", patch.stem),
        violates=fields.get("Violates", ""),
        caught_by=caught_by,
        unseen=fields.get("Cannot-be-seen"),
        equivalent=fields.get("Equivalent"),
    )


def read_edits(path: Path) -> list[Mutant]:
    """Read the file of edits `path`: one mutant for each of its kernels."""
    head = textedit.load(path)
    try:
        kernels, caught_by = head["kernels"], tuple(head["caught-by"])
        return [
            Mutant(kernel, path.stem, path, head["title"], head["violates"], caught_by)
            for kernel in kernels
        ]
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"{path}: needs title, violates, caught-by (a list) and kernels (a list): {error}"
        ) from error


def select(only: Sequence[str] = (), kernel: str | None = None) -> list[Mutant]:
    """The mutants whose name matches one of the patterns `only`, of the base `kernel` or of all.

    Raises UsageError for a kernel or a pattern without mutants, InfraError if there is none.
    """
    known = [read(patch) for patch in sorted(DIRECTORY.glob("*/*.patch"))]
    known += [
        mutant for edits in sorted(DIRECTORY.glob("stock/*.yaml")) for mutant in read_edits(edits)
    ]
    if not known:
        raise InfraError(f"{DIRECTORY} has no mutants: install this program again")
    bases = sorted({mutant.base for mutant in known})
    if kernel and kernel not in bases:
        raise UsageError(
            f"there are no mutants of {kernel}{nearest(kernel, bases)}, only of {', '.join(bases)}"
        )
    chosen = [mutant for mutant in known if not kernel or mutant.base == kernel]
    for pattern in only:
        if not any(fnmatchcase(mutant.name, pattern) for mutant in chosen):
            names = [mutant.name for mutant in chosen]
            raise UsageError(f"no mutant is called {pattern}{nearest(pattern, names)}")
    return [
        mutant
        for mutant in chosen
        if not only or any(fnmatchcase(mutant.name, pattern) for pattern in only)
    ]


def healthy(kernels: Iterable[str], count: int) -> list[Mutant]:
    """The control group: unbroken kernels, `count` times each with different seeds."""
    return [
        Mutant(
            base=kernel,
            name=f"healthy-{seed}",
            fault=None,
            title=f"nothing is broken, seed {seed}",
            seed=seed,
        )
        for kernel in kernels
        for seed in range(1, count + 1)
    ]


def run_all(
    mutants: Sequence[Mutant],
    jobs: int,
    again: bool,
    on_result: Callable[[Mutant, MutantResult], None],
) -> list[MutantResult]:
    """Run the mutants, `jobs` at a time, and return their results in the same order.

    - again: also run mutants that already have a result for the same content.
    - on_result: called with each result as soon as it is known, from several threads.
    """

    def result_of(mutant: Mutant) -> MutantResult:
        file = state_dir() / "mutants" / f"{_identity(mutant)}.json"
        result = None if again else _kept(file)
        if result is None:
            result = _run(mutant, file.with_suffix(""), children)
            with ui.saying_what_fails(f"the result of {mutant.name}"):
                if result.result != "untested":
                    write_whole(file, json.dumps(asdict(result), indent=1) + "\n")
        on_result(mutant, result)
        return result

    (state_dir() / "mutants").mkdir(exist_ok=True)
    children = Children()
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(result_of, mutant) for mutant in mutants]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            children.stop()
            raise


def _kept(file: Path) -> MutantResult | None:
    """The result that an earlier call kept in `file`, None if there is none."""
    try:
        content = json.loads(file.read_text())
        return MutantResult(**{**content, "checks": tuple(content["checks"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _identity(mutant: Mutant) -> str:
    """File name for the result: it depends on the run, the fault, the kernel and this program."""
    definitions = definition.DEFINITIONS
    base = [*(definitions / mutant.base).glob("**/*"), definitions / f"{mutant.base}.yaml"]
    digest = hashlib.sha256(repr((mutant.name, mutant.spec().argv())).encode())
    digest.update(program.digest().encode())
    digest.update(repr(versions.last(mutant.base)).encode())
    for file in [*([mutant.fault] if mutant.fault else []), *sorted(base)]:
        if file.is_file():
            digest.update(file.read_bytes())
    return f"{mutant.base.replace(':', '-')}-{mutant.name}-{digest.hexdigest()[:16]}"


def _run(mutant: Mutant, directory: Path, children: Children) -> MutantResult:
    log = directory.with_name(f"{directory.name}.log")
    proc.run(["rm", "-rf", directory])
    try:
        ended = children.run(mutant.spec(), directory, log, cwd=PROJECT, longest=LONGEST)
    except OSError as error:
        ended = ChildResult(EXIT_UNTESTABLE, None, sentence(error), 0.0)
    verdict = ended.verdict or VerdictRecord(
        outcome="infra", reason=f"no verdict: {ended.why}", exit_status=EXIT_UNTESTABLE
    )
    checks = failed_checks(verdict)
    return MutantResult(
        base=mutant.base,
        name=mutant.name,
        result=judge(mutant, verdict.exit_status, verdict.outcome, checks),
        checks=checks,
        reason=verdict.reason,
        seconds=round(ended.seconds, 1),
        directory=str(directory),
    )


def judge(mutant: Mutant, status: int, outcome: str, checks: tuple[str, ...]) -> MutantOutcome:
    """Classify one run of a mutant.

    status, outcome: those of its verdict. checks: the failed ones, as Caught-by names them.
    """
    if not mutant.broken:
        if status == EXIT_PASS:
            return "healthy"
        return "blamed" if status == EXIT_KERNEL_FAILED else "untested"
    if status == EXIT_PASS:
        return "missed"
    if status != EXIT_KERNEL_FAILED:
        return "untested"
    if set(mutant.caught_by) & set(checks):
        return "caught"
    return "hang" if outcome in ("hang", "timeout") else "otherwise"
