# SPDX-License-Identifier: GPL-2.0-only
"""`debian-source:SERIES`: Debian's source package of a series, with our small configuration."""

from __future__ import annotations

import re
from pathlib import Path

from orchestrator.errors import UsageError
from orchestrator.kernel import compat, from_source, sources
from orchestrator.kernel.from_source import BuildPlan
from orchestrator.kernel.kinds.kind import Kind, register
from orchestrator.kernel.model import Kernel, KernelRequest
from orchestrator.kernel.sources import Source


@register
class DebianSourceKind(Kind):
    prefix = "debian-source:"

    def check(self, request: KernelRequest) -> None:
        self._series(request.selector)

    def settle(self, request: KernelRequest) -> None:
        self._source(request.selector)

    def identify(self, request: KernelRequest) -> tuple[str, Path]:
        digest = self._plan(request).digest(self._source(request.selector).identity)
        return digest, from_source.place(digest)

    def fetch(self, selector: str) -> Path:
        return self._source(selector).root

    def obtain(self, request: KernelRequest) -> Kernel:
        source, plan = self._source(request.selector), self._plan(request)
        return from_source.obtain_built(request.selector, source, plan, request.name)

    def _plan(self, request: KernelRequest) -> BuildPlan:
        # By version alone, without the tree: identify() must come to the same without fetching it.
        # The entries of compat.yaml that look into the tree are for kernels older than Debian's.
        workarounds = compat.needed(compat.pair(self._series(request.selector)))
        return from_source.tree_plan(request, workarounds)

    def _source(self, selector: str) -> Source:
        workspace = selector.replace(":", "-")
        return sources.from_debian(self._series(selector), workspace, name=selector)

    def _series(self, selector: str) -> str:
        """`6.12` of `debian-source:6.12`."""
        series = selector.removeprefix(self.prefix)
        if not re.fullmatch(r"\d+\.\d+", series):
            raise UsageError(
                f"{selector}: Debian's source packages are named by series, "
                f"such as {self.prefix}6.12"
            )
        return series
