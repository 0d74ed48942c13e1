# SPDX-License-Identifier: GPL-2.0-only
"""Sources that are not a directory: commits of git repositories, and tarballs."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import InfraError, UsageError
from orchestrator.kernel import checkout, sources

FAKE = Path(__file__).parent / "fakekernel"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)


def git(tree: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    return subprocess.run(
        ["git", *identity, "-C", tree, *arguments], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Two commits, tagged v-one and v-two, and uncommitted changes."""
    tree = tmp_path / "linux"
    tree.mkdir()
    git(tree, "init", "-q", "-b", "main")
    for number in ("one", "two"):
        (tree / "version").write_text(number)
        git(tree, "add", "-A")
        git(tree, "commit", "-q", "-m", number)
        git(tree, "tag", f"v-{number}")
    (tree / "version").write_text("not committed")
    return tree


def test_a_selector_is_split_into_where_and_ref() -> None:
    assert checkout.parse("git:/src/linux@v6.12") == ("/src/linux", "v6.12")
    assert checkout.parse("git:git@example.org:linux.git@main") == (
        "git@example.org:linux.git",
        "main",
    )


@pytest.mark.parametrize(
    ("selector", "where", "ref"),
    [
        ("git:git@example.org:linux.git", "git@example.org:linux.git", ""),
        ("git:ssh://git@example.org/linux.git", "ssh://git@example.org/linux.git", ""),
        ("git:ssh://git@example.org:22/linux.git@a/b", "ssh://git@example.org:22/linux.git", "a/b"),
        ("git:https://user@example.org/x@v1", "https://user@example.org/x", "v1"),
        ("git:example.org:x@HEAD", "example.org:x", "HEAD"),
    ],
)
def test_the_at_sign_of_a_url_is_no_ref(selector: str, where: str, ref: str) -> None:
    assert checkout.split(selector) == (where, ref)


def test_ssh_asks_nothing_and_what_it_says_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(
        f'#!/bin/sh\necho "$*" > {tmp_path}/arguments\n'
        'echo "git@example.org: Permission denied (publickey)." >&2\nexit 255\n'
    )
    ssh.chmod(0o755)
    monkeypatch.setenv("GIT_SSH_COMMAND", str(ssh))
    with (
        pytest.raises(InfraError, match=r"Permission denied \(publickey\)\.$"),
        checkout.checked_out("git:git@example.org:linux.git@main"),
    ):
        pass
    assert "-o BatchMode=yes" in (tmp_path / "arguments").read_text()


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        (
            "ERROR: Repository not found.\nfatal: Could not read from remote repository.\n\n"
            "Please make sure you have the correct access rights\nand the repository exists.\n",
            "ERROR: Repository not found.",
        ),
        ("fatal: unable to access 'x': Could not resolve host: y\n",
         "fatal: unable to access 'x': Could not resolve host: y"),
        ("", "it gives no reason"),
    ],
)  # fmt: skip
def test_the_reason_is_what_git_said(output: str, shown: str) -> None:
    assert checkout.reason(output) == shown


@pytest.mark.parametrize(
    "selector", ["git:", "git:/src/linux", "git:/src/linux@", "git:@v1", "git:--upload-pack=x@v1"]
)
def test_a_selector_without_where_or_ref_is_wrong_usage(selector: str) -> None:
    with pytest.raises(UsageError, match="write git:URL-or-path@REF"):
        checkout.parse(selector)


def test_a_commit_of_a_local_repository_is_checked_out_without_changing_it(
    repository: Path,
) -> None:
    before = git(repository, "status", "--porcelain")
    for ref, content in (
        ("v-one", "one"),
        ("main", "two"),
        (git(repository, "rev-parse", "v-one").strip(), "one"),
    ):
        with checkout.checked_out(f"git:{repository}@{ref}") as tree:
            assert (tree / "version").read_text() == content
            (tree / "leftover.o").touch()
    assert git(repository, "status", "--porcelain") == before
    assert (repository / "version").read_text() == "not committed"
    assert git(repository, "worktree", "list").count("\n") == 1


def test_build_products_in_a_checkout_are_removed(repository: Path) -> None:
    with checkout.checked_out(f"git:{repository}@v-one") as tree:
        (tree / "leftover.o").touch()
    with checkout.checked_out(f"git:{repository}@main") as tree:
        assert sorted(path.name for path in tree.iterdir()) == [".git", "version"]


