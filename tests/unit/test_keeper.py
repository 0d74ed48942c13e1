# SPDX-License-Identifier: GPL-2.0-only
"""What a process leaves behind when it is killed: nothing, whatever it had started."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import SECONDS, marked, within

from orchestrator.host import keeper


def started(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process that runs `script`, once it has printed a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline()
    return process


FAMILY = """
import subprocess, sys, time
from pathlib import Path
from orchestrator.host import keeper, proc
with keeper.temporary_directory() as directory:
    (directory / "file").touch()
    print(directory, flush=True)
    Path(sys.argv[1], "directory").write_text(str(directory))
    subprocess.Popen(proc.mortal(["sh", "-c", sys.argv[2]]), start_new_session=True)
    Path(sys.argv[1], "started").touch()
    time.sleep(60)
"""
CHILDREN = {
    "a child": "exec sleep 50",
    "a grandchild": "sleep 50 & wait",
    "grandchildren in sessions of their own": "setsid sleep 50 & setsid sh -c 'sleep 51; :' & wait",
    "an orphan": "(setsid sleep 50 &) ; exit 0",
    "one that ignores every polite signal": "trap '' HUP INT TERM; sleep 50; sleep 50; :",
    "one that goes on starting others": "while :; do sleep 0.01; setsid sleep 40 & done",
}


@pytest.mark.parametrize("command", CHILDREN.values(), ids=CHILDREN.keys())
def test_nothing_survives_sigkill(command: str, mark: str, tmp_path: Path) -> None:
    process = started(FAMILY, tmp_path, command)
    assert within(5, lambda: (tmp_path / "started").exists())
    time.sleep(0.3)  # let the family grow
    assert within(SECONDS, lambda: len(marked(mark)) > 1)
    process.kill()
    process.wait()
    directory = Path((tmp_path / "directory").read_text())
    assert within(SECONDS, lambda: not directory.exists() and not marked(mark))


def test_a_child_that_was_just_being_started_does_not_survive(mark: str, tmp_path: Path) -> None:
    """setpriv has not set the death signal yet, and the environment is still that of the parent."""
    for number in range(5):
        (tmp_path / f"{number}").mkdir()
        process = started(FAMILY, tmp_path / f"{number}", "sleep 50 & wait")
        time.sleep(0.002 * number)
        process.kill()
        process.wait()
    assert within(SECONDS, lambda: not marked(mark))


def test_a_keeper_leaves_the_families_of_others_alone(mark: str, tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    one = started(FAMILY, tmp_path / "one", "sleep 50 & wait")
    other = started(FAMILY, tmp_path / "other", "sleep 50 & wait")
    assert within(5, lambda: (tmp_path / "other" / "started").exists())
    one.kill()
    one.wait()
    directory = Path((tmp_path / "one" / "directory").read_text())
    assert within(SECONDS, lambda: not directory.exists())
    assert other.poll() is None
    assert Path((tmp_path / "other" / "directory").read_text()).exists()
    other.kill()
    other.wait()


NESTED = f"""
import subprocess, sys, time
from orchestrator.host import proc
subprocess.Popen(proc.mortal([sys.executable, "-c", {FAMILY!r}, *sys.argv[1:]]))
time.sleep(60)
"""


def test_the_directories_of_a_child_with_its_own_keeper_go_as_well(
    mark: str, tmp_path: Path
) -> None:
    """A sweep is killed: the keeper of each of its runs does the rest."""
    process = started(NESTED, tmp_path, "setsid sleep 50 & wait")
    assert within(5, lambda: (tmp_path / "started").exists())
    process.kill()
    process.wait()
    directory = Path((tmp_path / "directory").read_text())
    assert within(SECONDS, lambda: not directory.exists() and not marked(mark))


def test_the_keeper_is_gone_after_an_orderly_end(tmp_path: Path) -> None:
    script = FAMILY.replace("time.sleep(60)", "print(keeper._keeper.pid)")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), "exit 0"],
        capture_output=True,
        text=True,
        check=True,
    )
    directory, pid = done.stdout.split()
    assert not Path(directory).exists()
    assert not Path("/proc", pid).exists()


def test_a_keeper_that_was_killed_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    script = FAMILY.replace("time.sleep(60)", "keeper._keeper.kill(); keeper._keeper.wait()")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path), "exit 0"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not [*(tmp_path / "tmp").iterdir()]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_temporary_files_of_children_go_with_us(
    number: signal.Signals, mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that is killed does not remove its own."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    process = started(FAMILY, tmp_path, 'touch "$TMPDIR/left"; exec sleep 50')
    assert within(5, lambda: any((tmp_path / "tmp").glob("*/left")))
    process.send_signal(number)
    process.wait()
    assert within(SECONDS, lambda: not [*(tmp_path / "tmp").iterdir()])


def test_a_temporary_directory_is_made_where_it_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with keeper.temporary_directory(tmp_path / "missing", tmp_path / "file", tmp_path) as made:
        assert made.parent == tmp_path and made.stat().st_mode & 0o777 == 0o700
    assert not made.exists()
    with (
        pytest.raises(OSError, match="missing"),
        keeper.temporary_directory(tmp_path / "missing"),
    ):
        pass
