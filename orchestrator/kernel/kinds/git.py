# SPDX-License-Identifier: GPL-2.0-only
"""`git:WHERE@REF`: a commit of a git repository, built like a tree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from orchestrator.kernel import checkout, from_source, sources
from orchestrator.kernel.kinds.kind import Kind, register
from orchestrator.kernel.model import Kernel, KernelRequest


@register
class GitKind(Kind):
    prefix = checkout.PREFIX

    def check(self, request: KernelRequest) -> None:
        checkout.parse(request.selector)

    def identify(self, request: KernelRequest) -> tuple[str, Path]:
        with checkout.checked_out(request.selector) as tree:
            return from_source.identify_tree(sources.from_tree(tree), request)

    def fetch(self, selector: str) -> Path:
        with checkout.checked_out(selector) as tree:
            return tree

    def obtain(self, request: KernelRequest) -> Kernel:
        with checkout.checked_out(request.selector) as tree:
            source = sources.from_tree(tree)
            commit = request.selector.removeprefix(self.prefix)
            origin = {**source.origin, "kind": "git", "tree": commit}
            return from_source.obtain_tree(
                request.selector, replace(source, origin=origin), request
            )
