# SPDX-License-Identifier: GPL-2.0-only
"""A real guest is booted and saved once, and restored several times."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from orchestrator import branch
from orchestrator.errors import OrchestratorError
from orchestrator.guest import image, ktap
from orchestrator.host import tools
from orchestrator.kernel.model import Kernel
from orchestrator.machine import accel
from orchestrator.machine import snapshot as state
from orchestrator.machine.machine import Machine
from orchestrator.machine.qemu import MachineSpec
from orchestrator.scenarios.scenario import select
from orchestrator.scenarios.steps import plan_steps
from orchestrator.survey import lines_for_steps
from orchestrator.text import symbols
from orchestrator.verdict import model
from orchestrator.verdict.recorded import record
from orchestrator.verdict.recorded.agreement import disagreements
from orchestrator.watch.recorder import RECORD, Recorder
from orchestrator.watch.watch import Watch

pytestmark = pytest.mark.vm

SCENARIOS = ("nop5", "key", "kprobe-beside", "hotplug")
SMP = 4
BUSY = "while :; do :; done"


@pytest.fixture(scope="module")
def qemu() -> tools.Qemu:
    return tools.qemu()


Saved = tuple[branch.Snapshot, MachineSpec]
"""A guest that waits for a plan, and its machine."""


def save(kernel: Kernel, qemu: tools.Qemu, directory: Path) -> Saved:
    directory.mkdir(exist_ok=True)
    scenarios = select(SCENARIOS)
    initrd = image.build(
        directory / "initramfs.cpio", kernel, scenarios, branch.guest_files(scenarios)
    )
    chosen = accel.choose("tcg", qemu)
    spec = MachineSpec(
        qemu=qemu, accel=chosen, bzimage=kernel.bzimage, initrd=initrd, smp=SMP, icount=5
    )
    lines = symbols.of_vmlinux(kernel.vmlinux)
    branch.make(directory, spec, lambda: Recorder(qemu, chosen), lines)
    return branch.load(directory), spec


@pytest.fixture(scope="module")
def saved(kernel: Kernel, qemu: tools.Qemu, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save(kernel, qemu, tmp_path_factory.mktemp("saved"))


@contextlib.contextmanager
def busy(loops: int) -> Iterator[None]:
    """Keep the host busy meanwhile."""
    running = [subprocess.Popen(["sh", "-c", BUSY]) for _ in range(loops)]
    try:
        yield
    finally:
        for loop in running:
            loop.kill()
            loop.wait()


def run(
    saved: Saved,
    kernel: Kernel,
    directory: Path,
    seed: int = 1,
    resume: Callable[[Machine], None] = Machine.cont,
) -> tuple[bytes, str, list[str]]:
    """One branch: the recorder's log, the module's report and the console."""
    directory.mkdir()
    snapshot, spec = saved
    steps = plan_steps(select(SCENARIOS), snapshot.cpus, 0.4, seed)
    steps = [step for step in steps if not step.is_watched]
    commands = f"- plan {len(steps)}\n{lines_for_steps(steps, numbered=True)}"
    lines = symbols.of_vmlinux(kernel.vmlinux)
    recorder = Recorder(spec.qemu, spec.accel)
    with branch.branch(snapshot, spec, directory, recorder, commands, lines, resume) as one:
        one.wait(300)
        records = one.records()
        assert not recorder.lost
        return records.tobytes(), one.report(), [*one.machine.console.lines]


def test_a_branch_carries_out_its_plan_and_repeats_it_beside_busy_loops(
    saved: Saved, kernel: Kernel, tmp_path: Path
) -> None:
    log, report, console = run(saved, kernel, tmp_path / "quiet")
    results = ktap.parse(report.splitlines())
    print(report)
    assert results.planned == len(results.steps) == len(SCENARIOS)
    assert all(step.ok for step in results.steps)
    assert any(line.endswith("orchestrator: companion hotplug 0") for line in console)
    records = np.frombuffer(log, RECORD)
    assert (records["kind"] == record.WRITE).sum() > 100

    with busy(8):
        again = run(saved, kernel, tmp_path / "busy")
    assert (log, report, console) == again

    other = run(saved, kernel, tmp_path / "other", seed=2)
    assert other[0] != log


def test_a_snapshot_that_is_made_again_is_the_same(
    saved: Saved, kernel: Kernel, qemu: tools.Qemu, tmp_path: Path
) -> None:
    with busy(4):
        again = save(kernel, qemu, tmp_path / "again")
    assert run(again, kernel, tmp_path / "second") == run(saved, kernel, tmp_path / "first")


def test_a_guest_that_went_on_before_qemu_took_the_command_is_booted_again(
    saved: Saved,
    kernel: Kernel,
    qemu: tools.Qemu,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a host that does not run QEMU's main thread for a while."""
    made, boots = state.save, 0

    def late(machine: Machine, file: Path, let_go: Callable[[], None], pause: float) -> None:
        nonlocal boots
        boots += 1
        if boots == 1:
            let_go()
            time.sleep(0.1)  # and the guest is far away
        made(machine, file, let_go, pause)

    monkeypatch.setattr(state, "save", late)
    again = save(kernel, qemu, tmp_path / "again")
    assert boots == 2
    assert again[0].course == saved[0].course
    assert run(again, kernel, tmp_path / "second") == run(saved, kernel, tmp_path / "first")


