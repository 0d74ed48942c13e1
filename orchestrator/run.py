"""The one flow, top to bottom: RunSpec -> Kernel -> guest image -> Machine -> Evidence -> Verdict -> report.

A run is one cell: one kernel on one machine shape with one list of scenarios and one seed. Everything else in the
program that looks at kernels calls `run` and nothing below it.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import secrets
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from orchestrator import tools, ui
from orchestrator.errors import BootError, InfraError, OrchestratorError, UsageError
from orchestrator.guest import initramfs, ktap, module
from orchestrator.kernel.model import Kernel, KernelRequest
from orchestrator.kernel.obtain import obtain
from orchestrator.machine import accel
from orchestrator.machine.faults import KernelFault, TimedOut
from orchestrator.machine.machine import Machine
from orchestrator.machine.qemu import MAX_SMP, MachineSpec
from orchestrator.machine.ssh import Keys
from orchestrator.paths import state_dir
from orchestrator.scenario import Scenario, select
from orchestrator.verdict.evidence import Evidence, StepSeen
from orchestrator.verdict.outcome import Verdict, judge
from orchestrator.watch import model
from orchestrator.watch.ledger import Ledger
from orchestrator.watch.watch import SYMBOLS, Watch

POKE = ("smp_text_poke_single", "text_poke_bp")
"""The function that pokes one site, newest kernels first (renamed in 6.16)."""
BOOT_SECONDS = 300
STEP_SECONDS = 600
"""For all of a part's steps; a guest that makes no progress is given up much sooner."""
SILENCE_SECONDS = 60
"""Without a console line, an event of GDB's or an int3 anywhere. A step takes about a second, and the guest's own gate
gives up after 30 seconds of its own time."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What to run. Everything that decides a run's course is in here; the run directory keeps it as spec.json.

    smp: CPUs. accel: one of machine.accel.CHOICES. cpu: QEMU's model, None for the accelerator's. memory: MiB.
    scenarios: names or shell patterns, none for all. duration: seconds of the free-running part, all scenarios
    together. seed: fixes every random choice. qemu: a binary to use instead of our own. directory: for the results.
    """

    kernel: KernelRequest = field(default_factory=KernelRequest)
    smp: int = 8
    accel: str = "auto"
    cpu: str | None = None
    memory: int = 1024
    scenarios: tuple[str, ...] = ()
    duration: float = 3.0
    seed: int = 1
    qemu: Path | None = None
    directory: Path | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.smp <= MAX_SMP:
            raise UsageError(f"--smp takes 1 to {MAX_SMP}, not {self.smp}")
        if not 0 < self.duration < float("inf"):
            raise UsageError(f"--duration takes seconds greater than 0, not {self.duration:g}")


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


def run(spec: RunSpec) -> RunResult:
    """Run one cell. Never raises for what the verdict can say; a wrong request raises UsageError before anything."""
    scenarios = select(spec.scenarios)
    directory = _run_directory(spec)
    evidence = Evidence(asked=spec.smp, planned=3 * len(scenarios))
    kernel: Kernel | None = None
    machine_spec: MachineSpec | None = None
    ui.durations.clear()
    try:
        kernel = obtain(spec.kernel)
        _check_cpus(spec, kernel)
        with ui.step("building the guest image"):
            keys = Keys.fresh()
            image = _guest_image(kernel, keys, directory)
        with ui.step("choosing the accelerator"):
            machine_spec, ledger = _machine_spec(spec, kernel, image, directory)
        ui.say(f"accelerator: {machine_spec.accel.option} ({machine_spec.accel.why})")
        with Machine(machine_spec, directory, keys) as machine:
            try:
                _observe(machine, ledger, scenarios, spec, directory, evidence)
            finally:
                evidence.findings = list(machine.console.scanner.findings)
                evidence.unscanned = machine.console.scanner.blind
    except UsageError:
        _forget(directory)
        raise
    except OrchestratorError as error:
        evidence.broken = error
    verdict = judge(evidence)
    result = RunResult(
        spec=spec,
        directory=directory,
        kernel=kernel,
        machine=machine_spec,
        evidence=evidence,
        verdict=verdict,
        seconds=dict(ui.durations),
    )
    _write_verdict(result)
    return result


# -- before the guest


def _run_directory(spec: RunSpec) -> Path:
    """A new directory for the run, with what is asked and a script that asks it again."""
    name = re.sub(r"[^\w.]+", "-", spec.kernel.tree.name if spec.kernel.tree else spec.kernel.selector)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    directory = spec.directory or state_dir() / "runs" / f"{stamp}-{name}-smp{spec.smp}-{secrets.token_hex(2)}"
    if directory.exists() and any(directory.iterdir()):
        raise UsageError(f"{directory} is not empty: a run keeps its results in a directory of its own")
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "spec.json").write_text(json.dumps(asdict(spec), indent=1, default=str) + "\n")
    words = sys.argv[1:]
    taken = [at for at, word in enumerate(words) if word == "--output"]
    arguments = [
        word
        for at, word in enumerate(words)
        if at not in taken and at - 1 not in taken and not word.startswith("--output=")
    ]
    script = directory / "repeat.sh"
    script.write_text(
        "#!/bin/sh\n# Repeats this run: the same kernel, machine, scenarios and seed.\n"
        f"cd {shlex.quote(str(Path.cwd()))} || exit\n"
        f"exec {shlex.join([sys.executable, '-m', 'orchestrator', *arguments])}\n"
    )
    script.chmod(0o755)
    return directory


