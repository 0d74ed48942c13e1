# SPDX-License-Identifier: GPL-2.0-only
"""Earlier runs: found by number, name and directory, and removed by age and size."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from test_json import run_result

from orchestrator import cli
from orchestrator.host.paths import cache_dir, state_dir
from orchestrator.kernel import cache
from orchestrator.many import history, prune
from orchestrator.verdict import result as result_file

DAY = 86400.0


@pytest.fixture(autouse=True)
def own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def made(name: str, days: float, *, ended: bool = True, mebibytes: int = 1) -> Path:
    """The directory of a run that ended some days ago."""
    path = state_dir() / "runs" / name
    path.mkdir(parents=True)
    (path / "spec.json").write_text("{}")
    (path / "events.jsonl").write_bytes(b"x" * (mebibytes << 20))
    (path / "initramfs.cpio").write_bytes(b"x" * (1 << 20))
    if ended:
        result = run_result(path)
        result_file.write(result)
        (path / "report.txt").write_text(f"the report of {name}\n")
        history.record(result)
    then = time.time() - days * DAY
    for file in (*path.iterdir(), path):
        os.utime(file, (then, then))
    return path


def names() -> list[str]:
    return sorted(path.name for path in (state_dir() / "runs").iterdir())


# -- history and show


def test_the_history_shows_number_and_directory(capsys: pytest.CaptureFixture[str]) -> None:
    path = made("one", 0)
    assert cli.main(["history"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[0] == "1" and "pass" in lines[0]
    assert lines[1].strip() == str(path)


@pytest.mark.parametrize("name", ["1", "one", "PATH"])
def test_show_finds_a_run_however_it_is_named(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = made("one", 0)
    assert cli.main(["show", name.replace("PATH", str(path))]) == 0
    assert capsys.readouterr().out == "the report of one\n"


def test_show_has_the_verdict_if_the_report_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    (made("one", 0) / "report.txt").unlink()
    assert cli.main(["show", "one"]) == 0
    assert "PASS  every promise held" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("7", "the history has no run 7"),
        ("99999999999999999999", "the history has no run"),
        ("on", "did you mean one?"),
        ("running", "has no verdict: that run has not ended"),
    ],
)
def test_a_run_that_cannot_be_shown_is_wrong_usage(
    name: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made("one", 0)
    made("running", 0, ended=False)
    assert cli.main(["show", name]) == 129
    assert text in capsys.readouterr().err


def test_a_run_that_was_removed_keeps_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    path = made("one", 40)
    assert cli.main(["history", "--prune", "--older-than", "30d"]) == 0
    assert not path.exists()
    capsys.readouterr()
    assert cli.main(["history"]) == 0
    assert f"{path} (removed)" in capsys.readouterr().out
    assert cli.main(["show", "1"]) == 129
    assert "which was removed" in capsys.readouterr().err


# -- pruning


def test_runs_go_by_age() -> None:
    for days in (1, 10, 40):
        made(f"{days}-days", days)
    removed = list(prune.prune(older=30 * DAY, keep=None))
    assert names() == ["1-days", "10-days"]
    assert [(entry.directory.name, entry.what) for entry in removed] == [
        ("40-days", "run"),
        ("10-days", "initramfs"),
        ("1-days", "initramfs"),
    ]


def test_the_oldest_runs_go_until_the_size_is_right() -> None:
    for days in (1, 2, 3):
        made(f"{days}-days", days, mebibytes=4)
    list(prune.prune(older=None, keep=11 << 20))
    assert names() == ["1-days", "2-days"]


def test_a_dry_run_removes_nothing() -> None:
    path = made("one", 40)
    (removed,) = prune.prune(older=DAY, keep=None, dry=True)
    assert removed.bytes >= 2 << 20 and (path / "initramfs.cpio").exists()


def test_kept_guests_and_runs_under_way_stay(tmp_path: Path) -> None:
    kept, running = made("kept", 40), made("running", 0, ended=False)
    (kept / "live.json").write_text("{}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (state_dir() / "runs" / "link").symlink_to(elsewhere)
    assert list(prune.prune(older=0, keep=0)) == []
    assert kept.exists() and running.exists() and elsewhere.exists()


def test_what_a_killed_run_has_left_goes_as_well() -> None:
    made("killed", 2, ended=False)
    list(prune.prune(older=DAY, keep=None))
    assert names() == []


def test_images_of_old_runs_go_by_themselves() -> None:
    old, new = made("old", 2), made("new", 0)
    prune.drop_images()
    assert not (old / "initramfs.cpio").exists() and (new / "initramfs.cpio").exists()
    assert (old / "events.jsonl").exists()


@pytest.mark.parametrize("only", [["--kernel", "debian:*"], ["--failed", "x"], ["--count", "20"]])
def test_what_is_removed_is_not_chosen_by_what_is_shown(only: list[str]) -> None:
    assert cli.main(["history", "--prune", "--keep", "0", *only]) == 129


def test_limits_without_prune_are_wrong_usage() -> None:
    assert cli.main(["history", "--older-than", "30d"]) == 129


# -- the cache


def test_clean_shows_all_of_the_cache(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("kernels/a/bzImage", "kernels/.b.partial-x/vmlinux", "ccache/0/1", "stray"):
        file = cache_dir() / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * (1 << 20))
    (cache_dir() / "kernels" / "link").symlink_to("a")
    entries = [*cache.items(), *cache.others(), *cache.leftovers()]
    assert sum(entry.size for entry in entries) >= 4 << 20
    assert {entry.path.name for entry in entries} >= {"a", ".b.partial-x", "ccache", "stray"}
    assert len({entry.path for entry in entries}) == len(entries)
