"""Commits of git repositories, checked out into folders of the cache: the repository itself is never written to."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from orchestrator import ui
from orchestrator.errors import InfraError, UsageError
from orchestrator.host import proc
from orchestrator.host.notices import waiting_for
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
"""A repository of another user's is fine to read, but none of its configuration may start a program."""


def parse(selector: str) -> tuple[str, str]:
    """`git:WHERE@REF` to (WHERE, REF). WHERE: a URL or a path. REF: a branch, a tag or a commit."""
    where, _, ref = selector.removeprefix(PREFIX).rpartition("@")
    if not where or not ref or where.startswith("-") or ref.startswith("-"):
        raise UsageError(f"{selector}: write git:URL-or-path@REF, such as git:~/linux@v6.12")
    return where, ref


@contextlib.contextmanager
def checked_out(selector: str) -> Iterator[Path]:
    """The files of the commit that `selector` names, for as long as the context lasts.

    UsageError: there is no such repository or commit. InfraError: it cannot be fetched.
    """
    where, ref = parse(selector)
    local = Path(where).expanduser()
    identity = str(local.resolve()) if local.is_dir() else where
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    folder = cache_dir() / "checkouts" / name
    lock = folder.with_name(f".{name}.lock")
    with locked(lock, waiting_for(f"another run's checkout of {where}")):
        if local.is_dir():
            commit = resolve(local, ref)
            borrow(local, folder)
        else:
            commit = _fetch(where, ref, folder)
        switch(folder, commit, where)
        yield folder


def resolve(repository: Path, ref: str) -> str:
    """The commit that `ref` is in the local `repository`."""
    words = ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}"]
    found = git(repository, *words, check=False)
    if found.returncode:
        raise UsageError(f"{repository} has no commit {ref}, or is no git repository")
    return found.stdout.strip().splitlines()[-1]


def borrow(repository: Path, folder: Path) -> None:
    """Make `folder` a repository without objects of its own: it takes them from `repository`."""
    _init(folder)
    objects = git(
        repository, "rev-parse", "--path-format=absolute", "--git-path", "objects"
    ).stdout.strip()
    (folder / ".git" / "objects" / "info" / "alternates").write_text(f"{objects}\n")


def switch(folder: Path, commit: str, where: object) -> None:
    """Have `folder` hold the files of `commit` and nothing else. where: it comes from, for the message."""
    # What a killed checkout left; whoever calls holds a lock on the folder.
    (folder / ".git" / "index.lock").unlink(missing_ok=True)
    try:
        git(folder, "checkout", "-q", "--force", "--detach", commit)
        git(folder, "clean", "-q", "-ffdx")
    except subprocess.CalledProcessError as error:
        raise UsageError(
            f"{commit} cannot be checked out from {where}: {error.output.strip()}"
        ) from error


def _fetch(url: str, ref: str, folder: Path) -> str:
    _init(folder)
    with ui.step(f"fetch {ref} of {url}"):
        done = git(
            folder,
            "fetch",
            "-q",
            "--depth=1",
            "--no-tags",
            "--end-of-options",
            url,
            ref,
            check=False,
        )
    if done.returncode:
        said = done.stdout.strip().splitlines()
        if "couldn't find remote ref" in done.stdout or "not our ref" in done.stdout:
            raise UsageError(
                f"{url} has no {ref}: name a branch or a tag, or a commit that the server gives out"
            )
        raise InfraError(
            f"git cannot fetch {ref} of {url}: {said[-1] if said else 'it does not say why'}"
        )
    return resolve(folder, "FETCH_HEAD")


def _init(folder: Path) -> None:
    if not (folder / ".git" / "HEAD").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        proc.run([proc.need("git", "git"), "init", "-q", folder])


def git(repository: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """git in `repository`, which may be another's: read, without its index being refreshed or its hooks being run."""
    # Nobody is there to type a password.
    env = {"GIT_TERMINAL_PROMPT": "0"}
    return proc.run(
        [proc.need("git", "git"), *SAFE, "-C", repository, *words], env=env, check=check
    )
