# SPDX-License-Identifier: GPL-2.0-only
"""A run in the formats that are published: the schema of verdict.json, and KCIDB's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kcidb_io
import pytest
from good_run import Run

from orchestrator import cli, rundir
from orchestrator.errors import BootError, BuildError, InfraError, OrchestratorError
from orchestrator.guest.klog import scan
from orchestrator.kernel.model import Kernel, KernelRequest
from orchestrator.options import declared
from orchestrator.report import files, kcidb
from orchestrator.spec import RunSpec
from orchestrator.text.symbols import Symbols
from orchestrator.verdict import result as result_file
from orchestrator.verdict.evidence import Evidence, Soak
from orchestrator.verdict.outcome import judge
from orchestrator.verdict.result import RunResult

SCHEMA = json.loads(Path(kcidb.__file__).with_name("verdict.schema.json").read_text())


def write(directory: Path, evidence: Evidence, *, kernel: bool = True) -> dict[str, Any]:
    """A run directory as a run with this evidence leaves it; its verdict.json."""
    spec = RunSpec(kernel=KernelRequest(selector="debian:6.12"), smp=2, directory=directory)
    rundir.create(spec)
    built = Kernel(
        name="debian:6.12",
        release="6.12.117",
        digest="ab" * 32,
        bzimage=Path("vmlinuz"),
        config=None,
        origin={"kind": "Debian binary package", "version": "6.12.117-1"},
    )
    result = RunResult(
        spec=spec,
        name="6.1-plain",
        directory=directory,
        kernel=built if kernel else None,
        machine=None,
        evidence=evidence,
        verdict=judge(evidence),
        seconds={"booting": 3.0, "free": 1.5},
    )
    result_file.write(result)
    files.write(result)
    (directory / "console.log").write_text("[    1.0] Oops\0\n")
    content: dict[str, Any] = json.loads((directory / "verdict.json").read_text())
    return content


def broken(error: OrchestratorError) -> Evidence:
    evidence = Evidence(requested_cpus=2)
    evidence.error = error
    return evidence


def panicked() -> Evidence:
    run = Run()
    run.findings = scan(
        ["[    1.000000] Kernel panic - not syncing: Fatal exception in interrupt"]
    ).findings
    return run.evidence()


def without_a_round() -> Evidence:
    run = Run()
    run.events = [event for event in run.events if event["kind"] != "sync" or event["cpu"] == 0]
    return run.evidence()


def soaked() -> Evidence:
    evidence = Run().evidence()
    evidence.soak = Soak(seconds=90.0, rounds=3, pokes=10, int3=20, memory={"qemu": (100.0, 101.5)})
    evidence.edited = ["f+0x1: nop (90 -> 90)"]
    evidence.hung = [{"cpu": 0, "rip": 0x10, "stack": [], "eflags": 0}]
    evidence.hang_names = Symbols(["0010 T f", "0020 T g"])
    return evidence


CASES: dict[str, tuple[Callable[[], Evidence], str, str]] = {
    "pass": (lambda: Run().evidence(), "pass", "PASS"),
    "soak": (soaked, "pass", "PASS"),
    "panic": (panicked, "panic", "FAIL"),
    "fail": (without_a_round, "fail", "FAIL"),
    "infra": (lambda: broken(InfraError("no mirror")), "infra", "ERROR"),
    "boot-error": (lambda: broken(BootError("it does not boot")), "boot-error", "ERROR"),
    "build-error": (lambda: broken(BuildError("it does not build")), "build-error", "ERROR"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_verdict_matches_its_schema(tmp_path: Path, name: str) -> None:
    make, outcome, _ = CASES[name]
    verdict = write(tmp_path / "run", make(), kernel="error" not in name)
    assert verdict["outcome"] == outcome
    jsonschema.Draft202012Validator(SCHEMA).validate(verdict)


def test_the_schema_has_every_field_and_no_other(tmp_path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    verdict = write(tmp_path / "run", Run().evidence())
    assert set(SCHEMA["required"]) == set(SCHEMA["properties"]) == set(verdict)
    for field in verdict:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(
                {key: value for key, value in verdict.items() if key != field}, SCHEMA
            )


@pytest.mark.parametrize("name", CASES)
def test_kcidb_accepts_the_report(tmp_path: Path, name: str) -> None:
    make, _, status = CASES[name]
    write(tmp_path / "run", make(), kernel="error" not in name)
    report = kcidb.report([tmp_path / "run"], "ours")
    kcidb_io.schema.V5_3.validate(report)
    whole, *rest = report["tests"]
    assert (whole["path"], whole["status"]) == ("orchestrator", status)
    statuses = {test["path"].rpartition(".")[2]: test["status"] for test in rest}
    if name == "pass":
        assert set(statuses.values()) == {"PASS"} and {"sync", "nop5"} <= statuses.keys()
    if name == "fail":
        assert statuses["sync"] == "FAIL" and statuses["int3"] == "PASS"
    if status == "ERROR":
        assert "FAIL" not in statuses.values()
        assert report["builds"][0]["status"] == {"build-error": "FAIL", "boot-error": "MISS"}.get(
            name, "PASS"
        )


def test_kcidb_gets_every_declared_option_of_the_run(tmp_path: Path) -> None:
    write(tmp_path / "run", Run().evidence())
    test = kcidb.report([tmp_path / "run"], "ours")["tests"][0]
    misc = test["environment"]["misc"]
    assert misc.keys() == declared(RunSpec).keys()
    assert (misc["smp"], misc["cpu"], misc["scenarios"]) == (2, None, [])


def test_many_runs_of_one_kernel_are_one_build(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, Run().evidence())
    report = kcidb.report([tmp_path / "a", tmp_path / "b"], "ours")
    kcidb_io.schema.V5_3.validate(report)
    assert len(report["checkouts"]) == len(report["builds"]) == 1
    identities = [test["id"] for test in report["tests"]]
    assert len(identities) == len(set(identities))


def test_a_directory_without_a_run_and_a_bad_origin_are_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["export", "--kcidb", "--origin", "ours", str(tmp_path)]) == 129
    assert "is not the directory of a run" in capsys.readouterr().err
    write(tmp_path / "run", Run().evidence())
    assert cli.main(["export", "--kcidb", "--origin", "Not OK", str(tmp_path / "run")]) == 129
    assert cli.main(["export", "--kcidb", "--origin", "ours", str(tmp_path / "run")]) == 0
    kcidb_io.schema.V5_3.validate(json.loads(capsys.readouterr().out))
    shutil.rmtree(tmp_path / "run")
