# SPDX-License-Identifier: GPL-2.0-only
"""The one flow: RunSpec -> Kernel -> Guest image -> Machine -> Evidence -> Verdict -> Report.

The functions below come in this order. A run is one cell: one kernel on one machine shape with one
list of scenarios and one seed. Everything else in the program that tests kernels calls `run` and
nothing below it; orchestrator/commands/run.py makes the reports from the RunResult.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator import branch, rundir, ui
from orchestrator.attach import notes, owner
from orchestrator.branch import Branches
from orchestrator.course import Course
from orchestrator.errors import (
    BootError,
    BuildError,
    InfraError,
    InternalError,
    InterruptedRun,
    OrchestratorError,
    UsageError,
    sentence,
    shortened,
)
from orchestrator.guest import image
from orchestrator.host import failures, interrupts, keeper, tools
from orchestrator.host import files as host_files
from orchestrator.host.paths import cache_dir
from orchestrator.kernel import versions
from orchestrator.kernel.model import Kernel, KernelRequest
from orchestrator.kernel.obtain import BUILT, check, identify, obtain, title
from orchestrator.machine import accel, snapshot
from orchestrator.machine.machine import Machine
from orchestrator.machine.qemu import MachineSpec, not_taken
from orchestrator.machine.ssh import Keys
from orchestrator.observer import Observer
from orchestrator.planned import PlannedObserver
from orchestrator.rundir import BRANCHES
from orchestrator.scenarios.scenario import Scenario, runnable, select
from orchestrator.soak import Soaking
from orchestrator.spec import RunSpec
from orchestrator.text import facts, sourcelines
from orchestrator.text.edit import Edit, locate_edits, read_edits
from orchestrator.text.symbols import of_vmlinux
from orchestrator.verdict import result as result_file
from orchestrator.verdict.evidence import Evidence
from orchestrator.verdict.outcome import Verdict, judge
from orchestrator.verdict.result import RunResult
from orchestrator.watch.recorder import Recorder
from orchestrator.watch.watch import Watch


@dataclass
class _Cell:
    """A run under way: what was requested, and what there is of it so far."""

    spec: RunSpec
    scenarios: Sequence[Scenario]
    """The requested scenarios; the kernel may not be able to run all of them."""
    command: tuple[str, ...]
    """The command that was given, without its options."""
    directory: Path
    evidence: Evidence
    kernel: Kernel | None = None
    machine_spec: MachineSpec | None = None
    symbols: Path | None = None
    """The file with the kernel's symbols, once the guest runs."""


def run(
    spec: RunSpec, keep: Callable[[RunResult, Machine | None], None] | None = None
) -> RunResult:
    """Run one cell and write its verdict.json.

    keep: called with the result and with the machine, if one was started. The machine ends when
    it returns.

    Raises UsageError before anything is run when the request is wrong, and InfraError when there
    is no place for the results. Everything else that goes wrong becomes a verdict, and so does a
    signal. From the verdict on signals are held (host/interrupts.py).
    """
    started = time.time()
    ui.durations.clear()
    edits = read_edits(spec.edits) if spec.edits else []
    with contextlib.suppress(InfraError):  # which is a verdict, and comes again below
        check(spec.kernel)
    cell = _new_cell(spec)
    result_file.reserve(cell.directory)
    with contextlib.ExitStack() as stack:
        machine: Machine | None = None
        try:
            with _errors_as_evidence(cell), interrupts.limited(spec.timeout):
                setting = _setting(cell)
                alone = "somebody may want to look at its guest" if keep else ""
                alone = alone or ("the kernel is changed before it is poked" if edits else "")
                if branches := _branches_or_not(cell, setting, alone):
                    _collect_evidence(cell, _planned(cell, setting, branches))
                else:
                    guest = _guest(cell, setting, attachable=keep is not None)
                    observer = stack.enter_context(guest)
                    machine = observer.machine
                    _collect_evidence(cell, _with_edits(cell, observer, edits))
        except UsageError:
            rundir.discard(cell.directory)
            raise
        result = RunResult(
            spec=spec,
            directory=cell.directory,
            name=cell.kernel.name if cell.kernel else title(spec.kernel),
            kernel=cell.kernel,
            machine=cell.machine_spec,
            evidence=cell.evidence,
            verdict=_verdict(cell),
            seconds=dict(ui.durations),
            started=started,
        )
        with ui.saying_what_fails("verdict.json"):
            result_file.write(result)
        if keep:
            keep(result, machine)
    return result


def debug(spec: RunSpec) -> int:
    """Boot the guest of a run and start an interactive GDB on it. Returns GDB's exit status."""
    cell = _new_cell(spec, command=("gdb", "--now"))
    try:
        with _guest(cell, _setting(cell), attachable=True) as observer:
            observer.prepare()
            return owner.run_gdb(observer.machine, cell.directory)
    except UsageError:
        rundir.discard(cell.directory)
        raise