def test_a_commit_of_a_remote_repository_is_fetched_without_history(repository: Path) -> None:
    with checkout.checked_out(f"git:file://{repository}@v-one") as tree:
        assert (tree / "version").read_text() == "one"
        assert git(tree, "rev-list", "--count", "HEAD").strip() == "1"


def test_what_a_killed_fetch_leaves_costs_no_new_checkout(repository: Path) -> None:
    selector = f"git:file://{repository}"
    with checkout.checked_out(f"{selector}@v-one") as tree:
        (tree / ".git/kept").touch()
        for name in ("index.lock", "shallow.lock"):
            (tree / ".git" / name).touch()
    with checkout.checked_out(f"{selector}@v-two") as tree:
        assert (tree / "version").read_text() == "two" and (tree / ".git/kept").exists()


def test_a_missing_ref_or_repository_is_reported(repository: Path, tmp_path: Path) -> None:
    for where in (repository, f"file://{repository}"):
        with (
            pytest.raises(UsageError, match=r"has no .*v-three"),
            checkout.checked_out(f"git:{where}@v-three"),
        ):
            pass
    with (
        pytest.raises(UsageError, match="not appear to be a git repository"),
        checkout.checked_out(f"git:file://{tmp_path}/nowhere@main"),
    ):
        pass


def _garbage(file: Path) -> None:
    file.write_bytes(b"garbage")


def _truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("damage", [_garbage, _truncated, Path.unlink])
@pytest.mark.parametrize("name", ["HEAD", "index", "config", "objects/pack/*.pack", "objects"])
@pytest.mark.parametrize("remote", [False, True])
def test_a_damaged_checkout_is_made_again(
    name: str, remote: bool, damage: Callable[[Path], None], repository: Path
) -> None:
    git(repository.parent, "init", "-q")  # what git would find above a damaged one
    selector = f"git:{'file://' if remote else ''}{repository}@"
    with checkout.checked_out(f"{selector}v-one") as tree:
        pass
    for file in list((tree / ".git").glob(name)):
        if name == "objects":
            shutil.rmtree(file)
        else:
            file.chmod(0o644)
            damage(file)
    with checkout.checked_out(f"{selector}main") as tree:
        assert (tree / "version").read_text() == "two"
    with checkout.checked_out(f"{selector}v-one") as tree:
        assert (tree / "version").read_text() == "one"


def test_a_sound_checkout_is_kept_when_a_commit_cannot_be_had(repository: Path) -> None:
    with checkout.checked_out(f"git:file://{repository}@v-one") as tree:
        (tree / ".git/kept").touch()
    repository.rename(repository.with_name("gone"))
    with (
        pytest.raises(UsageError, match="git cannot fetch"),
        checkout.checked_out(f"git:file://{repository}@main"),
    ):
        pass
    assert (tree / ".git/kept").exists()


# --- tarballs ------------------------------------------------------------------------------------


def _pack(file: Path, folder: Path) -> Path:
    subprocess.run(["tar", "-caf", file, "-C", folder.parent, folder.name], check=True)
    return file


def test_a_tarball_is_unpacked_once_and_found_by_its_content(tmp_path: Path) -> None:
    first = sources.from_tree(_pack(tmp_path / "linux-1.tar.gz", FAKE))
    assert (first.root / "Kconfig").read_text() == (FAKE / "Kconfig").read_text()
    assert "Makefile" in first.manifest
    again = tmp_path / "other-name.tar.gz"
    again.write_bytes((tmp_path / "linux-1.tar.gz").read_bytes())
    assert sources.from_tree(again).root == first.root
    assert sources.from_tree(again).identity == first.identity


def test_a_tarball_without_a_kernel_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text").touch()
    with pytest.raises(
        UsageError, match="is not a kernel source tree in one directory: it has no Makefile"
    ):
        sources.from_tree(_pack(tmp_path / "notes.tar", tmp_path / "notes"))
    broken = tmp_path / "linux.tar.gz"
    broken.write_bytes(b"no gzip")
    with pytest.raises(UsageError, match="does not unpack"):
        sources.from_tree(broken)
    assert not list((tmp_path / "cache").glob("orchestrator/sources/tarball-*"))
