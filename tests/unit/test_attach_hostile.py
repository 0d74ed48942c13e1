# SPDX-License-Identifier: GPL-2.0-only
"""`orchestrator gdb` on the directory of a stranger, and on a guest that lies: nothing is run."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestrator import cli
from orchestrator.attach import client, notes
from orchestrator.errors import EXIT_USAGE, InfraError, UsageError
from orchestrator.text import symbolfile

needs_gdb = pytest.mark.skipif(not shutil.which("gdb"), reason="GDB is not installed")

SYMBOLS = ["ffffffff81000000 T _text", "ffffffff81000100 t same"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's home, with the .gdbinit that kernel developers have."""
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gdbinit").write_text("set auto-load safe-path /\nset auto-load python-scripts on\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    return home


@pytest.fixture
def run(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run's directory, which is also the current one. PWNED must not appear in it."""
    directory = tmp_path / "run"
    directory.mkdir()
    monkeypatch.chdir(directory)
    (directory / "spec.json").write_text("{}")
    elf = directory / "kernel.elf"
    elf.write_bytes(symbolfile.from_kallsyms(SYMBOLS))
    write(directory, kernel=str(elf))
    yield directory
    assert not (directory / "PWNED").exists()


def write(directory: Path, **changes: object) -> None:
    content = {"kernel": None, "code": False, "module": None, "sections": {}, **changes}
    (directory / "symbols.json").write_text(json.dumps(content))


def gdb_says(directory: Path, *commands: str) -> str:
    """The output of the GDB that `orchestrator gdb DIRECTORY` would become."""
    ask = [word for command in commands for word in ("-ex", command)]
    done = subprocess.run(
        [*client.gdb_command(directory), *ask, "-ex", "quit"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.stdout


# --- symbols.json

ELF = "/bin/true"
HOSTILE: dict[str, dict[str, object]] = {
    "a command in place of the kernel": {"kernel": '"\nshell touch PWNED\n"'},
    "a command behind the kernel": {"kernel": f'{ELF}"\nshell touch PWNED'},
    "a relative path": {"kernel": "kernel.elf"},
    "a list in place of the kernel": {"kernel": [ELF]},
    "no ELF file": {"kernel": "/etc/passwd"},
    "a directory": {"kernel": "/tmp"},
    "a device": {"kernel": "/dev/zero"},
    "a module that is none": {"module": "/etc/passwd"},
    "an expression in place of an address": {
        "module": ELF, "sections": {".text": '$_shell("touch PWNED")'}
    },
    "an address that is a number": {"module": ELF, "sections": {".text": 4096}},
    "an address with more behind it": {"module": ELF, "sections": {".text": "0x10 -s .data 0"}},
    "an address of another alphabet": {"module": ELF, "sections": {".text": "0x١٢"}},
    "a section that is an option": {"module": ELF, "sections": {"-readnow": "0x10"}},
    "a section that is a command": {
        "module": ELF, "sections": {".text\nshell touch PWNED\n": "0x10"}
    },
    "sections that are a list": {"module": ELF, "sections": [".text"]},
    "code that is a command": {"kernel": ELF, "code": "shell touch PWNED"},
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_symbols_that_no_run_has_written_are_refused(
    name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(run, **HOSTILE[name])
    assert cli.main(["gdb", str(run)]) == EXIT_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"orchestrator: {run}/symbols.json was not written by a run, or is dam")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '"x"', "[" * 100000, '{"kernel": 1}', "{}" + " " * (1 << 20)]
)
@pytest.mark.parametrize("file", ["symbols.json", "live.json"])
def test_files_that_are_no_object_are_refused(
    file: str, text: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / file).write_text(text)
    assert cli.main(["gdb", str(run)]) == EXIT_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"orchestrator: {run}/{file} was not written by a run, or is damaged: ")


def test_a_pipe_in_place_of_a_file_is_not_waited_for(run: Path) -> None:
    (run / "symbols.json").unlink()
    (run / "symbols.json").symlink_to("/dev/zero")
    with pytest.raises(UsageError, match="not a regular file"):
        notes.read_symbols(run)


@needs_gdb
@pytest.mark.parametrize(
    "folder",
    ['"', "' ; shell touch PWNED; '", "a b", r"\\", "$(touch PWNED)", "| touch PWNED", "#"],
)
def test_a_path_is_one_argument_whatever_is_in_it(folder: str, run: Path, tmp_path: Path) -> None:
    elf = tmp_path / folder / "kernel.elf"
    elf.parent.mkdir(parents=True)
    elf.write_bytes((run / "kernel.elf").read_bytes())
    write(run, kernel=str(elf), module=str(elf), sections={".text": "0xffffffffa0000000"})
    output = gdb_says(run, "info symbol 0xffffffff81000104", "info address same")
    assert "same + 4 in section .text" in output
    write(run, kernel=str(elf), code=True)
    assert "same + 4 in section .text" in gdb_says(run, "info symbol 0xffffffff81000104")


@needs_gdb
def test_a_directory_of_any_name_is_opened(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "')\nshell touch PWNED\n\x1b]0;title\x07"
    run.rename(other)
    write(other, kernel=str(other / "kernel.elf"))
    with pytest.raises(UsageError, match="is not an absolute path"):
        gdb_says(other)
    write(other)
    output = gdb_says(other)
    assert "is finished: there is no guest" in output and "\x1b]0" not in output
    assert not list(tmp_path.rglob("PWNED"))
    run.mkdir()


@pytest.fixture
def armed(run: Path) -> Path:
    """An ELF file with a Python script in it, another one beside it, and a .gdbinit here."""
    script = b"\x04gdb.inlined-script\nopen('PWNED', 'w')\n\0"
    (run / "script").write_bytes(script)
    (run / "kernel-gdb.py").write_text("open('PWNED', 'w')\n")
    (run / "kernel-gdb.gdb").write_text("shell touch PWNED\n")
    (run / ".gdbinit").write_text("shell touch PWNED\n")
    (run / "x.c").write_text("int same;\n")
    subprocess.run(["gcc", "-g", "-c", "-o", "x.o", "x.c"], check=True)
    flags = ["--add-section", ".debug_gdb_scripts=script"]
    subprocess.run(["objcopy", *flags, "x.o", "kernel"], check=True)
    return run / "kernel"


@needs_gdb
@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")
def test_a_symbol_file_runs_nothing(armed: Path, run: Path) -> None:
    pwned = run / "PWNED"
    subprocess.run(["gdb", "-batch", "-nx", "-iex", "set auto-load safe-path /", armed], check=True)
    assert pwned.exists()  # so it is armed
    pwned.unlink()
    for code in (False, True):
        write(run, kernel=str(armed), code=code, module=str(armed), sections={".data": "0x1000"})
        assert "same" in gdb_says(run, "info address same")
        assert not pwned.exists()


# --- live.json


@needs_gdb
@pytest.mark.parametrize("value", ["| touch PWNED", "/nowhere", "/etc/passwd", "localhost:1", 7])
def test_only_sockets_are_connected_to(
    value: object, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "live.json").write_text(json.dumps({"gdb": value, "line": "/etc/passwd"}))
    assert cli.main(["gdb", str(run)]) == EXIT_USAGE
    assert "live.json was not written by a run, or is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(("mode", "private"), [(0o700, True), (0o750, False), (0o701, False)])
def test_a_socket_must_be_in_a_private_directory(mode: int, private: bool, run: Path) -> None:
    folder = run / "sockets"
    folder.mkdir()
    sockets = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    for name, end in zip(("gdb", "line"), sockets, strict=True):
        end.bind(str(folder / name))
    content = {name: str(folder / name) for name in ("gdb", "line")}
    (run / "live.json").write_text(json.dumps(content))
    folder.chmod(mode)
    if private:
        assert notes.read_sockets(run) == notes.Sockets(gdb=folder / "gdb", line=folder / "line")
    else:
        with pytest.raises(UsageError, match="not a private socket of yours"):
            notes.read_sockets(run)
    for end in sockets:
        end.close()


# --- what the guest says


class Guest:
    """The part of a Machine that note_symbols() uses, with a guest that lies."""

    def __init__(self, listing: str) -> None:
        self.ssh = self
        self.listing = listing

    def run(self, command: str) -> tuple[int, str]:
        return 0, self.listing


def test_what_the_guest_calls_an_address_is_a_number_before_gdb_sees_it(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = "\n".join(
        f"/sys/module/orch/sections/{line}"
        for line in (
            ".text:0xffffffffa0000000",
            ".note.gnu.build-id:0xffffffffa0002000",
            "__bug_table:0xffffffffa0003000",
            ".init.text:0xffffffffa0004000",
            '.data:$_shell("touch PWNED")',
            ".bss:0x1000 + 1",
            ".a:12",
            ".b:0x" + "f" * 5000,
            "-readnow:0x1",
            ".c",
            "",
            "\x1b[2J:0x1",
        )
    )
    module = run / "kernel.elf"
    monkeypatch.setattr(notes.module, "build", lambda kernel: module)
    kernel: Any = SimpleNamespace(vmlinux=module, digest="d")
    notes.note_symbols(cast(Any, Guest(listing)), kernel, run, fetch=False)
    assert notes.read_symbols(run).sections == {
        ".text": 0xFFFFFFFFA0000000,
        ".note.gnu.build-id": 0xFFFFFFFFA0002000,
        "__bug_table": 0xFFFFFFFFA0003000,
    }


def test_a_guest_without_a_module_has_no_sections(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notes.module, "build", lambda kernel: pytest.fail("there is no module"))
    kernel: Any = SimpleNamespace(vmlinux=run / "kernel.elf", digest="d")
    notes.note_symbols(cast(Any, Guest("garbage\n")), kernel, run, fetch=False)
    found = notes.read_symbols(run)
    assert found.module is None and found.sections == {} and found.code


@pytest.mark.timeout(10)
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/full")])
def test_what_is_in_the_place_of_symbols_json_ends_no_run(
    make: Callable[[Path], None], run: Path
) -> None:
    (run / "symbols.json").unlink()
    make(run / "symbols.json")
    kernel: Any = SimpleNamespace(vmlinux=run / "kernel.elf", digest="d")
    symbols = notes.note_symbols(cast(Any, Guest("")), kernel, run, fetch=False)
    assert symbols == run / "kernel.elf"
    assert (run / "symbols.json").is_dir() or notes.read_symbols(run).code


def test_a_symbol_table_of_garbage_makes_an_empty_file() -> None:
    garbage = (
        "zzzz T x", "ffffffff81000000", "ffffffff81000000 T", f"{'f' * 5000} T x", "-1 T x",
        "ffffffff81000000 T \x1b[2J", "٣ T x", "0xffffffff81000000 T x", "ffffffff81000000 ? x",
    )  # fmt: skip
    empty = symbolfile.from_kallsyms([])
    assert symbolfile.from_kallsyms(garbage) == empty
    assert notes._symbol_file(gzip.compress("\n".join(garbage).encode())) == empty
    assert notes._symbol_file(gzip.compress(b"\xff\xfe")) == empty
    assert len(symbolfile.from_kallsyms([f"{'f' * 16} T last"])) > len(empty)


def test_a_symbol_table_without_measure_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes, "LARGEST_KALLSYMS", 1 << 20)
    alternating = "\n".join(f"ffffffff81{n:06x} {'TD'[n % 2]} x" for n in range(0, 70000))
    for packed in (b"no gzip", gzip.compress(bytes(2 << 20))):
        with pytest.raises(InfraError, match="the guest's symbol table is damaged: "):
            notes._symbol_file(packed)
    monkeypatch.setattr(notes, "LARGEST_KALLSYMS", 1 << 30)
    with pytest.raises(InfraError, match="alternate 70000 times"):
        notes._symbol_file(gzip.compress(alternating.encode()))