def branches_of(
    spec: RunSpec, directory: Path, digest: str | None = None
) -> tuple[Kernel, Branches]:
    """The kernel of `spec`, and what runs branches as a run of it does, in `directory`.

    digest: of the kernel that it must be; None for any.

    Raises UsageError if the kernel is another one by now, InfraError if there can be no branches.
    """
    kernel = obtain(spec.kernel) if digest is None else _same_kernel(spec.kernel, digest)
    headers = _takes_module(kernel)
    scenarios = runnable(select(spec.scenarios, spec.skip), spec.scenarios, headers=headers)
    machine_spec, recorder = _machine_spec(spec, kernel, Path(os.devnull), scenarios)
    without_module = all(scenario.sysctls for scenario in scenarios)
    if why_not := _no_branches(kernel, machine_spec, recorder, without_module):
        raise InfraError(f"there can be no branches here: {why_not}")
    return kernel, _branches(directory, kernel, machine_spec, scenarios)


def _same_kernel(request: KernelRequest, digest: str) -> Kernel:
    """The kernel with this digest, from the cache or as it was requested."""
    built = KernelRequest(selector=f"{BUILT}{digest}")
    with contextlib.suppress(UsageError):
        check(built)
        return obtain(built)
    if identify(request)[0] != digest:
        raise UsageError(
            f"{request.name} is another kernel by now: a run is replayed with the one that it had"
        )
    return obtain(request)


def inspect_kernel(request: KernelRequest) -> tuple[Kernel, dict[str, str]]:
    """A kernel, and the facts about its text patching code that orchestrator/text/facts.py reads.

    Boots the kernel once; the cache keeps the facts. Raises what obtain() raises, and BootError.
    """
    kernel = obtain(request)
    cached = cache_dir() / "facts" / kernel.digest
    if known := host_files.load(cached):
        return kernel, dict(known)
    with keeper.temporary_directory() as directory:
        spec = RunSpec(kernel=request, smp=1, scenarios=("sysctl",), directory=directory)
        cell = _new_cell(spec)
        with _guest(cell, _setting(cell), attachable=True) as observer:
            addresses, _ = observer.prepare()
            with (
                Watch(observer.machine, addresses, cell.directory, module=False) as watch,
                watch.memory() as (read, _),
            ):
                lines = of_vmlinux(cell.symbols)
                kernel_facts = facts.facts(lines, read)
    host_files.remember(cached, kernel_facts)
    return kernel, kernel_facts


# -- RunSpec


def _new_cell(spec: RunSpec, command: Sequence[str] = ("run",)) -> _Cell:
    scenarios = select(spec.scenarios, spec.skip)
    return _Cell(
        spec=spec,
        scenarios=scenarios,
        command=tuple(command),
        directory=rundir.create(spec, command),
        evidence=Evidence(requested_cpus=spec.smp),
    )


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """Kernel, machine and scenarios of a cell."""

    kernel: Kernel
    scenarios: Sequence[Scenario]
    """Those that the kernel can run."""
    without_module: bool
    """Whether these are the ones that need no test module."""
    machine: MachineSpec
    recorder: Recorder


def _setting(cell: _Cell) -> _Setting:
    """Obtain the kernel, and choose the machine."""
    spec = cell.spec
    kernel = cell.kernel = obtain(spec.kernel)
    _pin(cell, kernel)
    _check_cpus(spec, kernel)
    scenarios = runnable(cell.scenarios, spec.scenarios, headers=_takes_module(kernel))
    with ui.step("choosing the accelerator"):
        initrd = cell.directory / "initramfs.cpio"
        machine, recorder = _machine_spec(spec, kernel, initrd, scenarios)
    cell.machine_spec = machine
    cell.evidence.untrusted = machine.accel.untrusted
    ui.say(f"accelerator: {machine.accel.option} ({_in_short(machine.accel.why)})")
    if recorder.why_not:
        ui.say(f"recorder: none, because {recorder.why_not}")
    return _Setting(
        kernel=kernel,
        scenarios=scenarios,
        without_module=all(scenario.sysctls for scenario in scenarios),
        machine=machine,
        recorder=recorder,
    )


def _branches_or_not(cell: _Cell, setting: _Setting, alone: str) -> Branches | None:
    """What runs the cell in branches; None if it has to run in one guest.

    alone: why it has to, as far as the request says so.
    """
    why_not = alone or _no_branches(
        setting.kernel, setting.machine, setting.recorder, setting.without_module
    )
    if not why_not:
        try:
            branches = _branches(
                cell.directory / BRANCHES, setting.kernel, setting.machine, setting.scenarios
            )
        except (BootError, BuildError, InfraError) as error:  # comes again, where it counts
            why_not = str(error)
        else:
            if "nokaslr" not in not_taken(("nokaslr",), branches.snapshot.command_line):
                return branches
            why_not = "the kernel did not take nokaslr, and may be elsewhere at each boot"
    ui.say(f"no branches, so this run does not repeat: {why_not}")
    return None


