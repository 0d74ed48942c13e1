# SPDX-License-Identifier: GPL-2.0-only
"""`--json`: one document on standard output for each command, as the schema describes it."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import good_run
import jsonschema
import pytest
from referencing import Registry, Resource

from orchestrator import cli, doctor, explore, replay
from orchestrator.commands import document, parser
from orchestrator.commands import sweep as sweep_command
from orchestrator.errors import InfraError, LostVM
from orchestrator.guest.klog import Finding
from orchestrator.host import tools
from orchestrator.host.paths import PACKAGE
from orchestrator.kernel import cache, obtain
from orchestrator.kernel.model import Kernel
from orchestrator.machine.accel import Accel
from orchestrator.machine.qemu import MachineSpec
from orchestrator.many import history, mutants
from orchestrator.many.bisect.candidates import Candidate
from orchestrator.many.sweep.matrix import Cell
from orchestrator.many.sweep.sweep import CellResult
from orchestrator.scenarios.scenario import select
from orchestrator.scenarios.steps import plan_steps
from orchestrator.spec import RunSpec
from orchestrator.verdict import result as result_file
from orchestrator.verdict.outcome import judge
from orchestrator.verdict.result import RunResult

SCHEMAS = {
    name: json.loads((PACKAGE / "report" / name).read_text())
    for name in ("json.schema.json", "verdict.schema.json")
}
REGISTRY: Any = Registry().with_resources(
    (name, Resource.from_contents(schema)) for name, schema in SCHEMAS.items()
)
KERNEL = Kernel(
    name="6.1-int3",
    release="6.1.176",
    digest="0" * 64,
    bzimage=Path("/b/bzImage"),
    config=None,
    origin={"kind": "Debian source", "patches": "a.patch, b.patch"},
)


def validate(content: Any, name: str = "json.schema.json") -> None:
    # Through JSON, in which tuples are lists.
    content = json.loads(json.dumps(content, default=str))
    jsonschema.Draft202012Validator(SCHEMAS[name], registry=REGISTRY).validate(content)


@pytest.fixture(autouse=True)
def nothing_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(document, "_printed", False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run_result(directory: Path, run: good_run.Run | None = None) -> RunResult:
    evidence = (run or good_run.Run()).evidence()
    accel = Accel(kind="tcg", thread="single", why="no KVM")
    qemu = tools.Qemu(binary=Path("/q"), version=(10, 0, 2))
    return RunResult(
        spec=RunSpec(smp=2, seed=7),
        name="6.1-int3",
        directory=directory,
        kernel=KERNEL,
        machine=MachineSpec(qemu=qemu, accel=accel, bzimage=Path(), initrd=Path(), smp=2),
        evidence=evidence,
        verdict=judge(evidence),
        seconds={"booting": 4.5},
        started=1.7e9,
    )


# -- verdict.json


def test_verdict_json_says_what_was_run_and_where(tmp_path: Path) -> None:
    result = run_result(tmp_path)
    result_file.write(result)
    content = json.loads((tmp_path / "verdict.json").read_text())
    validate(content, "verdict.schema.json")
    assert content["outcome"] == "pass" and content["failure"] is None
    assert content["version"].startswith("0.1.0")
    assert content["command"][:1] == ["run"] and "--seed" in content["command"]
    assert content["started"] == "2023-11-14T22:13:20.000+00:00" < content["ended"]
    assert content["machine"]["accelerator"] == "tcg,thread=single"
    assert (content["machine"]["qemu"], content["smp"], content["seed"]) == ("10.0.2", 2, 7)
    assert content["kernel"]["patches"] == ["a.patch", "b.patch"]
    coverage = content["coverage"]
    assert coverage["seen"] == coverage["expected"] > 0 and coverage["missing"] == []
    assert content["pokes"]["test module"] == 6
    assert {entry["scenario"] for entry in content["latencies"]} == {"nop5", "one", "key"}
    assert result_file.read(tmp_path) == result_file.RECORD.validate_python(content)


def test_verdict_json_has_the_distribution_of_durations(tmp_path: Path) -> None:
    run = good_run.Run().take({655360: 4, 786432: 7})
    content = result_file.content(run_result(tmp_path, run))
    validate(content, "verdict.schema.json")
    assert list(content["latency_histogram"]) == [
        {"from_ms": 0.65536, "below_ms": 0.786432, "pokes": 4},
        {"from_ms": 0.786432, "below_ms": 0.917504, "pokes": 7},
    ]


def test_a_failure_has_phase_cpu_bytes_and_event_as_fields(tmp_path: Path) -> None:
    run = good_run.Run()
    run.find(good_run.NOP5_ON, "sync", 0)["bytes"] = "0f1f440000"
    content = result_file.content(run_result(tmp_path, run))
    validate(content, "verdict.schema.json")
    failure = content["failure"]
    assert failure["check"] == "bytes" and failure["step"].startswith("nop5")
    assert (failure["phase"], failure["cpu"]) == (1, run.find(good_run.NOP5_ON, "sync", 0)["cpu"])
    assert failure["actual"] == "0f1f440000" and failure["expected"].startswith("cc")
    assert failure["event"] is not None


def test_a_failure_on_the_console_has_its_line(tmp_path: Path) -> None:
    run = good_run.Run()
    run.findings = [Finding("oops", 12, "Oops: 0000", 12)]
    content = result_file.content(run_result(tmp_path, run))
    validate(content, "verdict.schema.json")
    assert content["failure"]["check"] == "console" and content["failure"]["console_line"] == 12


def test_a_cpu_that_was_not_seen_is_named(tmp_path: Path) -> None:
    run = good_run.Run()
    run.drop(*[e for e in run.poke(good_run.NOP5_ON) if e["kind"] == "int3" and e["cpu"] == 1])
    content = result_file.content(run_result(tmp_path, run))
    validate(content, "verdict.schema.json")
    assert {"scenario": "nop5", "phase": 1, "cpus": (1,)} in content["coverage"]["missing"]


def test_a_run_without_a_guest_is_valid(tmp_path: Path) -> None:
    run = good_run.Run()
    run.error = LostVM("QEMU died")
    validate(
        result_file.content(replace(run_result(tmp_path, run), kernel=None, machine=None)),
        "verdict.schema.json",
    )


# -- every command


@dataclass
class Fakes:
    """Makes the commands answer without a guest, a network or a cache."""

    monkeypatch: pytest.MonkeyPatch
    directory: Path

    def set(self, target: object, **values: Any) -> None:
        for name, value in values.items():
            self.monkeypatch.setattr(target, name, value)

    def run(self) -> None:
        self.set(sys.modules["orchestrator.run"], run=lambda *_: run_result(self.made()))

    def made(self) -> Path:
        path = self.directory / "state" / "orchestrator" / "runs" / "one"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def finished(self) -> None:
        result = run_result(self.made())
        (self.made() / "spec.json").write_text("{}")
        result_file.write(result)
        history.record(result)

    def replayed(self) -> None:
        self.finished()
        done = [
            replay.Replayed(name="sites", events=3, differs_at=None),
            replay.Replayed(name="code", events=5, differs_at=4),
        ]
        self.set(replay, replay=lambda _: iter(done))

    def published(self) -> None:
        self.finished()
        self.monkeypatch.chdir(self.directory)

    def stopped(self) -> None:
        self.finished()
        branch = SimpleNamespace(name="sites")
        at = SimpleNamespace(branch=branch, event=7, steps=0, differs_at=None)
        self.set(
            replay,
            stopped=lambda *_: contextlib.nullcontext(at),
            described=lambda _: ["event 7 of sites: CPU 1 enters do_sync_core"],
        )

    def explored(self) -> None:
        steps = plan_steps(select(["nop5"]), [0, 1], 0.1, 1)
        plan = explore.Plan(seed=3, smp=2, steps=tuple(steps))
        trial = explore.Trial(plan=plan, failure="CPU 1 did not", check="sync")
        found = explore.Explored(seeds=2, pokes=5, curve=[3, 4], why="a seed failed")
        found.failed = found.shrunk = trial
        found.directory = self.made()
        self.set(explore, explore=lambda *_, **__: found)

    def host(self) -> None:
        accel = Accel(kind="tcg", thread="single", why="no KVM")
        self.set(doctor.HostProbes, qemu=tools.Qemu(binary=Path("/q"), version=(10, 0)))
        self.set(sys.modules["orchestrator.machine.accel"], choose=lambda *_: accel)
        self.set(obtain, identify=lambda *_: ("0" * 64, Path("/nowhere")))

    def diagnoses(self) -> None:
        self.set(
            doctor.HostProbes,
            groups=lambda _: [("host", [lambda: [doctor.Diagnosis("warn", "CPUs", "one")]])],
        )

    def kernels(self) -> None:
        cached = cache.CachedKernel(
            name="6.1-int3", release="6.1", source="s", patches=("p",), directory=Path("/d")
        )
        self.set(
            cache,
            kernels=lambda: [cached],
            offered=lambda: {"debian:6.1.176": ("bookworm", True)},
        )
        self.set(obtain, obtain=lambda _: KERNEL, fetch=lambda _: Path("/fetched"))
        self.set(sys.modules["orchestrator.run"], inspect_kernel=lambda _: (KERNEL, {"a": "b"}))
        entry = cache.CacheEntry(kind="kernels", path=Path("/c/k"), size=5, used=1.0)
        self.set(
            cache,
            items=lambda: [entry],
            leftovers=lambda: [],
            verify=lambda: [(entry, ["bzImage"])],
        )

    def sweep(self) -> None:
        cell = Cell(kernel="6.1-int3", spec=RunSpec(smp=2))
        results = {cell: CellResult("fail", 1, "sync: no", ("sync",))}
        out = self.directory / "out"
        out.mkdir()
        self.set(sweep_command, perform=lambda *_: (out, results, 1.5))

    def mutants(self) -> None:
        def run_all(chosen: list[mutants.Mutant], *_: object) -> list[mutants.MutantResult]:
            return [
                mutants.MutantResult(one.base, one.name, "caught", ("sync",), "r", 1.0, "/d")
                for one in chosen
            ]

        self.set(mutants, run_all=run_all)
        self.set(obtain, settle=lambda _: None)

    def bisect(self) -> None:
        from orchestrator.commands import bisect
        from orchestrator.many.bisect import bisection
        from orchestrator.many.bisect.search import RunOutcome, Search, SearchAnswer

        class Fixed:
            candidates = (Candidate("good", "t"), Candidate("bad", "t"))
            identity = "i"
            build = 1.0

        class Done:
            candidates = Fixed()
            search = Search(2)
            signature = "sync"

            def __init__(self, *_: object, **__: object) -> None:
                self.search.record(1, RunOutcome.FAIL)

            def run(self) -> SearchAnswer:
                return SearchAnswer(first=1, last=1, probability=0.99, p=1.0)

            def confirm(self, answer: SearchAnswer) -> bisection.Confirmation:
                return bisection.Confirmation(holds=True, text="it fails again")

        self.set(bisect, _candidates=lambda _: Fixed(), _settle=lambda _: [])
        self.set(bisection, Bisection=Done, explained=lambda *_: "")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Fakes:
    import orchestrator.run  # noqa: F401 (a module and not the function, for sys.modules)

    return Fakes(monkeypatch, tmp_path)


COMMANDS: dict[str, tuple[Callable[[Fakes], None], int]] = {
    "run": (Fakes.run, 0),
    "run --dry-run --skip emulation": (Fakes.host, 0),
    "show one": (Fakes.finished, 0),
    "show 1": (Fakes.finished, 0),
    "replay one": (Fakes.replayed, 125),
    "site public": (Fakes.published, 0),
    "replay one --at 7": (Fakes.stopped, 0),
    "explore --smp 2": (Fakes.explored, 1),
    "history": (Fakes.finished, 0),
    "history --flaky": (Fakes.finished, 0),
    "doctor": (Fakes.diagnoses, 0),
    "scenarios": (lambda _: None, 0),
    "kernels list": (Fakes.kernels, 0),
    "kernels show": (Fakes.kernels, 0),
    "kernels build": (Fakes.kernels, 0),
    "kernels fetch 6.1-int3": (Fakes.kernels, 0),
    "kernels clean": (Fakes.kernels, 0),
    "kernels clean --keep 1": (Fakes.kernels, 0),
    "kernels verify": (Fakes.kernels, 125),
    "sweep m.yaml": (Fakes.sweep, 1),
    "nightly m.yaml --strict": (Fakes.sweep, 1),
    "mutants --only no-int3": (Fakes.mutants, 0),
    "bisect a b": (Fakes.bisect, 0),
}


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_prints_one_valid_document(
    command: str, fakes: Fakes, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare, status = COMMANDS[command]
    prepare(fakes)
    assert cli.main([*command.split(), "--json"]) == status
    content = printed(capsys)
    validate(content)
    assert content["exit_status"] == status
    name = content["command"]
    assert name in (command, " ".join(command.split()[:2]), command.split()[0], "replay --at")


def leaves(top: argparse.ArgumentParser, words: str = "") -> Iterator[tuple[str, str]]:
    """Every command that can be called, and its usage."""
    nested = [a for a in top._actions if isinstance(a, argparse._SubParsersAction)]
    if not nested:
        yield words, top.format_help()
    for action in nested:
        for name, child in action.choices.items():
            yield from leaves(child, f"{words} {name}".strip())


def test_every_command_takes_json_but_those_that_print_for_other_programs_anyway() -> None:
    without = {name for name, usage in leaves(parser.parser()) if "--json" not in usage}
    assert without == {"gdb", "export", "completion"}
    tested = {" ".join(word for word in name.split() if word.isalpha()) for name in COMMANDS}
    for name in {name for name, _ in leaves(parser.parser())} - without:
        assert any(words.startswith(name) for words in tested), name


@pytest.mark.parametrize(
    ("arguments", "kind", "status"),
    [
        (["run", "--json", "--smp", "0"], "usage", 129),
        (["run", "--nonsense", "--json"], "usage", 129),
        (["history", "--json", "--count", "x"], "usage", 129),
        (["show", "99", "--json"], "usage", 129),
        (["show", "none", "--json"], "usage", 129),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_a_document_as_well(
    arguments: list[str], kind: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == status
    content = printed(capsys)
    validate(content)
    assert (content["error"]["kind"], content["exit_status"]) == (kind, status)


def test_an_infrastructure_failure_and_a_signal_are_documents(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errors: list[BaseException] = [InfraError("no mirror"), KeyboardInterrupt()]
    for error, status in zip(errors, (125, 130), strict=True):

        def fail(_: object, error: BaseException = error) -> None:
            raise error

        fakes.set(obtain, obtain=fail)
        monkeypatch.setattr(document, "_printed", False)
        assert cli.main(["kernels", "build", "--json"]) == status
        content = printed(capsys)
        validate(content)
        assert content["exit_status"] == status


def test_annotations_for_github_do_not_mix_with_the_document(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = good_run.Run()
    run.findings = [Finding("oops", 12, "Oops: 0000", 12)]
    fakes.set(sys.modules["orchestrator.run"], run=lambda *_: run_result(fakes.made(), run))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert cli.main(["run", "--json"]) == 1
    output = capsys.readouterr()
    validate(json.loads(output.out))
    assert "::error" in output.err


def test_the_schema_is_a_valid_one() -> None:
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_a_document_of_another_command_or_with_other_fields_is_refused() -> None:
    envelope = {"schema": 1, "version": "0", "exit_status": 0}
    for content in ({"command": "scenarios", "nothing": 1}, {"command": "dance"}):
        with pytest.raises(jsonschema.ValidationError):
            validate({**envelope, **content})
