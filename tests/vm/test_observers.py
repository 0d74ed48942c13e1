# SPDX-License-Identifier: GPL-2.0-only
"""Real runs whose files, disk or guest are tampered with: no verdict may come of that."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_main_job import command, run, statuses, wait_for

from orchestrator.errors import InfraError, LostVM, OrchestratorError
from orchestrator.machine.faults import Silent
from orchestrator.machine.machine import Machine

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

Guest = Callable[..., Machine]
QUICK = ("--smp", "2", "--scenario", "nop5", "--duration", "0.5")


def test_a_directory_may_have_any_name(tmp_path: Path) -> None:
    """QEMU takes a comma for the end of a value, and % in the name of its log for a format."""
    directory = tmp_path / "a b,c=d%d'e\"f\n-g\\h$i"
    status, verdict = run(directory, *QUICK)
    assert (status, verdict["outcome"]) == (0, "pass")
    assert list(tmp_path.iterdir()) == [directory]
    assert {"console.log", "qemu.log", "int3.ledger", "events.jsonl"} <= {
        path.name for path in directory.iterdir()
    }
    assert (directory / "qemu.cmd").read_text().startswith("cd ")


def tampered(directory: Path, tamper: Callable[[], object], *options: str) -> dict[str, Any]:
    """The verdict of a run that is tampered with while GDB watches."""
    child = subprocess.Popen(
        command(directory, *options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        events = directory / "events.jsonl"
        wait_for(lambda: events.exists() and events.stat().st_size, 300)
        tamper()
        assert child.wait(300) == 0
    finally:
        child.kill()
        child.wait()
    return dict(json.loads((directory / "verdict.json").read_text()))


@pytest.mark.parametrize("how", ["removed", "truncated", "replaced"])
def test_no_verdict_depends_on_the_files_of_the_run(tmp_path: Path, how: str) -> None:
    directory = tmp_path / "run"

    def tamper() -> None:
        for path in [path for path in directory.rglob("*") if path.is_file()]:
            if how == "truncated":
                os.truncate(path, 0)
                continue
            path.unlink()
            if how == "replaced":
                path.mkdir()

    verdict = tampered(directory, tamper, "--smp", "2", "--scenario", "nop5", "--duration", "1")
    assert verdict["outcome"] == "pass"
    assert set(statuses(verdict).values()) == {"pass"}
    watch = next(check for check in verdict["checks"] if check["check"] == "watch")
    assert any(f"events.jsonl was {how}" in line for line in watch["details"])


def test_a_disk_that_is_full_for_seconds_costs_no_verdict(tmp_path: Path) -> None:
    """The run's directory is a file system of its own, which is full from the boot until GDB has
    begun to watch, and four seconds longer."""
    (tmp_path / "disk").mkdir()
    options = ("--smp", "2", "--scenario", "nop5", "--scenario", "line", "--duration", "5")
    argv = command(tmp_path / "disk" / "run", *options)
    script = f"""
        mount -t tmpfs -o size=16m none {tmp_path}/disk || exit 77
        "$@" & run=$!
        until [ -s {tmp_path}/disk/run/console.jsonl ]; do sleep 0.1; done
        cat /dev/zero >{tmp_path}/disk/full 2>/dev/null
        until [ -e {tmp_path}/disk/run/events.jsonl ]; do sleep 0.1; done
        sleep 4
        rm {tmp_path}/disk/full
        wait $run; status=$?
        cp {tmp_path}/disk/run/verdict.json {tmp_path}
        exit $status
    """
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", *argv],
        capture_output=True,
        text=True,
    )
    print(done.stderr[-3000:], done.stdout[-6000:])
    if "unshare" in done.stderr or done.returncode == 77:
        pytest.skip("no file system can be mounted here")
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert (done.returncode, verdict["outcome"]) == (0, "pass")
    assert "No space left" in json.dumps(verdict)


def test_a_warning_is_seen_although_the_console_cannot_be_logged(
    guest: Guest, provoke: Path, tmp_path: Path
) -> None:
    machine = guest(files={"/provoke.ko": provoke})
    for name in ("console.jsonl", "qmp.jsonl", "qemu.cmd"):
        (tmp_path / "run" / name).symlink_to("/dev/full")
    with machine:
        machine.cont()
        machine.wait_ready(120)
        assert machine.ssh.run("insmod /provoke.ko how=warn")[0] == 0
        machine.wait(lambda: bool(machine.console.scanner.findings), 20, "the warning")
        assert machine.qmp.find("RESUME") and not machine.console.lost
    assert [log.path.name for log in machine.logs if log.lost] == [
        "qemu.cmd",
        "qmp.jsonl",
        "console.jsonl",
    ]


DEATHS: dict[str, tuple[str, type[OrchestratorError]]] = {
    "it fills the line that carries ssh": ("cat /dev/zero >/dev/ttyS1", InfraError),
    "it writes text to that line": ("while :; do echo hello; done >/dev/ttyS1", InfraError),
    "it resets itself": ("echo b >/proc/sysrq-trigger", LostVM),
    "its server of the line is gone": ("kill -STOP $(pidof ttylink)", Silent),
    "all of its CPUs are halted": ("halt -f", Silent),
}


@pytest.mark.parametrize("how", DEATHS)
def test_a_guest_that_dies_between_two_commands_is_known_soon(guest: Guest, how: str) -> None:
    dying, expected = DEATHS[how]
    with guest() as machine:
        machine.cont()
        machine.wait_ready(120)
        machine.ssh.run(f"(sleep 1; {dying}) </dev/null >/dev/null 2>&1 &")
        time.sleep(2)
        start = time.monotonic()
        with pytest.raises(OrchestratorError) as caught, machine.silence.limit(4):
            machine.ssh.run("true", timeout=600)
            machine.ssh.run("true", timeout=600)
        assert isinstance(caught.value, expected), repr(caught.value)
        limit = 10 if expected is Silent else 4
        assert time.monotonic() - start < limit


def test_a_qemu_that_does_not_answer_any_more_is_not_waited_for(guest: Guest) -> None:
    with guest() as machine:
        machine.cont()
        machine.wait_ready(120)
        threading.Timer(1, machine.process.kill).start()
        start = time.monotonic()
        with pytest.raises(LostVM, match="was killed by SIGKILL"):
            while True:
                machine.qmp.execute("query-status")
                machine.check()
        assert time.monotonic() - start < 3
