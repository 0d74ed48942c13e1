# SPDX-License-Identifier: GPL-2.0-only
"""Attaching a user's GDB: the symbol file, how a run is found, and the owner's connection."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator import cli
from orchestrator.attach import client, owner
from orchestrator.commands import run as run_command
from orchestrator.errors import EXIT_USAGE, LostVM, UsageError
from orchestrator.machine.machine import Machine
from orchestrator.text import symbolfile

KALLSYMS = """\
0000000000000000 A fixed_percpu_data
0000000000030000 A __per_cpu_end
ffffffff81000000 T _text
ffffffff81000000 T _stext
ffffffff81000040 t same
ffffffff81000100 t same
ffffffff81000180 W weak.part.0
ffffffff81a00000 D jiffies
ffffffff81a00008 b counter
ffffffff82000000 t init_function
ffffffffa0000acb t orch_nop5_site	[orch]
"""


@pytest.fixture
def elf(tmp_path: Path) -> Path:
    file = tmp_path / "kernel.elf"
    file.write_bytes(symbolfile.from_kallsyms(KALLSYMS.splitlines()))
    return file


def output(*command: object) -> str:
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=True
    ).stdout


def test_the_symbol_file_has_only_the_kernels_own_symbols(elf: Path) -> None:
    assert output("nm", "-n", elf).splitlines() == [
        "ffffffff81000000 T _stext",
        "ffffffff81000000 T _text",
        "ffffffff81000040 t same",
        "ffffffff81000100 t same",
        "ffffffff81000180 T weak.part.0",
        "ffffffff81a00000 B jiffies",
        "ffffffff81a00008 b counter",
        "ffffffff82000000 t init_function",
    ]


def test_readelf_accepts_the_symbol_file(elf: Path) -> None:
    done = subprocess.run(["readelf", "-aW", str(elf)], capture_output=True, text=True, check=True)
    assert "rror" not in done.stderr and "arning" not in done.stderr


@pytest.mark.skipif(not shutil.which("gdb"), reason="GDB is not installed")
def test_gdb_maps_an_address_to_its_function(elf: Path) -> None:
    commands = (
        "info symbol 0xffffffff81000104",
        "info symbol 0xffffffff81a00009",
        "info symbol 0xffffffff82000001",
    )
    text = output(
        "gdb", "-nx", "-batch", *(word for line in commands for word in ("-ex", line)), elf
    )
    assert text.splitlines() == [
        "same + 4 in section .text",
        "counter + 1 in section .data",
        "init_function + 1 in section .text",
    ]


def test_a_kernel_without_symbols_makes_an_empty_file(tmp_path: Path) -> None:
    file = tmp_path / "kernel.elf"
    file.write_bytes(symbolfile.from_kallsyms([]))
    assert output("readelf", "-sW", file)


# -- which run GDB opens


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    runs = tmp_path / "state" / "orchestrator" / "runs"
    for name in ("20261101-1-old", "20261102-2-kept", "20261103-3-over"):
        (runs / name).mkdir(parents=True)
        (runs / name / "spec.json").write_text("{}")
    here = tmp_path / "line"
    here.touch()
    live(runs / "20261102-2-kept", here)
    return runs


def live(directory: Path, line: Path) -> None:
    (directory / "live.json").write_text(json.dumps({"gdb": str(line), "line": str(line)}))


def test_the_newest_kept_run_is_the_default(runs: Path) -> None:
    assert client.find_run(None) == runs / "20261102-2-kept"


def test_a_run_whose_process_was_killed_is_not_kept(runs: Path) -> None:
    live(runs / "20261103-3-over", runs / "gone")
    assert client.find_run(None) == runs / "20261102-2-kept"
    assert client.find_run("20261103-3-over") == runs / "20261103-3-over"
    assert not (runs / "20261103-3-over" / "live.json").exists()


def test_a_run_is_found_by_name_and_by_directory(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert client.find_run("20261101-1-old") == runs / "20261101-1-old"
    assert client.find_run(str(runs / "20261101-1-old")) == runs / "20261101-1-old"
    monkeypatch.chdir(runs)
    assert client.find_run("./20261101-1-old").resolve() == runs / "20261101-1-old"
    (tmp_path / "20261101-1-old").mkdir()
    monkeypatch.chdir(tmp_path)  # a directory of that name, which is no run
    assert client.find_run("20261101-1-old") == runs / "20261101-1-old"


def test_without_a_kept_run_the_error_says_how_to_get_one(runs: Path) -> None:
    (runs / "20261102-2-kept" / "live.json").unlink()
    with pytest.raises(UsageError, match="run --keep"):
        client.find_run(None)


def test_an_unknown_run_suggests_the_closest_name(runs: Path) -> None:
    with pytest.raises(
        UsageError, match=r"there is no run 20261101-1-odl: did you mean 20261101-1-old"
    ):
        client.find_run("20261101-1-odl")


def test_a_run_that_never_loaded_its_module_is_wrong_usage(runs: Path) -> None:
    with pytest.raises(UsageError, match=r"before its test module was loaded"):
        client.attach("20261101-1-old")


# -- the connection between GDB and the process that owns the guest


class Guest:
    """The parts of a Machine that GdbConnection uses."""

    def __init__(self, directory: Path) -> None:
        self.gdb_path = directory / "gdb"
        self.on_poll: list[Any] = []
        self.ignore_faults = False
        self.spec = SimpleNamespace(smp=3)
        self.process = SimpleNamespace(poll=lambda: None)
        self.ssh = self
        self.commands: list[str] = []

    def run(self, command: str, timeout: float) -> tuple[int, str]:
        self.commands.append(command)
        if command == "die":
            raise LostVM("QEMU was killed")
        while command == "wait":
            for on_poll in self.on_poll:
                on_poll()
        return len(command), f"did {command}\n"


class GdbEnd:
    """GDB's end of the connection."""

    def __init__(self, path: Path) -> None:
        self.end = socket.socket(socket.AF_UNIX)
        self.end.connect(str(path))
        self._file = self.end.makefile("rb")

    def receive(self) -> Any:
        return json.loads(self._file.readline())

    def send(self, command: str) -> None:
        self.end.sendall(json.dumps({"run": command}).encode() + b"\n")

    def close(self) -> None:
        self._file.close()
        self.end.close()


