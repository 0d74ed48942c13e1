# SPDX-License-Identifier: GPL-2.0-only
"""A sweep: the cells of a matrix, their order, how many run at a time, and which are known.

No kernel is run. The child is a script that writes the verdict that rules.json asks for.
"""

from __future__ import annotations

import json
import pickle
import re
import shutil
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
from orchestrator.host import seal
from orchestrator.host.paths import cache_dir, locked
from orchestrator.kernel.model import KernelRequest
from orchestrator.kernel.obtain import place as place_of
from orchestrator.many import history, program
from orchestrator.many.children import Children
from orchestrator.many.sweep import matrix, matrixfile, sweep, task
from orchestrator.many.sweep.matrix import Cell
from orchestrator.many.sweep.place import OVERHEAD, Cluster, LocalHost, Room
from orchestrator.many.sweep.sweep import CellResult, Sweep, exit_status, pick
from orchestrator.many.sweep.task import CellAnswer, CellTask
from orchestrator.options import declared
from orchestrator.report import sweep as report
from orchestrator.spec import RunSpec

PROGRAM = """
import json, pathlib, sys, time
arguments = sys.argv[1:]
option = dict(zip(arguments[1::2], arguments[2::2]))
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
digest = "digest of " + option["--kernel"]
kernel = {"name": option["--kernel"], "release": "6.1.176", "digest": digest, "origin": {}}
verdict = {"schema": 2, "outcome": rule, "reason": "why", "exit_status": status, "kernel": kernel,
           "edited": [], "hang_report": [], "soak": None, "checks": checks, "seconds": {}}
(output / "verdict.json").write_text(json.dumps(verdict))
(output / "report.html").write_text("<p>")
(output / "initramfs.cpio").write_text("large")
sys.exit(status)
"""


# -- the matrix


def plan_of(folder: Path, text: str) -> matrix.SweepPlan:
    (folder / "m.yaml").write_text(text)
    return matrix.read(folder / "m.yaml")


def test_every_combination_that_is_not_excluded_is_a_cell(tmp_path: Path) -> None:
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
    kernel = KernelRequest(selector="6.1-int3")
    scenarios = ("nop5", "key*")
    assert cell.spec == RunSpec(
        kernel=kernel, smp=2, accel="tcg", scenarios=scenarios, duration=1, seed=5
    )
    assert cell.shape == ("smp2", "tcg", "default", "nop5 key*")
    assert {cell.spec.smp for cell in plan.cells if cell.kernel == "debian:6.12"} == {2}
    assert {cell.seed for cell in plan.cells} == {5, 6}


def test_every_option_of_a_run_is_a_key_of_the_matrix(tmp_path: Path) -> None:
    (tmp_path / "qemu").touch()
    (tmp_path / "edits.yaml").touch()
    plan = plan_of(
        tmp_path,
        """
        kernels: [6.1-int3]
        smp: [2]
        accel: [tcg]
        cpu: [qemu64]
        scenarios: [nop5]
        memory: 512
        qemu: qemu
        duration: 0.5
        soak: 2h
        append: [threadirqs, "preempt=full x=1"]
        skip: ["keys*"]
        seed: 3
        edit-text: edits.yaml
        """,
    )
    (cell,) = plan.cells
    assert cell.spec == RunSpec(
        smp=2,
        accel="tcg",
        cpu="qemu64",
        scenarios=("nop5",),
        memory=512,
        qemu=tmp_path / "qemu",
        duration=0.5,
        soak=7200.0,
        append=("threadirqs", "preempt=full x=1"),
        skip=("keys*",),
        seed=3,
        edits=tmp_path / "edits.yaml",
    )
    keys = {field.alias or name for name, field in matrixfile.Matrix.model_fields.items()}
    options = {opt.key or name for name, opt in declared(RunSpec).items()}
    assert keys == {"kernels", "repeats", "exclude", *options}


