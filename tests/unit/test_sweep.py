"""A sweep: what a matrix asks for, in which order, how much at a time, and what is known already. No kernel is run: the
child is a script that leaves the verdict that its arguments ask for."""

from __future__ import annotations

import json
import re
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator import cli
from orchestrator.errors import InfraError, UsageError
from orchestrator.host.paths import locked
from orchestrator.kernel.model import KernelRequest
from orchestrator.kernel.obtain import place as place_of
from orchestrator.many import history
from orchestrator.many.children import Children
from orchestrator.many.sweep import matrix, sweep, task
from orchestrator.many.sweep.matrix import Cell
from orchestrator.many.sweep.place import BESIDE_GUEST, Cluster, LocalHost, Room
from orchestrator.many.sweep.sweep import CellResult, Sweep, exit_status, pick
from orchestrator.many.sweep.task import CellAnswer, CellTask
from orchestrator.report import sweep as report

PROGRAM = """
import json, pathlib, sys, time
words = sys.argv[1:]
option = dict(zip(words[1::2], words[2::2]))
output = pathlib.Path(option["--output"])
output.mkdir(parents=True)
rules = json.loads((pathlib.Path(__file__).parent / "rules.json").read_text())
with (pathlib.Path(__file__).parent / "ran").open("a") as log:
    log.write(f"{option['--kernel']} smp{option['--smp']} seed{option['--seed']}\\n")
rule = rules.get(f"{option['--kernel']} smp{option['--smp']}", "pass")
if rule == "usage":
    print("orchestrator: it is built for 1 CPU", file=sys.stderr)
    sys.exit(129)
if rule == "sleep":
    time.sleep(60)
status = {"pass": 0, "fail": 1}.get(rule, 125)
checks = [{"check": "sync", "status": "fail", "text": "", "details": []}] if rule == "fail" else []
kernel = {"name": option["--kernel"], "release": "6.1.176", "digest": "digest of " + option["--kernel"], "origin": {}}
told = {"outcome": rule, "reason": "why", "exit_status": status, "kernel": kernel, "checks": checks}
(output / "verdict.json").write_text(json.dumps(told))
(output / "report.html").write_text("<p>")
(output / "initramfs.cpio").write_text("large")
sys.exit(status)
"""


# -- the matrix


def plan_of(folder: Path, text: str) -> matrix.SweepPlan:
    (folder / "m.yaml").write_text(text)
    return matrix.read(folder / "m.yaml")


def test_every_combination_is_a_cell_but_for_what_is_excluded(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path,
        """
        kernels: [6.1-int3, "debian:6.12"]
        smp: [2, 8]
        accel: [tcg, kvm]
        scenarios: ["nop5 key*", hotplug]
        repeats: 2
        seed: 5
        duration: 1
        exclude: [{kernel: "debian:*", smp: 8}, {accel: kvm}]
        """,
    )
    assert len(plan.cells) == (2 * 2 * 1 * 2 - 2) * 2
    cell = plan.cells[0]
    assert cell.name == "6.1-int3 smp2 tcg nop5 key* seed5"
    words = (
        "--smp 2 --accel tcg --memory 1024 --duration 1 --seed 5 --scenario nop5 --scenario key*"
    )
    assert " ".join(cell.arguments()) == words
    assert {cell.smp for cell in plan.cells if cell.kernel == "debian:6.12"} == {2}
    assert {cell.seed for cell in plan.cells} == {5, 6}


