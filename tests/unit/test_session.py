# SPDX-License-Identifier: GPL-2.0-only
"""The GDB session, with a real GDB that has no target."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_stub import FakeStub

from orchestrator.errors import InfraError, LostVM
from orchestrator.host import keeper
from orchestrator.watch.mi import Record
from orchestrator.watch.session import Gdb, Refused

pytestmark = [
    pytest.mark.skipif(not shutil.which("gdb"), reason="GDB is not installed"),
    pytest.mark.timeout(60),
]


def pid(gdb: Gdb) -> int:
    process: Any = gdb._controller.gdb_process
    return int(process.pid)


def gone(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    return False


def read_up_to_results(gdb: Gdb) -> None:
    """Have a read end where the next one starts with an answer, as if GDB had paused there."""
    waiting: deque[Record] = deque()
    read = gdb._output.records

    def records(timeout: float) -> list[Record]:
        waiting.extend(read(0 if waiting else timeout))
        if waiting:
            waiting.extend(read(0.05))
        batch = [waiting.popleft()] if waiting else []
        while waiting and waiting[0]["type"] != "result":
            batch.append(waiting.popleft())
        return batch

    gdb._output.records = records  # type: ignore[method-assign]


@pytest.fixture
def gdb(tmp_path: Path) -> Iterator[Gdb]:
    with Gdb(tmp_path / "gdb.log", lambda: None) as gdb:
        number = pid(gdb)
        yield gdb
    assert gone(number)


def test_the_child_process_is_gdb_and_not_a_wrapper(gdb: Gdb) -> None:
    assert "gdb" in Path(f"/proc/{pid(gdb)}/comm").read_text()


def test_each_answer_is_matched_to_its_command(gdb: Gdb) -> None:
    for number in range(50):
        assert gdb.console(f"python print({number} * {number})").strip() == str(number * number)


def test_a_late_answer_to_an_older_command_is_ignored(gdb: Gdb) -> None:
    """A command that timed out is answered later, and not taken for the next one's answer."""
    with pytest.raises(InfraError, match="did not answer"):
        gdb.console("python import time; time.sleep(1.5); print('late')", timeout=0.3)
    record, _ = gdb.execute("-data-evaluate-expression 6*7")
    assert record["payload"] == {"value": "42"}


def test_a_command_returns_with_its_result(gdb: Gdb) -> None:
    start = time.monotonic()
    for _ in range(20):
        gdb.execute("-gdb-show confirm")
    assert time.monotonic() - start < 2  # pygdbmi's own write() would take 4 s


def test_quotes_and_backslashes_arrive_unchanged(gdb: Gdb) -> None:
    text = "a \"b\" \\ 'c' \\n"
    assert gdb.console(f"python print({text!r})").strip() == text


@pytest.mark.parametrize(
    "noise", ["", "\\nThread 2 received signal SIGQUIT\\n", "no end", "answer 1: 7\\n"]
)
def test_a_value_is_found_in_what_gdb_prints_besides(gdb: Gdb, noise: str) -> None:
    gdb.console("python import json")
    value = {"a": "line\nline", "b": [1, None]}
    expression = f"(gdb.write('{noise}'), {value!r})[1]"
    assert gdb.evaluate(expression) == value


def test_an_answer_without_a_value_is_an_error(gdb: Gdb) -> None:
    gdb.console("python import json; json.dumps = str")
    with pytest.raises(InfraError, match="GDB did not answer 'object', but"):
        gdb.evaluate("object")


def test_an_error_answer_is_raised_and_the_session_goes_on(gdb: Gdb) -> None:
    with pytest.raises(Refused, match="-no-such-command"):
        gdb.execute("-no-such-command")
    with pytest.raises(Refused, match="NameError"):
        gdb.console("python no_such_name")
    assert gdb.console("python print(1)").strip() == "1"


def test_resuming_without_a_target_is_an_error(gdb: Gdb) -> None:
    with pytest.raises(Refused):
        gdb.resume()


def test_attaching_to_nothing_is_an_error(gdb: Gdb, tmp_path: Path) -> None:
    with pytest.raises(Refused):
        gdb.attach(tmp_path / "nobody")


def test_a_gdb_that_is_killed_between_commands_is_noticed(gdb: Gdb) -> None:
    os.kill(pid(gdb), signal.SIGKILL)
    with pytest.raises(InfraError, match="GDB ended with status -9"):
        for _ in range(2):  # the first one may be faster than the signal
            gdb.execute("-gdb-show confirm")
            time.sleep(0.5)


def test_a_gdb_that_is_killed_during_a_command_is_noticed(gdb: Gdb) -> None:
    start = time.monotonic()
    with pytest.raises(InfraError, match="GDB ended with status"):
        gdb.console("python import os; os.kill(os.getpid(), 9)")
    assert time.monotonic() - start < 2


