# SPDX-License-Identifier: GPL-2.0-only
"""A bisection of a real git history. Every candidate is built and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.host.paths import cache_dir
from orchestrator.kernel import definition, sources

pytestmark = pytest.mark.vm

LEFT_OUT = re.compile(
    r"(arch/(?!x86/)[^/]+|sound|samples|tools/(perf|testing)"
    r"|drivers/(clk|crypto|gpu|infiniband|iio|input|media|mtd|net/(ethernet|wireless)|pinctrl|scsi|staging|usb|video))"
    r"/(?!(.*/)?(Kconfig|Makefile|Kbuild))"
)
"""Four fifths of a kernel tree. Our configuration compiles nothing of it."""

COMMITS = 40
CULPRIT = 27
UNBUILDABLE = range(18, 22)
"""Commits that do not build, in the middle, where a bisection starts."""
UNBOOTABLE = 30
"""A commit that triple-faults while it boots. The next one does not."""
FALL = """
#include <asm/desc.h>
static int __init fall(void)
{
	static const struct desc_ptr none;

	load_idt(&none);
	asm volatile("ud2");
	return 0;
}
early_initcall(fall);
"""
TOUCHED = (
    "arch/x86/kernel/alternative.c",
    "arch/x86/kernel/jump_label.c",
    "arch/x86/kernel/traps.c",
)

SYNC = "\t\ton_each_cpu(do_sync_core, NULL, 1);\n"
"""The sync after the tail, the only one that is indented by two tabs."""
ALWAYS = ""
SOMETIMES = "\t\tif ((rdtsc() >> 8) % 251)\n\t" + SYNC
"""What replaces the sync. Of 251 pokes one goes without it: which, depends on the schedule."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The user's cache with empty folders for kernels and workspaces.

    Otherwise those of the test's tree would stay in the user's cache for ever.
    """
    real, ours = cache_dir(), tmp_path / "cache" / "orchestrator"
    ours.mkdir(parents=True)
    for entry in real.iterdir():
        if entry.name not in ("checkouts", "kernels", "work"):
            (ours / entry.name).symlink_to(entry)
    monkeypatch.setenv("XDG_CACHE_HOME", str(ours.parent))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    yield
    shutil.rmtree(ours)


@pytest.fixture
def tree(tmp_path: Path, cache: None) -> Iterator[Path]:
    """A repository with one commit, the patched source of 6.1-int3."""
    chosen = definition.load("6.1-int3")
    source = sources.from_debian(chosen.source.debian_source, workspace=chosen.name)
    tree = tmp_path / "linux"
    for path in source.manifest:
        if not LEFT_OUT.match(path):
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source.root / path, tree / path, follow_symlinks=False)
    git(tree, "init", "-q", "-b", "main")
    git(tree, "config", "core.compression", "0")
    git(tree, "config", "user.name", "A Developer")
    git(tree, "config", "user.email", "developer@example.org")
    for patch in chosen.patch_files():
        git(tree, "apply", str(patch))
    git(tree, "add", "-A", "-f")
    git(tree, "commit", "-q", "-m", "Linux 6.1, with the patches")
    git(tree, "tag", "good")
    yield tree
    shutil.rmtree(tree)


def git(tree: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", tree, *arguments], check=True, capture_output=True, text=True
    ).stdout


def develop(tree: Path, sync: str) -> list[str]:
    """Make commits 1 to COMMITS. Returns the hashes of all commits, from 0.

    sync: replaces the sync in commit CULPRIT.
    """
    hashes = [git(tree, "rev-parse", "HEAD").strip()]
    poke = tree / TOUCHED[0]
    for number in range(1, COMMITS + 1):
        file, title = tree / TOUCHED[number % len(TOUCHED)], f"note {number}"
        if number == CULPRIT:
            text = poke.read_text()
            start = text.index("void *text_poke_bp(")
            assert text.count(SYNC, start) == 1
            poke.write_text(text[:start] + text[start:].replace(SYNC, sync))
            title = "x86/alternative: do with fewer IPIs"
        elif number == UNBUILDABLE.start:
            poke.write_text(poke.read_text() + "\nstatic void half_done(void)\n{\n")
            title = "x86/alternative: begin something"
        elif number == UNBUILDABLE.stop:
            poke.write_text(poke.read_text().replace("\nstatic void half_done(void)\n{\n", ""))
            title = "x86/alternative: give it up"
        elif number == UNBOOTABLE:
            poke.write_text(poke.read_text() + FALL)
            title = "x86/alternative: start early"
        elif number == UNBOOTABLE + 1:
            poke.write_text(poke.read_text().replace(FALL, ""))
            title = "x86/alternative: start later"
        elif number % 2:
            file.write_text(f"{file.read_text()}\n/* note {number} */\n")
        else:
            file.write_text(
                f'{file.read_text()}\nstatic const char note_{number}[] __used = "note {number}";\n'
            )
        git(tree, "commit", "-q", "-a", "-m", title)
        hashes.append(git(tree, "rev-parse", "HEAD").strip())
    return hashes


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(ALWAYS, id="always"),
        pytest.param(
            SOMETIMES,
            id="in-some-schedules",
            marks=pytest.mark.skipif(
                "ORCHESTRATOR_TEST_LONG" not in os.environ, reason="needs ORCHESTRATOR_TEST_LONG"
            ),
        ),
    ],
)
def test_the_commit_that_breaks_the_protocol_is_found(
    tmp_path: Path, tree: Path, fault: str
) -> None:
    hashes = develop(tree, fault)
    which = ["--tree", str(tree), "--good", "good", "--bad", "main"]
    how = ["--smp", "2", "--scenario", "nop5", "--duration", "0.2"]
    command = [sys.executable, "-m", "orchestrator", "bisect", *which, *how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=6000)
    print(done.stderr[-6000:], done.stdout[-6000:])
    assert done.returncode == 0
    culprit = f'{hashes[CULPRIT][:12]} ("x86/alternative: do with fewer IPIs")'
    assert f"the first bad candidate is {culprit}" in done.stdout
    assert "signature:   sync" in done.stdout
    (log,) = (tmp_path / "state").rglob("log.jsonl")
    entries = [json.loads(line) for line in log.read_text().splitlines()[1:]]
    unbuildable = {entry["candidate"] for entry in entries if entry["outcome"] == "untestable"}
    assert unbuildable or fault is SOMETIMES, "no commit that does not build was tried"
    assert unbuildable <= {hashes[number][:12] for number in (*UNBUILDABLE, UNBOOTABLE)}
    assert "confirmed:   it failed again, and the bad end without it passed" in done.stdout
    failing = next(entry for entry in entries if entry["candidate"] == hashes[CULPRIT][:12])
    script = (Path(failing["summary"]["directory"]) / "repeat.sh").read_text()
    assert f"git:{tree}@{hashes[CULPRIT]}" in script
    assert git(tree, "status", "--porcelain", "--ignored") == ""
    # The first build compiles everything. Later ones compile what differs, and link.
    firsts: dict[str, float] = {}
    for entry in entries:
        if entry["outcome"] in ("pass", "fail"):
            firsts.setdefault(entry["candidate"], entry["summary"]["seconds"])
    everything, *took = firsts.values()
    assert statistics.median(took) < everything, firsts
