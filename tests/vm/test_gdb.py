"""GDB as a person has it: on a pseudo terminal, on a guest of its own and on one that a run has kept."""

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
        # TERM=dumb: no colours, no line editing, so that what comes is what is said.
        environment = {**os.environ, "TERM": "dumb"}
        self.child: Any = pexpect.spawn(
            sys.executable,
            ["-m", "orchestrator", *arguments],
            encoding="utf-8",
            timeout=300,
            dimensions=(200, 250),
            env=environment,  # type: ignore[arg-type]
            preexec_fn=lambda: signal.signal(
                signal.SIGINT, signal.SIG_DFL
            ),  # ignored where pytest is in background
        )
        self.child.logfile_read = sys.stdout  # shown when the test fails

    def prompt(self) -> str:
        self.child.expect_exact(PROMPT)
        return str(self.child.before).replace("\r", "")

    def say(self, line: str) -> str:
        """What GDB answers to `line`."""
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
    """Of the run; nothing is left of it afterwards but its files."""
    directory = tmp_path / "run"
    yield directory
    wait_for(lambda: not left_of(directory), 20)
    assert not (directory / "live.json").exists()


def left_of(directory: Path) -> list[int]:
    return [pid for pid in processes() if str(directory) in cmdline(pid)]


def kept(directory: Path, *arguments: str) -> Terminal:
    """A run whose guest is kept."""
    options = ("--output", str(directory), "--smp", "2", "--scenario", "nop5", "--duration", "0.2")
    run = Terminal("run", *options, *arguments)
    run.child.expect_exact("the guest is kept until")
    return run


def test_a_guest_of_its_own(directory: Path) -> None:
    gdb = Terminal("gdb", "--now", "--smp", "2", "--output", str(directory))
    assert "guest COMMAND" in gdb.prompt()
    assert "in section .text of" in gdb.say("info symbol orch_nop5_site")
    assert len(re.findall(r"CPU#[01]", gdb.say("info threads"))) == 2
    assert "default_idle" in gdb.say("bt")

    assert "hello\nguest: ended with status 3" in gdb.say("guest echo hello; exit 3")
    gdb.say("guest echo 'step site=nop5 how=direct ms=20 cpu=0' > /dev/orchestrator")
    assert re.search(r"\nok 1 ", gdb.say("guest cat /dev/orchestrator"))

    gdb.say("hbreak __text_poke")
    said = gdb.say(
        "guest echo 'step site=nop5 how=direct ms=20 cpu=0' > /dev/orchestrator; echo poked"
    )
    assert "Breakpoint 1" in said and "still running" in said
    assert "text_poke_bp" in gdb.say("bt")
    assert "orch_pass_nop5" in gdb.say("info symbol $rsi")
    assert "still running" in gdb.say("guest true")
    gdb.say("delete")

    gdb.child.sendline("continue")
    gdb.child.expect_exact("poked\r\n")  # by the command that was under way
    gdb.child.sendintr()
    assert "SIGINT" in gdb.prompt()
    assert "# cpu=1" in gdb.say("guest cat /dev/orchestrator")
    assert gdb.end("quit") == 0


def test_nothing_survives_a_kill(directory: Path) -> None:
    gdb = Terminal("gdb", "--now", "--smp", "2", "--output", str(directory))
    gdb.prompt()
    sockets = json.loads((directory / "live.json").read_text())
    os.kill(gdb.child.pid, signal.SIGKILL)
    wait_for(lambda: not left_of(directory), 20)
    wait_for(lambda: not Path(sockets["gdb"]).parent.exists(), 20)
    over = Terminal("gdb", str(directory))
    assert "there is no guest" in over.prompt()
    assert over.end("quit") == 0


def test_a_kernel_without_vmlinux_has_its_symbols_from_the_guest(directory: Path) -> None:
    gdb = Terminal(
        "gdb", "--now", "--smp", "2", "--kernel", "debian:6.1", "--output", str(directory)
    )
    gdb.prompt()
    kernel = json.loads((directory / "symbols.json").read_text())["kernel"]
    assert f"do_sync_core in section .text of {kernel}" in gdb.say("info symbol do_sync_core")
    assert "idle" in gdb.say("bt")
    assert "<do_sync_core>:" in gdb.say("x/i do_sync_core")
    address = gdb.say("guest grep ' do_sync_core$' /proc/kallsyms").split("\n")[-2].split()[0]
    assert address in gdb.say("p do_sync_core")
    assert gdb.end("quit") == 0


def test_a_kept_guest_is_looked_at_from_another_terminal_and_ends_with_that(
    directory: Path,
) -> None:
    run = kept(directory, "--keep=always")
    gdb = Terminal("gdb", str(directory))
    gdb.prompt()
    assert "in section .text of" in gdb.say("info symbol orch_nop5_site")
    assert len(re.findall(r"CPU#[01]", gdb.say("info threads"))) == 2
    assert "ok 1 " in gdb.say("guest cat /dev/orchestrator")
    second = Terminal("gdb", str(directory))
    second.child.expect_exact("another GDB is attached")
    assert second.end() == 125
    # A kernel that has failed can be looked at as well.
    assert "still running" not in gdb.say("guest echo 1 > /proc/sys/kernel/panic_on_oops")
    gdb.say("hbreak panic")
    assert "Breakpoint 1" in gdb.say("guest echo c > /proc/sysrq-trigger")
    assert "sysrq_handle_crash" in gdb.say("bt")
    assert gdb.end("quit") == 0
    assert run.end() == 0
    over = Terminal("gdb", str(directory))
    assert "there is no guest" in over.prompt()
    assert "in section .text of" in over.say("info symbol orch_nop5_site")
    assert "No symbol table" not in over.say("info address do_sync_core")
    assert over.end("quit") == 0


def test_a_guest_is_kept_when_the_kernel_has_failed(directory: Path) -> None:
    run = kept(directory, "--keep", "--patch", str(MUTANTS / "sync-after-tail-missing.patch"))
    gdb = Terminal("gdb", str(directory))
    gdb.prompt()
    assert "do_sync_core" in gdb.say("info symbol do_sync_core")
    run.child.sendintr()
    assert run.end() == 1
    gdb.end("quit")


def test_a_guest_is_not_kept_when_all_is_well(directory: Path) -> None:
    run = Terminal(
        "run",
        "--output",
        str(directory),
        "--smp",
        "2",
        "--scenario",
        "nop5",
        "--duration",
        "0.2",
        "--keep",
    )
    assert run.end() == 0
