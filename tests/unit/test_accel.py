# SPDX-License-Identifier: GPL-2.0-only
"""The choice of the accelerator, without a virtual machine."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from pathlib import Path

import pytest

from orchestrator.errors import InfraError, UsageError
from orchestrator.host.tools import Qemu
from orchestrator.machine import accel
from orchestrator.machine.gdbstub import Stub, StubError


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


def test_a_failed_probe_is_remembered_for_its_qemu_and_its_probe_only(
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
    other = tmp_path / "probe.S"
    other.write_text("/* a probe that asks for more */")
    monkeypatch.setattr(accel, "PROBE", other)
    accel.kvm_trouble(qemu(10, 0), device=device, memory=memory)
    replaced = tmp_path / "qemu"
    for content in ("old", "the distribution's security update"):
        replaced.write_text(content)
        updated = Qemu(binary=replaced, version=(10, 0))
        accel.kvm_trouble(updated, device=device, memory=memory)
    assert len(probed) == 5
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


@pytest.mark.parametrize("content", ["3", "[1]", '"text"', "[" * 100_000, '{"a": 1}', "\xff"])
def test_a_file_of_results_that_is_json_but_not_ours_is_repaired(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "hosts.json"
    (tmp_path / "kvm").touch()
    memory.write_text(content, encoding="latin-1")
    monkeypatch.setattr(accel, "probe", lambda *_: "it hung")
    found = accel.kvm_trouble(qemu(10, 0), device=tmp_path / "kvm", memory=memory)
    assert found == "it hung"
    assert "it hung" in json.loads(memory.read_text()).values()


@pytest.mark.parametrize("which", ["hosts.json", ".hosts.json.lock"])
def test_results_that_cannot_be_kept_are_found_out_each_time(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kvm").touch()
    (tmp_path / which).mkdir()
    monkeypatch.setattr(accel, "probe", lambda *_: "it hung")
    memory = tmp_path / "hosts.json"
    for _ in range(2):
        found = accel.kvm_trouble(qemu(10, 0), device=tmp_path / "kvm", memory=memory)
        assert found == "it hung"
    assert not [*tmp_path.glob("*.partial-*")]


def test_kvm_by_name_is_an_error_if_it_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accel, "kvm_trouble", lambda _: "it hung")
    with pytest.raises(InfraError, match="it hung; --accel tcg works everywhere"):
        accel.choose("kvm", qemu(10, 0))
    chosen = accel.choose("auto", qemu(10, 0))
    assert chosen.kind == "tcg" and chosen.why.startswith("no KVM: it hung; ")


# --- the probe, with scripts in place of QEMU. The real one is in tests/vm/test_qemus.py.


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "probe.bin").write_bytes(BREAKPOINT.to_bytes(8, "little"))
    monkeypatch.setattr(accel, "_probe_image", lambda: tmp_path / "probe.bin")


BREAKPOINT = 0xF01FB


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (
            "echo 'x: error: failed to set MSR 0x10a' >&2; echo 'x: Assertion failed.' >&2; "
            "kill -ABRT $$",
            "a small guest did not reach 64-bit mode on CPU 0: QEMU died of signal 6 "
            "(x: error: failed to set MSR 0x10a / x: Assertion failed)",
        ),
        (
            "printf LB; exit 0",
            "a small guest did not take 1000 int3 on CPU 0: "
            "QEMU ended because the guest reset, as after a triple fault",
        ),
        (
            "printf LBITlbi; exit 3",
            "a small guest did not take the interrupts of a timer on CPU 1: "
            "QEMU ended with status 3",
        ),
        (
            "printf LBIT; exec sleep 60",
            "a small guest did not reach 64-bit mode on CPU 1: it took more than 1 s",
        ),
        (
            "printf LB; echo 'KVM internal error. Suberror: 1' >&2; "
            "echo 'extra data[0]: 0x0' >&2; echo 'emulation failure' >&2; "
            "echo 'RAX=0000000000000000 RBX=000000000000' >&2; echo 'Code=00 00 <cc>' >&2; exit 1",
            "a small guest did not take 1000 int3 on CPU 0: QEMU ended with status 1 "
            "(KVM internal error. Suberror: 1 / emulation failure)",
        ),
    ],
)
@pytest.mark.usefixtures("image")
def test_a_failed_probe_says_how_far_it_got_and_what_qemu_said(
    script: str, sentence: str, tmp_path: Path
) -> None:
    binary = tmp_path / "qemu"
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    begun = time.monotonic()
    found = accel.probe(Qemu(binary=binary, version=(10, 0)), "kvm", "host", seconds=1.0)
    assert found == sentence
    assert time.monotonic() - begun < 10


class FakeStub:
    """The other end of a Stub: answers commands from a list of (command, reply) in order."""

    def __init__(self, exchange: list[tuple[str, str]]) -> None:
        self.client, self._end = socket.socketpair()
        self._exchange = [("qXfer:features:read:target.xml:0,ffb", "lx"), *exchange]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        for expected, reply in self._exchange:
            received = b""
            while not re.search(rb"#..$", received):
                received += self._end.recv(1000).lstrip(b"+")
            assert received == f"${expected}#{sum(expected.encode()) & 255:02x}".encode()
            packet = f"+${reply}#{sum(reply.encode()) & 255:02x}".encode()
            for half in (packet[:3], packet[3:]):
                self._end.sendall(half)
        self._end.recv(1)
        self._end.close()


def registers(rip: int) -> str:
    return (bytes(16 * 8) + rip.to_bytes(8, "little") + bytes(100)).hex()


def stops(cpu: int, rip: int, signal: int = 5) -> list[tuple[str, str]]:
    return [
        ("c", f"T{signal:02x}thread:{cpu + 1:02x};"),
        (f"Hg{cpu + 1:02x}", "OK"),
        ("g", registers(rip)),
    ]


MOVED = (f"P10={(BREAKPOINT + 1).to_bytes(8, 'little').hex()}", "OK")
SET = (f"Z1,{BREAKPOINT:x},1", "OK")


def drive(exchange: list[tuple[str, str]]) -> None:
    fake = FakeStub(exchange)
    accel._drive(Stub(fake.client, time.monotonic() + 5), BREAKPOINT)


def test_each_cpu_is_sent_past_the_hardware_breakpoint() -> None:
    drive([SET, *stops(0, BREAKPOINT), MOVED, *stops(1, BREAKPOINT), MOVED, ("c", "W55")])


@pytest.mark.parametrize(
    ("exchange", "sentence"),
    [
        ([(SET[0], "")], "QEMU's gdbstub answered '' to 'Z1,f01fb,1'"),
        ([SET, ("c", "W00")], "no hardware breakpoint stopped CPU 0"),
        (
            [SET, *stops(0, BREAKPOINT), MOVED, ("c", "W55")],
            "no hardware breakpoint stopped CPU 1",
        ),
        ([SET, *stops(0, 0xA000, 6)], "QEMU stopped CPU 0 with an internal error at 0xa000"),
        ([SET, *stops(0, 0xFFF0)], "QEMU stopped CPU 0 by signal 5 at 0xfff0"),
        ([SET, *stops(1, BREAKPOINT)], "QEMU stopped CPU 1 by signal 5 at 0xf01fb"),
    ],
)
def test_a_breakpoint_that_does_not_stop_its_cpu_is_reported(
    exchange: list[tuple[str, str]], sentence: str
) -> None:
    with pytest.raises(StubError, match=f"^{re.escape(sentence)}$"):
        drive(exchange)


def test_a_stub_that_is_silent_ends_at_the_deadline() -> None:
    client, _end = socket.socketpair()
    with pytest.raises(TimeoutError):
        Stub(client, time.monotonic() + 0.1)
    _end.close()