def _planned(cell: _Cell, setting: _Setting, branches: Branches) -> PlannedObserver:
    cell.symbols = notes.note_saved(cell.directory, setting.kernel, branches.snapshot.sections)
    return PlannedObserver(
        scenarios=setting.scenarios,
        duration=cell.spec.duration,
        seed=cell.spec.seed,
        evidence=cell.evidence,
        branches=branches,
    )


@contextlib.contextmanager
def _guest(cell: _Cell, setting: _Setting, *, attachable: bool) -> Iterator[Observer]:
    """The one guest of a cell, and its observer. Does not boot it.

    attachable: whether an interactive GDB may attach to the guest.
    """
    spec, kernel, recorder = cell.spec, setting.kernel, setting.recorder
    keys = Keys.fresh()
    with ui.step("building the guest image"):
        tested = None if setting.without_module else kernel
        image.build(setting.machine.initrd, tested, setting.scenarios, keys.guest_files())

    def note_symbols() -> Path:
        cell.symbols = notes.note_symbols(
            machine,
            kernel,
            cell.directory,
            fetch=attachable or bool(spec.edits) or not recorder.why_not,
            moved="nokaslr" in cell.evidence.not_taken,
        )
        return cell.symbols

    with Machine(setting.machine, cell.directory, keys, attachable=attachable) as machine:
        yield Observer(
            machine=machine,
            recorder=recorder,
            scenarios=setting.scenarios,
            duration=spec.duration,
            seed=spec.seed,
            directory=cell.directory,
            evidence=cell.evidence,
            vmlinux=kernel.vmlinux,
            without_module=setting.without_module,
            fallback=() if setting.without_module else _fallback(cell),
            on_loaded=note_symbols,
        )


def _in_short(why: str) -> str:
    """`why` if it fits into a line, otherwise its beginning; doctor says all of it."""
    first = why.partition(": ")[0]
    return why if len(why) <= 80 else f"{shortened(first, 80)}; see `orchestrator doctor`"


def _no_branches(
    kernel: Kernel, spec: MachineSpec, recorder: Recorder, without_module: bool
) -> str:
    """Why nothing can run in branches, as a sentence without a full stop; empty if it can."""
    if spec.accel.thread != "single":
        return "only under TCG with one thread a guest repeats itself"
    if without_module:
        return "there is no test module, which waits for the plan"
    if recorder.why_not:
        return recorder.why_not
    if not notes.known_symbols(kernel):
        return "the symbols of this kernel are not known before it has been run once"
    return snapshot.why_not(spec.qemu)


def _branches(
    directory: Path, kernel: Kernel, spec: MachineSpec, scenarios: Sequence[Scenario]
) -> Branches:
    """What runs steps in branches. Raises what branch.obtain() raises."""

    def recorder() -> Recorder:
        return Recorder(spec.qemu, spec.accel)

    lines = of_vmlinux(notes.known_symbols(kernel))
    saved, restored = branch.obtain(kernel, spec, scenarios, recorder, lines)
    return Branches(
        snapshot=saved,
        spec=restored,
        directory=directory,
        recorder=recorder,
        kernel_lines=lines,
    )


def _takes_module(kernel: Kernel) -> bool:
    """Whether a test module can be built and, as far as is known before boot, loaded."""
    return kernel.kbuild is not None and (kernel.config is None or kernel.option("MODULES") == "y")


def _fallback(cell: _Cell) -> Sequence[Scenario]:
    """The scenarios to run if the kernel refuses the test module; none if only others will do."""
    with contextlib.suppress(UsageError):
        return runnable(cell.scenarios, cell.spec.scenarios, headers=False)
    return ()


# -- Kernel


def _pin(cell: _Cell, kernel: Kernel) -> None:
    """Make repeat.sh name the kernel that is run, not what its name will mean another day."""
    request = replace(cell.spec.kernel, selector=kernel.pinned or cell.spec.kernel.selector)
    chosen = versions.inherited()
    if cell.command == ("run",) and (kernel.pinned or chosen):
        with ui.saying_what_fails("repeat.sh"):
            spec = replace(cell.spec, kernel=request)
            rundir.write_script(cell.directory, spec, cell.command, chosen)


