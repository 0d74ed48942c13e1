"""Kernels broken on purpose: does the check that names the fault catch each of them, and blame no healthy kernel?

kernels/mutants/BASE/NAME.patch is a small fault in the kernel BASE of kernels/. Its head says what it is:

    Subject: x86/alternative: do not sync after writing int3
    Violates: after each write every CPU runs do_sync_core before the next write
    Caught-by: sync

Caught-by names checks of a run's verdict, as CHECK or, for what the guest asserts, guest/SCENARIO, or for a guest that
went down in a scenario, console/SCENARIO. Any one of them will do; a mutant that fails otherwise, by a timeout say, is
not counted as caught. Cannot-be-seen in its place gives the reason why no test of this kind could tell the difference;
such mutants are listed and not counted.

kernels/mutants/stock/NAME.yaml is a fault in kernels that nobody here builds: edits of their code in the guest's memory
(textedit.py), and beside them title, violates, caught-by and kernels, the names of those that have it.

Each is run by `orchestrator run` in a process of its own, like any kernel. Nothing in a check knows of mutants.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from orchestrator.errors import EXIT_KERNEL_FAILED, EXIT_PASS, EXIT_UNTESTABLE, UsageError, nearest
from orchestrator.host import proc
from orchestrator.host.paths import PROJECT, state_dir, write_whole
from orchestrator.kernel import definition
from orchestrator.many.children import Children
from orchestrator.text import edit as textedit

DIRECTORY = PROJECT / "kernels" / "mutants"
HEAD = re.compile(r"^([A-Z][\w-]+): (.*(?:\n[ \t].*)*)$", re.MULTILINE)
RUN = ("--smp", "4", "--duration", "1")
"""What a mutant is run with. Four CPUs show whatever eight would, in half the time."""
LONGEST = 900.0
"""Seconds for one run with its build; the run itself gives up much sooner."""

MutantOutcome = Literal["caught", "otherwise", "hang", "missed", "untested", "healthy", "blamed"]
"""caught: by a check that names the fault. otherwise: by another one. hang: by a wait that ran out. missed: it passed.
untested: no verdict on the kernel. healthy: nothing was broken, and it passed; blamed: and it did not."""


@dataclass(frozen=True)
class Mutant:
    """One fault. base: the kernel that it is in. fault: its file, None when nothing is broken. caught_by: the checks
    that name it. unseen: why none could."""

    base: str
    name: str
    fault: Path | None
    title: str
    violates: str = ""
    caught_by: tuple[str, ...] = ()
    unseen: str | None = None


@dataclass(frozen=True)
class MutantResult:
    """standing: what it comes to. checks: all that failed, as Caught-by names them. seconds: build, boot and run."""

    base: str
    name: str
    result: MutantOutcome
    checks: tuple[str, ...]
    reason: str
    seconds: float
    directory: str


def read(patch: Path) -> Mutant:
    """The mutant in the file `patch`."""
    head = patch.read_text().split("\n---\n", 1)[0]
    fields = {name: " ".join(text.split()) for name, text in HEAD.findall(head)}
    caught_by = tuple(fields.get("Caught-by", "").replace(",", " ").split())
    if bool(caught_by) == ("Cannot-be-seen" in fields):
        raise UsageError(f"{patch}: say Caught-by: CHECK, or Cannot-be-seen: why, one of the two")
    return Mutant(
        base=patch.parent.name,
        name=patch.stem,
        fault=patch,
        title=fields.get("Subject", patch.stem),
        violates=fields.get("Violates", ""),
        caught_by=caught_by,
        unseen=fields.get("Cannot-be-seen"),
    )


def read_edits(path: Path) -> list[Mutant]:
    """Those in the file of edits `path`, one for each kernel."""
    head = textedit.load(path)
    try:
        kernels, caught_by = head["kernels"], tuple(head["caught-by"])
        return [
            Mutant(kernel, path.stem, path, head["title"], head["violates"], caught_by)
            for kernel in kernels
        ]
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"{path}: say title, violates, caught-by (a list) and kernels (a list): {error}"
        ) from error


def select(only: Sequence[str] = (), kernel: str | None = None) -> list[Mutant]:
    """Those whose name matches one of the patterns `only`, of one base kernel or all."""
    known = [read(patch) for patch in sorted(DIRECTORY.glob("*/*.patch"))]
    known += [
        mutant for edits in sorted(DIRECTORY.glob("stock/*.yaml")) for mutant in read_edits(edits)
    ]
    bases = sorted({mutant.base for mutant in known})
    if kernel and kernel not in bases:
        raise UsageError(
            f"there are no mutants of {kernel}{nearest(kernel, bases)}; there are of {', '.join(bases)}"
        )
    found = [mutant for mutant in known if not kernel or mutant.base == kernel]
    for pattern in only:
        if not any(fnmatchcase(mutant.name, pattern) for mutant in found):
            raise UsageError(
                f"no mutant is called {pattern}{nearest(pattern, [mutant.name for mutant in found])}"
            )
    return [
        mutant
        for mutant in found
        if not only or any(fnmatchcase(mutant.name, pattern) for pattern in only)
    ]


def healthy(kernels: Iterable[str], count: int) -> list[Mutant]:
    """The opposite proof: unbroken kernels, `count` times each with different seeds."""
    return [
        Mutant(
            base=kernel, name=f"healthy-{seed}", fault=None, title=f"nothing is broken, seed {seed}"
        )
        for kernel in kernels
        for seed in range(1, count + 1)
    ]


def run_all(mutants: Sequence[Mutant], jobs: int, again: bool, done: Any) -> list[MutantResult]:
    """Run those that have no result yet for this content (all with `again`), `jobs` at a time.

    done: called with each Mutant and Result, in the order in which they come in.
    """

    def one(mutant: Mutant) -> MutantResult:
        kept = state_dir() / "mutants" / f"{_identity(mutant)}.json"
        if kept.exists() and not again:
            result = MutantResult(
                **{
                    **json.loads(kept.read_text()),
                    "checks": tuple(json.loads(kept.read_text())["checks"]),
                }
            )
        else:
            result = _run(mutant, kept.with_suffix(""), children)
            if result.result != "untested":
                write_whole(kept, json.dumps(asdict(result), indent=1) + "\n")
        done(mutant, result)
        return result

    (state_dir() / "mutants").mkdir(exist_ok=True)
    children = Children()
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(one, mutant) for mutant in mutants]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            children.stop()
            raise


def _identity(mutant: Mutant) -> str:
    """Of everything that a result depends on: the fault, the kernel's definition, and this program."""
    program = sorted([*PROJECT.glob("orchestrator/**/*.py"), *PROJECT.glob("guest/**/*")])
    folder = definition.DEFINITIONS
    base = sorted([*(folder / mutant.base).glob("**/*"), folder / f"{mutant.base}.yaml"])
    digest = hashlib.sha256(repr((mutant.base, mutant.name, RUN)).encode())
    for file in [*([mutant.fault] if mutant.fault else []), *base, *program]:
        if file.is_file() and file.name != Path(__file__).name:
            digest.update(file.read_bytes())
    return f"{mutant.base.replace(':', '-')}-{mutant.name}-{digest.hexdigest()[:16]}"


