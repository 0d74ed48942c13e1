# SPDX-License-Identifier: GPL-2.0-only
"""What the observer makes of what a guest says, with a guest that says what the test wants."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator import guests as module
from orchestrator.errors import BootError, InfraError, LostVM, OrchestratorError
from orchestrator.guests import ShellGuest, collect
from orchestrator.host.logs import Log
from orchestrator.machine.faults import NoAnswer, TimedOut
from orchestrator.machine.waiting import Silence
from orchestrator.observer import Observer
from orchestrator.scenarios.scenario import select
from orchestrator.scenarios.steps import plan_steps
from orchestrator.text.functions import LOCK, POKE_ONE
from orchestrator.verdict.evidence import Evidence
from orchestrator.watch.events import Recording


class Guest:
    """In place of a Machine: each file and command has an answer, or an exception to raise."""

    def __init__(self, directory: Path, answers: dict[str, bytes | Exception]) -> None:
        self.answers = answers
        self.spec = SimpleNamespace(smp=4, memory=1024)
        self.ssh = self
        self.qmp = SimpleNamespace(lost="", find=lambda name: name)
        self.console = SimpleNamespace(
            lines=["[ 1.0] the last words"],
            shows=lambda text: any(text in asked for asked in self.asked),
            scanner=SimpleNamespace(findings=[], lines=0),
        )
        self.process = SimpleNamespace(pid=1)
        self.silence = Silence()
        self.logs: list[Log] = []
        self.asked: list[str] = []
        self.post_mortem = lambda: self.silence.limit(None)
        self._directory = directory

    def get(self, path: str, timeout: float = 0) -> bytes:
        self.asked.append(path)
        answer = next((a for name, a in self.answers.items() if name in path), b"")
        if isinstance(answer, Exception):
            raise answer
        return answer

    def run(
        self, command: str, timeout: float = 0, stdin: bytes = b"", most: int = 0
    ) -> tuple[int, str]:
        return 0, self.get(command).decode(errors="replace")

    def check(self) -> None:
        pass

    def log(self, name: str) -> Log:
        self.logs.append(Log(self._directory / name))
        return self.logs[-1]


class Recorder:
    why_not, lost_int3, lines = "it is a test", "", ()

    def save_int3(self, log: Log) -> None:
        pass


def observer(tmp_path: Path, **answers: bytes | Exception) -> Any:
    guest = Guest(tmp_path, {name.replace("_", "/"): text for name, text in answers.items()})
    return Observer(
        machine=guest,  # type: ignore[arg-type]
        recorder=Recorder(),  # type: ignore[arg-type]
        scenarios=select(["nop5"]),
        duration=1,
        seed=1,
        directory=tmp_path,
        evidence=Evidence(requested_cpus=4),
    )


@pytest.mark.parametrize(
    ("text", "online"),
    [(b"0-3\n", (0, 1, 2, 3)), (b"0,2-3", (0, 2, 3)), (b"0", (0,))],
)
def test_the_cpus_that_are_online(tmp_path: Path, text: bytes, online: tuple[int, ...]) -> None:
    assert observer(tmp_path, cpu_online=text)._online() == online


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"0-3000000000",
        b"0-9999",
        b"0-4",
        b"3-0",
        b"all of them",
        b"\xff\xfe\x00",
        b"0-" + b"9" * 5000,
        b"0," * 100_000,
        "\u0660-\u0663".encode(),  # digits, but not ours
    ],
)
def test_nonsense_about_cpus_is_an_error_with_a_sentence(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(InfraError, match="does not say which CPUs are online") as caught:
        observer(tmp_path, cpu_online=text)._online()
    assert len(str(caught.value)) < 1000


KALLSYMS = f"ffffffff81000000 T {POKE_ONE[-1]}\nffffffff81900000 D {LOCK}\n".encode()


def test_symbols_are_read_and_what_is_none_is_left_out(tmp_path: Path) -> None:
    garbage = b"\xff\x00 T x\nzzzzzzzzzzzzzzzz T do_sync_core\nffff T\n\n" + b"f" * 10_000 + b"\n"
    one = observer(tmp_path, kallsyms=garbage + KALLSYMS)
    assert one._symbols([]) == {POKE_ONE[-1]: 0xFFFFFFFF81000000, LOCK: 0xFFFFFFFF81900000}


@pytest.mark.parametrize(
    "text", [b"", b"\x00" * 1000, b"garbage", KALLSYMS.replace(b"ffffffff81", b"0000000000")]
)
def test_a_symbol_table_of_nonsense_leaves_nothing_to_test(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(BootError):
        observer(tmp_path, kallsyms=text)._load_module()


@pytest.mark.parametrize(
    "line", [b"companion ", b"companion nop5", b"companion nop5 x y", b"companion nop5 99999999999"]
)
def test_nonsense_about_a_companion_is_an_error_with_a_sentence(
    tmp_path: Path, line: bytes
) -> None:
    one = observer(tmp_path, steps=line + b"\n")
    plan = plan_steps(one.scenarios, (0, 1), 1, 1)
    with pytest.raises(InfraError, match="the guest reports nonsense about a script"):
        one._run_steps(plan)


def test_a_refusal_of_a_hundred_megabytes_is_quoted_in_part(tmp_path: Path) -> None:
    one = observer(tmp_path)
    one.machine.run = lambda *_, **__: (1, "x " * 1_000_000)
    with pytest.raises(InfraError) as caught:
        one._send("step", 1)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("text", [b"", b"MemFree: lots", b"\xff" * 100, b"MemFree: 1" + b"0" * 99])
def test_nonsense_about_memory_is_an_error_with_a_sentence(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(InfraError, match="how much memory it uses"):
        observer(tmp_path, meminfo=text).memory()


def watch(recording: Recording) -> Any:
    return SimpleNamespace(recording=lambda: recording)


def guest(one: Any, watch: Any) -> ShellGuest:
    """The guest of an observer, which GDB watches."""
    found: ShellGuest = one._guest(watch, {}, [])
    return found


def test_a_report_that_was_not_read_over_ssh_is_a_loss(tmp_path: Path) -> None:
    one = observer(tmp_path, dev_orchestrator=LostVM("QEMU was killed"))
    collect(one.evidence, [guest(one, watch(Recording()))], answers=True)
    lost = one.evidence.lost
    assert lost["guest"] == "the guest's report was read off the console: QEMU was killed"
    assert (lost["gdb"], lost["ledger"], lost["qmp"]) == ("", "", "")
    assert (tmp_path / "guest.ktap").read_text() == "[ 1.0] the last words"


def test_a_guest_that_hangs_is_not_asked_once_more(tmp_path: Path) -> None:
    one = observer(tmp_path)
    collect(one.evidence, [guest(one, watch(Recording()))], answers=False)
    assert not one.machine.asked
    assert "does not answer any more" in one.evidence.lost["guest"]


@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b"KTAP version 1\n1..2\nok 1 a\n", b""])
def test_a_report_that_is_incomplete_is_a_loss(tmp_path: Path, text: bytes) -> None:
    one = observer(tmp_path, dev_orchestrator=text)
    collect(one.evidence, [guest(one, watch(Recording(lost="GDB died")))], answers=True)
    assert "incomplete" in one.evidence.lost["guest"]
    assert one.evidence.lost["gdb"] == "GDB died"


def test_each_loss_of_an_observer_reaches_the_evidence(tmp_path: Path) -> None:
    one = observer(tmp_path, dev_orchestrator=b"KTAP version 1\n1..1\nok 1 a\n")
    one.machine.qmp.lost, one.recorder.lost_int3 = "no events", "no count"
    collect(one.evidence, [guest(one, watch(Recording()))], answers=True)
    lost = one.evidence.lost
    assert (lost["guest"], lost["gdb"], lost["ledger"], lost["qmp"]) == (
        ("", "", "no count", "no events")
    )
    assert lost["console"] == "the console was not read"


def test_events_without_the_guests_start_were_not_read(tmp_path: Path) -> None:
    one = observer(tmp_path)
    one.machine.qmp.find = lambda _: None
    collect(one.evidence, [guest(one, watch(Recording()))], answers=True)
    assert one.evidence.lost["qmp"] == "QEMU's events lack the guest's start"


def test_files_for_people_that_cannot_be_written_cost_nothing(tmp_path: Path) -> None:
    for name in ("guest.ktap", "int3.ledger", "cpus.json"):
        (tmp_path / name).mkdir()
    one = observer(tmp_path, dev_orchestrator=b"KTAP version 1\n1..1\nok 1 a\n")
    guest(one, None).record_cpus([])
    collect(one.evidence, [guest(one, watch(Recording()))])
    assert one.evidence.damaged_logs == (
        "cpus.json could not be written: Is a directory",
        "guest.ktap could not be written: Is a directory",
        "int3.ledger could not be written: Is a directory",
    )


def test_a_console_that_shows_what_the_guest_writes_was_read_to_the_end(tmp_path: Path) -> None:
    one = observer(tmp_path)
    guest(one, None).prove_console()
    assert "/dev/kmsg" in one.machine.asked[0]


def test_a_console_that_does_not_is_no_basis_for_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MARK_SECONDS", 0.2)
    one = observer(tmp_path)
    one.machine.console.shows = lambda _: False
    with pytest.raises(InfraError, match="does not show what the guest writes to it"):
        guest(one, None).prove_console()


def test_a_silent_guest_is_explained_without_being_given_up_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the observer finds out why, neither silence nor the fault ends a wait."""
    one = observer(tmp_path)
    hung = TimedOut("a sign of life from the guest", 60)
    seen: list[str] = []

    def poke(*_: object, **__: object) -> None:
        raise hung

    def explain(self: ShellGuest, error: OrchestratorError) -> None:
        seen.append("explained")
        error.outcome = "hang"
        raise error

    one.evidence.cpus = (0, 1)
    object.__setattr__(one, "_poke_everything", poke)
    monkeypatch.setattr(ShellGuest, "explain", explain)
    with pytest.raises(TimedOut):
        one._observe_round(watch(Recording()), guest(one, watch(Recording())), 1)
    assert seen == ["explained"] and not one.machine.asked