def _check_cpus(spec: RunSpec, kernel: Kernel) -> None:
    """Raises UsageError when the kernel is built for fewer CPUs than requested."""
    if kernel.config is None:  # the guest will report how many CPUs came up
        return
    if kernel.option("SMP") != "y" and spec.smp > 1:
        raise UsageError(f"{kernel.name} has no CONFIG_SMP: use --smp 1, or another kernel")
    limit = int(kernel.option("NR_CPUS") or "1")
    if spec.smp > limit:
        raise UsageError(
            f"{kernel.name} supports at most {limit} CPUs (CONFIG_NR_CPUS): use --smp {limit} "
            "or less"
        )


# -- Machine


def _machine_spec(
    spec: RunSpec, kernel: Kernel, initrd: Path, scenarios: Sequence[Scenario]
) -> tuple[MachineSpec, Recorder]:
    qemu = tools.qemu(spec.qemu)
    chosen = accel.choose(spec.accel, qemu)
    recorder = Recorder(qemu, chosen)
    recorder.configure(of_vmlinux(notes.known_symbols(kernel)))
    parameters = [parameter for scenario in scenarios for parameter in scenario.append]
    machine_spec = MachineSpec(
        qemu=qemu,
        accel=chosen,
        bzimage=kernel.bzimage,
        initrd=initrd,
        cpu=spec.cpu,
        smp=spec.smp,
        memory=spec.memory,
        seed=spec.seed,
        append=tuple(dict.fromkeys(parameters)),
        requested=spec.append,
        options=recorder.options,
    )
    return machine_spec, recorder


# -- Evidence


@contextlib.contextmanager
def _errors_as_evidence(cell: _Cell) -> Iterator[None]:
    """Make whatever ends the block early, apart from a UsageError, the evidence's error.

    Signals are held when the block has ended.
    """
    try:
        try:
            yield
        except UsageError:
            raise
        except OrchestratorError as error:
            cell.evidence.error = error
        except Exception as error:
            if failures.debugging() and not failures.expected(error):
                raise
            cell.evidence.error = InternalError(failures.described(error, cell.directory))
        interrupts.hold()
    except KeyboardInterrupt as interrupt:
        interrupts.hold()
        cell.evidence.error = InterruptedRun(sentence(interrupt))
    if interrupted := interrupts.received():
        # Also where the signal's exception was turned into another one on its way.
        cell.evidence.error = InterruptedRun(str(interrupted))


def _collect_evidence(cell: _Cell, course: Course) -> None:
    """Take the kernel through its course, and fill in the evidence.

    Raises what ended the run early.
    """
    if cell.spec.soak:
        soaking = Soaking(cell.spec.soak, cell.evidence, course.memory)
        course = replace(course, another_round=soaking.another_round)
    try:
        course.observe()
    finally:
        cell.evidence.take_consoles()
        _find_lines(cell)


def _find_lines(cell: _Cell) -> None:
    """Find the source lines of what went wrong, if the kernel was built with line tables."""
    evidence, vmlinux = cell.evidence, cell.kernel.vmlinux if cell.kernel else None
    if next(evidence.violations(), None):
        watched = [step.watched for step in evidence.watched_steps if step.watched]
        cpus = [cpu for one in watched for shot in one.cpu_snapshots for cpu in shot["cpus"]]
        evidence.names.lines = sourcelines.of_cpus(vmlinux, cpus, evidence.kernel_offset)
    evidence.hang_names.lines = sourcelines.of_cpus(vmlinux, evidence.hung, evidence.kernel_offset)
    if evidence.findings:
        lines = [line for console in evidence.consoles.values() for line in console.lines]
        evidence.decoded = sourcelines.decoded(vmlinux, lines)


def _with_edits(cell: _Cell, observer: Observer, edits: Sequence[Edit]) -> Observer:
    """The same observer, but the kernel's code is edited before it is poked."""
    if observer.without_module:
        ui.say("no test module: the kernel's own pokes are watched, but not held in a phase")
    if not edits:
        return observer
    return replace(observer, on_attached=lambda watch: _edit_text(edits, watch, cell))


def _edit_text(edits: Sequence[Edit], watch: Watch, cell: _Cell) -> None:
    """Edit the kernel's code in memory. The evidence keeps the edits: the verdict is about them."""
    lines = of_vmlinux(cell.symbols)
    with watch.memory() as (read, write):
        for change in locate_edits(edits, lines, read):
            write(change.address, change.new)
            cell.evidence.edited.append(
                f"{change.text} ({change.old.hex(' ')} -> {change.new.hex(' ')})"
            )
            ui.say(f"edited: {cell.evidence.edited[-1]}")


# -- Verdict


def _verdict(cell: _Cell) -> Verdict:
    """The verdict on the evidence; `infra` if the evidence cannot even be judged."""
    try:
        return judge(cell.evidence)
    except Exception as error:
        if failures.debugging():
            raise
        return Verdict(InternalError.outcome, failures.described(error, cell.directory))
