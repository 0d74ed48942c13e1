# SPDX-License-Identifier: GPL-2.0-only
"""The candidates of a bisection: commits, the patches of a series, or named kernels."""

from __future__ import annotations

import contextlib
import hashlib
import queue
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from orchestrator.errors import UsageError
from orchestrator.host import proc
from orchestrator.host.files import lock_of, locked
from orchestrator.host.paths import cache_dir, real
from orchestrator.kernel import patches
from orchestrator.kernel.checkout import borrow, mending, resolve, switch, view
from orchestrator.kernel.model import KernelRequest

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


@dataclass
class Series:
    """The first n patches of a series on top of one kernel, for each n from 0."""

    request_base: KernelRequest
    series: Path
    build: float = 10.0
    candidates: Sequence[Candidate] = field(init=False)
    identity: str = field(init=False)

    def __post_init__(self) -> None:
        self._patches = [real(patch) for patch in patches.listed(self.series)]
        if not self._patches:
            raise UsageError(f"{self.series} lists no patch")
        self.candidates = [Candidate("0", "no patch")] + [
            Candidate(f"{number}", patch.name) for number, patch in enumerate(self._patches, 1)
        ]
        texts = [text for _, text in patches.read(self._patches)]
        self.identity = repr((self.request_base, texts))

    @contextlib.contextmanager
    def request(self, number: int) -> Iterator[KernelRequest]:
        yield replace(
            self.request_base, patches=(*self.request_base.patches, *self._patches[:number])
        )

    def reference(self, number: int) -> str:
        stat = proc.run(
            [proc.need("git", "git"), "apply", "--stat", self._patches[number - 1]], check=False
        ).stdout
        return f"{self._patches[number - 1]}, patch {number} of {len(self._patches)}\n\n{stat}"


@dataclass
class Commits:
    """The commits after `good` up to `bad`, along first parents, so that a merge is one step.

    Each is checked out into one of `slots` directories of the cache, which borrow the objects of
    the tree. The tree itself, its index and its list of worktrees are never written to.
    """

    request_base: KernelRequest
    tree: Path
    good: str
    bad: str
    slots: int = 1
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
            lines = ours.git(*LOG, bad, f"^{good}").stdout.splitlines()
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
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(self.slots):
            self._free.put(slot)

    @contextlib.contextmanager
    def request(self, number: int) -> Iterator[KernelRequest]:
        slot = self._free.get()
        try:
            name = hashlib.sha256(f"{self.tree}".encode()).hexdigest()[:16]
            checkout = cache_dir() / "bisect" / f"{name}-{slot}"
            with locked(lock_of(checkout)):

                def check_out() -> None:
                    borrow(self.tree, checkout)
                    switch(checkout, self._hashes[number], self.tree)

                mending(checkout, check_out)
                yield replace(self.request_base, tree=checkout)
        finally:
            self._free.put(slot)

    def reference(self, number: int) -> str:
        commit = self._hashes[number]
        show = ("show", "--stat", "--no-color", "--no-ext-diff", "--no-show-signature")
        with view(self.tree) as ours:
            text = ours.git(*show, commit).stdout
        return f'Fixes: {commit[:12]} ("{self.candidates[number].title}")\n\n{text}'
