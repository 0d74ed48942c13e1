# SPDX-License-Identifier: GPL-2.0-only
"""`git:WHERE@REF`: a commit of a git repository, built like a tree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from orchestrator.kernel import checkout, from_source, patches, sources
from orchestrator.kernel.kinds.kind import Kind, register
from orchestrator.kernel.model import Kernel, KernelRequest


@register
class GitKind(Kind):
    prefix = checkout.PREFIX

    def check(self, request: KernelRequest) -> None:
        checkout.check(_pinned(request))

    def identify(self, request: KernelRequest) -> tuple[str, Path]:
        with checkout.checked_out(_pinned(request)) as tree:
            return from_source.identify_tree(sources.from_tree(tree), request)

    def fetch(self, selector: str) -> Path:
        with checkout.checked_out(selector) as tree:
            return tree

    def obtain(self, request: KernelRequest) -> Kernel:
        selector = _pinned(request)
        with checkout.checked_out(selector) as tree:
            source = sources.from_tree(tree)
            origin = {**source.origin, "kind": "git", "tree": selector.removeprefix(self.prefix)}
            kernel = from_source.obtain_tree(selector, replace(source, origin=origin), request)
            where, _ = checkout.parse(selector)
            return replace(kernel, pinned=f"{self.prefix}{where}@{source.origin['commit']}")


def _pinned(request: KernelRequest) -> str:
    """The selector; without @REF, REF is the commit that the patches were made on."""
    if not checkout.split(request.selector)[1] and (base := patches.base(request.patches)):
        return f"{request.selector.rstrip('@')}@{base}"
    return request.selector
