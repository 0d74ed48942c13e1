# SPDX-License-Identifier: GPL-2.0-only
"""Boot once, run many times: a snapshot of a guest with its test module, and branches from it.

A branch is a guest that was restored from a snapshot and is left to itself. It finds its plan,
carries it out, reports to memory and console, and ends (guest/init/branch). Nothing arrives from
outside meanwhile, and time is the number of instructions. So what a branch does follows from
snapshot, plan, seed and QEMU: see docs/determinism.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from orchestrator import ui
from orchestrator.errors import BootError, GuestRefused, InfraError
from orchestrator.guest import image
from orchestrator.host import files, keeper
from orchestrator.host.paths import cache_dir, cached_dir
from orchestrator.kernel import cache
from orchestrator.kernel.model import Kernel
from orchestrator.machine import snapshot as state
from orchestrator.machine.faults import KernelFault, TimedOut
from orchestrator.machine.machine import Machine
from orchestrator.machine.qemu import MachineSpec, accelerator, kernel_command_line
from orchestrator.machine.ssh import Keys
from orchestrator.machine.waiting import SILENCE_SECONDS
from orchestrator.scenarios.scenario import Scenario
from orchestrator.scenarios.steps import PlanStep
from orchestrator.survey import (
    KALLSYMS,
    kernel_addresses,
    lines_for_steps,
    module_names,
    online_cpus,
    sites,
    watched_names,
)
from orchestrator.text import emulation, symbols
from orchestrator.watch.recorder import CURRENT, Recorder, Records, packed
from orchestrator.watch.recorder import load as load_log

LAYOUT = 2
"""Increase it when snapshots made before cannot be used any more."""
TICK = 4000
"""Longest leap of the clock of a guest that GDB stops, in µs. See guest/module/cuts.c."""
ICOUNT = 5
"""Guest time that one instruction takes: 2**ICOUNT ns."""
STATE = "state"
IDENTITY = "snapshot"
"""File with the identity of the snapshot and the seed, in the directory of a run's branches."""
PLAN = "plan"
IMAGE = "initramfs.cpio"
BOOT_LOG = "recorder.log.gz"
"""The recorder's log until the guest was saved."""
BOOT = "boot"
"""What the time before is called where it has a log beside those of the branches."""
FACTS = "snapshot.json"
GUEST_FILE = "/etc/branch"
"""Tells guest/init/branch what to do."""
LOOKS = 2
"""How often the recorder looks at the whole text of a branch: when that begins, and when its kernel
restarts the machine."""
WAITING = re.compile(r"orchestrator: waiting for a plan, letter at ([0-9a-f]{1,16})$", re.ASCII)
SAYS = "orchestrator: "
GAVE_UP = "orchestrator: no plan can be carried out: "
"""What guest/init/branch writes to the console."""
BOOT_SECONDS = 240
"""Limit for the boot of a guest that is to be saved. Records are a sign of life: with 64 CPUs, on a
busy host, the console is silent for more than a minute. A kernel that traps for ever writes them,
too, so there is this limit; it is booted once more then, to be judged."""
PAUSES = (0.3, 1.2, 4.8)
"""Seconds that QEMU has for taking the command to stop, in one boot after the other."""
KEPT = 32
"""Snapshots in the cache, of some 60 MB each. Each mutant and each commit of a bisection has its
own, and most are never needed again."""
TEXT = struct.Struct("<2Q")
"""struct orch_text in guest/module/orch.h."""
LARGEST = 1 << 20
"""Bytes of such a text: LOG_SIZE in report.c, LETTER_SIZE in plan.c."""


def guest_files(scenarios: Sequence[Scenario]) -> dict[str, bytes]:
    """What a guest that can be saved has besides the others, by path in the guest."""
    needed = module_names(scenarios)
    wanted = tuple(dict.fromkeys((*needed, *watched_names())))
    return {GUEST_FILE: f"{'|'.join(needed)}\n{'|'.join(wanted)}\n".encode()}


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A directory with a saved guest, and what was found out about it before."""

    directory: Path
    addresses: Mapping[str, int]
    """Of kernel and test module, as Observer.prepare() returns them."""
    module_symbols: Sequence[str]
    """The test module's lines of /proc/kallsyms."""
    sections: str
    """Addresses of the test module's sections, a line each."""
    emulated: Sequence[str] | None
    """What the kernel can emulate at int3; None if nobody knows."""
    console: Sequence[str]
    """The console's lines until the guest was saved."""
    cpus: Sequence[int]
    """CPUs that are online."""
    command_line: str
    """The guest's /proc/cmdline."""
    course: str
    """fingerprint() of the boot."""

    @property
    def file(self) -> Path:
        """QEMU's file."""
        return self.directory / STATE

    @property
    def identity(self) -> str:
        """Identifies the saved guest, on every host."""
        return f"{self.directory.name} {self.course}"


