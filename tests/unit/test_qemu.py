# SPDX-License-Identifier: GPL-2.0-only
"""The machine's command line."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.host.tools import Qemu
from orchestrator.machine.accel import Accel
from orchestrator.machine.qemu import (
    Channels,
    MachineSpec,
    command_line,
    kernel_command_line,
    shell_line,
)

SPEC = MachineSpec(
    qemu=Qemu(
        binary=Path("/opt/qemu"),
        version=(10, 0),
        firmware=(Path("/opt/share"),),
        env={"LD_LIBRARY_PATH": "/l"},
    ),
    accel=Accel("tcg", "multi", ""),
    bzimage=Path("/k/bzImage"),
    initrd=Path("/k/initrd"),
    smp=16,
    append=("watchdog_thresh=2",),
    options=("-plugin", "count.so"),
)
CHANNELS = Channels(qmp=5, ssh=6, gdb=Path("/run/x/gdb"))


def pairs(command: list[str]) -> list[tuple[str, str]]:
    return list(itertools.pairwise(command))


def test_qemu_has_no_network_no_configuration_and_a_sandbox_and_starts_paused() -> None:
    command = command_line(SPEC, CHANNELS, Path("/runs/1"))
    assert {"-nodefaults", "-no-user-config", "-S"} <= set(command)
    assert "-netdev" not in command and "-nic" not in command
    assert (
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ) in pairs(command)


def test_every_cpu_is_a_socket_of_its_own() -> None:
    assert ("-smp", "16,sockets=16,cores=1,threads=1") in pairs(
        command_line(SPEC, CHANNELS, Path("/runs/1"))
    )


def test_what_the_user_adds_comes_last() -> None:
    assert command_line(SPEC, CHANNELS, Path("/runs/1"))[-2:] == ["-plugin", "count.so"]
    assert kernel_command_line(SPEC).split()[-1] == "watchdog_thresh=2"


def test_a_comma_in_a_directory_is_escaped() -> None:
    command = command_line(SPEC, CHANNELS, Path("/runs/a,b"))
    assert any(argument.endswith("logfile=/runs/a,,b/console.log") for argument in command)


def test_the_shell_line_has_the_environment_and_the_firmware() -> None:
    line = shell_line(command_line(SPEC, CHANNELS, Path("/runs/1")), SPEC)
    assert line.startswith("LD_LIBRARY_PATH=/l /opt/qemu -L /opt/share ")


@pytest.mark.parametrize("change", [{"smp": 0}, {"smp": 65}, {"memory": 16}])
def test_an_impossible_machine_is_a_usage_error(change: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        dataclasses.replace(SPEC, **change)