def idle_seconds() -> float:
    """For how long the host's cores have had nothing to do, summed up."""
    return float(Path("/proc/uptime").read_text().split()[1])


def test_when_qemus_main_thread_wakes_up_does_not_matter(
    saved: Saved, kernel: Kernel, tmp_path: Path
) -> None:
    """Each command wakes it up. Some 2,000 of them in a branch changed the course of every other
    one before CPUs waited for that thread."""
    start, idle = time.monotonic(), idle_seconds()
    quiet = run(saved, kernel, tmp_path / "quiet")
    if idle_seconds() - idle < (time.monotonic() - start) / 4:
        pytest.skip("no core of this host is idle: then it may matter (docs/determinism.md)")
    commands = 0

    def cont_and_ask(machine: Machine) -> None:
        Machine.cont(machine)

        def ask() -> None:
            nonlocal commands
            with contextlib.suppress(OrchestratorError, OSError):
                while True:
                    machine.qmp.execute("query-status")
                    commands += 1

        threading.Thread(target=ask, daemon=True).start()

    for number in range(3):
        asked = run(saved, kernel, tmp_path / str(number), resume=cont_and_ask)
        assert asked == quiet
    assert commands > 1000


def test_gdb_watches_a_branch_from_its_first_instruction(
    saved: Saved, kernel: Kernel, tmp_path: Path
) -> None:
    """The gated part needs no boot and no ssh, and both observers agree."""
    snapshot, spec = saved
    steps = [s for s in plan_steps(select(SCENARIOS), snapshot.cpus, 0.4, 1) if s.is_watched]
    commands = f"- plan {len(steps)}\n{lines_for_steps(steps)}"
    recorder = Recorder(spec.qemu, spec.accel)
    lines = symbols.of_vmlinux(kernel.vmlinux)
    with contextlib.ExitStack() as stack:
        watches: list[Watch] = []

        def attach(machine: Machine) -> None:
            watch = Watch(machine, dict(snapshot.addresses), tmp_path, at_once=True)
            watches.append(stack.enter_context(watch))

        stack.enter_context(recorder.gdb())
        one = stack.enter_context(
            branch.branch(snapshot, spec, tmp_path, recorder, commands, lines, attach)
        )
        one.wait(120)
        recording = watches[0].recording()
        results = ktap.parse(one.report().splitlines())
        assert results.whole and all(step.ok for step in results.steps)
        assert not recording.lost
        assert not disagreements(one.records(), recording.events)
        followed = model.by_step(recording.events)
        for step in steps:
            seen = model.follow(followed[step.number], tuple(snapshot.cpus))
            assert not [poke.violations for poke in seen.all_pokes if poke.violations]


STOPS = """set pagination off
target remote {socket}
break *{tick:#x}
commands
silent
enable 2
continue
end
break *{timer:#x}
commands
silent
printf "jiffies %lu\\n", *(unsigned long *){jiffies:#x}
continue
end
disable 2
continue
"""


def test_the_clock_of_a_guest_that_gdb_stops_does_not_leap(
    saved: Saved, kernel: Kernel, tmp_path: Path
) -> None:
    """QEMU counts a stopped CPU as idle. This one is stopped where it is about to set its next
    timer. Without a tick the clock of such a guest leapt by a day."""
    snapshot, spec = saved
    steps = [s for s in plan_steps(select(("nop5",)), snapshot.cpus, 0.2, 1) if not s.is_watched]
    commands = branch.commands_for(steps, None, None, stopped=True)
    lines = symbols.of_vmlinux(kernel.vmlinux)
    addresses = symbols.addresses([*lines, *snapshot.module_symbols])
    said = tmp_path / "gdb.log"
    debuggers: list[subprocess.Popen[bytes]] = []

    def attach(machine: Machine) -> None:
        script = tmp_path / "stops.gdb"
        script.write_text(
            STOPS.format(
                socket=machine.gdb_path,
                tick=addresses["orch_tick_set"],
                timer=addresses["clockevents_program_event"],
                jiffies=addresses["jiffies_64"],
            )
        )
        with said.open("wb") as output:
            command = ["gdb", "-nx", "-quiet", "-batch", "-x", script]
            debuggers.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT))

    recorder = Recorder(spec.qemu, spec.accel)
    with branch.branch(snapshot, spec, tmp_path, recorder, commands, lines, attach) as one:
        one.wait(120)
        assert ktap.parse(one.report().splitlines()).steps[0].ok
    debuggers[0].wait(10)
    jiffies = [int(line.split()[1]) for line in said.read_text().splitlines() if "jiffies" in line]
    leaps = [after - before for before, after in itertools.pairwise(jiffies)]
    assert len(leaps) > 100
    assert max(leaps) < 200  # of 10 ms, as HZ is 100. At the end the guest sleeps for a second.
