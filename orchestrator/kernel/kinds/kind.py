# SPDX-License-Identifier: GPL-2.0-only
"""What every kind of kernel can do, and the registry of all kinds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, TypeVar

from orchestrator.errors import UsageError
from orchestrator.kernel.model import Kernel, KernelRequest


class Kind(ABC):
    """One kind of kernel. Instances have no state: `register` makes the only one of each class."""

    prefix: ClassVar[str] = ""
    """What the selectors of this kind start with, such as `git:`. If empty, override matches()."""

    def matches(self, request: KernelRequest) -> bool:
        """Whether `request` asks for this kind. Exactly one kind matches each request."""
        return (
            by_selector(request) and bool(self.prefix) and request.selector.startswith(self.prefix)
        )

    @abstractmethod
    def check(self, request: KernelRequest) -> None:
        """Raise UsageError for anything wrong that shows before something is fetched or built.

        Patches, fragments and settings have been checked already, each by itself.
        """

    def settle(self, request: KernelRequest) -> None:
        """Choose the version of what `request` names, if there is something to choose.

        This and all later processes that this one starts will use it, see kernel/versions.py.
        """
        return

    @abstractmethod
    def identify(self, request: KernelRequest) -> tuple[str, Path]:
        """The digest of the kernel that obtain() would return, and its directory, made or not."""

    def fetch(self, selector: str) -> Path:
        """Fetch whatever obtain() would fetch for `selector`, without building; its directory."""
        raise UsageError(f"{selector}: a kernel of this kind has nothing to fetch")

    def title(self, request: KernelRequest) -> str:
        """What people call the kernel that `request` names. Fetches nothing."""
        return request.name

    @abstractmethod
    def obtain(self, request: KernelRequest) -> Kernel:
        """The kernel that `request` names, fetched and built unless the cache has it."""


KINDS: list[Kind] = []
"""All kinds, in no particular order."""

K = TypeVar("K", bound=type[Kind])


def register(cls: K) -> K:
    """Class decorator: add the kind to KINDS."""
    KINDS.append(cls())
    return cls


def by_selector(request: KernelRequest) -> bool:
    """Whether the selector decides: --bzimage and --tree win over it."""
    return request.bzimage is None and request.tree is None


def refuse_changes(request: KernelRequest, kernel: object) -> None:
    """Raise UsageError if `request` has patches or settings for `kernel`, which is not built."""
    if request.patches or request.fragments or request.settings or request.make:
        raise UsageError(
            f"{kernel} is a finished kernel: patches and settings need a source (6.1-plain)"
        )