def test_a_matrix_has_the_defaults_of_a_run(tmp_path: Path) -> None:
    (cell,) = plan_of(tmp_path, "kernels: [6.1-int3]").cells
    assert cell.spec == RunSpec()
    assert cell.shape == ("smp8", "auto", "default", "*")
    assert pickle.loads(pickle.dumps(cell)) == cell and hash(cell)


def test_a_row_may_be_a_tree_or_a_patched_kernel_with_paths_relative_to_the_file(
    tmp_path: Path,
) -> None:
    (tmp_path / "linux").mkdir()
    (tmp_path / "fix.patch").write_text("")
    plan = plan_of(
        tmp_path,
        "kernels: [{tree: linux, set: [CONFIG_X=y]}, "
        "{name: fixed, kernel: 6.1-plain, patches: [fix.patch]}, "
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
            "smp: takes 1 to 64, not 65",
        ),
        ("kernels: [6.1-int3]\nmemory: 64", "memory: takes 128 or more, not 64"),
        ("kernels: [6.1-int3]\nseed: -1", "seed: takes 0 or more, not -1"),
        ("kernels: [6.1-int3]\nduration: 0", "duration: takes seconds greater than 0, not 0"),
        ("kernels: [6.1-int3]\nsoak: long", "soak: write a time such as 90s, 30m or 8h"),
        ("kernels: [6.1-int3]\nedit-text: none.yaml", "edit-text: there is no"),
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
        ("kernels: [6.1-int3]\nsmp: [2]\nkernels: [a]", ":3: not YAML: kernels is there twice"),
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
def test_the_matrices_of_this_project_are_valid(
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
    assert "is not empty and belongs to no sweep" in capsys.readouterr().err


# -- what fits


def cell(
    kernel: str = "k", smp: int = 2, request: KernelRequest | None = None, **other: Any
) -> Cell:
    request = request or KernelRequest(selector=kernel)
    values: dict[str, Any] = {"kernel": request, "accel": "tcg", "duration": 1.0, **other}
    return Cell(kernel=kernel, spec=RunSpec(smp=smp, **values))


def test_a_guest_takes_one_core_under_tcg_and_a_core_for_each_cpu_with_threads() -> None:
    host = LocalHost()
    assert host.need(cell(smp=8)) == Room(1, 1024 + OVERHEAD)
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
        ([(1, 5), (1, 5), (1, 1)], (4, 6), (0, 0), [0, 2]),  # memory: a smaller cell overtakes
        ([(8, 1), (1, 1)], (2, 9), (1, 1), [1]),
        ([(8, 1), (1, 1)], (2, 9), (0, 0), [0]),  # larger than the host: runs alone
        ([(1, 1)], (2, 9), (2, 2), []),
        ([(1, 1)], (0, 0), (0, 0), []),  # a cluster without workers
    ],
)
def test_only_cells_that_fit_are_picked(
    needs: list[tuple[int, int]], room: tuple[int, int], used: tuple[int, int], picked: list[int]
) -> None:
    cells = [cell(seed=seed) for seed in range(len(needs))]
    got = pick(cells, lambda one: Room(*needs[one.seed]), Room(*room), Room(*used))
    assert [one.seed for one in got] == picked


# -- running

REAL_CALL = Children.call


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the script that replaces orchestrator. A kernel's digest is its name."""
    (tmp_path / "program.py").write_text(PROGRAM)
    rule(tmp_path)
    script = (sys.executable, str(tmp_path / "program.py"))
    children = Children()
    run = children.run
    monkeypatch.setattr(
        children, "run", lambda *args, **options: run(*args, **{**options, "program": script})
    )
    monkeypatch.setattr(task, "CHILDREN", children)
    monkeypatch.setattr(sweep, "PROGRAM", script)
    monkeypatch.setattr(program, "digest", lambda: "program 1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        sweep, "identify", lambda request: (f"digest of {request.selector}", tmp_path)
    )
    monkeypatch.setattr(history, "expected", lambda digest, kernel, smp: (float(smp), False))
    (tmp_path / "out").mkdir()  # the command does so; a build starts before the first cell
    return tmp_path