def test_a_machine_that_goes_away_during_a_command_ends_the_wait(tmp_path: Path) -> None:
    lost = False

    def alive() -> None:
        if lost:
            raise LostVM("QEMU was killed")

    with Gdb(tmp_path / "gdb.log", alive) as gdb:
        lost = True
        start = time.monotonic()
        with pytest.raises(LostVM):
            gdb.console("python import time; time.sleep(20)")
        assert time.monotonic() - start < 2
        number = pid(gdb)
    assert gone(number)


def fake_gdb(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a shell script into PATH as gdb."""
    path = directory / "gdb"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def test_a_machine_that_is_gone_from_the_start_leaves_no_gdb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alive() -> None:
        raise LostVM("QEMU was killed")

    fake_gdb(tmp_path, monkeypatch, f"echo $$ > {tmp_path}/pid; exec sleep 60")
    with pytest.raises(LostVM):
        Gdb(tmp_path / "gdb.log", alive)
    if (tmp_path / "pid").exists():  # otherwise it was killed before it could write
        assert gone(int((tmp_path / "pid").read_text()))


def test_a_gdb_that_does_not_start_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_gdb(tmp_path, monkeypatch, "exit 3")
    with pytest.raises(InfraError, match="GDB ended with status 3"):
        Gdb(tmp_path / "gdb.log", lambda: None)


def test_a_missing_gdb_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InfraError, match="apt-get install gdb"):
        Gdb(tmp_path / "gdb.log", lambda: None)


def test_the_settings_of_our_python_do_not_reach_that_of_gdb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('not this one')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    with Gdb(tmp_path / "gdb.log", lambda: None) as gdb:
        gdb.console("python import json; print(json.dumps('seen'))")
    assert '"seen' in (tmp_path / "gdb.log").read_text().replace("\\", "")


def test_the_log_has_both_directions(gdb: Gdb, tmp_path: Path) -> None:
    gdb.console("python print('seen')")
    text = (tmp_path / "gdb.log").read_text()
    assert text.startswith("$ setpriv --pdeathsig KILL -- ")
    assert "python print('seen')" in text
    assert "'seen\\n'" in text


def test_no_file_descriptor_is_left_open(tmp_path: Path) -> None:
    def descriptors() -> set[tuple[str, str]]:
        """Number and target of each. Other tests' descriptors may be closed meanwhile."""
        found = set()
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.add((link.name, str(link.readlink())))
        return found

    keeper.start()  # its pipe stays open
    gc.collect()
    before = descriptors()
    for number in range(3):
        with Gdb(tmp_path / f"{number}.log", lambda: None), contextlib.suppress(Refused):
            pass
    left = descriptors() - before
    assert not [target for _, target in left if not target.startswith("/proc/")]


def test_this_gdb_can_load_the_agent(gdb: Gdb, tmp_path: Path) -> None:
    """As in a run, but without a target: there is nothing to set a breakpoint on."""
    from orchestrator.watch.watch import AGENT

    config = tmp_path / "watch.json"
    events = tmp_path / "events.jsonl"
    config.write_text(
        f'{{"symbols": {{}}, "regs": "rdi", "gate": true, "limit": 4, "events": "{events}"}}'
    )
    gdb.console(f"source {AGENT}")
    gdb.console(f"python start({str(config)!r})")
    assert gdb.console("python print(AGENT.open())").strip() == "[]"
    gdb.console("python AGENT.emit('error', -1, what='x')")
    assert '"kind": "error"' in events.read_text()
    gdb.console("python AGENT.close()")


@pytest.fixture
def stub(tmp_path: Path) -> Iterator[FakeStub]:
    stub = FakeStub(tmp_path / "stub")
    yield stub
    stub.close()


def attach(gdb: Gdb, stub: FakeStub, tmp_path: Path) -> None:
    gdb.attach(tmp_path / "stub")
    gdb.resume()
    deadline = time.monotonic() + 5
    while not stub.running and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize("lost", [0, 1, 7, 30])
def test_an_interrupt_is_sent_until_the_guest_has_stopped(
    gdb: Gdb, stub: FakeStub, tmp_path: Path, lost: int
) -> None:
    stub.deaf_to = lost
    attach(gdb, stub, tmp_path)
    start = time.monotonic()
    gdb.interrupt()
    assert not stub.running and stub.interrupts == lost + 1
    assert time.monotonic() - start < 2 + 0.3 * lost
    gdb.resume()
    gdb.interrupt()
    gdb.interrupt()  # a guest that is stopped already
    assert not stub.running


def test_a_guest_that_cannot_be_stopped_is_no_fault_of_the_kernel(
    gdb: Gdb, stub: FakeStub, tmp_path: Path
) -> None:
    stub.deaf_to = 1000
    attach(gdb, stub, tmp_path)
    with pytest.raises(InfraError, match="GDB did not stop the guest within 1 s"):
        gdb.interrupt(timeout=1)


def test_a_machine_that_dies_ends_the_wait_for_a_stop(tmp_path: Path, stub: FakeStub) -> None:
    dead: list[bool] = []

    def check() -> None:
        if dead:
            raise LostVM("QEMU was killed")

    stub.deaf_to = 1000
    with Gdb(tmp_path / "gdb.log", check) as gdb:
        attach(gdb, stub, tmp_path)
        dead.append(True)
        start = time.monotonic()
        with pytest.raises(LostVM):
            gdb.interrupt()
        assert time.monotonic() - start < 2


def test_a_guest_that_stops_by_itself_is_noticed_and_not_interrupted(
    gdb: Gdb, stub: FakeStub, tmp_path: Path
) -> None:
    attach(gdb, stub, tmp_path)
    assert not gdb.stopped_by_itself
    stub.stop_by_itself(11)
    deadline = time.monotonic() + 5
    while not gdb.stopped_by_itself and time.monotonic() < deadline:
        gdb.poll()
    assert gdb.signal == "SIGSEGV"
    gdb.interrupt()
    assert stub.interrupts == 0 and not gdb.stopped_by_itself


def test_a_breakpoint_that_cannot_be_inserted_is_an_error(
    gdb: Gdb, stub: FakeStub, tmp_path: Path
) -> None:
    stub.breakpoints = False
    gdb.attach(tmp_path / "stub")
    gdb.console("hbreak *0x3000")
    with pytest.raises(InfraError, match="ould not insert hardware breakpoints"):
        gdb.resume()


def test_a_log_on_a_full_disk_does_not_end_the_session(tmp_path: Path) -> None:
    (tmp_path / "gdb.log").symlink_to("/dev/full")
    with Gdb(tmp_path / "gdb.log", lambda: None) as gdb:
        assert gdb.console("python print(6 * 7)").strip() == "42"
        assert "No space left" in gdb.log.lost


@pytest.mark.parametrize("name", ["plain", "a b,c%d'e\"f\n-g\\h$i", "\u00fc\u2026"])
def test_strings_reach_gdbs_python_unchanged(gdb: Gdb, tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    directory.mkdir()
    (directory / "file").write_text("print('loaded')")
    gdb.call("exec", f"from pathlib import Path; path = Path({str(directory / 'file')!a})")
    assert gdb.console("python exec(path.read_text())").strip() == "loaded"
    assert gdb.call("ascii", name) == ""  # nothing is printed
    assert gdb.call("print", name).rstrip("\n") == name


def test_the_agent_counts_what_it_wrote(gdb: Gdb, tmp_path: Path) -> None:
    from orchestrator.watch.watch import AGENT

    config = tmp_path / "watch.json"
    config.write_text('{"symbols": {}, "regs": "rdi", "limit": 4, "events": "/dev/full"}')
    gdb.console(f"source {AGENT}")
    gdb.call("start", str(config))
    gdb.console("python AGENT.open()")
    gdb.console("python AGENT.emit('sync', 0)")
    gdb.console("python AGENT.emit('sync', 1)")
    assert gdb.console("python print(AGENT.status())").strip() == (
        "{'count': 2, 'error': '[Errno 28] No space left on device'}"
    )
    gdb.console(
        f"python AGENT.file = os.open({str(tmp_path / 'events')!r}, os.O_WRONLY|os.O_CREAT)"
    )
    assert "'error': ''" in gdb.console("python print(AGENT.status())")
    assert (tmp_path / "events").read_text().count("\n") == 2


@pytest.mark.parametrize("reading", ["all", "up to results"])
def test_a_breakpoint_that_cannot_be_inserted_again_is_an_error_too(
    gdb: Gdb, stub: FakeStub, tmp_path: Path, reading: str
) -> None:
    """GDB removes and inserts them at every stop, and only prints a warning when it fails then.

    How much of that a read returns is a matter of time.
    """
    if reading == "up to results":
        read_up_to_results(gdb)
    attach(gdb, stub, tmp_path)
    gdb.interrupt()
    gdb.console("hbreak *0x2000 if 0")
    gdb.resume()
    stub.breakpoints, stub.pc = False, 0x2000
    stub.stop_by_itself()
    deadline = time.monotonic() + 5
    while not gdb.stopped_by_itself and time.monotonic() < deadline:
        gdb.poll()
    assert gdb.stopped_by_itself and gdb.signal is None  # so Watch.on_poll() lets it go on
    with pytest.raises(InfraError, match="ould not insert hardware breakpoints"):
        gdb.resume()


def test_a_connection_that_breaks_is_explained_by_the_death_of_qemu(
    tmp_path: Path, stub: FakeStub
) -> None:
    """GDB knows it before the process has ended."""
    died: list[float] = []

    def check() -> None:
        if died and time.monotonic() - died[0] > 0.3:
            raise LostVM("QEMU was killed")

    with Gdb(tmp_path / "gdb.log", check) as gdb:
        gdb.attach(tmp_path / "stub")
        died.append(time.monotonic())
        stub.hang_up()
        with pytest.raises(LostVM):
            gdb.execute("-exec-continue")
            gdb.console("x/1x 0")
