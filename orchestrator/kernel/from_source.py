# SPDX-License-Identifier: GPL-2.0-only
"""What all kernels built from source share: the build plan, its digest, the cached result."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator import ui
from orchestrator.errors import BuildError
from orchestrator.host.notices import waiting_for
from orchestrator.host.paths import cache_dir, cached_dir, need_space
from orchestrator.kernel import build, compat, config, definition, patches, toolchain, workspace
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

    def origin(self) -> dict[str, str]:
        """What becomes part of Kernel.origin."""
        if not self.patches:
            return {"patches": "none"}
        changes = "".join(
            f"{hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()}\n"
            for text in patches.canonical(self.patches)
        )
        return {
            "patches": ", ".join(file.name for file in self.patches),
            # as KCIDB asks for it, but of what the patches change
            "patchset": hashlib.sha256(changes.encode()).hexdigest(),
        }


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
        make=toolchain.merged(dict(workarounds.make), toolchain.settings(request.make)),
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


def obtain_tree(name: str, source: Source, request: KernelRequest, title: str = "") -> Kernel:
    """The kernel built from a source that no definition describes, as obtain_built()."""
    plan = tree_plan(request, _workarounds(source))
    return obtain_built(name, source, plan, title or name + request.changes)


def _workarounds(source: Source) -> Compat:
    makefile = (source.root / "Makefile").read_text(errors="replace")
    return compat.needed(compat.version(makefile), source.root)


def obtain_built(name: str, source: Source, plan: BuildPlan, title: str) -> Kernel:
    """The kernel that `plan` makes of `source`, built unless the cache has it.

    - name: what the user calls the source.
    - title: what the user calls the kernel.
    """
    toolchain.warn_about_environment(plan.recipe.make)
    digest = plan.digest(source.identity)
    asked = {**source.origin, **plan.origin()}

    def make(partial: Path) -> None:
        lost = _build(title, source, plan, partial)
        origin = {
            **asked,
            **({"workarounds": "; ".join(plan.workarounds)} if plan.workarounds else {}),
            "compiler": toolchain.described(plan.recipe.make),
            **({"options lost": ", ".join(option.option for option in lost)} if lost else {}),
        }
        release = (partial / "release").read_text().strip()
        record = KernelRecord(
            name=name, title=title, release=release, origin=origin, make=dict(plan.recipe.make)
        )
        record.write(partial)

    cached_dir(place(digest), make, waiting_for(f"another run's {name}"), vital=VITAL)
    kernel = cached(digest, title)
    # The same content may have been built for another commit, or from a mail instead of a diff.
    return replace(kernel, origin={**kernel.origin, **asked})


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
            work.sync(source, _patched(source, plan, original, scratch))
        return build.build(work, plan.recipe, name, partial)


def _patched(
    source: Source, plan: BuildPlan, original: Callable[[str], Path | None], scratch: Path
) -> dict[str, Path | None]:
    """What the patches change, as patches.apply()."""
    try:
        return patches.apply(plan.patches, original, scratch)
    except BuildError as error:
        base, commit = patches.base(plan.patches), source.origin.get("commit")
        if not base or not commit or base == commit:
            raise
        raise BuildError(
            f"{error}; the patches were made on {base[:12]}, and this is "
            f"{source.origin.get('git', commit[:12])}"
        ) from error


def place(digest: str) -> Path:
    """The directory of the cache for the kernel built from source with this digest."""
    return cache_dir() / "kernels" / digest[:24]


def is_built(directory: Path) -> bool:
    """Whether a kernel's directory in the cache is for one built from source."""
    return directory == place(directory.name)


def cached(digest: str, name: str | None = None) -> Kernel:
    """The kernel with this digest, which the cache has.

    name: what the user calls it; by default what it was called when it was built.
    """
    directory = place(digest)
    record = KernelRecord.read(directory)
    return Kernel(
        name=name or record.title or record.name,
        release=record.release,
        digest=digest,
        bzimage=directory / "bzImage",
        config=directory / "config",
        kbuild=directory / "kbuild",
        vmlinux=directory / "vmlinux",
        origin=record.origin,
        make=record.make,
    )
