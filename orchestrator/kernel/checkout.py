# SPDX-License-Identifier: GPL-2.0-only
"""Commits of git repositories, checked out into the cache. The repository is never written to."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator import ui
from orchestrator.errors import InfraError, UsageError
from orchestrator.host import files, proc
from orchestrator.host.notices import waiting_for, warn
from orchestrator.host.paths import cache_dir, locked

PREFIX = "git:"
SAFE = (
    "--no-optional-locks",
    "-c",
    "safe.directory=*",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "core.hooksPath=/dev/null",
)
"""Allow reading another user's repository, but keep its configuration from running programs."""


def parse(selector: str) -> tuple[str, str]:
    """`git:WHERE@REF` to (WHERE, REF): a URL or path, and a branch, tag or commit."""
    where, _, ref = selector.removeprefix(PREFIX).rpartition("@")
    if not where or not ref or where.startswith("-") or ref.startswith("-"):
        raise UsageError(f"{selector}: write git:URL-or-path@REF, such as git:~/linux@v6.12")
    return where, ref


@contextlib.contextmanager
def checked_out(selector: str) -> Iterator[Path]:
    """A directory with the files of the commit that `selector` names, locked within the context.

    Raises UsageError if there is no such repository or commit, InfraError if it cannot be fetched.
    """
    where, ref = parse(selector)
    local = Path(where).expanduser()
    identity = str(local.resolve()) if local.is_dir() else where
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder = cache_dir() / "checkouts" / name
    lock = folder.with_name(f".{name}.lock")
    with locked(lock, waiting_for(f"another run's checkout of {where}")):

        def check_out() -> None:
            if local.is_dir():
                commit = resolve(local, ref)
                borrow(local, folder)
            else:
                commit = _fetch(where, ref, folder)
            switch(folder, commit, where)

        mending(folder, check_out)
        yield folder


def mending(folder: Path, check_out: Callable[[], None]) -> None:
    """Call `check_out`. If it fails because the repository `folder` is damaged, make that again.

    folder: a repository of the cache, locked by the caller.
    """
    try:
        check_out()
    except (InfraError, OSError, subprocess.CalledProcessError):
        if not folder.exists() or _is_sound(folder):
            raise
        warn(f"cache: {folder.parent.name}/{folder.name} was damaged, making it again")
        files.remove(folder)
        check_out()


def _is_sound(folder: Path) -> bool:
    """Whether git finds no damage in the repository `folder`, apart from objects it borrows."""
    return git(folder, "fsck", "--no-full", "--no-dangling", check=False).returncode == 0


def resolve(repository: Path, ref: str) -> str:
    """The commit hash of `ref` in the local `repository`. Raises UsageError if there is none."""
    command = ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}"]
    done = git(repository, *command, check=False)
    if done.returncode:
        raise UsageError(f"{repository} has no commit {ref}, or is not a git repository")
    return done.stdout.strip().splitlines()[-1]


def borrow(repository: Path, folder: Path) -> None:
    """Make `folder` a git repository that takes its objects from `repository`."""
    _init(folder)
    objects = git(
        repository, "rev-parse", "--path-format=absolute", "--git-path", "objects"
    ).stdout.strip()
    (folder / ".git" / "objects" / "info" / "alternates").write_text(f"{objects}\n")


def switch(folder: Path, commit: str, where: object) -> None:
    """Check out `commit` in `folder` and remove all other files. The caller has locked the folder.

    where: where the commit comes from, for the error message.

    Raises InfraError: the commit is there, so it is the disk or our repository that does not work.
    """
    # left behind by a killed checkout
    (folder / ".git" / "index.lock").unlink(missing_ok=True)
    try:
        git(folder, "checkout", "-q", "--force", "--detach", commit)
        git(folder, "clean", "-q", "-ffdx")
    except subprocess.CalledProcessError as error:
        raise InfraError(
            f"{commit} cannot be checked out from {where}: {error.output.strip()}"
        ) from error


def _fetch(url: str, ref: str, folder: Path) -> str:
    """Fetch `ref`, without its history, into the repository `folder`; its commit hash."""
    _init(folder)
    command = ["fetch", "-q", "--depth=1", "--no-tags", "--end-of-options", url, ref]
    with ui.step(f"fetch {ref} of {url}"):
        done = git(folder, *command, check=False)
    if done.returncode:
        if "couldn't find remote ref" in done.stdout or "not our ref" in done.stdout:
            raise UsageError(
                f"{url} has no {ref}: name a branch, a tag, or a commit that the server offers"
            )
        lines = done.stdout.strip().splitlines()
        reason = lines[-1] if lines else "it gives no reason"
        raise InfraError(f"git cannot fetch {ref} of {url}: {reason}")
    return resolve(folder, "FETCH_HEAD")


def _init(folder: Path) -> None:
    if not (folder / ".git" / "HEAD").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        proc.run([proc.need("git", "git"), "init", "-q", folder])


def git(repository: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run git in `repository`, which may be another user's: no hooks run, no index is refreshed."""
    env = {
        # Nobody is there to type a password.
        "GIT_TERMINAL_PROMPT": "0",
        # Above a damaged repository of ours there may be one of the user's.
        "GIT_CEILING_DIRECTORIES": str(cache_dir()),
    }
    return proc.run(
        [proc.need("git", "git"), *SAFE, "-C", repository, *arguments], env=env, check=check
    )
