# SPDX-License-Identifier: GPL-2.0-only
"""What the observer makes of a guest that has booted: its parameters, and whether it takes the
test module."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_qemu import SPEC

from orchestrator.errors import BootError, InfraError, ModuleRefused
from orchestrator.machine.qemu import PARAMETERS
from orchestrator.machine.waiting import Silence
from orchestrator.observer import Observer
from orchestrator.scenarios.scenario import select
from orchestrator.verdict.evidence import Evidence

KALLSYMS = """\
ffffffff81016300 T text_poke_bp
ffffffff810166a0 T __text_poke
ffffffff81a2dd4c D text_mutex
"""
OVERRIDE = "the kernel ignores its command line (CONFIG_CMDLINE_OVERRIDE)"


class Guest:
    """Answers in place of the guest."""

    def __init__(self, command_line: str = " ".join(PARAMETERS), insmod: str = "", log: str = ""):
        self.command_line = command_line
        self.insmod = insmod
        """What insmod prints; it succeeds if that is nothing."""
        self.log = log

    def get(self, path: str, timeout: float = 0) -> bytes:
        return {"/proc/cmdline": self.command_line, "/sys/devices/system/cpu/online": "0-1"}[
            path
        ].encode()

    def run(self, command: str) -> tuple[int, str]:
        if command.startswith("insmod"):
            return (1 if self.insmod else 0), self.insmod
        return 0, self.log if command.startswith("dmesg") else KALLSYMS


def no_memory(address: int, size: int) -> bytes:
    raise InfraError("no memory")


def observer(guest: Guest, *, fallback: Iterable[str] = ("sysctl",), **fields: Any) -> Observer:
    scenarios = fields.pop("scenarios", select(["boot-keys", "nop5"]))
    append = tuple(parameter for scenario in scenarios for parameter in scenario.append)
    machine: Any = SimpleNamespace(
        ssh=guest,
        console=None,
        silence=Silence(),
        spec=replace(SPEC, append=append),
        on_poll=[],
        cont=lambda: None,
        wait_ready=lambda _: None,
        read_memory=no_memory,
    )
    recorder: Any = SimpleNamespace(configure=lambda *_: None, reload=lambda _: True)
    return Observer(
        machine=machine,
        recorder=recorder,
        scenarios=scenarios,
        fallback=select([*fallback]) if fallback else (),
        duration=1,
        seed=1,
        directory=Path(),
        evidence=Evidence(requested_cpus=2),
        **fields,
    )


@pytest.mark.parametrize(
    ("command_line", "lacking"),
    [
        (" ".join([*PARAMETERS, "schedstats=enable"]), {}),
        ("rdinit=/init console=ttyS0,115200 panic=0", {"boot-keys": OVERRIDE}),
        (
            " ".join(PARAMETERS),
            {"boot-keys": "the kernel did not take the parameter schedstats=enable"},
        ),
    ],
)
def test_nothing_is_concluded_from_a_parameter_that_did_not_arrive(
    command_line: str, lacking: dict[str, str]
) -> None:
    seen = observer(Guest(command_line))
    seen.prepare()
    assert seen._lacking() == lacking
    assert bool(seen.evidence.not_taken) == bool(lacking)


def refusal(what: str) -> str:
    return f"insmod: can't insert '/orch.ko': {what}"


@pytest.mark.parametrize(
    "what",
    [
        "Key was rejected by service", "Required key not available", "Operation not permitted",
        "kernel does not support requested operation", "Function not implemented",
    ],
)  # fmt: skip
def test_a_kernel_that_refuses_the_module_is_run_without_it(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs: list[Observer] = []
    monkeypatch.setattr(Observer, "_observe", lambda self, *_: runs.append(self))
    observer(Guest(insmod=refusal(what))).observe()
    (run,) = runs
    assert run.without_module
    assert [scenario.name for scenario in run.scenarios] == ["sysctl"]
    assert f"{what}): only what needs no test module is run" in capsys.readouterr().err


def test_a_kernel_that_refuses_the_module_and_has_no_other_scenario_is_not_to_blame() -> None:
    guest = Guest(insmod=refusal("Operation not permitted"), log="Lockdown: insmod: unsigned ...")
    with pytest.raises(ModuleRefused) as caught:
        observer(guest, fallback=()).observe()
    assert (caught.value.outcome, caught.value.exit_status) == ("boot-error", 125)
    assert "Operation not permitted; Lockdown: insmod: unsigned" in str(caught.value)


def test_a_module_for_another_kernel_is_nobodys_fault_and_not_left_out() -> None:
    log = "orch: version magic '6.1.176 SMP ' should be '6.1.176 SMP preempt '"
    with pytest.raises(BootError, match="version magic") as caught:
        observer(Guest(insmod=refusal("invalid module format"), log=log)).observe()
    assert not isinstance(caught.value, ModuleRefused)
    assert caught.value.exit_status == 125


def test_a_kernel_elsewhere_than_its_vmlinux_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["ffffffff81016000 T text_poke_bp", "ffffffff81017000 T x"]
    monkeypatch.setattr("orchestrator.text.symbols.of_vmlinux", lambda _: lines)
    without = " ".join(parameter for parameter in PARAMETERS if parameter != "nokaslr")
    seen = observer(Guest(without), scenarios=select(["nop5"]))
    seen.prepare()
    assert seen.evidence.kernel_offset == 0x300
    assert seen._kernel_lines() == ["ffffffff81016300 T text_poke_bp", "ffffffff81017300 T x"]