def rule(world: Path, **outcomes: str) -> None:
    """Set the outcomes of KERNEL_SMP; the default is pass."""
    rules = {f"6.1-{name.replace('_', ' ')}": outcome for name, outcome in outcomes.items()}
    (world / "rules.json").write_text(json.dumps(rules))


def ran(world: Path) -> list[str]:
    """The cells that ran since the last call of this function."""
    log = world / "ran"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return lines


def cells(*smp: int, repeats: int = 1) -> matrix.SweepPlan:
    return matrix.SweepPlan(
        tuple(
            cell(name, cpus, seed=seed)
            for name in ("6.1-int3", "6.1-plain")
            for cpus in smp
            for seed in range(1, repeats + 1)
        )
    )


def outcomes(results: dict[Cell, CellResult]) -> dict[str, str]:
    return {f"{one.kernel} smp{one.spec.smp}": result.outcome for one, result in results.items()}


def test_a_sweep_continues_and_repeats_inconclusive_cells(world: Path) -> None:
    rule(world, int3_smp2="fail", plain_smp4="infra")
    results = Sweep(cells(2, 4), world / "out", LocalHost(2)).run()
    assert outcomes(results) == {
        "6.1-int3 smp2": "fail",
        "6.1-int3 smp4": "pass",
        "6.1-plain smp2": "pass",
        "6.1-plain smp4": "infra",
    }
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


def test_a_cell_that_is_wrong_usage_for_its_kernel_has_no_verdict(world: Path) -> None:
    rule(world, int3_smp4="usage")
    results = Sweep(cells(2, 4), world / "out", LocalHost(2)).run()
    assert outcomes(results)["6.1-int3 smp4"] == "build-error" and exit_status(results) == 125
    assert "it is built for 1 CPU" in [result.reason for result in results.values()]


