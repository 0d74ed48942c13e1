# SPDX-License-Identifier: GPL-2.0-only
"""Runs as a user starts them: command line, real kernel, real guest, exit status, run directory."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from orchestrator.guest import ktap
from orchestrator.host.paths import PROJECT, cache_dir

pytestmark = pytest.mark.vm

MUTANTS = PROJECT / "kernels" / "mutants" / "6.1-int3"


def command(directory: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator", "run", "--output", str(directory), *arguments]


def run(directory: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit status and verdict.json of one run. Its output is printed for the case of a failure."""
    done = subprocess.run(
        command(directory, *arguments), capture_output=True, text=True, timeout=1500
    )
    print(done.stderr[-3000:], done.stdout[-6000:])
    verdict = directory / "verdict.json"
    return done.returncode, json.loads(verdict.read_text()) if verdict.exists() else {}


def statuses(verdict: dict[str, Any]) -> dict[str, str]:
    return {check["check"]: check["status"] for check in verdict["checks"]}


@pytest.mark.parametrize(
    ("kernel", "smp"), [("6.1-int3", 8), ("6.1-plain", 2), ("debian:6.1", 2), ("debian:6.1", 8)]
)
def test_a_healthy_kernel_passes_with_full_coverage(tmp_path: Path, kernel: str, smp: int) -> None:
    status, verdict = run(
        tmp_path / "run", "--kernel", kernel, "--smp", str(smp), "--duration", "1"
    )
    assert (status, verdict["outcome"]) == (0, "pass")
    assert set(statuses(verdict).values()) == {"pass"}
    jsonschema.validate(
        verdict, json.loads((PROJECT / "orchestrator/report/verdict.schema.json").read_text())
    )
    report = "".join(path.read_text() for path in (tmp_path / "run").rglob("guest.ktap"))
    for cpu in range(smp):  # each CPU also hits int3 while running free
        hits = [
            int(line.split("int3=")[1].split()[0])
            for line in report.splitlines()
            if line.startswith(f"# cpu={cpu} phase=free")
        ]
        assert sum(hits) > 0, f"CPU {cpu} hit no int3"


@pytest.mark.parametrize("kernel", ["6.1-plain", "debian:5.10", "debian:6.12", "debian:7.3"])
def test_every_scenario_holds_or_says_what_the_kernel_lacks(tmp_path: Path, kernel: str) -> None:
    status, verdict = run(
        tmp_path / "run", "--kernel", kernel, "--smp", "4", "--duration", "2", "--seed", "5"
    )
    assert (status, verdict["outcome"]) == (0, "pass")
    reports = (tmp_path / "run").rglob("guest.ktap")
    report = ktap.merged([ktap.parse(path.read_text().splitlines()) for path in reports])
    assert report.whole
    assert all(step.ok for step in report.steps)
    skipped = {step.name: step.skip for step in report.steps if step.skip is not None}
    assert all(skipped.values()), "a skip without its reason"
    assert len(skipped) < len(report.steps) / 4, skipped
    if kernel != "6.1-plain":  # it has batches that nobody announced
        assert "from the kernel itself" in next(
            c["text"] for c in verdict["checks"] if c["check"] == "watch"
        )


def test_the_kernels_own_parser_reads_the_results(tmp_path: Path) -> None:
    options = ["--scenario", "nop5", "--scenario", "emulation", "--duration", "0.2"]
    status, _ = run(tmp_path / "run", "--smp", "2", *options)
    assert status == 0
    # The source of the default kernel is in the cache.
    parsers = sorted(cache_dir().glob("sources/*/tools/testing/kunit/kunit.py"))
    results = (tmp_path / "run" / "results.ktap").read_text()
    parse = [sys.executable, str(parsers[-1]), "parse"]
    done = subprocess.run(parse, input=results, capture_output=True, text=True, timeout=60)
    print(done.stdout, done.stderr)
    planned = int(re.findall(r"^1\.\.(\d+)$", results, re.MULTILINE)[0])
    assert re.search(
        rf"Ran {planned} tests: passed: {planned - 1}, skipped: 1$", done.stdout, re.MULTILINE
    )
    assert done.returncode == 0


def test_a_machine_with_one_cpu_passes(tmp_path: Path) -> None:
    status, verdict = run(tmp_path / "run", "--smp", "1", "--duration", "0.5")
    assert (status, verdict["outcome"]) == (0, "pass")


