# SPDX-License-Identifier: GPL-2.0-only
"""Healthy guests that are not as expected: a command line that is not ours, no modules."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import run
from orchestrator.kernel.model import KernelRequest
from orchestrator.observer import Observer
from orchestrator.report.terminal import _code_result
from orchestrator.spec import RunSpec
from orchestrator.verdict.result import RunResult

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]


def run_in(
    directory: Path, monkeypatch: pytest.MonkeyPatch, commands: str, *scenarios: str
) -> RunResult:
    """A run in whose guest these commands were given when it had just booted."""
    look_up = Observer._look_up_parameters

    def change_guest(self: Observer) -> None:
        assert self.machine.ssh.run(commands) == (0, "")
        look_up(self)

    monkeypatch.setattr(Observer, "_look_up_parameters", change_guest)
    spec = RunSpec(
        kernel=KernelRequest(selector="6.1-plain"),
        smp=2,
        duration=0.3,
        scenarios=scenarios,
        directory=directory,
    )
    # Somebody who may want to look at the guest has one to which commands are sent.
    return run.run(spec, keep=lambda result, machine: None)


def test_a_kernel_with_a_command_line_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with CONFIG_CMDLINE_OVERRIDE."""
    result = run_in(
        tmp_path / "run",
        monkeypatch,
        "echo rdinit=/init console=ttyS0 >/tmp/line && mount -o bind /tmp/line /proc/cmdline",
        "boot-keys",
        "nop5",
    )
    assert result.verdict.outcome == "pass"
    (boot_keys,) = [s for s in result.evidence.steps if s.scenario.name == "boot-keys"]
    why = "the kernel ignores its command line (CONFIG_CMDLINE_OVERRIDE)"
    assert str(_code_result(result.evidence, [boot_keys])) == f"skipped: {why}"


def test_a_kernel_that_takes_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with lockdown. What a run without the module sees on two CPUs is left to chance."""
    result = run_in(
        tmp_path / "run", monkeypatch, "echo 1 >/proc/sys/kernel/modules_disabled", "*s*"
    )
    assert result.evidence.without_module
    assert {seen.scenario.name for seen in result.evidence.steps} == {"sysctl"}
    assert result.verdict.outcome in ("pass", "infra")
    assert result.evidence.watched_steps[0].judged_pokes
