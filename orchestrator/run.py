"""The one flow, top to bottom: RunSpec -> Kernel -> guest image -> Machine -> Evidence -> Verdict -> report.

A run is one cell: one kernel on one machine shape with one list of scenarios and one seed. Everything else in the
program that looks at kernels calls `run` and nothing below it.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from orchestrator import facts, interactive, textedit, tools, ui
from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.guest import initramfs, module
from orchestrator.kernel.model import Kernel, KernelRequest
from orchestrator.kernel.obtain import obtain
from orchestrator.machine import accel
from orchestrator.machine.machine import Machine
from orchestrator.machine.qemu import MAX_SMP, MachineSpec
from orchestrator.machine.ssh import Keys
from orchestrator.observer import Observer
from orchestrator.paths import cache_dir, state_dir, write_whole
from orchestrator.scenario import Scenario, select, suited
from orchestrator.soak import Soaking
from orchestrator.verdict.evidence import Evidence
from orchestrator.verdict.outcome import Verdict, judge
from orchestrator.watch.ledger import Ledger
from orchestrator.watch.symbols import of_vmlinux
from orchestrator.watch.watch import Watch


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What to run. Everything that decides a run's course is in here; the run directory keeps it as spec.json.

    smp: CPUs. accel: one of machine.accel.CHOICES. cpu: QEMU's model, None for the accelerator's. memory: MiB.
    scenarios: names or shell patterns, none for all. duration: seconds of the free-running part, all scenarios
    together. soak: seconds for which all of it is done again and again, 0 for once. seed: fixes every random choice.
    qemu: a binary to use instead of our own. edits: a file of edits of the kernel's text (textedit.py). directory: for
    the results.
    """

    kernel: KernelRequest = field(default_factory=KernelRequest)
    smp: int = 8
    accel: str = "auto"
    cpu: str | None = None
    memory: int = 1024
    scenarios: tuple[str, ...] = ()
    duration: float = 3.0
    soak: float = 0.0
    seed: int = 1
    qemu: Path | None = None
    edits: Path | None = None
    directory: Path | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.smp <= MAX_SMP:
            raise UsageError(f"--smp takes 1 to {MAX_SMP}, not {self.smp}")
        if not 0 < self.duration < float("inf"):
            raise UsageError(f"--duration takes seconds greater than 0, not {self.duration:g}")
        if not 0 <= self.soak < float("inf"):
            raise UsageError(f"--soak takes a time such as 90s, 30m or 8h, not {self.soak:g}")


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What became of a run: everything a report needs, whatever its form."""

    spec: RunSpec
    directory: Path
    kernel: Kernel | None
    machine: MachineSpec | None
    evidence: Evidence
    verdict: Verdict
    seconds: dict[str, float]


@dataclass
class _Cell:
    """A run under way, with what there is of it so far."""

    spec: RunSpec
    scenarios: Sequence[Scenario]
    directory: Path
    evidence: Evidence
    kernel: Kernel | None = None
    machine: MachineSpec | None = None


def run(spec: RunSpec, keep: Callable[[RunResult, Machine | None], None] | None = None) -> RunResult:
    """Run one cell. Never raises for what the verdict can say; a wrong request raises UsageError before anything.

    keep: called with the result, and the machine if one was started, which ends when it returns.
    """
    edits = textedit.read(spec.edits) if spec.edits else []
    cell = _cell(spec)
    evidence = cell.evidence
    ui.durations.clear()
    with contextlib.ExitStack() as guest:
        machine: Machine | None = None
        try:
            observer = guest.enter_context(_guest(cell, attachable=keep is not None))
            machine = observer.machine
            if observer.bare:
                ui.say("without the test module: what the kernel does is watched, but nobody can hold it in a phase")
            if edits:
                observer = replace(observer, attached=lambda watch: _edit_text(edits, watch, cell))
            if spec.soak:
                observer = replace(observer, again=Soaking(spec.soak, machine, evidence))
            try:
                observer.observe()
            finally:
                evidence.look_at(machine.console.scanner)
        except UsageError:
            _forget(cell.directory)
            raise
        except OrchestratorError as error:
            evidence.broken = error
        result = RunResult(
            spec=spec,
            directory=cell.directory,
            kernel=cell.kernel,
            machine=cell.machine,
            evidence=evidence,
            verdict=judge(evidence),
            seconds=dict(ui.durations),
        )
        _write_verdict(result)
        if keep:
            keep(result, machine)
    return result


def debug(spec: RunSpec) -> int:
    """Boot the guest of a run and have a person's GDB on it, in place of poking. Returns GDB's exit status."""
    cell = _cell(spec)
    try:
        with _guest(cell, attachable=True) as observer:
            observer.prepare()
            return interactive.session(observer.machine, cell.directory)
    except UsageError:
        _forget(cell.directory)
        raise


def look(request: KernelRequest) -> tuple[Kernel, dict[str, str]]:
    """A kernel, and what its code for patching live text is like (facts.py): booted once, and remembered.

    Errors: those of obtain(), BootError.
    """
    kernel = obtain(request)
    known = cache_dir() / "facts" / f"{kernel.digest}.json"
    with contextlib.suppress(OSError, ValueError):
        return kernel, dict(json.loads(known.read_text()))
    with tempfile.TemporaryDirectory() as directory:
        spec = RunSpec(kernel=request, smp=1, scenarios=("sysctl",), directory=Path(directory))
        cell = _cell(spec)
        with _guest(cell, attachable=True) as observer:
            addresses, _ = observer.prepare()
            with Watch(observer.machine, addresses, cell.directory, module=False) as watch, watch.memory() as (read, _):
                found = facts.facts(of_vmlinux(interactive.kernel_symbols(cell.directory)), read)
    known.parent.mkdir(exist_ok=True)
    write_whole(known, json.dumps(found, indent=1) + "\n")
    return kernel, found


@contextlib.contextmanager
def _guest(cell: _Cell, *, attachable: bool) -> Iterator[Observer]:
    """The guest for `cell`, not booted yet, and who is to observe it. attachable: by a person's GDB, too."""
    spec, evidence, scenarios, directory = cell.spec, cell.evidence, cell.scenarios, cell.directory
    kernel = cell.kernel = obtain(spec.kernel)
    _check_cpus(spec, kernel)
    scenarios = suited(scenarios, spec.scenarios, headers=kernel.kbuild is not None)
    bare = all(one.sysctls for one in scenarios)
    with ui.step("building the guest image"):
        keys = Keys.fresh()
        image = _guest_image(kernel, keys, scenarios, directory, bare)
    with ui.step("choosing the accelerator"):
        cell.machine, ledger = _machine_spec(spec, kernel, image, scenarios, directory)
    evidence.untrusted = cell.machine.accel.untrusted
    ui.say(f"accelerator: {cell.machine.accel.option} ({cell.machine.accel.why})")
    with Machine(cell.machine, directory, keys, attachable=attachable) as machine:
        yield Observer(
            machine, ledger, scenarios, spec.duration, spec.seed, directory, evidence, kernel.vmlinux, bare,
            loaded=lambda: interactive.note_symbols(machine, kernel, directory, fetch=attachable or bool(spec.edits)),
        )