def idle_watch(step: int = 0, traps: int = 0) -> Any:
    """A watch on a guest that makes no progress."""
    entry = {"cpu": 1, "ip": 0x1000, "traps": traps, "int3": 0}
    return SimpleNamespace(cpu_snapshot=list, survey=lambda _: [entry], step=lambda: step)


@pytest.mark.parametrize(
    ("step", "traps", "stuck", "awk", "outcome", "text"),
    [
        # The guest does not answer, and its kernel ...
        (2, 0, [], TimedOut("x", 20), "infra", "the kernel has ended every step"),
        (0, 0, [], TimedOut("x", 20), "infra", "no CPU is stuck in it"),  # without the module
        (3, 0, [], TimedOut("x", 20), "hang", "step 3 has begun and does not end"),
        (2, 0, [1, 3], TimedOut("x", 20), "hang", "the kernel does not leave CPU 1, 3"),
        (2, 99, [], TimedOut("x", 20), "hang", "CPU 1 keeps trapping at 1000"),
        # It answers, but what it runs does not end.
        (2, 0, [], b"", "infra", "the kernel has ended every step"),
        (2, 0, [], b"sh\nsleep\n", "timeout", "blocked in the kernel: sh sleep"),
        (3, 0, [], b"", "timeout", "step 3 has begun and does not end"),
        (3, 99, [], b"", "hang", "CPU 1 keeps trapping at 1000"),
    ],
)
def test_a_guest_without_progress_is_the_kernels_fault_only_if_it_owes_something(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, traps: int, stuck: list[int],
    awk: bytes | Exception, outcome: str, text: str,
) -> None:  # fmt: skip
    one = observer(tmp_path, awk=awk)
    one.machine.console.lines = ["KTAP version 1", "1..9", "ok 1 nop5.direct.on", "ok 2 x # SKIP"]
    monkeypatch.setattr(module.cpus, "stuck", lambda *_: stuck)
    with pytest.raises(OrchestratorError, match=text) as caught:
        guest(one, idle_watch(step, traps)).explain(TimedOut("a sign of life", 60))
    assert caught.value.outcome == outcome
    assert isinstance(caught.value, NoAnswer) == (outcome == "infra" and awk != b"")
