# SPDX-License-Identifier: GPL-2.0-only
"""Commits of git repositories, checked out into the cache. The repository is never written to."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator import ui
from orchestrator.errors import InfraError, UsageError, shortened
from orchestrator.host import files, proc
from orchestrator.host.notices import waiting_for, warn
from orchestrator.host.paths import cache_dir, locked

PREFIX = "git:"
SAFE = (
    "safe.directory=*",  # other users' repositories may be read
    "core.fsmonitor=false",
    "core.hooksPath=/dev/null",
    "submodule.recurse=false",
)
"""Configuration for every git, against programs that a repository's own configuration names."""
LOCAL_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY")
URL = re.compile(r"[\w+.-]+:[^:]|[\w.-]+@[\w.-]+:")
"""How `scheme://...` and `host:path` begin."""
NOT_THERE = re.compile(
    r"couldn't find remote ref|not our ref|not appear to be a git repository"
    r"|(repository|project) .*(not found|not exist)",
    re.IGNORECASE,
)
"""What git says about a wrong name; all else may be the network."""
NETWORK = "file:git:http:https:ssh"
"""Transports of a fetch. `ext::` would run a command."""


def split(selector: str) -> tuple[str, str]:
    """`git:WHERE@REF` to (WHERE, REF): a URL or path, and a branch, tag or commit.

    REF is empty if there is none. The `@` of `git@HOST:PATH` and `ssh://git@HOST/PATH` belongs to
    the URL.
    """
    text = selector.removeprefix(PREFIX)
    where, at, ref = text.rpartition("@")
    if not at or ":" in ref or re.fullmatch(r"\w+://[^/]*", where):
        return text, ""
    return where, ref


def anywhere(selector: str) -> str:
    """A selector that means the same in every directory. `~` does, and stays."""
    where, ref = split(selector)
    if not selector.startswith(PREFIX) or where.startswith("~") or not Path(where).is_dir():
        return selector
    return f"{PREFIX}{Path(where).absolute()}{'@' if ref else ''}{ref}"


def parse(selector: str) -> tuple[str, str]:
    """`git:WHERE@REF` to (WHERE, REF), as split(). Raises UsageError if one of them is missing."""
    where, ref = split(selector)
    if not where or not ref or where.startswith("-") or ref.startswith("-"):
        raise UsageError(f"{selector}: write git:URL-or-path@REF, such as git:~/linux@v6.12")
    return where, ref


def check(selector: str) -> None:
    """Raise UsageError if `selector` is wrong, as far as that shows without asking a server."""
    where, _ = parse(selector)
    if not Path(where).expanduser().is_dir() and not URL.match(where):
        raise UsageError(f"{selector}: there is no directory {where}")


@contextlib.contextmanager
def checked_out(selector: str) -> Iterator[Path]:
    """A directory with the files of the commit that `selector` names, locked within the context.

    Raises UsageError if there is no such repository or commit, InfraError if it cannot be fetched.
    """
    where, ref = parse(selector)
    local = Path(where).expanduser()
    check(selector)
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
    _borrow_objects(repository, folder / ".git")