def test_a_sweep_is_not_run_twice_at_a_time(
    world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (world / "m.yaml").write_text("kernels: [6.1-int3]\nsmp: [2]")
    arguments = ["sweep", str(world / "m.yaml"), "--output", str(world / "out"), "--jobs", "1"]
    with locked(world / "out" / "cells" / ".lock"):
        assert cli.main(arguments) == 129
    assert "the same sweep is running in another process" in capsys.readouterr().err
    assert cli.main(arguments) == 0
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
    monkeypatch.setattr(program, "digest", lambda: "program 2")
    Sweep(cells(2), world / "out", LocalHost(1)).run()
    assert len(ran(world)) == 2
    monkeypatch.setattr(
        sweep, "identify", lambda request: (f"digest of the new {request.selector}", world)
    )
    for _ in range(2):  # the run reports a digest that was not asked for: shown, not kept
        Sweep(cells(2), world / "out", LocalHost(1)).run()
        assert len(ran(world)) == 2


def test_another_file_of_edits_is_another_cell(world: Path) -> None:
    edits = world / "edits.yaml"
    plan = matrix.SweepPlan((cell("6.1-int3", edits=edits),))
    for text in ("a", "a", "b"):
        edits.write_text(text)
        Sweep(plan, world / "out", LocalHost(1)).run()
    assert len(ran(world)) == 2
    with pytest.raises(UsageError, match=r"workers cannot read .*edits\.yaml"):
        Sweep(plan, world / "out", FakeCluster())


def test_reports_are_not_part_of_the_identity_of_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest_with(path: str) -> str:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
        return program.digest.__wrapped__()

    monkeypatch.setattr(program, "PACKAGE", tmp_path / "orchestrator")
    monkeypatch.setattr(program, "DATA", tmp_path)
    first = digest_with("orchestrator/run.py")
    assert digest_with("orchestrator/report/page.html.j2") == first
    assert digest_with("orchestrator/many/sweep/task.py") == first
    second = digest_with("orchestrator/watch/in_qemu/plugin.c")
    assert second != first
    assert digest_with("guest/scenarios/new.yaml") != second


def test_the_last_failures_run_first_and_then_the_longest_cells(world: Path) -> None:
    rule(world, plain_smp2="fail")
    first = Sweep(cells(2, 4, 1), world / "out", LocalHost(1))
    assert [one.spec.smp for one in first._waiting] == [4, 4, 2, 2, 1, 1]
    results = first.run()
    report.write(results, 1.0, world / "out")
    ran(world)
    Sweep(cells(2, 4, 1), world / "out", LocalHost(1), again=True).run()
    assert ran(world)[:2] == ["6.1-plain smp2 seed1", "6.1-int3 smp4 seed1"]


def test_a_failure_in_the_history_counts_if_no_sweep_has_run_the_cell(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "expected", lambda digest, kernel, smp: (None, smp == 1))
    waiting = Sweep(cells(4, 1), world / "out", LocalHost(1))._waiting
    assert [one.spec.smp for one in waiting] == [1, 1, 4, 4]


def test_a_kernel_that_has_to_be_built_does_not_hold_up_the_others(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = world / "built"

    def identify(request: KernelRequest) -> tuple[str, Path]:
        place = where if request.selector == "6.1-int3" else world
        return f"digest of {request.selector}", place

    monkeypatch.setattr(sweep, "identify", identify)
    before: list[str] = []

    def call(self: Children, command: list[str], log: Path, **options: Any) -> int | None:
        if "kernels" not in command:
            return REAL_CALL(self, command, log, **options)
        end = time.monotonic() + 20
        # This build lasts until the others have run.
        while len(before) < 2 and time.monotonic() < end:
            before.extend(ran(world))
            time.sleep(0.05)
        where.mkdir()  # fails if the kernel is built twice
        log.write_text("")
        return 0

    monkeypatch.setattr(Children, "call", call)
    results = Sweep(cells(2, 4), world / "out", LocalHost(2)).run()
    assert set(outcomes(results).values()) == {"pass"}
    assert sorted(before) == ["6.1-plain smp2 seed1", "6.1-plain smp4 seed1"]
    assert sorted(ran(world)) == ["6.1-int3 smp2 seed1", "6.1-int3 smp4 seed1"]


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [("build-error", "build-error"), ("usage", "build-error"), ("infra", "infra")],
)
def test_a_kernel_that_cannot_be_built_is_reported_and_the_others_run(
    kind: str, outcome: str, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identify(request: KernelRequest) -> tuple[str, Path]:
        place = world / "missing" if request.selector == "6.1-int3" else world
        return f"digest of {request.selector}", place

    monkeypatch.setattr(sweep, "identify", identify)

    def call(self: Children, command: list[str], log: Path, **options: Any) -> int | None:
        if "kernels" not in command:
            return REAL_CALL(self, command, log, **options)
        assert "--json" in command
        error = {"kind": kind, "text": "6.1-int3 does not build"}
        document = json.dumps({"command": "error", "error": error}, indent=1)
        log.write_text(f"  … build\n{document}\norchestrator: 6.1-int3 does not build\n")
        return 125

    monkeypatch.setattr(Children, "call", call)
    results = Sweep(cells(2), world / "out", LocalHost(1)).run()
    assert outcomes(results) == {"6.1-int3 smp2": outcome, "6.1-plain smp2": "pass"}
    assert next(iter(results.values())).reason == "6.1-int3 does not build"
    assert exit_status(results) == 125


def test_a_source_that_cannot_be_reached_is_not_the_kernels_failure(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identify(request: KernelRequest) -> tuple[str, Path]:
        if request.selector == "6.1-int3":
            raise InfraError("git cannot fetch main of x: Connection refused")
        return f"digest of {request.selector}", world

    monkeypatch.setattr(sweep, "identify", identify)
    results = Sweep(cells(2), world / "out", LocalHost(1)).run()
    assert outcomes(results) == {"6.1-int3 smp2": "infra", "6.1-plain smp2": "pass"}
    assert exit_status(results) == 125


def test_a_failed_lookup_gives_no_verdict_and_an_unknown_kernel_is_wrong_usage(
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


def full(*_: Any, **__: Any) -> Any:
    raise OSError(28, "No space left on device")


def test_a_full_disk_loses_no_verdict(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rule(world, plain_smp2="fail")
    monkeypatch.setattr(sweep, "write_whole", full)
    monkeypatch.setattr(report, "write_report", full)
    results = Sweep(cells(2), world / "out", LocalHost(1)).run()
    assert outcomes(results) == {"6.1-int3 smp2": "pass", "6.1-plain smp2": "fail"}
    report.write(results, 1.0, world / "out")
    said = capsys.readouterr().err
    names = ("the result of 6.1-plain smp2 tcg seed1", "sweep.json", "sweep.html", "junit.xml")
    for name in names:
        assert f"{name} could not be written: No space left on device" in said


def test_a_cell_without_a_directory_is_infra(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = Sweep(cells(2), world / "out", LocalHost(1))
    (world / "out" / "cells").write_text("a file in place of the directory")
    results = running.run()
    assert set(outcomes(results).values()) == {"infra"} and exit_status(results) == 125
    assert "run: Not a directory: /" in next(iter(results.values())).reason


def test_what_is_only_fetched_is_prepared_before_what_is_built(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def identify(request: KernelRequest) -> tuple[str, Path]:
        is_first = request.selector == "6.1-int3"
        return request.selector, cache_dir() / ("kernels" if is_first else "stock") / "x"

    prepared = []

    def call(_: Children, command: list[str], *__: Any, **___: Any) -> int:
        prepared.append(command[-1])
        return 125

    monkeypatch.setattr(sweep, "identify", identify)
    monkeypatch.setattr(Children, "call", call)
    Sweep(cells(2), world / "out", LocalHost(1)).run()
    assert prepared == ["6.1-plain", "6.1-int3"]


def test_a_build_that_cannot_be_logged_is_reported(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "identify", lambda request: ("digest", world / "missing"))
    monkeypatch.setattr(Children, "call", full)
    results = Sweep(cells(2), world / "out", LocalHost(1)).run()
    assert {result.reason for result in results.values()} == {"No space left on device"}


def test_a_history_that_cannot_be_read_only_changes_the_order(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def expected(*_: Any) -> Any:
        calls.append(1)
        raise history.HistoryError("it is locked")

    monkeypatch.setattr(history, "expected", expected)
    Sweep(cells(2, 4), world / "out", LocalHost(1))
    assert len(calls) == 1 and "it is locked" in capsys.readouterr().err


def test_ctrl_c_ends_running_cells(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule(world, int3_smp2="sleep", plain_smp2="sleep")
    running = Sweep(cells(2), world / "out", LocalHost(2))

    def interrupt(*_: Any) -> None:
        if (world / "ran").exists():
            raise KeyboardInterrupt

    monkeypatch.setattr(running, "_show_progress", interrupt)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        running.run()
    assert time.monotonic() - start < 20
    assert not task.CHILDREN._running


# -- on other machines


class FakeCluster:
    """A cluster of two threads with directories of their own.

    dies: whether the worker that gets the n-th task is killed.
    """

    remote = True

    def __init__(self, dies: Callable[[int], bool] = lambda turn: False) -> None:
        self.executor: Executor = self
        self.dies, self.turn = dies, 0
        self.bundles: list[bytes] = []
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

    def bundle(self, digest: str, packed: bytes) -> Any:
        self.bundles.append(packed)
        return packed

    def stop(self, running: list[Future[CellAnswer]]) -> None:
        self.close()

    def close(self) -> None:
        self._pool.shutdown()


def test_the_files_of_a_worker_come_back(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(world / "state"))
    rule(world, int3_smp2="fail")
    results = Sweep(cells(2), world / "out", FakeCluster()).run()
    assert outcomes(results) == {"6.1-int3 smp2": "fail", "6.1-plain smp2": "pass"}
    for result in results.values():
        files = {path.name for path in Path(result.directory).iterdir()}
        assert files == {"verdict.json", "report.html"}, "the guest image is not sent"
    assert not list((world / "state" / "orchestrator").glob("orchestrator-*")), (
        "the worker keeps nothing"
    )


def test_a_cell_whose_worker_dies_is_run_again_a_limited_number_of_times(world: Path) -> None:
    results = Sweep(cells(2), world / "out", FakeCluster(lambda turn: turn in (1, 2))).run()
    assert set(outcomes(results).values()) == {"pass"}
    results = Sweep(cells(4), world / "out", FakeCluster(lambda turn: True)).run()
    assert {result.reason for result in results.values()} == {
        "it cannot be run: ConnectionError: the worker is gone"
    }
    assert exit_status(results) == 125


def test_a_worker_that_lacks_a_built_kernel_gets_a_bundle(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = "ab" * 32
    made = world / "made"
    (made / "kbuild").mkdir(parents=True)
    (made / "bzImage").write_text("an image")
    (made / "kbuild" / "link").symlink_to("../bzImage")
    seal.seal(made)
    monkeypatch.setattr(sweep, "identify", lambda request: (digest, made))
    request = KernelRequest(selector="6.1-int3", settings=("CONFIG_X=y",))
    plan = matrix.SweepPlan((cell("mine", request=request), cell("mine", 4, request=request)))
    there = FakeCluster()
    Sweep(plan, world / "out", there).run()
    assert sorted(ran(world)) == [f"built:{digest} smp2 seed1", f"built:{digest} smp4 seed1"]
    assert there.bundles
    assert (place_of(digest) / "kbuild" / "link").read_text() == "an image"
    sent = len(there.bundles)
    Sweep(plan, world / "out", there2 := FakeCluster(), again=True).run()
    assert sent and not there2.bundles, "the worker has it now"


@pytest.mark.parametrize("mended", [True, False])
def test_a_kernel_that_is_damaged_when_a_cell_starts_is_built_again(
    mended: bool, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = "ab" * 32
    place, builds = place_of(digest), []

    def build() -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        (place / "bzImage").write_text("an image")
        seal.seal(place)

    def call(self: Children, command: list[str], log: Path, **options: Any) -> int | None:
        if "kernels" not in command:
            return REAL_CALL(self, command, log, **options)
        builds.append(1)
        if mended:
            build()
        log.write_text("")
        return 0

    build()
    (place / "bzImage").write_text("no image")
    monkeypatch.setattr(Children, "call", call)
    monkeypatch.setattr(sweep, "identify", lambda request: (digest, place))
    request = KernelRequest(selector="6.1-int3", settings=("CONFIG_X=y",))
    plan = matrix.SweepPlan((cell("mine", request=request),))
    (result,) = Sweep(plan, world / "out", LocalHost(1)).run().values()
    if mended:
        assert len(builds) == 1 and result.outcome == "pass"
    else:
        assert len(builds) == sweep.ATTEMPTS - 1 and result.outcome == "infra"
        assert "damaged whenever it has been built" in result.reason


def test_a_worker_with_another_program_refuses(world: Path) -> None:
    cell_task = CellTask(spec=RunSpec(), built=None, program="program 0", directory=str(world))
    assert "another version of orchestrator" in task.perform(cell_task).why
    assert not ran(world)


def test_a_missing_dask_is_reported_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"pip install distributed"):
        Cluster("tcp://127.0.0.1:1")


def test_the_address_of_a_scheduler_is_checked() -> None:
    pytest.importorskip("distributed")
    for wrong in ("nonsense", "http://host:8786", "tcp://host"):
        with pytest.raises(UsageError, match=f"tcp://HOST:PORT, not {wrong}"):
            Cluster(wrong)


# -- reports


def test_the_exit_status_is_1_for_a_failed_kernel_and_125_for_an_untested_one() -> None:
    def status(*statuses: int) -> int:
        return exit_status(
            {cell(seed=seed): CellResult("x", one, "") for seed, one in enumerate(statuses)}
        )

    assert [status(0, 0), status(0, 1, 125), status(0, 125)] == [0, 1, 125]


def test_the_table_and_the_files_have_every_result(tmp_path: Path) -> None:
    run = tmp_path / "cells" / "x" / "run"
    run.mkdir(parents=True)
    (run / "report.html").write_text("")
    good, bad = (
        CellResult("pass", 0, "held", seconds=2.0),
        CellResult("oops", 1, "<oops>", ("console",), directory=str(run)),
    )
    results = {
        cell("a", 2): good,
        cell("a", 8): good,
        cell("b", 2): good,
        cell("b", 2, seed=2): bad,
        cell("b", 8): CellResult("infra", 125, "GDB ended"),
    }
    with Console(width=120, record=True, file=(tmp_path / "terminal").open("w")) as console:
        report.show(results, 60.0, console)
    text = console.export_text()
    assert text.index(" b ") < text.index(" a "), "failures come first"
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
    content = json.loads((tmp_path / "sweep.json").read_text())
    assert [one["exit_status"] for one in content["cells"]] == [0, 0, 0, 1, 125]
    suites = ET.fromstring((tmp_path / "junit.xml").read_text()).findall("testsuite")
    counts = [
        (suite.get("name"), suite.get("tests"), suite.get("failures"), suite.get("errors"))
        for suite in suites
    ]
    assert counts == [("a", "2", "0", "0"), ("b", "3", "1", "1")]


def test_the_remaining_time_is_estimated_from_earlier_runs(world: Path) -> None:
    running = Sweep(cells(2, 4), world / "out", LocalHost(2))
    first = running._waiting.pop(0)
    others = [sweep._RunningCell(running._waiting.pop(0), Room(1, 0))]
    # 4 s are expected for each of these two, and 2 s for each waiting cell.
    assert running._remaining(others) == "; 1 running, 2 waiting: about 8 s"
    running._took[first] = 12.0  # three times as long as expected, so the others will be, too
    assert running._remaining(others) == "; 1 running, 2 waiting: about 24 s"
    running._took.clear()
    running._expected[running._waiting[0]] = None
    assert running._remaining(others) == "; 1 running, 2 waiting"


def test_the_history_estimates_how_long_a_kernel_takes(tmp_path: Path) -> None:
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
        "a run without a verdict does not count"
    )
    assert history.expected("d1", "other", 8, path) == (None, False)


def test_a_sweep_writes_its_own_table_into_the_summary_of_github_and_its_runs_none(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = world / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    # The runs of this module are a stub, which writes nothing; their environment is what counts.
    log = world / "log"
    Children().call([sys.executable, "-c", "import os; print(os.environ)"], log)
    assert "'GITHUB_STEP_SUMMARY': ''" in log.read_text()
    results = Sweep(cells(2), world / "out", LocalHost(1)).run()
    report.write(results, 1.0, world / "out")
    text = summary.read_text()
    assert text.startswith("2 of 2 cells passed") and "| 6.1-int3 |" in text


def test_a_sweep_says_first_what_it_will_do(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(LocalHost, "room", lambda _: sweep.Room(8, 1 << 20))
    monkeypatch.setattr(LocalHost, "need", lambda _, cell: sweep.Room(4, 1))
    Sweep(cells(2, 4), world / "out", LocalHost(2)).run()
    lines = capsys.readouterr().err.splitlines()
    # The history expects as many seconds as CPUs: 2 + 4 for each of two kernels, two at a time.
    assert lines[0].strip() == "runs 4 cells, 2 at a time: about 6 s"
