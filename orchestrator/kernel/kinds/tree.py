# SPDX-License-Identifier: GPL-2.0-only
"""`--tree PATH`: a source tree of the user's, or a tarball of one."""

from __future__ import annotations

from pathlib import Path

from orchestrator.host.paths import real
from orchestrator.kernel import from_source, sources
from orchestrator.kernel.kinds.kind import Kind, register
from orchestrator.kernel.model import Kernel, KernelRequest


@register
class TreeKind(Kind):
    def matches(self, request: KernelRequest) -> bool:
        return request.bzimage is None and request.tree is not None

    def check(self, request: KernelRequest) -> None:
        sources.check_tree(_tree(request))

    def identify(self, request: KernelRequest) -> tuple[str, Path]:
        return from_source.identify_tree(sources.from_tree(_tree(request)), request)

    def obtain(self, request: KernelRequest) -> Kernel:
        tree = _tree(request)
        title = self.title(request)
        return from_source.obtain_tree(str(tree), sources.from_tree(tree), request, title)

    def title(self, request: KernelRequest) -> str:
        described = sources.described(_tree(request))
        name = real(_tree(request)).name
        return " ".join(filter(None, (name, described))) + request.changes


def _tree(request: KernelRequest) -> Path:
    assert request.tree is not None
    return sources.top(request.tree)