class TooLate(InfraError):
    """The host kept QEMU from taking the command to stop before the guest went on."""


def make(
    directory: Path,
    spec: MachineSpec,
    recorder: Callable[[], Recorder],
    kernel_lines: Sequence[str],
) -> Snapshot:
    """Boot a guest that has guest_files(), until it waits for a plan, and save it to `directory`.

    It stops at the same instruction each time: it is booted again, up to twice, if it went on.

    recorder, kernel_lines: as in obtain().

    Raises BootError if it does not get there, and InfraError if it cannot be saved.
    """
    for pause in PAUSES:
        recording = recorder()
        recording.configure(kernel_lines)
        booted = replace(spec, options=recording.options)
        with (
            ui.step("booting a guest to be saved"),
            keeper.temporary_directory() as files_of_machine,
            Machine(booted, files_of_machine, Keys.fresh()) as machine,
            contextlib.suppress(TooLate),
        ):
            snapshot = save(machine, directory, recording, pause)
            with (directory / BOOT_LOG).open("wb") as log:
                log.writelines(packed(recording.records()))
            return snapshot
    raise TooLate(
        f"QEMU could not be stopped within {PAUSES[-1]} s, so the guest was not saved: the host is "
        "too busy"
    )


def save(machine: Machine, directory: Path, recorder: Recorder, pause: float) -> Snapshot:
    """Let a guest run until it waits for a plan, and save it.

    recorder: of that machine. By it the guest stops at the same instruction each time.
    pause: seconds that QEMU has for being stopped.

    Raises what make() raises, and TooLate if the guest went on before it was stopped.
    """
    recorder.hold()
    machine.silence.signs.append(lambda: recorder.events)
    machine.cont()
    try:
        with machine.silence.limit(SILENCE_SECONDS):
            machine.wait(
                lambda: bool(_letter(machine)) and recorder.waits, BOOT_SECONDS, "the guest's boot"
            )
    except (TimedOut, KernelFault) as error:
        raise BootError(f"{error}; nothing had been poked yet") from error
    state.save(machine, directory / STATE, recorder.let_go, pause)
    if recorder.steps:
        raise TooLate("the guest went on before QEMU could be stopped")
    letter, course = _text(machine, _letter(machine)), fingerprint(recorder.records())
    snapshot = _described(machine, directory, letter, course)
    facts = {name: value for name, value in asdict(snapshot).items() if name != "directory"}
    files.save(directory / FACTS, facts)
    return snapshot


def _letter(machine: Machine) -> int:
    """Where the guest has put its letter; 0 as long as it has not."""
    for line in machine.console.lines:
        if GAVE_UP in line:
            raise BootError(f"the test module cannot be used: {line.partition(GAVE_UP)[2]}")
        if words := WAITING.search(line):
            return int(words[1], 16)
    return 0


def _text(machine: Machine, address: int) -> str:
    """A struct orch_text in the memory of a guest that is stopped."""
    text, size = TEXT.unpack(machine.read_memory(address, TEXT.size))
    if not size:
        return ""
    return machine.read_memory(text, min(size, LARGEST)).decode(errors="replace")


def _described(machine: Machine, directory: Path, letter: str, course: str) -> Snapshot:
    parts: dict[str, list[str]] = {}
    for line in letter.splitlines():
        kind, _, rest = line.partition(" ")
        parts.setdefault(kind, []).append(rest)
    module_symbols = [line for line in parts.get("module", []) if KALLSYMS.match(line)]
    kernel_symbols = kernel_addresses(parts.get("symbol", []))
    emulated = emulation.emulated(kernel_symbols, machine.read_memory)
    return Snapshot(
        directory=directory,
        addresses=kernel_symbols | symbols.addresses(module_symbols),
        module_symbols=module_symbols,
        sections="\n".join(parts.get("section", [])),
        emulated=None if emulated is None else sorted(emulated),
        console=[*machine.console.lines],
        cpus=[*online_cpus("".join(parts.get("online", [])[:1]), machine.spec.smp)],
        command_line="".join(parts.get("cmdline", [])[:1]),
        course=course,
    )