def _forget(directory: Path) -> None:
    """Remove what _run_directory() made: a wrong request is no run. What somebody else put there stays."""
    for name in ("spec.json", "repeat.sh", "initramfs.cpio"):
        (directory / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        directory.rmdir()


def _check_cpus(spec: RunSpec, kernel: Kernel) -> None:
    if kernel.option("SMP") != "y" and spec.smp > 1:
        raise UsageError(f"{kernel.name} is built without CONFIG_SMP: use --smp 1, or another kernel")
    limit = int(kernel.option("NR_CPUS") or "1")
    if spec.smp > limit:
        raise UsageError(f"{kernel.name} is built for {limit} CPUs (CONFIG_NR_CPUS): use --smp {limit} or less")


def _guest_image(kernel: Kernel, keys: Keys, directory: Path) -> Path:
    files: dict[str, bytes | Path] = {**keys.guest_files(), f"/{module.NAME}": module.build(kernel)}
    return initramfs.build(
        directory / "initramfs.cpio", busybox=tools.busybox(), dropbear=tools.dropbear(), files=files
    )


def _machine_spec(spec: RunSpec, kernel: Kernel, image: Path, directory: Path) -> tuple[MachineSpec, Ledger]:
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
        options=ledger.options,
    )
    return machine, ledger


# -- in the guest


def _observe(
    machine: Machine,
    ledger: Ledger,
    scenarios: Sequence[Scenario],
    spec: RunSpec,
    directory: Path,
    evidence: Evidence,
) -> None:
    """Boot, poke, and collect what every observer saw, as far as it goes."""
    try:
        with ui.step("booting"), _not_silent(machine, directory, SILENCE_SECONDS):
            machine.cont()
            machine.wait_ready(BOOT_SECONDS)
            evidence.cpus = _online(machine)
        with ui.step("loading the test module"):
            symbols = _load_module(machine)
    except (TimedOut, KernelFault) as error:
        raise BootError(f"{error}, before anything was poked") from error
    with Watch(machine, symbols, directory) as watch:
        try:
            _poke_everything(machine, watch, ledger, scenarios, spec, directory, evidence)
        except (TimedOut, KernelFault) as error:
            _say_why(machine, watch, directory, error)
        finally:
            if not isinstance(sys.exc_info()[1], KeyboardInterrupt):  # which does not wait for a guest that may hang
                _collect(machine, directory, evidence)


def _online(machine: Machine) -> tuple[int, ...]:
    text = machine.ssh.get("/sys/devices/system/cpu/online").decode().strip()
    cpus: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return tuple(cpus)


def _symbols(machine: Machine, names: Sequence[str]) -> dict[str, int]:
    """Addresses by name, from the guest's own symbol table; names that it does not have are left out."""
    pattern = "|".join(names)
    _, text = machine.ssh.run(f"grep -E ' [a-zA-Z] ({pattern})([[:space:]]|$)' /proc/kallsyms")
    found = {line.split()[2]: int(line.split()[0], 16) for line in text.splitlines() if len(line.split()) >= 3}
    if found and not any(found.values()):
        raise BootError("the guest's /proc/kallsyms has no addresses")
    return found


def _load_module(machine: Machine) -> dict[str, int]:
    """Load the test module with the addresses that it needs; those that the watch needs are returned."""
    hidden = _symbols(machine, (*POKE, "text_mutex"))
    poke = next((name for name in POKE if name in hidden), None)
    if poke is None or "text_mutex" not in hidden:
        raise BootError(f"this kernel has none of {', '.join(POKE)} or no text_mutex: there is nothing to test")
    status, said = machine.ssh.run(
        f"insmod /{module.NAME} text_poke={hidden[poke]:#x} text_mutex={hidden['text_mutex']:#x}"
    )
    if status:
        raise BootError(f"the guest does not load the test module: {said.strip()}")
    return _symbols(machine, SYMBOLS)


@contextlib.contextmanager
def _not_silent(machine: Machine, directory: Path, seconds: float) -> Iterator[None]:
    """Raise TimedOut from any wait for the guest in the block when no observer has seen anything new for `seconds`."""
    events = directory / "events.jsonl"
    last: tuple[int, int] = (-1, -1)
    since = time.monotonic()

    def listen() -> None:
        nonlocal last, since
        now = (len(machine.console.lines), events.stat().st_size if events.exists() else 0)
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > seconds:
            raise TimedOut("a sign of life from the guest", seconds)

    machine.tend.append(listen)
    try:
        yield
    finally:
        machine.tend.remove(listen)