def test_a_row_may_be_a_tree_or_a_kernel_with_patches_with_paths_from_the_files_folder(
    tmp_path: Path,
) -> None:
    (tmp_path / "linux").mkdir()
    (tmp_path / "fix.patch").write_text("")
    plan = plan_of(
        tmp_path,
        "kernels: [{tree: linux, set: [CONFIG_X=y]}, {name: fixed, kernel: 6.1-plain, patches: [fix.patch]},"
        "{bzimage: fix.patch, headers: linux}]",
    )
    assert plan.kernels == {
        "linux": KernelRequest(tree=tmp_path / "linux", settings=("CONFIG_X=y",)),
        "fixed": KernelRequest(selector="6.1-plain", patches=(tmp_path / "fix.patch",)),
        "fix.patch": KernelRequest(bzimage=tmp_path / "fix.patch", headers=tmp_path / "linux"),
    }
    assert [cell.name for cell in plan.cells] == [
        "linux smp8 seed1",
        "fixed smp8 seed1",
        "fix.patch smp8 seed1",
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("kernels: [6.1]", 'kernels.0: 6.1 is a number to YAML, write it in quotes: "6.1"'),
        ("kernel: [6.1-int3]", "kernel: unknown key (did you mean kernels?)"),
        ("smp: [2]", "kernels: is missing"),
        ("kernels: []", "kernels: List should have at least 1 item"),
        ("kernels: [6.1-int]", "kernels: unknown kernel 6.1-int (did you mean 6.1-int3?)"),
        ("kernels: [6.1-int3, 6.1-int3]", "two are called 6.1-int3"),
        (
            "kernels: [{name: x}]",
            "kernels.0: a kernel is a name (kernel: 6.1-plain), a source tree",
        ),
        ("kernels: [{kernel: 6.1-int3, headers: x}]", "kernels.0: headers belong to a bzimage"),
        (
            "kernels: [{kernel: 6.1-int3, patch: [x]}]",
            "kernels.0.patch: unknown key (did you mean patches?)",
        ),
        ("kernels: [{kernel: 6.1-int3, patches: [x]}]", "6.1-int3: patches: there is no"),
        (
            "kernels: [6.1-int3]\nsmp: [2, 65]",
            "smp.1: Input should be less than or equal to 64, not 65",
        ),
        ("kernels: [6.1-int3]\nsmp: 2", "smp: Input should be a valid list, not 2"),
        ("kernels: [6.1-int3]\nsmp: [2, 2]", "asks twice for 6.1-int3 smp2 seed1"),
        ("kernels: [6.1-int3]\naccel: [xen]", "accel.0: Input should be 'auto', 'kvm'"),
        (
            "kernels: [6.1-int3]\nscenarios: [nop6]",
            "scenarios: no scenario is called nop6 (did you mean nop5?)",
        ),
        (
            "kernels: [6.1-int3]\nrepeats: 0",
            "repeats: Input should be greater than or equal to 1, not 0",
        ),
        ("kernels: [6.1-int3]\nexclude: [{smp: 4}]", "exclude.0: matches no cell"),
        ("kernels: [6.1-int3]\nexclude: [{smp: 8}]", "exclude: leaves no cell"),
        (
            "kernels: [6.1-int3]\nexclude: [{cpus: 8}]",
            "exclude.0.cpus: unknown key (did you mean cpu?)",
        ),
        ("- 6.1-int3", "a matrix is a mapping"),
        ("kernels: [", "not YAML"),
    ],
)
def test_mistakes_are_one_sentence_with_file_and_key(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        plan_of(tmp_path, text)
    assert says in str(caught.value) and str(tmp_path / "m.yaml") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "file", sorted((matrix.definition.DEFINITIONS / "sweeps").glob("*.yaml")), ids=str
)
def test_our_own_matrices_are_good(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for tree in re.findall(r"tree: ~/([^,}]+)", file.read_text()):
        (tmp_path / tree).mkdir(parents=True)
    assert matrix.read(file).cells


def test_wrong_usage_ends_with_129(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep", str(tmp_path / "none.yaml")]) == 129
    assert "there is no matrix" in capsys.readouterr().err
    (tmp_path / "m.yaml").write_text("kernels: [6.1-int3]")
    assert cli.main(["sweep", str(tmp_path / "m.yaml"), "--jobs", "0"]) == 129
    assert cli.main(["sweep", str(tmp_path / "m.yaml"), "--output", str(tmp_path)]) == 129
    assert "is not empty, and no sweep's" in capsys.readouterr().err


# -- what fits


def cell(kernel: str = "k", smp: int = 2, **other: Any) -> Cell:
    usual: dict[str, Any] = {
        "accel": "tcg",
        "cpu": None,
        "scenarios": ("*",),
        "seed": 1,
        "duration": 1.0,
    }
    return Cell(kernel=kernel, smp=smp, **{**usual, "memory": 1024, **other})


def test_a_guest_under_tcg_takes_a_core_and_one_with_threads_takes_one_for_each_cpu() -> None:
    host = LocalHost()
    assert host.need(cell(smp=8)) == Room(1, 1024 + BESIDE_GUEST)
    assert (
        host.need(cell(smp=8, accel="kvm")).cores
        == host.need(cell(smp=8, accel="tcg-multi")).cores
        == 8
    )
    assert host.room().cores >= 1 and host.room().memory > 0
    jobs = LocalHost(3)
    assert jobs.room() == Room(3, 0) and jobs.need(cell(smp=8, accel="kvm")) == Room(1, 0)


@pytest.mark.parametrize(
    ("needs", "room", "used", "picked"),
    [
        ([(1, 1), (1, 1), (1, 1)], (2, 9), (0, 0), [0, 1]),
        ([(1, 5), (1, 5), (1, 1)], (4, 6), (0, 0), [0, 2]),  # memory; what is smaller passes
        ([(8, 1), (1, 1)], (2, 9), (1, 1), [1]),
        ([(8, 1), (1, 1)], (2, 9), (0, 0), [0]),  # larger than the host: alone
        ([(1, 1)], (2, 9), (2, 2), []),
        ([(1, 1)], (0, 0), (0, 0), []),  # a cluster without workers
    ],
)
def test_what_is_picked_fits(
    needs: list[tuple[int, int]], room: tuple[int, int], used: tuple[int, int], picked: list[int]
) -> None:
    cells = [cell(seed=seed) for seed in range(len(needs))]
    got = pick(cells, lambda one: Room(*needs[one.seed]), Room(*room), Room(*used))
    assert [one.seed for one in got] == picked


# -- running

REAL_CALL = Children.call


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the script that is run in place of orchestrator; kernels are what their names say."""
    (tmp_path / "program.py").write_text(PROGRAM)
    rule(tmp_path)
    program = (sys.executable, str(tmp_path / "program.py"))
    children = Children()
    run = children.run
    monkeypatch.setattr(
        children, "run", lambda *words, **options: run(*words, **{**options, "program": program})
    )
    monkeypatch.setattr(task, "CHILDREN", children)
    monkeypatch.setattr(sweep, "PROGRAM", program)
    monkeypatch.setattr(task, "program", lambda: "program 1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        sweep, "identify", lambda request: (f"digest of {request.selector}", tmp_path)
    )
    monkeypatch.setattr(history, "expected", lambda digest, kernel, smp: (float(smp), False))
    return tmp_path


def rule(world: Path, **outcomes: str) -> None:
    """What becomes of KERNEL_SMP: pass unless said otherwise."""
    words = {name.replace("_", " ").replace("int3", "6.1-int3").replace("plain", "6.1-plain"): outcome
             for name, outcome in outcomes.items()}  # fmt: skip
    (world / "rules.json").write_text(json.dumps(words))


def ran(world: Path) -> list[str]:
    """What was run since it was asked last."""
    log = world / "ran"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def cells(*smp: int, repeats: int = 1) -> matrix.SweepPlan:
    kernels = {name: KernelRequest(selector=name) for name in ("6.1-int3", "6.1-plain")}
    every = [
        cell(name, one, seed=seed)
        for name in kernels
        for one in smp
        for seed in range(1, repeats + 1)
    ]
    return matrix.SweepPlan(kernels, tuple(every))


def outcomes(results: dict[Cell, CellResult]) -> dict[str, str]:
    return {f"{one.kernel} smp{one.smp}": result.outcome for one, result in results.items()}


def test_a_sweep_goes_on_where_it_was_and_what_said_nothing_is_run_again(world: Path) -> None:
    rule(world, int3_smp2="fail", plain_smp4="infra")
    results = Sweep(cells(2, 4), world / "out", LocalHost(2)).run()
    assert outcomes(results) == {
        "6.1-int3 smp2": "fail", "6.1-int3 smp4": "pass", "6.1-plain smp2": "pass", "6.1-plain smp4": "infra"
    }  # fmt: skip
    assert exit_status(results) == 1
    assert len(ran(world)) == 4
    failed = next(result for result in results.values() if result.outcome == "fail")
    assert failed.failed == ("sync",) and (Path(failed.directory) / "report.html").exists()
    again = Sweep(cells(2, 4), world / "out", LocalHost(2)).run()
    assert ran(world) == ["6.1-plain smp4 seed1"]
    assert [result.kept for result in again.values()] == [True, True, True, False]
    assert outcomes(again) == outcomes(results)
    Sweep(cells(2, 4), world / "out", LocalHost(2), again=True).run()
    assert len(ran(world)) == 4


def test_a_cell_that_its_kernel_cannot_be_asked_for_is_no_verdict(world: Path) -> None:
    rule(world, int3_smp4="usage")
    results = Sweep(cells(2, 4), world / "out", LocalHost(2)).run()
    assert outcomes(results)["6.1-int3 smp4"] == "build-error" and exit_status(results) == 125
    assert "it is built for 1 CPU" in [result.reason for result in results.values()]


def test_a_sweep_is_not_run_twice_at_a_time(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "m.yaml").write_text("kernels: [6.1-int3]\nsmp: [2]")
    words = ["sweep", str(world / "m.yaml"), "--output", str(world / "out"), "--jobs", "1"]
    with locked(world / "out" / "cells" / ".lock"):
        assert cli.main(words) == 129
    assert "the same sweep is under way in another process" in capsys.readouterr().err
    assert cli.main(words) == 0
    assert "1 of 1 cells passed" in capsys.readouterr().out
    assert {"sweep.html", "sweep.json", "junit.xml"} <= {
        path.name for path in (world / "out").iterdir()
    }


def test_another_kernel_or_program_is_another_cell(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        Sweep(cells(2), world / "out", LocalHost(1)).run()
    assert len(ran(world)) == 2
    monkeypatch.setattr(task, "program", lambda: "program 2")
    Sweep(cells(2), world / "out", LocalHost(1)).run()
    assert len(ran(world)) == 2
    monkeypatch.setattr(
        sweep, "identify", lambda request: (f"digest of the new {request.selector}", world)
    )
    for _ in range(2):  # the run tells another digest than was asked for: shown, and not kept
        Sweep(cells(2), world / "out", LocalHost(1)).run()
        assert len(ran(world)) == 2


def test_what_failed_the_last_time_comes_first_and_then_the_longest(world: Path) -> None:
    rule(world, plain_smp2="fail")
    first = Sweep(cells(2, 4, 1), world / "out", LocalHost(1))
    assert [one.smp for one in first._waiting] == [4, 4, 2, 2, 1, 1]
    results = first.run()
    report.write(results, 1.0, world / "out")
    ran(world)
    Sweep(cells(2, 4, 1), world / "out", LocalHost(1), again=True).run()
    assert ran(world)[:2] == ["6.1-plain smp2 seed1", "6.1-int3 smp4 seed1"]


def test_a_failure_in_the_history_counts_until_a_sweep_knows_better(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "expected", lambda digest, kernel, smp: (None, smp == 1))
    assert [one.smp for one in Sweep(cells(4, 1), world / "out", LocalHost(1))._waiting] == [
        1,
        1,
        4,
        4,
    ]


def test_a_kernel_that_has_to_be_built_does_not_hold_up_the_others(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = world / "built"
    monkeypatch.setattr(
        sweep, "identify",
        lambda request: (f"digest of {request.selector}", where if request.selector == "6.1-int3" else world),
    )  # fmt: skip
    before: list[str] = []

    def call(self: Children, command: list[str], log: Path, **options: Any) -> int | None:
        if "kernels" not in command:
            return REAL_CALL(self, command, log, **options)
        end = time.monotonic() + 20
        while (
            len(before) < 2 and time.monotonic() < end
        ):  # this build takes until the others have run
            before.extend(ran(world))
            time.sleep(0.05)
        where.mkdir()  # which fails if it is built twice
        log.write_text("")
        return 0

    monkeypatch.setattr(Children, "call", call)
    results = Sweep(cells(2, 4), world / "out", LocalHost(2)).run()
    assert set(outcomes(results).values()) == {"pass"}
    assert sorted(before) == ["6.1-plain smp2 seed1", "6.1-plain smp4 seed1"]
    assert sorted(ran(world)) == ["6.1-int3 smp2 seed1", "6.1-int3 smp4 seed1"]


def test_what_cannot_be_built_is_said_and_the_rest_runs(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sweep, "identify",
        lambda request: (f"digest of {request.selector}", world / ("no" if request.selector == "6.1-int3" else "")),
    )  # fmt: skip

    def call(self: Children, command: list[str], log: Path, **options: Any) -> int | None:
        if "kernels" not in command:
            return REAL_CALL(self, command, log, **options)
        log.write_text("  … build\norchestrator: 6.1-int3 does not build:\nx.c:1: error: y\n")
        return 125

    monkeypatch.setattr(Children, "call", call)
    results = Sweep(cells(2), world / "out", LocalHost(1)).run()
    assert outcomes(results) == {"6.1-int3 smp2": "build-error", "6.1-plain smp2": "pass"}
    assert next(iter(results.values())).reason == "6.1-int3 does not build: x.c:1: error: y"
    assert exit_status(results) == 125


def test_a_kernel_that_cannot_be_looked_up_is_no_verdict_and_a_wrong_one_is_wrong_usage(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identify(request: KernelRequest) -> tuple[str, Path]:
        if request.selector == "6.1-int3":
            raise error
        return f"digest of {request.selector}", world

    monkeypatch.setattr(sweep, "identify", identify)
    error: Exception = InfraError("the mirror does not answer")
    results = Sweep(cells(2), world / "out", LocalHost(1)).run()
    assert [result.reason for result in results.values()] == ["the mirror does not answer", "why"]
    error = UsageError("there is no such kernel")
    with pytest.raises(UsageError):
        Sweep(cells(2), world / "out", LocalHost(1))


def test_ctrl_c_ends_what_is_under_way(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule(world, int3_smp2="sleep", plain_smp2="sleep")
    running = Sweep(cells(2), world / "out", LocalHost(2))

    def interrupt(*words: Any) -> None:
        if (world / "ran").exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(running, "_progress", interrupt)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        running.run()
    assert time.monotonic() - start < 20
    assert not task.CHILDREN._running


# -- elsewhere


class Elsewhere:
    """Workers with a cache and directories of their own, as threads; those whose turn is in `dies` are killed."""

    remote = True

    def __init__(self, dies: Callable[[int], bool] = lambda turn: False) -> None:
        self.executor: Executor = self
        self.dies, self.turn = dies, 0
        self.parcels: list[bytes] = []
        self._pool = ThreadPoolExecutor(2)

    def submit(self, function: Any, *arguments: Any) -> Future[CellAnswer]:
        self.turn += 1
        if self.dies(self.turn):
            return self._pool.submit(self._die)
        return self._pool.submit(function, *arguments)

    def _die(self) -> CellAnswer:
        raise ConnectionError("the worker is gone")

    def room(self) -> Room:
        return Room(2, 0)

    def need(self, cell: Cell) -> Room:
        return Room(1, 0)

    def parcel(self, digest: str, packed: bytes) -> Any:
        self.parcels.append(packed)
        return packed

    def stop(self, running: list[Future[CellAnswer]]) -> None:
        self.close()

    def close(self) -> None:
        self._pool.shutdown()


def test_what_a_worker_saw_comes_back(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(world / "state"))
    rule(world, int3_smp2="fail")
    results = Sweep(cells(2), world / "out", Elsewhere()).run()
    assert outcomes(results) == {"6.1-int3 smp2": "fail", "6.1-plain smp2": "pass"}
    for result in results.values():
        files = {path.name for path in Path(result.directory).iterdir()}
        assert files == {"verdict.json", "report.html"}, "the guest's image is not sent"
    assert not list((world / "state" / "orchestrator").glob("cell-*")), "the worker keeps nothing"


def test_a_cell_whose_worker_dies_is_run_elsewhere_but_not_for_ever(world: Path) -> None:
    results = Sweep(cells(2), world / "out", Elsewhere(lambda turn: turn in (1, 2))).run()
    assert set(outcomes(results).values()) == {"pass"}
    results = Sweep(cells(4), world / "out", Elsewhere(lambda turn: True)).run()
    assert {result.reason for result in results.values()} == {
        "it cannot be run: ConnectionError: the worker is gone"
    }
    assert exit_status(results) == 125


def test_a_worker_that_lacks_a_built_kernel_is_sent_it(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = "ab" * 32
    made = world / "made"
    (made / "kbuild").mkdir(parents=True)
    (made / "bzImage").write_text("an image")
    (made / "kbuild" / "link").symlink_to("../bzImage")
    monkeypatch.setattr(sweep, "identify", lambda request: (digest, made))
    request = KernelRequest(selector="6.1-int3", settings=("CONFIG_X=y",))
    plan = matrix.SweepPlan({"mine": request}, (cell("mine"), cell("mine", 4)))
    there = Elsewhere()
    Sweep(plan, world / "out", there).run()
    assert sorted(ran(world)) == [f"built:{digest} smp2 seed1", f"built:{digest} smp4 seed1"]
    assert there.parcels
    assert (place_of(digest) / "kbuild" / "link").read_text() == "an image"
    sent = len(there.parcels)
    Sweep(plan, world / "out", there2 := Elsewhere(), again=True).run()
    assert sent and not there2.parcels, "it has it now"


def test_a_worker_with_another_program_refuses(world: Path) -> None:
    asked = CellTask(
        arguments=(),
        kernel=("--kernel", "k"),
        built=None,
        program="program 0",
        directory=str(world),
    )
    assert "another version of orchestrator" in task.perform(asked).why
    assert not ran(world)


def test_without_dask_and_without_a_scheduler_there_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"pip install 'orchestrator\[dask\]'"):
        Cluster("tcp://127.0.0.1:1")


def test_an_address_is_one_of_dasks() -> None:
    pytest.importorskip("distributed")
    for wrong in ("nonsense", "http://host:8786", "tcp://host"):
        with pytest.raises(UsageError, match=f"tcp://HOST:PORT, not {wrong}"):
            Cluster(wrong)


# -- what is told


def test_the_exit_status_is_1_when_a_kernel_failed_and_125_when_one_could_not_be_tested() -> None:
    def status(*statuses: int) -> int:
        return exit_status(
            {cell(seed=seed): CellResult("x", one, "") for seed, one in enumerate(statuses)}
        )

    assert [status(0, 0), status(0, 1, 125), status(0, 125)] == [0, 1, 125]


def test_the_table_and_the_files_say_everything(tmp_path: Path) -> None:
    run = tmp_path / "cells" / "x" / "run"
    run.mkdir(parents=True)
    (run / "report.html").write_text("")
    good, bad = (
        CellResult("pass", 0, "held", seconds=2.0),
        CellResult("oops", 1, "<oops>", ("console",), directory=str(run)),
    )
    results = {
        cell("a", 2): good, cell("a", 8): good,
        cell("b", 2): good, cell("b", 2, seed=2): bad, cell("b", 8): CellResult("infra", 125, "GDB ended"),
    }  # fmt: skip
    with Console(width=120, record=True, file=(tmp_path / "terminal").open("w")) as console:
        report.show(results, 60.0, console)
    text = console.export_text()
    assert text.index(" b ") < text.index(" a "), "what failed comes first"
    assert (
        "1 pass 1 FAIL" in text
        and "no verdict" in text
        and "smp8" in text
        and "tcg" not in text.split("FAIL")[0]
    )
    assert f"FAIL  b smp2 tcg seed2: <oops>\n      {run}\n" in text
    assert text.index("oops") < text.index("GDB ended")
    assert "3 of 5 cells passed, 1 failed, 1 without a verdict; 1.0 min" in text
    report.write(results, 60.0, tmp_path)
    assert 'href="cells/x/run/report.html"' in (tmp_path / "sweep.html").read_text()
    assert "&lt;oops&gt;" in (tmp_path / "sweep.html").read_text()
    told = json.loads((tmp_path / "sweep.json").read_text())
    assert [one["exit_status"] for one in told["cells"]] == [0, 0, 0, 1, 125]
    suites = ET.fromstring((tmp_path / "junit.xml").read_text()).findall("testsuite")
    counts = [
        (suite.get("name"), suite.get("tests"), suite.get("failures"), suite.get("errors"))
        for suite in suites
    ]
    assert counts == [("a", "2", "0", "0"), ("b", "3", "1", "1")]


def test_how_long_it_takes_is_told_by_what_such_runs_took(world: Path) -> None:
    running = Sweep(cells(2, 4), world / "out", LocalHost(2))
    first = running._waiting.pop(0)
    others = [sweep._RunningCell(running._waiting.pop(0), Room(1, 0))]
    # Expected are 4 s each for these two and 2 s each for those that wait.
    assert running._left(others) == "; 1 running, 2 waiting: about 8 s"
    running._took[first] = 12.0  # three times of what was expected: so will the others
    assert running._left(others) == "; 1 running, 2 waiting: about 24 s"
    running._took.clear()
    running._expected[running._waiting[0]] = None
    assert running._left(others) == "; 1 running, 2 waiting"


def test_the_history_knows_how_long_a_kernel_takes(tmp_path: Path) -> None:
    path = tmp_path / "history.sqlite"
    row = "INSERT INTO run VALUES (NULL, ?, '', ?, '', ?, 2, 'tcg', '', 1, 0, ?, '', ?, ?, '', 0)"
    with history._opened(path) as connection, connection:
        for ended, (digest, outcome, status, seconds) in enumerate(
            [
                ("d1", "pass", 0, 10.0),
                ("d1", "pass", 0, 30.0),
                ("d1", "oops", 1, 20.0),
                ("d2", "infra", 125, 99.0),
            ]
        ):
            connection.execute(row, (ended, "k", digest, outcome, status, seconds))
    assert history.expected("d1", "k", 2, path) == (20.0, True)
    assert history.expected("d2", "k", 2, path) == (20.0, False), (
        "a run without a verdict tells nothing"
    )
    assert history.expected("d1", "other", 8, path) == (None, False)
