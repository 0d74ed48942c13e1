# SPDX-License-Identifier: GPL-2.0-only
"""Repositories of strangers: no program that one names in its configuration is run."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.errors import InfraError, OrchestratorError, UsageError
from orchestrator.kernel import checkout, sources
from orchestrator.kernel.model import KernelRequest
from orchestrator.many.bisect.candidates import Commits

FAKE = Path(__file__).parent / "fakekernel"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)


def git(tree: Path, *arguments: str, check: bool = True) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    return subprocess.run(
        ["git", *identity, "-C", tree, *arguments], check=check, capture_output=True, text=True
    ).stdout


@pytest.fixture
def pwned(tmp_path: Path) -> Iterator[Path]:
    """The file that each of the programs makes. It must not exist in the end."""
    yield tmp_path / "PWNED"
    assert not (tmp_path / "PWNED").exists()


@pytest.fixture
def hostile(tmp_path: Path, pwned: Path) -> Path:
    """A kernel tree with two commits whose repository names programs wherever it can."""
    tree = tmp_path / "linux"
    shutil.copytree(FAKE, tree)
    git(tree, "init", "-q", "-b", "main")
    (tree / ".gitattributes").write_text("* filter=evil diff=evil merge=evil\n")
    (tree / ".gitmodules").write_text('[submodule "sub"]\n\tpath = sub\n\turl = ./sub\n')
    sub = tree / "sub"
    sub.mkdir()
    git(sub, "init", "-q")
    (sub / "file").write_text("one")
    git(sub, "add", "file")
    git(sub, "commit", "-q", "-m", "sub")
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", "one")
    (tree / "Makefile").write_text((tree / "Makefile").read_text() + "# two\n")
    git(tree, "commit", "-q", "-am", "two")
    _sign(tree)
    script = tmp_path / "evil"
    script.write_text(f"#!/bin/sh\ntouch {pwned}\nexit 1\n")
    script.chmod(0o755)
    hooks = tree / ".git" / "hooks"
    hooks.mkdir(exist_ok=True)
    for hook in ("post-checkout", "post-index-change", "reference-transaction", "pre-auto-gc"):
        shutil.copy(script, hooks / hook)
    settings = {
        "filter.evil.clean": script, "filter.evil.smudge": script, "filter.evil.process": script,
        "filter.evil.required": "true", "diff.evil.command": script, "diff.evil.textconv": script,
        "diff.external": script, "diff.submodule": "log", "merge.evil.driver": script,
        "core.fsmonitor": script, "core.sshCommand": script, "core.pager": script,
        "core.editor": script, "core.askPass": script, "core.gitProxy": script,
        "core.hooksPath": hooks, "core.alternateRefsCommand": script, "credential.helper": script,
        "gpg.program": script, "gpg.ssh.program": script, "log.showSignature": "true",
        "format.pretty": "%G? %H", "interactive.diffFilter": script, "pager.status": script,
        "alias.status": f"!{script}", "alias.ls-files": f"!{script}", "alias.show": f"!{script}",
        "uploadpack.packObjectsHook": script, "submodule.recurse": "true",
        "status.submoduleSummary": "true", "core.untrackedCache": "true",
        "remote.origin.url": f"ext::{script}", "remote.origin.uploadpack": str(script),
        "remote.origin.promisor": "true", "remote.origin.partialCloneFilter": "blob:none",
        "extensions.partialClone": "origin", "core.repositoryFormatVersion": "1",
        "protocol.ext.allow": "always", "protocol.allow": "always",
    }  # fmt: skip
    for repository in (sub, tree):
        included = repository / ".git" / "evil.config"
        for name, value in settings.items():
            git(tree, "config", "-f", str(included), name, str(value))
        git(repository, "config", "include.path", str(included))
    # Of the same size as before: git reads it, and has it filtered, to see whether it differs.
    for file in (tree / "Makefile", tree / "Kconfig", sub / "file"):
        file.write_bytes(file.read_bytes()[::-1])
    return tree


def _sign(tree: Path) -> None:
    """Make the last commit one with a signature, which git would have a program verify."""
    commit = git(tree, "cat-file", "commit", "HEAD")
    head, _, message = commit.partition("\n\n")
    signature = "gpgsig -----BEGIN PGP SIGNATURE-----\n \n x\n -----END PGP SIGNATURE-----"
    signed = subprocess.run(
        ["git", "-C", tree, "hash-object", "-t", "commit", "-w", "--stdin"],
        input=f"{head}\n{signature}\n\n{message}",
        text=True,
        capture_output=True,
        check=True,
    )
    git(tree, "update-ref", "refs/heads/main", signed.stdout.strip())


PLAIN: dict[str, tuple[str, ...]] = {
    "status": ("status", "--porcelain"),
    "show": ("show", "--stat", "HEAD"),
    "a missing object": ("cat-file", "-p", "1" * 40),
}


@pytest.mark.parametrize("command", PLAIN)
def test_the_repository_is_armed(command: str, hostile: Path, pwned: Path) -> None:
    git(hostile, *PLAIN[command], check=False)
    assert pwned.exists()
    pwned.unlink()


def test_a_hostile_tree_is_read(hostile: Path, pwned: Path) -> None:
    source = sources.from_tree(hostile)
    assert {"Makefile", "Kconfig", "arch/x86/kernel/traps.c"} <= source.manifest.keys()
    assert not any(path.startswith("sub/") for path in source.manifest)
    commit = git(hostile, "rev-parse", "--short=12", "HEAD").strip()
    pwned.unlink(missing_ok=True)
    assert source.origin["git"] == f"{commit} with changes"


def test_a_commit_of_a_hostile_repository_is_checked_out(hostile: Path) -> None:
    with checkout.checked_out(f"git:{hostile}@main") as tree:
        assert (tree / "Makefile").read_text().endswith("# two\n")
        assert sources.from_tree(tree).origin["git"]
    with checkout.checked_out(f"git:{hostile}@main~1") as tree:
        assert not (tree / "Makefile").read_text().endswith("# two\n")


def test_a_commit_of_a_hostile_repository_is_fetched(hostile: Path) -> None:
    with checkout.checked_out(f"git:file://{hostile}@main") as tree:
        assert (tree / "Makefile").read_text().endswith("# two\n")


def test_a_hostile_tree_is_bisected(hostile: Path) -> None:
    commits = Commits(KernelRequest(), hostile, "main~1", "main")
    assert [candidate.title for candidate in commits.candidates] == ["one", "two"]
    for number in (0, 1):
        with (
            commits.request(number) as request,
            checkout.checked_out(request.selector) as tree,
        ):
            assert sources.from_tree(tree).manifest
    assert "Makefile | 1 +" in commits.reference(1)


def test_missing_objects_of_a_hostile_repository_are_not_fetched(hostile: Path) -> None:
    with (
        pytest.raises(UsageError, match="has no commit"),
        checkout.checked_out(f"git:{hostile}@{'1' * 40}"),
    ):
        pass


@pytest.mark.parametrize(
    "url",
    [
        lambda pwned: f"ext::touch {pwned}",
        lambda pwned: f"ext::sh -c touch% {pwned}",
        lambda pwned: f"ssh://-oProxyCommand=touch {pwned}/x",
        lambda pwned: f"fd::7/x;touch {pwned}",
        lambda pwned: f"testsvn::;touch {pwned}",
        lambda pwned: f"-u;touch {pwned}",
    ],
)
def test_a_url_is_no_command(
    url: Callable[[Path], str], pwned: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    allow = tmp_path / "gitconfig"
    allow.write_text('[protocol "ext"]\n\tallow = always\n[protocol]\n\tallow = always\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(allow))
    with (
        pytest.raises((UsageError, InfraError)),
        checkout.checked_out(f"git:{url(pwned)}@main"),
    ):
        pass


def test_the_environment_of_a_git_hook_is_not_that_of_the_tree(
    hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    subprocess.run(["git", "-C", other, "init", "-q"], check=True)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(other / ".git" / "index"))
    assert "Makefile" in sources.from_tree(hostile).manifest


@pytest.mark.parametrize("damage", ["index", "HEAD", "objects", "fifo"])
def test_a_repository_that_is_damaged_is_one_sentence(damage: str, hostile: Path) -> None:
    if damage == "fifo":
        (hostile / ".git" / "index").unlink()
        os.mkfifo(hostile / ".git" / "index")
    elif damage == "objects":
        shutil.rmtree(hostile / ".git" / "objects")
        (hostile / ".git" / "objects").mkdir()
    else:
        (hostile / ".git" / damage).write_bytes(b"\0" * 100)
    try:
        assert "Makefile" in sources.from_tree(hostile).manifest
    except OrchestratorError as error:
        assert "\n" not in str(error)
