# SPDX-License-Identifier: GPL-2.0-only
"""GDB as a user sees it, on a pseudo terminal: on a new guest and on one that a run has kept."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest
from test_main_job import MUTANTS, cmdline, processes, wait_for

pytestmark = pytest.mark.vm

PROMPT = "(gdb) "


class Terminal:
    """The program on a pseudo terminal."""

    def __init__(self, *arguments: str) -> None:
        # TERM=dumb: no colours and no line editing, so that the output is plain text.
        environment = {**os.environ, "TERM": "dumb"}
        self.child: Any = pexpect.spawn(
            sys.executable,
            ["-m", "orchestrator", *arguments],
            encoding="utf-8",
            timeout=300,
            dimensions=(200, 250),
            env=environment,  # type: ignore[arg-type]
            # A background pytest ignores SIGINT, and its children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.child.logfile_read = sys.stdout  # shown when the test fails

    def prompt(self) -> str:
        self.child.expect_exact(PROMPT)
        return str(self.child.before).replace("\r", "")

    def ask(self, line: str) -> str:
        """The output of GDB for `line`."""
        self.child.sendline(line)
        return self.prompt()

    def end(self, line: str | None = None) -> int:
        if line:
            self.child.sendline(line)
        self.child.expect(pexpect.EOF)
        self.child.close()
        return int(
            self.child.exitstatus if self.child.exitstatus is not None else -self.child.signalstatus
        )


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """The run's directory. Afterwards no process of the run may be left, only its files."""
    directory = tmp_path / "run"
    yield directory
    wait_for(lambda: not processes_of(directory), 20)
    assert not (directory / "live.json").exists()


def processes_of(directory: Path) -> list[int]:
    return [pid for pid in processes() if str(directory) in cmdline(pid)]


def kept_run(directory: Path, *arguments: str) -> Terminal:
    """A run that has ended and keeps its guest."""
    options = ("--output", str(directory), "--smp", "2", "--scenario", "nop5", "--duration", "0.2")
    run = Terminal("run", *options, *arguments)
    run.child.expect_exact("the guest is kept until")
    return run


def test_gdb_debugs_a_new_guest_and_runs_commands_in_it(directory: Path) -> None:
    gdb = Terminal("gdb", "--now", "--smp", "2", "--output", str(directory))
    assert "guest COMMAND" in gdb.prompt()
    assert "in section .text of" in gdb.ask("info symbol orch_nop5_site")
    assert len(re.findall(r"CPU#[01]", gdb.ask("info threads"))) == 2
    assert "default_idle" in gdb.ask("bt")

    assert "hello\nguest: ended with status 3" in gdb.ask("guest echo hello; exit 3")
    gdb.ask("guest echo 'step site=nop5 how=direct ms=20 cpu=0' > /dev/orchestrator")
    assert re.search(r"\nok 1 ", gdb.ask("guest cat /dev/orchestrator"))

    gdb.ask("hbreak __text_poke")
    output = gdb.ask(
        "guest echo 'step site=nop5 how=direct ms=20 cpu=0' > /dev/orchestrator; echo poked"
    )
    assert "Breakpoint 1" in output and "still running" in output
    assert "text_poke_bp" in gdb.ask("bt")
    assert "orch_pass_nop5" in gdb.ask("info symbol $rsi")
    assert "still running" in gdb.ask("guest true")
    gdb.ask("delete")

    gdb.child.sendline("continue")
    gdb.child.expect_exact("poked\r\n")  # from the command that was running
    gdb.child.sendintr()
    assert "SIGINT" in gdb.prompt()
    assert "# cpu=1" in gdb.ask("guest cat /dev/orchestrator")
    assert gdb.end("quit") == 0


def test_nothing_survives_a_kill(directory: Path) -> None:
    gdb = Terminal("gdb", "--now", "--smp", "2", "--output", str(directory))
    gdb.prompt()
    sockets = json.loads((directory / "live.json").read_text())
    os.kill(gdb.child.pid, signal.SIGKILL)
    wait_for(lambda: not processes_of(directory), 20)
    wait_for(lambda: not Path(sockets["gdb"]).parent.exists(), 20)
    over = Terminal("gdb", str(directory))
    assert "there is no guest" in over.prompt()
    assert over.end("quit") == 0


def test_without_vmlinux_the_symbols_come_from_the_guest(directory: Path) -> None:
    gdb = Terminal(
        "gdb", "--now", "--smp", "2", "--kernel", "debian:6.1", "--output", str(directory)
    )
    gdb.prompt()
    kernel = json.loads((directory / "symbols.json").read_text())["kernel"]
    assert f"do_sync_core in section .text of {kernel}" in gdb.ask("info symbol do_sync_core")
    assert "idle" in gdb.ask("bt")
    assert "<do_sync_core>:" in gdb.ask("x/i do_sync_core")
    address = gdb.ask("guest grep ' do_sync_core$' /proc/kallsyms").split("\n")[-2].split()[0]
    assert address in gdb.ask("p do_sync_core")
    assert gdb.end("quit") == 0


def test_a_kept_guest_is_debugged_from_another_terminal_and_ends_with_gdb(
    directory: Path,
) -> None:
    run = kept_run(directory, "--keep=always")
    gdb = Terminal("gdb", str(directory))
    gdb.prompt()
    assert "in section .text of" in gdb.ask("info symbol orch_nop5_site")
    assert len(re.findall(r"CPU#[01]", gdb.ask("info threads"))) == 2
    assert "ok 1 " in gdb.ask("guest cat /dev/orchestrator")
    second = Terminal("gdb", str(directory))
    second.child.expect_exact("another GDB is attached")
    assert second.end() == 125
    # A kernel that has panicked can be debugged as well.
    assert "still running" not in gdb.ask("guest echo 1 > /proc/sys/kernel/panic_on_oops")
    gdb.ask("hbreak panic")
    assert "Breakpoint 1" in gdb.ask("guest echo c > /proc/sysrq-trigger")
    assert "sysrq_handle_crash" in gdb.ask("bt")
    assert gdb.end("quit") == 0
    assert run.end() == 0
    over = Terminal("gdb", str(directory))
    assert "there is no guest" in over.prompt()
    assert "in section .text of" in over.ask("info symbol orch_nop5_site")
    assert "No symbol table" not in over.ask("info address do_sync_core")
    assert over.end("quit") == 0


def test_keep_keeps_the_guest_of_a_failed_run(directory: Path) -> None:
    run = kept_run(directory, "--keep", "--patch", str(MUTANTS / "sync-after-tail-missing.patch"))
    gdb = Terminal("gdb", str(directory))
    gdb.prompt()
    assert "do_sync_core" in gdb.ask("info symbol do_sync_core")
    run.child.sendintr()
    assert run.end() == 1
    gdb.end("quit")


def test_keep_does_not_keep_the_guest_of_a_passed_run(directory: Path) -> None:
    options = ("--output", str(directory), "--smp", "2", "--scenario", "nop5", "--duration", "0.2")
    run = Terminal("run", *options, "--keep")
    assert run.end() == 0