def _run(mutant: Mutant, directory: Path, children: Children) -> MutantResult:
    log = directory.with_name(f"{directory.name}.log")
    proc.run(["rm", "-rf", directory])
    seed = mutant.name.rpartition("-")[2] if mutant.fault is None else "1"
    arguments = ["--kernel", mutant.base, "--seed", seed, *RUN]
    if mutant.fault:
        arguments += [
            "--patch" if mutant.fault.suffix == ".patch" else "--edit-text",
            str(mutant.fault),
        ]
    ended = children.run(arguments, directory, log, cwd=PROJECT, longest=LONGEST)
    verdict: dict[str, Any] = ended.verdict or {
        "exit_status": EXIT_UNTESTABLE, "outcome": "infra", "reason": f"no verdict: {ended.why}", "checks": []
    }  # fmt: skip
    checks = failed(verdict)
    result = judge(mutant, verdict["exit_status"], verdict["outcome"], checks)
    return MutantResult(
        mutant.base,
        mutant.name,
        result,
        checks,
        verdict["reason"],
        round(ended.seconds, 1),
        str(directory),
    )


def failed(verdict: dict[str, Any]) -> tuple[str, ...]:
    """The failed checks of a verdict.json, as Caught-by names them."""
    names: list[str] = []
    for check in verdict["checks"]:
        if check["status"] != "fail":
            continue
        if check["check"] == "guest":
            # Details begin with the step's name, SCENARIO.PART.
            names += [f"guest/{line.partition(':')[0].split('.')[0]}" for line in check["details"]]
        if check["check"] == "console" and (
            where := re.search(r", in scenario (\S+)$", check["text"])
        ):
            names.append(f"console/{where[1]}")
        names.append(check["check"])
    return tuple(dict.fromkeys(names))


def judge(mutant: Mutant, status: int, outcome: str, checks: tuple[str, ...]) -> MutantOutcome:
    """What one run of a mutant comes to."""
    if mutant.fault is None:
        return (
            "healthy"
            if status == EXIT_PASS
            else "blamed"
            if status == EXIT_KERNEL_FAILED
            else "untested"
        )
    if status == EXIT_PASS:
        return "missed"
    if status != EXIT_KERNEL_FAILED:
        return "untested"
    if set(mutant.caught_by) & set(checks):
        return "caught"
    return "hang" if outcome in ("hang", "timeout") else "otherwise"
