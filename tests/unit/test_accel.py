# SPDX-License-Identifier: GPL-2.0-only
"""The choice of the accelerator, without a virtual machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.errors import InfraError, UsageError
from orchestrator.host.tools import Qemu
from orchestrator.machine import accel


def qemu(*version: int) -> Qemu:
    return Qemu(binary=Path("/bin/false"), version=version)


@pytest.mark.parametrize(
    ("choice", "version", "option"),
    [
        ("tcg", (7, 2, 22), "tcg,thread=single"),
        ("tcg", (10, 0, 2), "tcg,thread=single"),
        ("tcg-single", (10, 0, 2), "tcg,thread=single"),
        ("tcg-multi", (7, 2, 22), "tcg,thread=multi"),
    ],
)
def test_each_tcg_choice_has_its_threads(
    choice: str, version: tuple[int, ...], option: str
) -> None:
    assert accel.choose(choice, qemu(*version)).option == option


def test_a_failure_with_several_tcg_threads_is_not_trusted() -> None:
    assert "can go on running code that was patched" in (
        accel.choose("tcg-multi", qemu(10, 0)).untrusted or ""
    )
    assert accel.choose("tcg", qemu(7, 2)).untrusted is None


def test_an_unknown_accelerator_suggests_the_closest_name() -> None:
    with pytest.raises(UsageError, match="did you mean kvm"):
        accel.choose("kwm", qemu(10, 0))


def test_without_the_device_there_is_no_kvm(tmp_path: Path) -> None:
    assert "there is no" in accel.kvm_trouble(
        qemu(10, 0), device=tmp_path / "kvm", memory=tmp_path / "hosts.json"
    )


def test_a_failed_probe_is_remembered_for_its_qemu_version_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, memory = tmp_path / "kvm", tmp_path / "hosts.json"
    device.touch()
    probed: list[tuple[int, ...]] = []

    def probe(qemu: Qemu, kind: str, cpu: str) -> str:
        probed.append(qemu.version)
        return "it hung"

    monkeypatch.setattr(accel, "probe", probe)
    for version in ((10, 0), (10, 0), (9, 2)):
        assert accel.kvm_trouble(qemu(*version), device=device, memory=memory) == "it hung"
    assert probed == [(10, 0), (9, 2)]
    assert set(json.loads(memory.read_text()).values()) == {"it hung"}


def test_a_damaged_file_of_results_is_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, memory = tmp_path / "kvm", tmp_path / "hosts.json"
    device.touch()
    memory.write_text("{ not json")
    monkeypatch.setattr(accel, "probe", lambda *_: "")
    assert accel.kvm_trouble(qemu(10, 0), device=device, memory=memory) == ""
    assert list(json.loads(memory.read_text()).values()) == [""]


def test_kvm_by_name_is_an_error_if_it_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "kvm_trouble", lambda _: "it hung")
    with pytest.raises(InfraError, match="it hung; --accel tcg works everywhere"):
        accel.choose("kvm", qemu(10, 0))
    chosen = accel.choose("auto", qemu(10, 0))
    assert chosen.kind == "tcg" and chosen.why.startswith("no KVM: it hung; ")