@pytest.mark.timeout(30)
def test_the_owner_runs_commands_for_one_gdb_until_it_quits(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    ended: list[bool] = []
    with owner.GdbConnection(cast(Machine, guest), tmp_path) as connection:
        thread = threading.Thread(target=lambda: ended.append(connection.serve()))
        thread.start()
        path = Path(json.loads((tmp_path / "live.json").read_text())["line"])
        first, second = GdbEnd(path), GdbEnd(path)
        assert first.receive() == {"cpus": 3}
        assert "another GDB" in second.receive()["error"]
        second.close()
        first.send("ls")
        assert first.receive() == {"status": 2, "said": "did ls\n"}
        first.send("die")
        assert first.receive() == {"error": "QEMU was killed"}
        first.send("wait")
        assert not ended
        first.close()  # in the middle of a command
        thread.join(10)
    assert ended == [True]
    assert guest.commands == ["ls", "die", "wait"]
    assert not (tmp_path / "live.json").exists() and not guest.on_poll


def test_the_owner_stops_serving_when_the_guest_ends(tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    guest.process = SimpleNamespace(poll=lambda: -9)
    with owner.GdbConnection(cast(Machine, guest), tmp_path) as connection:
        assert connection.serve() is False


def test_a_run_without_a_guest_cannot_be_kept(tmp_path: Path) -> None:
    owner.keep(None, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_guest_that_cannot_be_kept_changes_no_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "symbols.json").touch()
    (tmp_path / "live.json").mkdir()
    (tmp_path / "live.json" / "inside").touch()
    guest = Guest(tmp_path)
    owner.keep(cast(Machine, guest), tmp_path)
    assert "the guest cannot be kept: Is a directory" in capsys.readouterr().err
    assert not guest.on_poll


# -- the command line


@pytest.mark.parametrize(
    "arguments", ["gdb nonsense", "gdb 20261101-1-old", "gdb --now a-run", "run --keep=never"]
)
def test_wrong_usage_exits_with_129_and_one_sentence(
    arguments: str, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = cli.main(arguments.split())
    except SystemExit as end:
        status = cast(int, end.code)
    assert status == EXIT_USAGE
    assert capsys.readouterr().err.splitlines()[-1].startswith("orchestrator: ")


@pytest.mark.parametrize(
    ("option", "outcome", "is_kept"),
    [
        ("--keep", "pass", False),
        ("--keep", "fail", True),
        ("--keep", "infra", True),
        ("--keep=always", "pass", True),
    ],
)
def test_keep_decides_by_the_verdict(
    option: str, outcome: str, is_kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Path] = []
    exit_status = {"pass": 0, "fail": 1, "infra": 125}[outcome]
    result: Any = SimpleNamespace(
        directory=tmp_path, verdict=SimpleNamespace(exit_status=exit_status)
    )

    def run(spec: object, keep: Any) -> Any:
        keep(result, None)
        return result

    monkeypatch.setattr("orchestrator.run.run", run)
    monkeypatch.setattr(run_command, "_report", lambda result, **_: None)
    monkeypatch.setattr(owner, "keep", lambda machine, directory: kept.append(directory))
    assert cli.main(["run", option]) == exit_status
    assert kept == [tmp_path] * is_kept