# -- before the guest


def _cell(spec: RunSpec) -> _Cell:
    scenarios = select(spec.scenarios)
    return _Cell(spec, scenarios, _run_directory(spec), Evidence(asked=spec.smp))


def _run_directory(spec: RunSpec) -> Path:
    """A new directory for the run, with what is asked and a script that asks it again."""
    given = spec.kernel.bzimage or spec.kernel.tree
    name = re.sub(r"[^\w.]+", "-", given.resolve().name if given else spec.kernel.selector)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    directory = spec.directory or state_dir() / "runs" / f"{stamp}-{name}-smp{spec.smp}-{secrets.token_hex(2)}"
    if directory.exists() and any(directory.iterdir()):
        raise UsageError(f"{directory} is not empty: a run keeps its results in a directory of its own")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "spec.json").write_text(json.dumps(asdict(spec), indent=1, default=str) + "\n")
    script = directory / "repeat.sh"
    script.write_text(
        "#!/bin/sh\n# Repeats this run: the same kernel, machine, scenarios and seed.\n"
        f"cd {shlex.quote(str(Path.cwd()))} || exit\n"
        f"exec {shlex.join([sys.executable, '-m', 'orchestrator', *_repeatable(sys.argv[1:])])}\n"
    )
    script.chmod(0o755)
    return directory


