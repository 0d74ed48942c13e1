# SPDX-License-Identifier: GPL-2.0-only
"""What all kernels built from source share: the build plan, its digest, the cached result."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from orchestrator import ui
from orchestrator.host.notices import waiting_for
from orchestrator.host.paths import cache_dir, cached_dir, need_space
from orchestrator.kernel import build, compat, config, definition, patches, workspace
from orchestrator.kernel.build import Recipe
from orchestrator.kernel.compat import Compat
from orchestrator.kernel.model import Kernel, KernelRequest
from orchestrator.kernel.record import FILE, KernelRecord
from orchestrator.kernel.sources import Source

TREE_FRAGMENT = definition.DEFINITIONS / "6.1-int3" / "trim.config"
"""Merged on tinyconfig for sources without a definition.

Options that a kernel version lacks are reported and are no error.
"""
VITAL = ("bzImage", "config", FILE)
"""Files of a built kernel whose content is checked at each use."""


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """Everything that decides what kernel a given source becomes."""

    recipe: Recipe
    patches: tuple[Path, ...]
    """In the order in which they apply."""
    workarounds: tuple[str, ...] = ()
    """The reason for each entry of compat.yaml that went into it."""

    def digest(self, identity: str) -> str:
        """Identifies the kernel that this plan makes of the source with this identity."""
        content = repr((identity, patches.canonical(self.patches), self.recipe.identity()))
        return hashlib.sha256(content.encode(errors="surrogateescape")).hexdigest()


def tree_plan(request: KernelRequest, workarounds: Compat) -> BuildPlan:
    """The plan for a source that no definition describes."""
    defaults = tuple((f"our {name}", text) for name, text in config.read_files((TREE_FRAGMENT,)))
    if workarounds.config:
        defaults = (*defaults, (f"our {compat.FILE.name}", workarounds.config))
    recipe = Recipe(
        base=workarounds.base,
        fragments=(*defaults, *config.read_files(request.fragments)),
        settings=request.settings,
        optional=frozenset(name for name, _ in defaults),
        make=dict(workarounds.make),
    )
    return BuildPlan(
        recipe=recipe,
        patches=(*workarounds.patches, *request.patches),
        workarounds=workarounds.why,
    )


def identify_tree(source: Source, request: KernelRequest) -> tuple[str, Path]:
    """(digest, directory in the cache) of what obtain_tree() returns."""
    digest = tree_plan(request, _workarounds(source)).digest(source.identity)
    return digest, place(digest)


def obtain_tree(name: str, source: Source, request: KernelRequest) -> Kernel:
    """The kernel built from a source that no definition describes."""
    return obtain_built(name, source, tree_plan(request, _workarounds(source)))


def _workarounds(source: Source) -> Compat:
    makefile = (source.root / "Makefile").read_text(errors="replace")
    return compat.needed(compat.version(makefile), source.root)


def obtain_built(name: str, source: Source, plan: BuildPlan) -> Kernel:
    """The kernel that `plan` makes of `source`, built unless the cache has it.

    name: what the user calls it.
    """
    digest = plan.digest(source.identity)

    def make(partial: Path) -> None:
        lost = _build(name, source, plan, partial)
        origin = {
            **source.origin,
            **({"workarounds": "; ".join(plan.workarounds)} if plan.workarounds else {}),
            "patches": ", ".join(file.name for file in plan.patches) or "none",
            "compiler": build.toolchain(),
            **({"options lost": ", ".join(option.option for option in lost)} if lost else {}),
        }
        release = (partial / "release").read_text().strip()
        record = KernelRecord(
            name=name, release=release, origin=origin, make=dict(plan.recipe.make)
        )
        record.write(partial)

    cached_dir(place(digest), make, waiting_for(f"another run's {name}"), vital=VITAL)
    return cached(digest, name)


def _build(name: str, source: Source, plan: BuildPlan, partial: Path) -> list[config.LostOption]:
    def original(path: str) -> Path | None:
        return source.root / path if path in source.manifest else None

    with workspace.opened(source.workspace) as work:
        # The first build also needs room for the source: a user's tree is copied (1.5 GB), Debian's
        # is hard-linked. Later builds need room only for changed objects and the result.
        need_space(work.root, 500 if work.used else 3000, f"building {name}")
        count = len(plan.patches)
        with ui.step(f"source of {name}, {count} patch{'' if count == 1 else 'es'}"):
            scratch = work.root / "patched"
            shutil.rmtree(scratch, ignore_errors=True)
            work.sync(source, patches.apply(plan.patches, original, scratch))
        return build.build(work, plan.recipe, name, partial)


def place(digest: str) -> Path:
    """The directory of the cache for the kernel built from source with this digest."""
    return cache_dir() / "kernels" / digest[:24]


def cached(digest: str, name: str | None = None) -> Kernel:
    """The kernel with this digest, which the cache has.

    name: what the user calls it; by default the name that it was built under.
    """
    directory = place(digest)
    record = KernelRecord.read(directory)
    return Kernel(
        name=name or record.name,
        release=record.release,
        digest=digest,
        bzimage=directory / "bzImage",
        config=directory / "config",
        kbuild=directory / "kbuild",
        vmlinux=directory / "vmlinux",
        origin=record.origin,
        make=record.make,
    )
