# SPDX-License-Identifier: GPL-2.0-only
"""Nightly sweeps: what counts as news, and what does not."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from orchestrator import cli
from orchestrator.commands import nightly as nightly_command
from orchestrator.commands import sweep as sweep_command
from orchestrator.host.paths import PROJECT
from orchestrator.kernel.model import KernelRequest
from orchestrator.many.nightly import (
    SCHEMA,
    CellHistory,
    CellRecord,
    News,
    bisection,
    compare,
    exit_status,
    finish,
    first,
    last,
    report,
)
from orchestrator.many.sweep.matrix import Cell
from orchestrator.many.sweep.sweep import CellResult
from orchestrator.spec import RunSpec

PASS = CellRecord(
    kernel="debian:6.12", outcome="pass", exit_status=0, reason="held", version="6.12.107-1"
)
FAIL = replace(
    PASS,
    outcome="fail",
    exit_status=1,
    reason="sync: no",
    signatures=("sync",),
    version="6.12.117-1",
    arguments=("--smp", "8"),
    directory="/runs/1",
)
INFRA = replace(PASS, outcome="infra", exit_status=125, reason="no mirror")


LATER = replace(FAIL, version="6.12.118-1")
OTHER = replace(FAIL, signatures=("consumed",))
BUILD = replace(INFRA, outcome="build-error", reason="it does not build")


def known(*nights: CellRecord) -> CellHistory:
    """What is known after these nights."""
    history = first(nights[0])
    for night in nights[1:]:
        history = history.followed_by(night)
    return history


@pytest.mark.parametrize(
    ("before", "now", "kind", "status"),
    [
        ((PASS,), PASS, None, 0),
        ((PASS,), FAIL, "broken", 1),
        ((INFRA,), FAIL, "broken", 1),
        ((), FAIL, "broken", 1),
        ((FAIL,), FAIL, None, 0),
        ((FAIL,), replace(FAIL, signatures=("consumed", "sync")), None, 0),
        ((FAIL,), OTHER, "differs", 1),
        ((FAIL,), PASS, "fixed", 0),
        ((INFRA,), PASS, "tested", 0),
        ((), PASS, "new", 0),
        ((PASS,), INFRA, "untested", 125),
        ((FAIL,), INFRA, "untested", 125),
        ((INFRA,), INFRA, None, 125),
        ((PASS,), None, "gone", 125),
        # a night that could not build or run erases nothing
        ((FAIL, INFRA), FAIL, "tested", 0),
        ((FAIL, BUILD), FAIL, "tested", 0),
        ((FAIL, INFRA, INFRA), LATER, "tested", 0),
        ((FAIL, INFRA), OTHER, "differs", 1),
        ((PASS, INFRA), FAIL, "broken", 1),
        ((FAIL, BUILD), PASS, "fixed", 0),
        ((PASS, BUILD), PASS, "tested", 0),
        ((FAIL, PASS), FAIL, "broken", 1),
        ((PASS, INFRA), INFRA, None, 125),
    ],
)
def test_news_of_one_cell(
    before: tuple[CellRecord, ...], now: CellRecord | None, kind: str | None, status: int
) -> None:
    # in a matrix with another cell that was there before
    old = {"other": known(PASS)} | ({"c": known(*before)} if before else {})
    new = {"c": now} if now else {}
    news = compare(old, {**new, "other": PASS})
    assert [item.kind for item in news] == ([kind] if kind else [])
    assert exit_status(news, new, strict=False) == status


def test_a_failure_after_nights_without_a_verdict_is_bisected_from_the_last_good_kernel() -> None:
    (broken,) = compare({"c": known(PASS, INFRA, BUILD)}, {"c": LATER})
    assert bisection(broken) == ("orchestrator bisect debian:6.12.107 debian:6.12.118 --smp 8")
    assert not compare({"c": known(PASS, FAIL, PASS, FAIL)}, {"c": LATER})


def test_nothing_is_new_in_the_first_night() -> None:
    now = {"a": PASS, "b": FAIL}
    news = compare({}, now)
    assert news == [] and exit_status(news, now, strict=False) == 0
    assert exit_status(news, now, strict=True) == 1
    assert report(news, now, first_night=True) == [
        "the first night: there is nothing to compare with",
        "",
        "  b: fail",
        "      sync: no",
        "      /runs/1",
        "",
        "2 cells: 1 pass, 1 fail, 0 without a verdict",
    ]


def test_strict_counts_known_failures() -> None:
    assert exit_status([], {"c": FAIL}, strict=True) == 1
    assert exit_status([], {"c": PASS, "d": INFRA}, strict=True) == 0


def test_the_most_serious_news_come_first_and_a_summary_last() -> None:
    before = {"a": known(FAIL), "b": known(PASS), "c": known(PASS), "d": known(FAIL)}
    now = {"a": PASS, "b": FAIL, "c": PASS, "d": FAIL}
    lines = report(compare(before, now), now)
    assert lines == [
        "",
        "newly failing:",
        "  b (6.12.107-1 -> 6.12.117-1): fail",
        "      sync: no",
        "      /runs/1",
        "      orchestrator bisect debian:6.12.107 debian:6.12.117 --smp 8",
        "",
        "passing again:",
        "  a (6.12.117-1 -> 6.12.107-1): pass",
        "",
        "4 cells: 2 pass, 2 fail, 0 without a verdict",
    ]
    assert report([], now)[0] == "nothing is new"


def test_a_bisection_is_offered_if_both_ends_have_names(tmp_path: Path) -> None:
    (broken,) = compare({"c": known(PASS)}, {"c": FAIL})
    git = f"git:{tmp_path}@main"
    assert bisection(broken)
    assert broken.before and broken.now
    same = replace(broken, now=replace(broken.now, version=PASS.version))
    branch = "git:ssh://git@example.org/linux.git@main"
    elsewhere = replace(
        broken,
        before=replace(PASS, kernel=branch, version="v1", commit="abc"),
        now=replace(FAIL, kernel=branch, version="v2", commit="def"),
    )
    built = replace(broken, now=replace(broken.now, kernel="6.1-int3"))
    new = replace(broken, before=None)
    assert [bisection(one) for one in (same, built, new)] == [None] * 3
    assert bisection(elsewhere) == (
        "git clone ssh://git@example.org/linux.git linux && "
        "orchestrator bisect --tree linux --good abc --bad def --smp 8"
    )
    tree = replace(
        broken, before=replace(PASS, commit="abc"), now=replace(FAIL, kernel=git, commit="def")
    )
    assert bisection(tree) == f"orchestrator bisect --tree {tmp_path} --good abc --bad def --smp 8"


def test_the_offered_bisection_is_of_the_kernel_as_the_row_changes_it(tmp_path: Path) -> None:
    kernel = KernelRequest(
        selector=f"git:{tmp_path}@main",
        patches=(Path("/a fix.patch"), Path("/b.patch")),
        fragments=(Path("/c.config"),),
        settings=("CONFIG_KASAN=y",),
    )
    spec = RunSpec(kernel=kernel, smp=2, scenarios=("nop*",))
    results = {Cell(kernel="mine", spec=spec): CellResult("fail", 1, "sync: no")}
    finish(tmp_path, results, strict=False)
    (now,) = last(tmp_path / "nights").values()
    before = replace(PASS, version="1", commit="abc")
    record = replace(now.last, version="2", commit="def")
    command = bisection(News("broken", "mine", before, record))
    assert command
    options = cli.parser().parse_args(shlex.split(command)[1:])
    assert options.tree == tmp_path and (options.good, options.bad) == ("abc", "def")
    assert tuple(options.patches) == kernel.patches
    assert tuple(options.fragments) == kernel.fragments
    assert tuple(options.settings) == kernel.settings
    assert (options.smp, options.scenarios) == (2, ["nop*"])


def cell(seed: int = 1) -> Cell:
    return Cell(kernel="6.1-int3", spec=RunSpec(smp=2, duration=1.0, seed=seed))


def night(
    directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, outcome: str, status: int
) -> int:
    """One night with one cell, whose run is in the directory `name`."""
    run = directory / "cells" / f"{name}-{0:016}" / "run"
    run.mkdir(parents=True, exist_ok=True)
    check = {"check": "sync", "status": "fail" if status else "pass", "text": "t", "details": []}
    kernel = {"name": "k", "release": "", "digest": "", "origin": {"version": name}}
    verdict = {
        "schema": 2,
        "outcome": outcome,
        "reason": "r",
        "exit_status": status,
        "checks": [check],
        "kernel": kernel,
        "edited": [],
        "hang_report": [],
        "soak": None,
        "seconds": {},
    }
    (run / "verdict.json").write_text(json.dumps(verdict))
    results = {cell(): CellResult(outcome, status, "r", directory=str(run))}
    monkeypatch.setattr(sweep_command, "perform", lambda *_: (directory, results, 1.0))
    monkeypatch.setattr("time.strftime", lambda _: f"2026-{name}")
    return nightly_command.main(argparse.Namespace(strict=False, json=False))


def cells(directory: Path) -> set[str]:
    return {path.name.removesuffix(f"-{0:016}") for path in (directory / "cells").iterdir()}


def test_only_cells_are_removed_and_nothing_behind_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign, name = tmp_path / "foreign", f"x-{0:016}"
    (foreign / name).mkdir(parents=True)
    mine = tmp_path / "nights" / "cells"
    (mine / "notes").mkdir(parents=True)
    (mine / name).symlink_to(foreign / name)
    (mine / f"old-{0:016}").mkdir()
    night(mine.parent, monkeypatch, "1", "pass", 0)
    assert cells(mine.parent) == {"notes", "x", "1"} and (foreign / name).is_dir()
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "cells").symlink_to(foreign)
    night(linked, monkeypatch, "2", "pass", 0)
    assert (foreign / name).is_dir()


def test_nights_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert night(tmp_path, monkeypatch, "1", "pass", 0) == 0
    assert night(tmp_path, monkeypatch, "2", "fail", 1) == 1
    assert "newly failing" in (tmp_path / "news.txt").read_text()
    assert cells(tmp_path) == {"1", "2"}
    assert night(tmp_path, monkeypatch, "3", "fail", 1) == 0
    assert (tmp_path / "news.txt").read_text().startswith("nothing is new")
    # of the last two nights, and of the last good kernel
    assert cells(tmp_path) == {"1", "2", "3"}
    assert night(tmp_path, monkeypatch, "4", "infra", 125) == 125
    assert night(tmp_path, monkeypatch, "5", "fail", 1) == 0
    assert "with a verdict again" in (tmp_path / "news.txt").read_text()
    (history,) = last(tmp_path / "nights").values()
    record = history.last
    assert history.good and history.good.version == "1"
    assert (record.signatures, record.version, record.exit_status) == (("sync",), "5", 1)
    assert "--seed" not in record.arguments and "--smp" in record.arguments


def test_a_damaged_or_foreign_record_is_ignored(tmp_path: Path) -> None:
    record = {"schema": SCHEMA, "cells": {"c": asdict(known(PASS, INFRA))}}
    (tmp_path / "1.json").write_text(json.dumps(record))
    (tmp_path / "3.json").write_text(json.dumps({**record, "schema": SCHEMA + 1, "cells": {}}))
    (tmp_path / "2.json").write_text("{")
    assert last(tmp_path) == {"c": known(PASS, INFRA)}
    assert last(tmp_path / "none") == {}


DOCS = PROJECT / "docs" / "nightly"


def test_the_workflow_has_a_valid_command() -> None:
    workflow = yaml.safe_load((DOCS / "workflow.yaml").read_text())
    steps = workflow["jobs"]["nightly"]["steps"]
    (line,) = [step["run"] for step in steps if " nightly " in step.get("run", "")]
    _, arguments = line.split(" ", 1)
    options = cli.parser().parse_args(arguments.split())
    assert options.command is nightly_command.main and options.matrix == Path("matrix.yaml")
    assert any("setup" in step.get("run", "") for step in steps)
    assert re.search("^setup:", (PROJECT / "Makefile").read_text(), re.MULTILINE)


def test_the_workflow_keeps_what_is_known_also_when_it_fails() -> None:
    steps = yaml.safe_load((DOCS / "workflow.yaml").read_text())["jobs"]["nightly"]["steps"]
    by_action = {step["uses"].partition("@")[0]: step for step in steps if "uses" in step}
    assert "actions/cache" not in by_action  # it saves nothing after a failure
    save, restore = by_action["actions/cache/save"], by_action["actions/cache/restore"]
    assert save["if"] == "always()" and save["with"]["path"] == restore["with"]["path"]
    assert save["with"]["key"].startswith(restore["with"]["restore-keys"].strip())


def test_the_service_may_use_kvm() -> None:
    assert "SupplementaryGroups=kvm" in (DOCS / "orchestrator-nightly.service").read_text()


def test_the_service_has_a_valid_command() -> None:
    service = (DOCS / "orchestrator-nightly.service").read_text()
    arguments = re.findall(r"^ExecStart=\S+/orchestrator (.*)$", service, re.MULTILINE)
    assert cli.parser().parse_args(arguments[0].split()).command is nightly_command.main


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_accepts_both_units(tmp_path: Path) -> None:
    for file in DOCS.glob("orchestrator-nightly.*"):
        text = re.sub(r"/opt/orchestrator/\.venv/bin/orchestrator", "/bin/true", file.read_text())
        (tmp_path / file.name).write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True,
        text=True,
    )
    assert "orchestrator-nightly" not in done.stderr, done.stderr