def _repeatable(words: Sequence[str]) -> list[str]:
    """`words` of a command line without those that are for one run only: where it goes, and that its guest is kept."""
    left, kept = iter(words), []
    for word in left:
        if word == "--output":
            next(left, None)
        elif not word.startswith(("--output=", "--keep")):
            kept.append(word)
        elif word == "--keep" and (following := next(left, None)) not in (None, "failure", "always"):
            kept.append(str(following))
    return kept


def _forget(directory: Path) -> None:
    """Remove what _run_directory() made: a wrong request is no run. What somebody else put there stays."""
    for name in ("spec.json", "repeat.sh", "initramfs.cpio"):
        (directory / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        directory.rmdir()


def _check_cpus(spec: RunSpec, kernel: Kernel) -> None:
    if kernel.config is None:  # the guest will say how many CPUs came up
        return
    if kernel.option("SMP") != "y" and spec.smp > 1:
        raise UsageError(f"{kernel.name} is built without CONFIG_SMP: use --smp 1, or another kernel")
    limit = int(kernel.option("NR_CPUS") or "1")
    if spec.smp > limit:
        raise UsageError(f"{kernel.name} is built for {limit} CPUs (CONFIG_NR_CPUS): use --smp {limit} or less")


def _guest_image(kernel: Kernel, keys: Keys, scenarios: Sequence[Scenario], directory: Path, bare: bool) -> Path:
    files: dict[str, bytes | Path] = {**keys.guest_files(), **({} if bare else module.files(kernel))}
    files |= {f"/scenarios/{s.name}": s.beside.encode() for s in scenarios if s.beside}
    return initramfs.build(
        directory / "initramfs.cpio", busybox=tools.busybox(), dropbear=tools.dropbear(), files=files
    )


def _machine_spec(
    spec: RunSpec, kernel: Kernel, image: Path, scenarios: Sequence[Scenario], directory: Path
) -> tuple[MachineSpec, Ledger]:
    qemu = tools.qemu(spec.qemu)
    chosen = accel.choose(spec.accel, qemu)
    ledger = Ledger(qemu, chosen, directory)
    machine = MachineSpec(
        qemu=qemu,
        accel=chosen,
        bzimage=kernel.bzimage,
        initrd=image,
        cpu=spec.cpu,
        smp=spec.smp,
        memory=spec.memory,
        seed=spec.seed,
        append=tuple(dict.fromkeys(parameter for scenario in scenarios for parameter in scenario.append)),
        options=ledger.options,
    )
    return machine, ledger


# -- while the guest runs


def _edit_text(edits: Sequence[textedit.Edit], watch: Watch, cell: _Cell) -> None:
    """Change the kernel's code in memory. The verdict says so: it is about the kernel as it is then."""
    lines = of_vmlinux(interactive.kernel_symbols(cell.directory))
    with watch.memory() as (read, write):
        for change in textedit.locate(edits, lines, read):
            write(change.address, change.new)
            cell.evidence.edited.append(f"{change.text} ({change.old.hex(' ')} -> {change.new.hex(' ')})")
            ui.say(f"edited: {cell.evidence.edited[-1]}")


# -- after the guest


def _write_verdict(result: RunResult) -> None:
    verdict = result.verdict
    content = {
        "schema": 1,  # report/verdict.schema.json
        "outcome": verdict.outcome,
        "reason": verdict.reason,
        "exit_status": verdict.exit_status,
        "kernel": None
        if result.kernel is None
        else {"name": result.kernel.name, "release": result.kernel.release, "digest": result.kernel.digest}
        | {"origin": result.kernel.origin},
        "edited": result.evidence.edited,
        "stuck": result.evidence.stuck,
        "soak": asdict(result.evidence.soak) if result.evidence.soak else None,
        "checks": [asdict(check) for check in verdict.results],
        "seconds": {name: round(seconds, 3) for name, seconds in result.seconds.items()},
    }
    (result.directory / "verdict.json").write_text(json.dumps(content, indent=1) + "\n")
