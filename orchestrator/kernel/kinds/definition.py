# SPDX-License-Identifier: GPL-2.0-only
"""`NAME` or `./FILE.yaml`: a kernel definition (source, patches and configuration)."""

from __future__ import annotations

from pathlib import Path

from orchestrator.kernel import config, definition, from_source, sources, toolchain
from orchestrator.kernel.build import Recipe
from orchestrator.kernel.definition import Definition
from orchestrator.kernel.from_source import BuildPlan
from orchestrator.kernel.kinds.kind import KINDS, Kind, by_selector, register
from orchestrator.kernel.model import Kernel, KernelRequest
from orchestrator.kernel.sources import Source


@register
class DefinitionKind(Kind):
    def matches(self, request: KernelRequest) -> bool:
        """Every selector without another kind's prefix, misspelt ones included."""
        prefixes = tuple(kind.prefix for kind in KINDS if kind.prefix)
        return by_selector(request) and not request.selector.startswith(prefixes)

    def check(self, request: KernelRequest) -> None:
        definition.load(request.selector)

    def settle(self, request: KernelRequest) -> None:
        _source(definition.load(request.selector))

    def identify(self, request: KernelRequest) -> tuple[str, Path]:
        chosen = definition.load(request.selector)
        digest = _plan(chosen, request).digest(_source(chosen).identity)
        return digest, from_source.place(digest)

    def fetch(self, selector: str) -> Path:
        return _source(definition.load(selector)).root

    def obtain(self, request: KernelRequest) -> Kernel:
        chosen = definition.load(request.selector)
        source, plan = _source(chosen), _plan(chosen, request)
        return from_source.obtain_built(request.selector, source, plan, request.name)


def _source(chosen: Definition) -> Source:
    # Each definition has its own workspace. In a shared one, a header that one definition patches
    # would cause the objects of all others to be rebuilt.
    return sources.from_debian(chosen.source.debian_source, workspace=chosen.name)


def _plan(chosen: Definition, request: KernelRequest) -> BuildPlan:
    base = chosen.base()
    recipe = Recipe(
        base=base.read_text() if isinstance(base, Path) else base,
        fragments=config.read_files((*chosen.fragment_files(), *request.fragments)),
        settings=request.settings,
        make=toolchain.merged(chosen.make, toolchain.settings(request.make)),
    )
    return BuildPlan(recipe=recipe, patches=(*chosen.patch_files(), *request.patches))