SAMPLE = (
    "sync-after-tail-missing", "sync-not-waited-for", "last-write-too-wide",
    "handler-misses-modules",
    "batch-sync-one-left-out", "emulate-jcc-inverted", "handler-takes-user-int3",
)  # fmt: skip
"""Mutants of each kind, also of stock kernels. All mutants take some twenty minutes."""


def test_mutants_are_caught_by_the_check_that_names_the_fault(tmp_path: Path) -> None:
    only = [argument for name in SAMPLE for argument in ("--only", name)]
    command = [sys.executable, "-m", "orchestrator", "mutants", *only, "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1700)
    print(done.stderr[-3000:], done.stdout[-6000:])
    content = json.loads((tmp_path / "mutants.json").read_text())
    assert {result["name"] for result in content["results"]} == set(SAMPLE)
    assert {(result["name"], result["result"]) for result in content["results"]} == {
        (name, "caught") for name in SAMPLE
    }
    assert done.returncode == 0


def test_the_report_explains_the_first_failure(tmp_path: Path) -> None:
    patch = MUTANTS / "sync-after-tail-missing.patch"
    run(
        tmp_path / "run",
        "--smp",
        "4",
        "--scenario",
        "nop5",
        "--duration",
        "0.2",
        "--patch",
        str(patch),
    )
    report = (tmp_path / "run" / "report.txt").read_text()
    assert "First failure: sync, in nop5.direct.on, phase 2" in report
    assert "0f 1f 44 00 00          the old instruction (nopl (%rax, %rax))" in report
    assert re.search(r"e9 0b 00 00 00 {10}the new instruction \(jmp .*orch_nop5_new", report)
    for cpu in range(4):
        assert re.search(rf"^ +CPU {cpu}: \w+\+0x[0-9a-f]+", report, re.MULTILINE), report
    # the poker, at its next write
    assert re.search(r"__text_poke\+0x\w+ \(arch/x86/kernel/alternative\.c:\d+\)", report)


def test_a_cpu_with_interrupts_off_catches_a_missing_wait_without_gdb(
    tmp_path: Path,
) -> None:
    patch = MUTANTS / "sync-not-waited-for.patch"
    options = [
        "--scenario",
        "held-off",
        "--scenario",
        "nop5",
        "--duration",
        "0.2",
        "--patch",
        str(patch),
    ]
    _, verdict = run(tmp_path / "run", "--smp", "2", *options)
    guest = next(check for check in verdict["checks"] if check["check"] == "guest")
    assert guest["status"] == "fail"
    assert "had interrupts off and had not synced" in guest["text"]


def test_a_soak_run_repeats_the_scenarios_in_constant_memory(tmp_path: Path) -> None:
    options = ["--scenario", "nop5", "--scenario", "keys-*", "--duration", "0.5", "--soak", "25s"]
    status, verdict = run(tmp_path / "run", "--smp", "2", *options)
    soak = verdict["soak"]
    assert (status, verdict["outcome"]) == (0, "pass")
    assert soak["rounds"] >= 3
    assert soak["seconds"] >= 25
    assert soak["pokes"] > 100 and soak["int3"] > 100
    first, last = soak["memory"]["orchestrator"]  # each round has guests of its own
    assert last < first + 32, "MiB"


def test_single_threaded_tcg_passes(tmp_path: Path) -> None:
    status, verdict = run(
        tmp_path / "run", "--smp", "2", "--accel", "tcg-single", "--duration", "0.5"
    )
    assert (status, verdict["outcome"]) == (0, "pass")


def test_a_failure_under_several_tcg_threads_does_not_count(tmp_path: Path) -> None:
    patch = MUTANTS / "sync-after-int3-missing.patch"
    status, verdict = run(
        tmp_path / "run",
        "--smp",
        "2",
        "--accel",
        "tcg-multi",
        "--duration",
        "0.5",
        "--patch",
        str(patch),
    )
    assert (status, verdict["outcome"]) == (125, "infra")
    assert (
        "fail" in statuses(verdict).values()
    )  # whether the kernel or the emulator is at fault cannot be known


def test_two_concurrent_runs_do_not_interfere(tmp_path: Path) -> None:
    both = [
        subprocess.Popen(
            command(tmp_path / name, "--smp", "2", "--duration", "0.5"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name in ("one", "two")
    ]
    assert [child.wait(900) for child in both] == [0, 0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_nothing_survives_the_end_of_a_run(tmp_path: Path, number: signal.Signals) -> None:
    directory, private = tmp_path / "run", tmp_path / "private"
    private.mkdir()
    mark = f"LEFT_BY={tmp_path}"
    child = subprocess.Popen(
        command(directory, "--smp", "2", "--duration", "60"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LEFT_BY": str(tmp_path), "XDG_RUNTIME_DIR": str(private)},
    )
    wait_for(lambda: (directory / "events.jsonl").exists(), 900)
    time.sleep(1)
    wait_for(lambda: len(marked(mark)) > 2, 10)
    os.kill(child.pid, number)
    output, errors = child.communicate(timeout=60)
    wait_for(lambda: not marked(mark) and not list(private.iterdir()), 4)
    if number == signal.SIGKILL:
        assert child.returncode == -signal.SIGKILL
        return
    assert child.returncode == 128 + number and "Traceback" not in errors
    reason = f"interrupted by {number.name}"
    assert output.splitlines()[-1] == f"INFRA  {reason}"
    verdict = json.loads((directory / "verdict.json").read_text())
    assert (verdict["outcome"], verdict["reason"]) == ("infra", reason)
    assert "Linux version" in (directory / "report.html").read_text()


def test_a_killed_qemu_is_no_fault_of_the_kernel(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    child = subprocess.Popen(
        command(directory, "--duration", "60"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: (directory / "events.jsonl").exists(), 900)
    victims = [
        pid for pid in processes() if str(directory) in cmdline(pid) and "-accel" in cmdline(pid)
    ]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    assert child.wait(30) == 125
    verdict = json.loads((directory / "verdict.json").read_text())
    assert verdict["outcome"] == "lost-vm"


def marked(text: str) -> list[int]:
    """The processes with `text` in their environment."""
    found = []
    for pid in processes():
        with contextlib.suppress(OSError):
            if text.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(pid)
    return found


def processes() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def cmdline(pid: int) -> str:
    try:
        return (
            (Path("/proc") / str(pid) / "cmdline")
            .read_bytes()
            .replace(b"\0", b" ")
            .decode(errors="replace")
        )
    except OSError:
        return ""


def wait_for(predicate: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < end, "the condition never became true"
        time.sleep(0.1)


def test_a_kernel_without_headers_is_tested_by_its_own_pokes(tmp_path: Path) -> None:
    options = ("--kernel", "debian:6.12", "--scenario", "sysctl", "--smp", "2", "--duration", "1")
    status, verdict = run(tmp_path / "healthy", *options)
    assert (status, verdict["outcome"]) == (0, "pass")
    assert set(statuses(verdict).values()) == {"pass"}
    fault = PROJECT / "kernels" / "mutants" / "stock" / "sync-after-tail-missing.yaml"
    status, verdict = run(tmp_path / "broken", *options, "--edit-text", str(fault))
    assert (status, statuses(verdict)["sync"]) == (1, "fail")


def test_a_prebuilt_kernel_runs_with_and_without_headers(tmp_path: Path) -> None:
    from orchestrator.kernel.model import KernelRequest
    from orchestrator.kernel.obtain import obtain

    built = obtain(KernelRequest(selector="6.1-plain"))
    options = ("--bzimage", str(built.bzimage), "--smp", "2", "--duration", "0.5")
    status, verdict = run(
        tmp_path / "with", *options, "--headers", str(built.kbuild), "--scenario", "nop5"
    )
    assert (status, verdict["outcome"], verdict["kernel"]["release"]) == (0, "pass", built.release)
    status, verdict = run(tmp_path / "without", *options)
    assert (status, verdict["outcome"]) == (0, "pass")
    assert "without the test module" in verdict["reason"]


def test_kernels_show_prints_facts_read_off_the_kernel() -> None:
    show = [sys.executable, "-m", "orchestrator", "kernels", "show", "--kernel"]
    for kernel, poke, handler in (
        ("6.1-int3", "text_poke_bp", "int3_notify (a die notifier)"),
        ("debian:7.3", "smp_text_poke_single", "smp_text_poke_int3_handler"),
    ):
        done = subprocess.run([*show, kernel], capture_output=True, text=True, timeout=600)
        facts = {
            name.strip(): text.strip()
            for name, _, text in (line.partition(":") for line in done.stdout.splitlines())
        }
        assert (facts["pokes one site"], facts["takes int3"], facts["syncs a core"]) == (
            poke,
            handler,
            "do_sync_core",
        )
        assert int(facts["jump labels"]) > 100