@dataclass(frozen=True)
class View:
    """A repository of ours that shows another one: its objects, index and HEAD.

    Its configuration is ours. In the other one, `git status` and `git show` would run the programs
    that *its* configuration names as filters, monitors and verifiers of signatures.
    """

    git_directory: Path
    work_tree: Path | None
    """None if the other one is bare."""
    folder: Path
    """A folder in the work tree; the other repository itself if that is bare."""

    def git(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run git in `folder`."""
        work_tree = (f"--work-tree={self.work_tree}",) if self.work_tree else ()
        where = (f"--git-dir={self.git_directory}", *work_tree)
        return git(self.folder, *where, *arguments, check=check)


@contextlib.contextmanager
def view(repository: Path) -> Iterator[View]:
    """A view of the repository that `repository` is in, until the context ends.

    Raises subprocess.CalledProcessError if there is none.
    """
    with tempfile.TemporaryDirectory(prefix="orchestrator-") as directory:
        ours = Path(directory)
        object_format = _rev_parse(repository, "--show-object-format")
        command = ["init", "-q", "--bare", "--template=", f"--object-format={object_format}"]
        git(ours, *command, str(ours))
        _borrow_objects(repository, ours)
        index = _git_path(repository, "index")
        for file in (index, *index.parent.glob("sharedindex.*"), _git_path(repository, "shallow")):
            if file.is_file():
                # with its times, by which git knows which entries it has to compare
                shutil.copy2(file, ours / file.name)
        (ours / "info").mkdir(exist_ok=True)
        if (exclude := _git_path(repository, "info/exclude")).is_file():
            shutil.copyfile(exclude, ours / "info" / "exclude")
        with contextlib.suppress(UsageError):  # no commit yet
            (ours / "HEAD").write_text(f"{resolve(repository, 'HEAD')}\n")
        bare = _rev_parse(repository, "--is-inside-work-tree") == "false"
        top = None if bare else Path(_rev_parse(repository, "--show-toplevel"))
        yield View(ours, top, repository)


def _borrow_objects(repository: Path, git_directory: Path) -> None:
    alternates = git_directory / "objects" / "info" / "alternates"
    alternates.parent.mkdir(exist_ok=True)
    alternates.write_text(f"{_git_path(repository, 'objects')}\n")


def _git_path(repository: Path, name: str) -> Path:
    return Path(_rev_parse(repository, "--path-format=absolute", "--git-path", name))


def _rev_parse(repository: Path, *arguments: str) -> str:
    return git(repository, "rev-parse", *arguments).stdout.removesuffix("\n")


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
    # left behind by a killed fetch
    (folder / ".git" / "shallow.lock").unlink(missing_ok=True)
    command = ["fetch", "-q", "--depth=1", "--no-tags", "--end-of-options", url, ref]
    with ui.step(f"fetch {ref} of {url}"):
        done = git(folder, *command, check=False, transports=NETWORK)
    if done.returncode:
        if "couldn't find remote ref" in done.stdout or "not our ref" in done.stdout:
            raise UsageError(
                f"{url} has no {ref}: name a branch, a tag, or a commit that the server offers"
            )
        kind = UsageError if NOT_THERE.search(done.stdout) else InfraError
        raise kind(f"git cannot fetch {ref} of {url}: {reason(done.stdout)}")
    return resolve(folder, "FETCH_HEAD")


def reason(output: str) -> str:
    """What git, or ssh under it, said in `output` about its failure."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    # "Please make sure you have the correct access rights and the repository exists." and its like
    # follow on the lines that have the reason.
    said = [line for line in lines if re.match(r"(fatal|error|remote|ssh|ERROR)\b|.*: ", line)]
    said = [line for line in said if not line.startswith("fatal: Could not read from remote")]
    return shortened(" / ".join((said or lines)[:3]) or "it gives no reason", 400)


def _init(folder: Path) -> None:
    if not (folder / ".git" / "HEAD").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        git(folder.parent, "init", "-q", str(folder))


def git(
    repository: Path, *arguments: str, check: bool = True, transports: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run git in `repository`.

    It writes nothing there and runs no hooks. In a repository of somebody else, use only rev-parse
    and describe, which run no programs; for all else there is view().

    transports: those that may be used. Without any, git cannot fetch objects that are missing.
    """
    env = {
        "GIT_TERMINAL_PROMPT": "0",  # nobody is there to type a password
        "GIT_SSH_COMMAND": os.environ.get("GIT_SSH_COMMAND", "ssh") + " -o BatchMode=yes",
        # Above a damaged repository of ours there may be one of the user's.
        "GIT_CEILING_DIRECTORIES": str(cache_dir()),
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_ALLOW_PROTOCOL": transports,
    }
    # The environment of a git hook names another repository.
    clean = ["env", *(word for name in LOCAL_VARIABLES for word in ("-u", name))]
    settings = [word for setting in SAFE for word in ("-c", setting)]
    return proc.run(
        [*clean, proc.need("git", "git"), *settings, "-C", repository, *arguments],
        env=env,
        check=check,
    )
