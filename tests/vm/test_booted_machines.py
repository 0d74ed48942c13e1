# SPDX-License-Identifier: GPL-2.0-only
"""Machines that really boot, and what happens when they end unexpectedly."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import BootError, InfraError, LostVM
from orchestrator.machine.faults import KernelFault, TimedOut
from orchestrator.machine.machine import Machine

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

BOOT_SECONDS = 120
Guest = Callable[..., Machine]


def status(machine: Machine) -> str:
    return str(machine.qmp.execute("query-status")["status"])


def registers(machine: Machine) -> str:
    command = {"command-line": "info registers"}
    return str(machine.qmp.execute("human-monitor-command", **command))


@pytest.mark.parametrize("smp", [1, 2, 8, 16])
def test_boots_with_all_cpus(guest: Guest, smp: int) -> None:
    with guest(smp=smp) as machine:
        machine.cont()
        machine.wait_ready(BOOT_SECONDS)
        assert machine.ssh.run("nproc") == (0, f"{smp}\n")
    scanner = machine.console.scanner
    assert not scanner.blind
    assert scanner.findings == scanner.stalls  # a busy host can cause stalls


def test_commands_and_files_of_the_guest(guest: Guest) -> None:
    with guest(files={"/data/hello": b"world"}) as machine:
        machine.cont()
        machine.wait_ready(BOOT_SECONDS)
        shell = machine.ssh
        assert shell.run("echo out; echo err >&2; exit 7") == (7, "out\nerr\n")
        assert shell.run("kill -9 $$")[0] == 128 + 9
        assert shell.run("cat", stdin=b"in") == (0, "in")
        assert shell.get("/data/hello") == b"world"
        content = random.Random(1).randbytes(200_000)
        assert shell.run("""cat > "/tmp/it's here" """, stdin=content) == (0, "")
        assert shell.get("/tmp/it's here") == content
        with pytest.raises(InfraError, match="cannot be read"):
            shell.get("/nowhere")
        start = time.monotonic()
        with pytest.raises(TimedOut, match="the end of `sleep 60`"):
            shell.run("sleep 60", timeout=1)
        assert time.monotonic() - start < 3
        assert shell.run("true") == (0, "")  # the connection still works
        shell.close()
        assert shell.run("echo again") == (0, "again\n")  # a lost one is made again


def test_data_survives_a_guest_without_a_free_cpu(guest: Guest) -> None:
    with guest(smp=4) as machine:
        machine.cont()
        machine.wait_ready(BOOT_SECONDS)
        spin = "for i in 1 2 3 4; do (while :; do :; done) </dev/null >/dev/null 2>&1 & done"
        assert machine.ssh.run(spin)[0] == 0
        # With one TCG thread the UART's interrupt waits for its CPU's turn: the guest takes about
        # 500 bytes per second.
        content = random.Random(2).randbytes(20_000)
        assert machine.ssh.run("cat > /tmp/data", timeout=300, stdin=content) == (0, "")
        command = "for i in $(seq 20); do cat /tmp/data; done | md5sum"
        _, checksum = machine.ssh.run(command, timeout=200)
        assert checksum.startswith(hashlib.md5(content * 20).hexdigest())
        assert machine.ssh.get("/tmp/data") == content


def test_the_guest_starts_paused_and_can_be_stopped(guest: Guest) -> None:
    with guest() as machine:
        assert status(machine) in ("prelaunch", "paused")
        time.sleep(0.5)
        assert not machine.console.lines
        machine.cont()
        machine.wait_ready(BOOT_SECONDS)
        machine.qmp.execute("stop")
        assert status(machine) == "paused"
        assert "RIP=" in registers(machine)
        machine.qmp.cont()
        assert machine.ssh.run("true")[0] == 0


def test_the_socket_for_gdb_is_private_and_removed_once_connected(guest: Guest) -> None:
    with guest() as machine, socket.socket(socket.AF_UNIX) as gdb:
        assert len(str(machine.gdb_path)) < 108
        assert machine.gdb_path.parent.stat().st_mode & 0o777 == 0o700
        gdb.settimeout(10)
        gdb.connect(str(machine.gdb_path))
        machine.gdb_connected()
        assert not machine.gdb_path.parent.exists()
        gdb.sendall(b"$?#3f")
        assert gdb.recv(1) == b"+"


def test_the_guest_has_no_network_and_no_disk(guest: Guest) -> None:
    with guest() as machine:
        machine.cont()
        machine.wait_ready(BOOT_SECONDS)
        networks = "ls /sys/class/net 2>/dev/null | grep -v '^lo$'"
        assert machine.ssh.run(f"{networks}; ls /sys/block 2>/dev/null")[1] == ""


@pytest.mark.parametrize("channel", ["ssh", "console", "qmp"])
def test_a_killed_qemu_is_noticed_within_two_seconds(guest: Guest, channel: str) -> None:
    with guest() as machine:
        machine.cont()
        machine.wait_ready(BOOT_SECONDS)
        killed: list[float] = []

        def kill() -> None:
            killed.append(time.monotonic())
            machine.process.kill()

        threading.Timer(0.5, kill).start()
        with pytest.raises(LostVM):
            if channel == "ssh":
                machine.ssh.run("sleep 60")
            elif channel == "console":
                machine.wait(lambda: False, 60, "nothing")
            else:
                while True:
                    status(machine)
        assert time.monotonic() - killed[0] < 2
        with pytest.raises(LostVM, match="QEMU was killed by SIGKILL"):
            machine.poll()


def test_after_a_reset_the_registers_can_still_be_read(guest: Guest) -> None:
    with guest() as machine:
        machine.cont()
        machine.wait_ready(BOOT_SECONDS)
        with pytest.raises(LostVM, match="a program of the guest has reset it"):
            machine.ssh.run("echo b > /proc/sysrq-trigger")
        assert "RIP=" in registers(machine)


@pytest.mark.parametrize(
    ("how", "outcome"), [("panic", "panic"), ("null", "oops"), ("int3", "oops"), ("bug", "oops")]
)
def test_a_kernel_fault_ends_the_wait(guest: Guest, provoke: Path, how: str, outcome: str) -> None:
    with guest(files={"/provoke.ko": provoke}) as machine:
        machine.cont()
        machine.wait_ready(BOOT_SECONDS)
        start = time.monotonic()
        with pytest.raises(KernelFault) as caught:
            machine.ssh.run(f"insmod /provoke.ko how={how}; sleep 60")
        assert time.monotonic() - start < 20
        assert caught.value.outcome == outcome and caught.value.exit_status == 1


def test_a_warning_does_not_end_the_wait(guest: Guest, provoke: Path) -> None:
    with guest(files={"/provoke.ko": provoke}) as machine:
        machine.cont()
        machine.wait_ready(BOOT_SECONDS)
        assert machine.ssh.run("insmod /provoke.ko how=warn")[0] == 0
        machine.wait(lambda: bool(machine.console.scanner.findings), 20, "the warning")
        machine.check()


def test_a_stuck_cpu_counts_as_a_hang_when_the_time_is_up(guest: Guest, provoke: Path) -> None:
    thresholds = ("watchdog_thresh=2", "rcupdate.rcu_cpu_stall_timeout=5")
    with guest(files={"/provoke.ko": provoke}, append=thresholds) as machine:
        machine.cont()
        machine.wait_ready(BOOT_SECONDS)
        assert machine.ssh.run("insmod /provoke.ko how=softlockup cpu=1")[0] == 0
        with pytest.raises(KernelFault) as caught:
            machine.wait(lambda: False, 20, "nothing")
        assert caught.value.outcome == "hang"


def test_a_file_that_is_not_a_kernel_does_not_boot(guest: Guest, tmp_path: Path) -> None:
    image = tmp_path / "bzImage"
    image.write_bytes(b"MZ" + bytes(65536))
    with pytest.raises((BootError, InfraError, LostVM)), guest(bzimage=image) as machine:
        machine.cont()
        machine.wait_ready(3)


def test_the_error_quotes_the_option_that_qemu_refuses(guest: Guest) -> None:
    with (
        pytest.raises(InfraError, match=r"QEMU did not start: .*no-such-device"),
        guest(options=("-device", "no-such-device")),
    ):
        pass


def test_qemu_leaves_its_logs_and_nothing_else(guest: Guest, tmp_path: Path) -> None:
    with guest() as machine:
        machine.cont()
        machine.wait_ready(BOOT_SECONDS)
        pid, private = machine.process.pid, machine.gdb_path.parent
    assert not Path(f"/proc/{pid}").exists()
    assert not private.exists()
    run = tmp_path / "run"
    log = (run / "console.log").read_bytes().decode(errors="replace").replace("\r", "")
    assert log.splitlines() == machine.console.lines  # QEMU's log and ours are identical
    assert "-kernel" in (run / "qemu.cmd").read_text()
    assert '"RESUME"' in (run / "qmp.jsonl").read_text()


HOLDER = """
import signal, sys, time
# A shell starts its background jobs with SIGINT ignored, and these tests may be one.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {tests!r})
import conftest
from pathlib import Path
from orchestrator.kernel.model import KernelRequest
from orchestrator.kernel.obtain import obtain
kernel = obtain(KernelRequest(selector=conftest.KERNEL))
make = conftest.guest.__wrapped__(kernel, Path({directory!r}))
with make() as machine:
    machine.cont()
    print(machine.process.pid, machine.gdb_path.parent, flush=True)
    machine.wait(lambda: False, 600, "nothing")
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_survives_the_process(tmp_path: Path, number: signal.Signals) -> None:
    script = HOLDER.format(tests=str(Path(__file__).parent), directory=str(tmp_path))
    holder = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert holder.stdout is not None
    pid, private = holder.stdout.readline().split()
    assert Path(f"/proc/{pid}").exists() and Path(private).exists()
    os.kill(holder.pid, number)
    holder.wait(20)
    deadline = time.monotonic() + 5
    while (Path(f"/proc/{pid}").exists() or Path(private).exists()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()
    assert not Path(private).exists()