def _tell(machine: Machine, directory: Path, lines: Sequence[str], seconds: float) -> None:
    """Give the test module its commands, one after the other, which take `seconds` by themselves."""
    with _not_silent(machine, directory, SILENCE_SECONDS + seconds):
        _tell_all(machine, lines, STEP_SECONDS + 4 * seconds)


def _tell_all(machine: Machine, lines: Sequence[str], timeout: float) -> None:
    script = 'while read -r line; do echo "$line" > /dev/orchestrator || { echo "$line"; exit 1; }; done'
    status, said = machine.ssh.run(script, timeout, stdin="".join(f"{line}\n" for line in lines).encode())
    if status:
        raise InfraError(f"the test module refused a command: {' '.join(said.split())}")


def _poke_everything(
    machine: Machine,
    watch: Watch,
    ledger: Ledger,
    scenarios: Sequence[Scenario],
    spec: RunSpec,
    directory: Path,
    evidence: Evidence,
) -> None:
    """The gated part, every scenario there and back, then the free-running part with no breakpoint set."""
    dice = random.Random(spec.seed)
    gated, free = [], []
    milliseconds = max(1, round(1000 * spec.duration / len(scenarios)))
    for scenario in scenarios:
        site = f"step site={scenario.site} how={scenario.how}"
        for _ in ("on", "off"):
            poker = dice.choice(evidence.cpus)
            gated.append(f"{site} gated=1 passes={scenario.passes} cpu={poker}")
            evidence.steps.append(StepSeen(scenario=scenario, gated=True, poker=poker, guest=None))
    for scenario in scenarios:
        poker = dice.choice(evidence.cpus)
        free.append(f"step site={scenario.site} how={scenario.how} ms={milliseconds} cpu={poker}")
        evidence.steps.append(StepSeen(scenario=scenario, gated=False, poker=poker, guest=None))
    evidence.no_qemu_ledger, evidence.qemu_by_cpu = ledger.why_not, ledger.by_cpu
    before = ledger.read()
    with ui.step("gated: holding the poker in each phase"), watch.window():
        evidence.points = tuple(watch.points)
        _tell(machine, directory, [f"plan {evidence.planned}", *gated], 0)
    between = ledger.read()
    evidence.qemu_gated = between - before
    with ui.step("free: poking as fast as it goes"):
        _tell(machine, directory, free, spec.duration)
    evidence.qemu_free = ledger.read() - between


def _collect(machine: Machine, directory: Path, evidence: Evidence) -> None:
    """Put together what the guest and GDB saw of each step; a guest that is gone has still said it on the console."""
    try:
        text = machine.ssh.get("/dev/orchestrator", timeout=30).decode()
    except OrchestratorError:
        text = "\n".join(machine.console.lines)
    (directory / "guest.ktap").write_text(text)
    evidence.report = ktap.parse(text.splitlines())
    events_file = directory / "events.jsonl"
    events = [json.loads(line) for line in events_file.read_text().splitlines()] if events_file.exists() else []
    pokes = model.by_poke(events)
    for number, step in enumerate(evidence.steps):
        guest = evidence.report.step(number + 1)
        watched = None
        if step.gated and not (guest and guest.skip):
            # Without the guest's own account the pokes are still in the order of the steps.
            seq = guest.integer("seq") if guest else min((s for s in pokes if s), default=0)
            watched = model.follow(pokes.pop(seq, []) if seq else [], evidence.cpus, _targets(guest))
        evidence.steps[number] = replace(step, guest=guest, watched=watched)


def _targets(guest: ktap.Step | None) -> tuple[int, ...]:
    """Where a CPU that trapped may go on, by the guest's account of the site."""
    return tuple(int(address, 16) for address in guest.values.get("targets", "").split(",") if address) if guest else ()


def _say_why(machine: Machine, watch: Watch, directory: Path, error: TimedOut | KernelFault) -> None:
    """Look at the CPUs of a guest that does not go on, and raise what that tells."""
    cpus = watch.look()
    (directory / "cpus.json").write_text(json.dumps(cpus, indent=1) + "\n")
    if isinstance(error, KernelFault):
        raise error
    for entry in watch.survey(2.0):
        if entry["traps"] > 20 and not entry["int3"]:
            error.outcome = "hang"
            where = f"CPU {entry['cpu']} traps for ever at {entry['ip']:x}, where memory holds no int3"
            error.args = (f"{where} ({error})",)
    try:
        machine.ssh.run("true", 30)
    except TimedOut:
        error.outcome = "hang"
    raise error


# -- after the guest


def _write_verdict(result: RunResult) -> None:
    verdict = result.verdict
    content = {
        "outcome": verdict.outcome,
        "reason": verdict.reason,
        "exit_status": verdict.exit_status,
        "kernel": None
        if result.kernel is None
        else {"name": result.kernel.name, "release": result.kernel.release, "digest": result.kernel.digest}
        | {"origin": result.kernel.origin},
        "checks": [asdict(check) for check in verdict.results],
        "seconds": {name: round(seconds, 3) for name, seconds in result.seconds.items()},
    }
    (result.directory / "verdict.json").write_text(json.dumps(content, indent=1) + "\n")