def load(directory: Path) -> Snapshot:
    """The snapshot that save() has written. Raises InfraError if it is damaged."""
    try:
        return Snapshot(directory=directory, **(files.load(directory / FACTS) or {}))
    except TypeError as error:
        raise InfraError(f"{directory / FACTS} is damaged") from error


def obtain(
    kernel: Kernel,
    spec: MachineSpec,
    scenarios: Sequence[Scenario],
    recorder: Callable[[], Recorder],
    kernel_lines: Sequence[str],
) -> tuple[Snapshot, MachineSpec]:
    """The snapshot for a kernel on a machine, and the machine to restore it in.

    It is made, which takes a boot, if the cache does not have it.
    spec: the machine on which the rest of the run takes place.
    recorder: makes one that nobody has used yet.
    kernel_lines: the kernel's symbols, as the recorder takes them.

    Raises what make() and building the test module raise.
    """
    with keeper.temporary_directory() as directory:
        with ui.step("building the guest image"):
            initrd = image.build(directory / IMAGE, kernel, scenarios, guest_files(scenarios))
        spec = replace(spec, initrd=initrd, icount=ICOUNT, seed=1)
        target = cache_dir() / "snapshots" / _digest(kernel, spec)

        def fill(entry: Path) -> None:
            shutil.copy(initrd, entry / IMAGE)
            make(entry, spec, recorder, kernel_lines)

        known = target.is_dir()
        cached_dir(target, fill, vital=(FACTS, IMAGE, BOOT_LOG))
        files.use(target)
        if not known:
            cache.keep_newest(target.parent, KEPT)
        snapshot = load(target)
    return snapshot, replace(spec, initrd=snapshot.directory / IMAGE)


