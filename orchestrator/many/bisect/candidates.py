# SPDX-License-Identifier: GPL-2.0-only
"""The candidates of a bisection: commits, the patches of a series, or named kernels."""

from __future__ import annotations

import contextlib
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from orchestrator.errors import UsageError
from orchestrator.host import proc
from orchestrator.host.paths import real
from orchestrator.kernel import patches
from orchestrator.kernel.checkout import PREFIX, reason, resolve, view
from orchestrator.kernel.model import KernelRequest
from orchestrator.kernel.obtain import check

LOG = ("log", "--first-parent", "--no-show-signature", "--no-color", "--format=%H %s")


@dataclass(frozen=True)
class Candidate:
    """One kernel that may be the first bad one."""

    name: str
    """Unique among the candidates, and short enough for a table."""
    title: str
    """One line about it, such as the subject of a commit; may be empty."""


class Candidates(Protocol):
    """All candidates, in order from the good end to the bad end."""

    candidates: Sequence[Candidate]
    build: float
    """Estimated cost of a build, in runs, until one has been measured."""
    identity: str
    """Text that is equal for equal candidates."""

    def request(self, number: int) -> AbstractContextManager[KernelRequest]:
        """The kernel of a candidate. It may be used until the context ends."""

    def reference(self, number: int) -> str:
        """How to refer to a first bad candidate in a mail. number: 1 or more."""

    def without(self, number: int, scratch: Path) -> KernelRequest:
        """The bad end without what a first bad candidate changes.

        scratch: a directory for files of the request. Raises UsageError if there is no such kernel.
        """


@dataclass
class Ready:
    """Kernels by name, in order. They need no build, but may have to be fetched."""

    request_base: KernelRequest
    selectors: Sequence[str]
    build: float = 2.0
    candidates: Sequence[Candidate] = field(init=False)
    identity: str = field(init=False)

    def __post_init__(self) -> None:
        if len(set(self.selectors)) != len(self.selectors) or len(self.selectors) < 2:
            raise UsageError(
                "name at least two kernels, each once: the good one first, the bad one last"
            )
        self.candidates = [Candidate(selector, "") for selector in self.selectors]
        self.identity = repr((self.request_base, list(self.selectors)))

    @contextlib.contextmanager
    def request(self, number: int) -> Iterator[KernelRequest]:
        yield replace(self.request_base, selector=self.selectors[number])

    def reference(self, number: int) -> str:
        return f"{self.selectors[number - 1]} is good, {self.selectors[number]} is bad"

    def without(self, number: int, scratch: Path) -> KernelRequest:
        raise UsageError("nobody knows how to take one change back in a named kernel")


@dataclass
class Series:
    """The first n patches of a series on top of one kernel, for each n from 0.

    The series is what --patch takes. A patch that has no file of its own gets one.
    """

    request_base: KernelRequest
    series: Path
    build: float = 10.0
    candidates: Sequence[Candidate] = field(init=False)
    identity: str = field(init=False)

    def __post_init__(self) -> None:
        letters = patches.letters([self.series])
        if not letters:
            raise UsageError(f"{self.series} lists no patch")
        shared = Counter(letter.file for letter in letters)
        self._patches = [
            real(letter.file) if shared[letter.file] == 1 else patches.filed(letter, number)
            for number, letter in enumerate(letters, 1)
        ]
        with self.request(len(self._patches)) as last:
            check(last)
        self.candidates = [Candidate("0", "no patch")] + [
            Candidate(f"{number}", letter.subject or letter.file.name)
            for number, letter in enumerate(letters, 1)
        ]
        self.identity = repr((self.request_base, patches.canonical([self.series])))

    @contextlib.contextmanager
    def request(self, number: int) -> Iterator[KernelRequest]:
        yield replace(
            self.request_base, patches=(*self.request_base.patches, *self._patches[:number])
        )

    def reference(self, number: int) -> str:
        stat = proc.run(
            [proc.need("git", "git"), "apply", "--stat", self._patches[number - 1]], check=False
        ).stdout
        name = self._patches[number - 1]
        title = self.candidates[number].title
        what = f'"{title}", ' if title != name.name else ""
        return f"{what}{name}, patch {number} of {len(self._patches)}\n\n{stat}"

    def without(self, number: int, scratch: Path) -> KernelRequest:
        rest = [*self._patches[: number - 1], *self._patches[number:]]
        return replace(self.request_base, patches=(*self.request_base.patches, *rest))


@dataclass
class Commits:
    """The commits after `good` up to `bad`, along first parents, so that a merge is one step.

    Each is a kernel `git:TREE@COMMIT`, so that its results name the commit, and its repeat.sh does
    as well. The tree itself, its index and its list of worktrees are never written to.

    paths: only the commits that touch them. The last one takes the place of `bad`.
    """

    request_base: KernelRequest
    tree: Path
    good: str
    bad: str
    paths: Sequence[str] = ()
    build: float = 10.0
    candidates: Sequence[Candidate] = field(init=False)
    identity: str = field(init=False)

    def __post_init__(self) -> None:
        self.tree = real(self.tree)
        good, bad = resolve(self.tree, self.good), resolve(self.tree, self.bad)
        with view(self.tree) as ours:
            if ours.git("merge-base", "--is-ancestor", good, bad, check=False).returncode:
                raise UsageError(
                    f"{self.good} is not an ancestor of {self.bad}: the good commit comes before "
                    "the bad one"
                )
            where = ("--", *self.paths) if self.paths else ()
            try:
                lines = ours.git(*LOG, bad, f"^{good}", *where).stdout.splitlines()
            except subprocess.CalledProcessError as error:
                raise UsageError(f"{self.tree}: {reason(error.output)}") from error
            if self.paths and not lines:
                raise UsageError(
                    f"no commit after {self.good} touches {' '.join(self.paths)}, up to {self.bad}"
                )
            lines += ours.git(*LOG, "-1", good).stdout.splitlines()
        if good == bad:
            raise UsageError(
                f"{self.good} and {self.bad} are the same commit: there is nothing to bisect"
            )
        self._hashes, titles = zip(
            *(line.partition(" ")[::2] for line in reversed(lines)), strict=True
        )
        self.candidates = [
            Candidate(commit[:12], title)
            for commit, title in zip(self._hashes, titles, strict=True)
        ]
        self.identity = repr((self.request_base, str(self.tree), self._hashes))

    @contextlib.contextmanager
    def request(self, number: int) -> Iterator[KernelRequest]:
        yield self._request(number)

    def _request(self, number: int) -> KernelRequest:
        selector = f"{PREFIX}{self.tree}@{self._hashes[number]}"
        return replace(self.request_base, tree=None, selector=selector)

    def without(self, number: int, scratch: Path) -> KernelRequest:
        commit = self._hashes[number]
        plain = ("--no-ext-diff", "--no-textconv", "--no-color", "--binary", "--full-index")
        with view(self.tree) as ours:
            text = ours.git("diff", *plain, commit, f"{commit}^1").stdout
        if not text:
            raise UsageError("the commit changes no file")
        patch = scratch / f"revert-{commit[:12]}.patch"
        patch.write_text(text, errors="surrogateescape")
        last = self._request(len(self._hashes) - 1)
        return replace(last, patches=(*last.patches, patch))

    def reference(self, number: int) -> str:
        commit = self._hashes[number]
        show = ("show", "--stat", "--no-color", "--no-ext-diff", "--no-show-signature")
        with view(self.tree) as ours:
            text = ours.git(*show, commit).stdout
        return f'Fixes: {commit[:12]} ("{self.candidates[number].title}")\n\n{text}'
