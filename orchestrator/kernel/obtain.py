# SPDX-License-Identifier: GPL-2.0-only
"""From a request to a kernel that boots, whatever kind of kernel was requested.

The kinds are in orchestrator/kernel/kinds/, one file each.
"""

from __future__ import annotations

from pathlib import Path

from orchestrator.errors import OrchestratorError, UsageError, sentence
from orchestrator.kernel import config, kinds, patches, toolchain
from orchestrator.kernel.from_source import place
from orchestrator.kernel.kinds.built import PREFIX as BUILT
from orchestrator.kernel.kinds.kind import Kind
from orchestrator.kernel.model import Kernel, KernelRequest

__all__ = ["BUILT", "check", "fetch", "identify", "obtain", "place", "settle", "title"]


def obtain(request: KernelRequest) -> Kernel:
    """The kernel that `request` names: from the cache, or fetched and built now.

    Raises UsageError (no such kernel, not a kernel tree), BuildError (a patch, an option or the
    compiler failed) or InfraError (mirror, disk, missing programs).
    """
    return _checked_kind(request).obtain(request)


def fetch(selector: str) -> Path:
    """Fetch what the kernel `selector` is made from, without building; returns its directory.

    Raises the errors of obtain(), and UsageError for a kind that has nothing to fetch.
    """
    return _checked_kind(KernelRequest(selector=selector)).fetch(selector)


def settle(request: KernelRequest) -> None:
    """Choose the version of `request` now, for this process and for its children.

    Without it, each child would choose for itself, and not at the same time. Fetches no packages,
    only package lists. Raises the errors of obtain().
    """
    _checked_kind(request).settle(request)


def check(request: KernelRequest) -> None:
    """Raise UsageError for anything wrong that shows before something is fetched or built."""
    _checked_kind(request)


def title(request: KernelRequest) -> str:
    """What the kernel is called that `request` names, if obtain() cannot tell; never raises."""
    try:
        return _checked_kind(request).title(request)
    except OrchestratorError:
        return request.name


def identify(request: KernelRequest) -> tuple[str, Path]:
    """The digest of the kernel that obtain() would return now, and its directory, made or not.

    Builds nothing and fetches no packages, only package lists and git commits. Raises the errors of
    obtain().
    """
    return _checked_kind(request).identify(request)


def _checked_kind(request: KernelRequest) -> Kind:
    """The kind of `request`, after all checks that need nothing fetched or built."""
    try:
        return _unchecked_kind(request)
    except (OSError, ValueError) as error:  # a name that is too long, a directory that is not ours
        raise UsageError(sentence(error)) from error


def _unchecked_kind(request: KernelRequest) -> Kind:
    patches.read(request.patches)
    config.read_files(request.fragments)
    config.settings(request.settings)
    toolchain.settings(request.make)
    if request.bzimage and request.tree:
        raise UsageError(
            "--bzimage is a finished kernel and --tree a source to build: give only one of them"
        )
    if request.headers and not request.bzimage:
        raise UsageError("--headers needs --bzimage: trees and packages have headers already")
    kind = kinds.kind_of(request)
    kind.check(request)
    return kind
