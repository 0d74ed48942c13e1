# SPDX-License-Identifier: GPL-2.0-only
"""The GDB session, with a real GDB that has no target."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import InfraError, LostVM
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


def test_the_log_has_both_directions(gdb: Gdb, tmp_path: Path) -> None:
    gdb.console("python print('seen')")
    text = (tmp_path / "gdb.log").read_text()
    assert text.startswith("$ setpriv --pdeathsig KILL -- ")
    assert "python print('seen')" in text
    assert "'seen\\n'" in text


def test_no_file_descriptor_is_left_open(tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    for number in range(3):
        with Gdb(tmp_path / f"{number}.log", lambda: None), contextlib.suppress(Refused):
            pass
    assert descriptors() == before


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
