"""The one flow, top to bottom: RunSpec -> Kernel -> guest image -> Machine -> Evidence -> Verdict -> report.

A run is one cell: one kernel on one machine shape with one list of scenarios and one seed. Everything else in the
program that looks at kernels calls `run` and nothing below it.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator import rundir, ui
from orchestrator.attach import notes, owner
from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.guest import initramfs, module
from orchestrator.host import tools
from orchestrator.host.paths import cache_dir, write_whole
from orchestrator.kernel.model import Kernel, KernelRequest
from orchestrator.kernel.obtain import obtain
from orchestrator.machine import accel
from orchestrator.machine.machine import Machine
from orchestrator.machine.qemu import MachineSpec
from orchestrator.machine.ssh import Keys
from orchestrator.observer import Observer
from orchestrator.scenarios.scenario import Scenario, runnable, select
from orchestrator.soak import Soaking
from orchestrator.spec import RunSpec
from orchestrator.text import edit as textedit
from orchestrator.text import facts
from orchestrator.text.symbols import of_vmlinux
from orchestrator.verdict import result as result_file
from orchestrator.verdict.evidence import Evidence
from orchestrator.verdict.outcome import judge
from orchestrator.verdict.result import RunResult
from orchestrator.watch.ledger import Ledger
from orchestrator.watch.watch import Watch


@dataclass
class _RunInProgress:
    """A run under way, with what there is of it so far."""

    spec: RunSpec
    scenarios: Sequence[Scenario]
    directory: Path
    evidence: Evidence
    kernel: Kernel | None = None
    machine: MachineSpec | None = None


def run(
    spec: RunSpec, keep: Callable[[RunResult, Machine | None], None] | None = None
) -> RunResult:
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
            if observer.without_module:
                ui.say(
                    "without the test module: what the kernel does is watched, but nobody can hold it in a phase"
                )
            if edits:
                observer = replace(observer, attached=lambda watch: _edit_text(edits, watch, cell))
            if spec.soak:
                observer = replace(observer, again=Soaking(spec.soak, machine, evidence))
            try:
                observer.observe()
            finally:
                evidence.look_at(machine.console.scanner)
        except UsageError:
            rundir.discard(cell.directory)
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
        result_file.write(result)
        if keep:
            keep(result, machine)
    return result


def debug(spec: RunSpec) -> int:
    """Boot the guest of a run and have a person's GDB on it, in place of poking. Returns GDB's exit status."""
    cell = _cell(spec, command=("gdb", "--now"))
    try:
        with _guest(cell, attachable=True) as observer:
            observer.prepare()
            return owner.run_gdb(observer.machine, cell.directory)
    except UsageError:
        rundir.discard(cell.directory)
        raise


def inspect_kernel(request: KernelRequest) -> tuple[Kernel, dict[str, str]]:
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
            with (
                Watch(observer.machine, addresses, cell.directory, module=False) as watch,
                watch.memory() as (read, _),
            ):
                found = facts.facts(of_vmlinux(notes.kernel_symbols(cell.directory)), read)
    known.parent.mkdir(exist_ok=True)
    write_whole(known, json.dumps(found, indent=1) + "\n")
    return kernel, found


@contextlib.contextmanager
def _guest(cell: _RunInProgress, *, attachable: bool) -> Iterator[Observer]:
    """The guest for `cell`, not booted yet, and who is to observe it. attachable: by a person's GDB, too."""
    spec, evidence, scenarios, directory = cell.spec, cell.evidence, cell.scenarios, cell.directory
    kernel = cell.kernel = obtain(spec.kernel)
    _check_cpus(spec, kernel)
    scenarios = runnable(scenarios, spec.scenarios, headers=kernel.kbuild is not None)
    without_module = all(one.sysctls for one in scenarios)
    with ui.step("building the guest image"):
        keys = Keys.fresh()
        image = _guest_image(kernel, keys, scenarios, directory, without_module)
    with ui.step("choosing the accelerator"):
        cell.machine, ledger = _machine_spec(spec, kernel, image, scenarios, directory)
    evidence.untrusted = cell.machine.accel.untrusted
    ui.say(f"accelerator: {cell.machine.accel.option} ({cell.machine.accel.why})")
    with Machine(cell.machine, directory, keys, attachable=attachable) as machine:
        yield Observer(
            machine,
            ledger,
            scenarios,
            spec.duration,
            spec.seed,
            directory,
            evidence,
            kernel.vmlinux,
            without_module,
            loaded=lambda: notes.note_symbols(
                machine, kernel, directory, fetch=attachable or bool(spec.edits)
            ),
        )


# -- before the guest


def _cell(spec: RunSpec, command: Sequence[str] = ("run",)) -> _RunInProgress:
    scenarios = select(spec.scenarios)
    return _RunInProgress(spec, scenarios, rundir.create(spec, command), Evidence(asked=spec.smp))


def _check_cpus(spec: RunSpec, kernel: Kernel) -> None:
    if kernel.config is None:  # the guest will say how many CPUs came up
        return
    if kernel.option("SMP") != "y" and spec.smp > 1:
        raise UsageError(
            f"{kernel.name} is built without CONFIG_SMP: use --smp 1, or another kernel"
        )
    limit = int(kernel.option("NR_CPUS") or "1")
    if spec.smp > limit:
        raise UsageError(
            f"{kernel.name} is built for {limit} CPUs (CONFIG_NR_CPUS): use --smp {limit} or less"
        )


def _guest_image(
    kernel: Kernel, keys: Keys, scenarios: Sequence[Scenario], directory: Path, without_module: bool
) -> Path:
    files: dict[str, bytes | Path] = {
        **keys.guest_files(),
        **({} if without_module else module.files(kernel)),
    }
    files |= {f"/scenarios/{s.name}": s.companion.encode() for s in scenarios if s.companion}
    return initramfs.build(
        directory / "initramfs.cpio",
        busybox=tools.busybox(),
        dropbear=tools.dropbear(),
        files=files,
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
        append=tuple(
            dict.fromkeys(parameter for scenario in scenarios for parameter in scenario.append)
        ),
        options=ledger.options,
    )
    return machine, ledger


# -- while the guest runs


def _edit_text(edits: Sequence[textedit.Edit], watch: Watch, cell: _RunInProgress) -> None:
    """Change the kernel's code in memory. The verdict says so: it is about the kernel as it is then."""
    lines = of_vmlinux(notes.kernel_symbols(cell.directory))
    with watch.memory() as (read, write):
        for change in textedit.locate(edits, lines, read):
            write(change.address, change.new)
            cell.evidence.edited.append(
                f"{change.text} ({change.old.hex(' ')} -> {change.new.hex(' ')})"
            )
            ui.say(f"edited: {cell.evidence.edited[-1]}")