def _digest(kernel: Kernel, spec: MachineSpec) -> str:
    """Identifies all that a snapshot depends on."""
    parts = (
        str(LAYOUT),
        kernel.digest,
        hashlib.sha256(spec.initrd.read_bytes()).hexdigest(),
        spec.qemu.identity,
        accelerator(spec),
        spec.cpu or spec.accel.cpu,
        f"{spec.smp} {spec.memory} {spec.icount} {spec.seed}",
        kernel_command_line(spec),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Branch:
    """One branch under way."""

    name: str
    machine: Machine
    recorder: Recorder
    snapshot: Snapshot
    mark: str
    """The last line that the guest writes to the console before it ends."""

    def wait(self, seconds: float) -> None:
        """Wait until the guest has ended. Raises like Machine.wait(), and InfraError."""
        self.machine.wait(self.machine.ended, seconds, "the end of the plan")
        if refused := next((line for line in self.output() if line.startswith("refused")), None):
            raise GuestRefused(f"the test module refused a command: {refused[:500]}")
        if not self.machine.console.shows(self.mark):
            raise InfraError("the guest has ended without having carried out its plan")

    def output(self) -> list[str]:
        """What guest/init/steps has printed."""
        lines = (line.partition(SAYS) for line in self.machine.console.lines)
        return [rest for _, said, rest in lines if said]

    def report(self) -> str:
        """The test module's report, from the memory of a guest that is stopped."""
        return _text(self.machine, self.snapshot.addresses["orch_report"])

    def records(self) -> Records:
        """The recorder's log, complete once the guest has ended."""
        return self.recorder.records()


@contextlib.contextmanager
def branch(
    snapshot: Snapshot,
    spec: MachineSpec,
    directory: Path,
    recorder: Recorder,
    commands: str,
    kernel_lines: Sequence[str],
    resume: Callable[[Machine], None] = Machine.cont,
) -> Iterator[Branch]:
    """Restore a guest and let it carry out `commands`.

    spec: that of the machine that was saved. Only its seed may differ.
    directory: gets the plan, and what Machine writes. Its name becomes that of the branch.
    recorder: one that nobody has used yet.
    commands: lines for guest/init/steps.
    kernel_lines: the kernel's symbols, as the recorder takes them.
    resume: called when the guest may begin. GDB lets it run when it attaches.
    """
    mark = f"end of the plan {hashlib.sha256(commands.encode()).hexdigest()[:16]}"
    plan = directory / PLAN
    plan.write_text(f"{mark}\n{commands}")
    found = snapshot.addresses  # a per-CPU variable alone has no real address
    current = [f"{found[name]:x} A {name}" for name in CURRENT if name in found]
    recorder.configure([*kernel_lines, *current], sites(snapshot.module_symbols))
    spec = replace(spec, plan=plan, incoming=True, options=recorder.options)
    with Machine(spec, directory, Keys.fresh(), history=snapshot.console) as machine:
        machine.ends_by_itself = True
        said = machine.restarts
        # A kernel whose console is a thread's business restarts before that has written it.
        machine.restarts = lambda: said() or recorder.looks == LOOKS
        machine.silence.signs.append(lambda: recorder.events)
        state.restore(machine, snapshot.file)
        recorder.look_first()
        resume(machine)
        yield Branch(directory.name, machine, recorder, snapshot, mark)


def commands_for(
    steps: Sequence[PlanStep],
    emulated: Sequence[str] | None,
    schedule: int | None,
    *,
    stopped: bool = False,
) -> str:
    """Lines for guest/init/steps.

    emulated: what the kernel can emulate at int3; None if nobody knows.
    schedule: seed of the schedule, see guest/module/cuts.c; None to let CPUs take turns as they do.
    stopped: whether GDB stops the guest. Its clock leaps no further than TICK meanwhile.
    """
    first = [f"cuts {schedule % (1 << 32) or 1}"] if schedule is not None else []
    if stopped:
        first.append(f"tick {TICK}")
    if emulated is not None:
        first.append(f"emulates {','.join(emulated)}")
    first.append(f"plan {len(steps)}")
    return f"- {';'.join(first)}\n{lines_for_steps(steps, numbered=True)}"


@dataclass(frozen=True, kw_only=True)
class Branches:
    """Makes branches for the parts of a run."""

    snapshot: Snapshot
    spec: MachineSpec
    directory: Path
    """Gets a directory for each."""
    recorder: Callable[[], Recorder]
    """Makes one that nobody has used yet."""
    kernel_lines: Sequence[str]

    def start(
        self,
        stack: contextlib.ExitStack,
        name: str,
        steps: Sequence[PlanStep],
        seed: int,
        attach: Callable[[Machine], None] | None = None,
    ) -> Branch:
        """Start a branch, which ends with `stack` at the latest.

        attach: has GDB watch the guest, and lets it run.
        """
        commands = commands_for(
            steps, self.snapshot.emulated, None if attach else seed, stopped=attach is not None
        )
        return self.carry_out(stack, name, commands, seed, attach)

    def carry_out(
        self,
        stack: contextlib.ExitStack,
        name: str,
        commands: str,
        seed: int,
        attach: Callable[[Machine], None] | None = None,
    ) -> Branch:
        """Start a branch by its commands. One that GDB watches has its files in the run's own
        directory, as a guest that is no branch has."""
        directory = self.directory.parent if attach else self.directory / name
        directory.mkdir(parents=True, exist_ok=True)
        spec, recorder = replace(self.spec, seed=seed), self.recorder()
        if attach:
            stack.enter_context(recorder.gdb())
        else:
            self._note_identity(seed)
        return stack.enter_context(
            branch(
                self.snapshot,
                spec,
                directory,
                recorder,
                commands,
                self.kernel_lines,
                attach or Machine.cont,
            )
        )

    def _note_identity(self, seed: int) -> None:
        with ui.saying_what_fails(IDENTITY):
            (self.directory / IDENTITY).write_text(f"{self.snapshot.identity}\n{seed}\n")

    def keep_boot_log(self) -> None:
        """Put a copy of boot_log() beside the logs of the branches."""
        with ui.saying_what_fails(f"{BOOT}/{BOOT_LOG}"):
            (self.directory / BOOT).mkdir(parents=True, exist_ok=True)
            shutil.copy(self.snapshot.directory / BOOT_LOG, self.directory / BOOT)

    def boot_log(self) -> Records:
        """The recorder's log until the guest was saved."""
        return load_log(self.snapshot.directory / BOOT_LOG)


def fingerprint(records: Records) -> str:
    """Identifies what a guest did: the same plan, seed, snapshot and QEMU yield the same one."""
    return hashlib.sha256(records.tobytes()).hexdigest()
