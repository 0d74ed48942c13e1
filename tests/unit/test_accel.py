"""The choice of the accelerator, as far as it needs no virtual machine."""

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
    ("word", "version", "option"),
    [
        ("tcg", (7, 2, 22), "tcg,thread=single"),
        ("tcg", (10, 0, 2), "tcg,thread=single"),
        ("tcg-single", (10, 0, 2), "tcg,thread=single"),
        ("tcg-multi", (7, 2, 22), "tcg,thread=multi"),
    ],
)
def test_threads_of_tcg(word: str, version: tuple[int, ...], option: str) -> None:
    assert accel.choose(word, qemu(*version)).option == option


def test_several_threads_are_not_trusted() -> None:
    assert "can go on running code that was patched" in (
        accel.choose("tcg-multi", qemu(10, 0)).untrusted or ""
    )
    assert accel.choose("tcg", qemu(7, 2)).untrusted is None


def test_unknown_word() -> None:
    with pytest.raises(UsageError, match="did you mean kvm"):
        accel.choose("kwm", qemu(10, 0))


def test_no_device_no_kvm(tmp_path: Path) -> None:
    assert "there is no" in accel.kvm_trouble(
        qemu(10, 0), device=tmp_path / "kvm", memory=tmp_path / "hosts.json"
    )


def test_a_probe_that_failed_is_remembered_for_this_qemu_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, memory = tmp_path / "kvm", tmp_path / "hosts.json"
    device.touch()
    asked: list[tuple[int, ...]] = []

    def probe(qemu: Qemu, kind: str, cpu: str) -> str:
        asked.append(qemu.version)
        return "it stood still"

    monkeypatch.setattr(accel, "probe", probe)
    for version in ((10, 0), (10, 0), (9, 2)):
        assert accel.kvm_trouble(qemu(*version), device=device, memory=memory) == "it stood still"
    assert asked == [(10, 0), (9, 2)]
    assert set(json.loads(memory.read_text()).values()) == {"it stood still"}


def test_a_spoilt_memory_is_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device, memory = tmp_path / "kvm", tmp_path / "hosts.json"
    device.touch()
    memory.write_text("{ not json")
    monkeypatch.setattr(accel, "probe", lambda *_: "")
    assert accel.kvm_trouble(qemu(10, 0), device=device, memory=memory) == ""
    assert list(json.loads(memory.read_text()).values()) == [""]


def test_kvm_by_name_must_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "kvm_trouble", lambda _: "it stood still")
    with pytest.raises(InfraError, match="it stood still; --accel tcg works everywhere"):
        accel.choose("kvm", qemu(10, 0))
    chosen = accel.choose("auto", qemu(10, 0))
    assert chosen.kind == "tcg" and chosen.why.startswith("no KVM: it stood still; ")
