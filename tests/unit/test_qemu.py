# SPDX-License-Identifier: GPL-2.0-only
"""The machine's command line."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.host.tools import Qemu
from orchestrator.machine.accel import Accel
from orchestrator.machine.qemu import (
    PARAMETERS,
    WITHOUT,
    Channels,
    MachineSpec,
    command_line,
    escaped,
    kernel_command_line,
    not_taken,
    parameters,
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
    command = command_line(SPEC, CHANNELS)
    assert {"-nodefaults", "-no-user-config", "-S"} <= set(command)
    assert "-netdev" not in command and "-nic" not in command
    assert (
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
    ) in pairs(command)


def test_every_cpu_is_a_socket_of_its_own() -> None:
    assert ("-smp", "16,sockets=16,cores=1,threads=1") in pairs(command_line(SPEC, CHANNELS))


def test_qboot_is_the_firmware_if_there_is_one() -> None:
    assert "-bios" not in command_line(SPEC, CHANNELS)
    qemu = dataclasses.replace(SPEC.qemu, qboot=Path("/opt/share/qboot.rom"))
    spec = dataclasses.replace(SPEC, qemu=qemu)
    assert ("-bios", "/opt/share/qboot.rom") in pairs(command_line(spec, CHANNELS))


def test_what_the_user_adds_comes_last() -> None:
    assert command_line(SPEC, CHANNELS)[-2:] == ["-plugin", "count.so"]
    assert kernel_command_line(SPEC).split()[-1] == "watchdog_thresh=2"


def test_nothing_on_the_command_line_depends_on_the_name_of_the_directory() -> None:
    """So there is no name that QEMU takes for something else: commas in options, % in -D."""
    command = command_line(SPEC, CHANNELS)
    assert ("-D", "qemu.log") in pairs(command)
    assert any(argument.endswith(",logfile=console.log,logappend=on") for argument in command)


def test_a_comma_in_a_path_within_an_option_is_escaped() -> None:
    channels = dataclasses.replace(CHANNELS, gdb=Path("/run/a,b/gdb"))
    assert "socket,id=gdb,path=/run/a,,b/gdb,server=on,wait=off" in command_line(SPEC, channels)
    assert escaped(Path("/cache/a,b/x,so")) == "/cache/a,,b/x,,so"


def test_relative_paths_of_the_user_still_lead_to_the_same_files() -> None:
    spec = dataclasses.replace(SPEC, bzimage=Path("bzImage"), initrd=Path("a,b/initrd"))
    command = command_line(spec, CHANNELS)
    assert ("-kernel", str(Path.cwd() / "bzImage")) in pairs(command)
    assert ("-initrd", str(Path.cwd() / "a,b/initrd")) in pairs(command)


@pytest.mark.parametrize("name", ["plain", "a b,c%d'e\"f\n-g\\h$i`j`", "-x"])
def test_a_shell_runs_the_shell_line_in_the_right_directory(tmp_path: Path, name: str) -> None:
    directory = tmp_path / name
    directory.mkdir()
    program = tmp_path / "qemu"
    program.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$VALUE" "$@"\n')
    program.chmod(0o755)
    spec = dataclasses.replace(
        SPEC, qemu=dataclasses.replace(SPEC.qemu, binary=program, env={"VALUE": "a b"})
    )
    command = command_line(spec, CHANNELS)
    done = subprocess.run(
        ["sh", "-c", shell_line(command, spec, directory)], capture_output=True, text=True, cwd="/"
    )
    assert done.stdout == "\n".join([str(directory), "a b", *command[1:], ""])


@pytest.mark.parametrize("change", [{"smp": 0}, {"smp": 65}, {"memory": 16}])
def test_an_impossible_machine_is_a_usage_error(change: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        dataclasses.replace(SPEC, **change)


OURS = kernel_command_line(SPEC)
ALL_OURS = parameters(SPEC)


@pytest.mark.parametrize(
    ("command_line", "missing"),
    [
        (OURS, ()),
        (f"tsc=reliable no_timer_check {OURS}", ()),  # CONFIG_CMDLINE
        (f'root="a b" dyndbg="file x +p" {OURS}', ()),
        ("rdinit=/init console=ttyS0", ALL_OURS[1:]),  # CONFIG_CMDLINE_OVERRIDE
        (OURS.replace("nokaslr", "nokaslr=0"), ("nokaslr",)),
        (OURS[: OURS.index(" rcupdate")], ALL_OURS[-2:]),  # cut, as it was too long
        (OURS.replace(" panic=0", " -- panic=0"), ALL_OURS[ALL_OURS.index("panic=0") :]),
        ('x="never ends ' + OURS, ALL_OURS),
        ("", ALL_OURS),
    ],
)
def test_parameters_that_the_kernel_did_not_take(
    command_line: str, missing: tuple[str, ...]
) -> None:
    assert not_taken(ALL_OURS, command_line) == missing


def test_only_our_own_parameters_have_a_meaning() -> None:
    assert set(WITHOUT) <= set(PARAMETERS)


def test_a_machine_that_repeats_itself_counts_instructions_and_finds_a_plan() -> None:
    spec = dataclasses.replace(SPEC, icount=5, accel=Accel("tcg", "single", ""))
    command = pairs(command_line(spec, CHANNELS))
    assert ("-icount", "shift=5,sleep=off") in command
    assert ("-accel", "tcg,thread=single,tb-size=512") in command
    assert ("-fw_cfg", "name=opt/orchestrator/plan,string=-") in command
    assert "-incoming" not in dict(command)
    spec = dataclasses.replace(spec, plan=Path("/a,b/plan"), incoming=True)
    command = pairs(command_line(spec, CHANNELS))
    assert ("-fw_cfg", "name=opt/orchestrator/plan,file=/a,,b/plan") in command
    assert ("-incoming", "defer") in command


def test_a_machine_follows_the_hosts_clock_unless_told_otherwise() -> None:
    assert not {"-icount", "-fw_cfg", "-incoming"} & set(command_line(SPEC, CHANNELS))
