"""From what the user asked for to a kernel that boots: the one door to everything below orchestrator/kernel."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

from orchestrator import ui
from orchestrator.errors import UsageError
from orchestrator.host.paths import cache_dir, cached_dir, need_space
from orchestrator.kernel import (
    build,
    checkout,
    compat,
    config,
    debian_image,
    definition,
    image,
    patches,
    sources,
    workspace,
)
from orchestrator.kernel.build import Recipe
from orchestrator.kernel.model import Kernel, KernelRequest
from orchestrator.kernel.sources import Source

TREE_FRAGMENT = definition.DEFINITIONS / "6.1-int3" / "trim.config"
"""What a tree is configured with on top of tinyconfig. Trees of other versions may lack some of it, which is told."""


SOURCE = "debian-source:"
BUILT = "built:"
"""`built:DIGEST` is a kernel that the cache has already: how sweep names one that another machine has built."""


def obtain(request: KernelRequest) -> Kernel:
    """The kernel that `request` names, from the cache or fetched and built now.

    Errors: UsageError (no such kernel, not a kernel tree), BuildError (a patch, an option, the compiler), InfraError
    (mirror, disk, missing programs).
    """
    _check(request)
    if request.bzimage is not None:
        return image.obtain(request.bzimage, request.headers)
    if request.tree is not None:
        return _built_tree(str(request.tree), sources.from_tree(request.tree), request)
    if request.selector.startswith(checkout.PREFIX):
        with checkout.checked_out(request.selector) as tree:
            source = sources.from_tree(tree)
            origin = {
                **source.origin,
                "kind": "git",
                "tree": request.selector.removeprefix(checkout.PREFIX),
            }
            return _built_tree(request.selector, replace(source, origin=origin), request)
    if request.selector.startswith("debian:"):
        return debian_image.obtain(request.selector)
    if request.selector.startswith(SOURCE):
        source = sources.from_debian(
            _series(request.selector), workspace=request.selector.replace(":", "-")
        )
        return _built_tree(request.selector, source, request)
    if request.selector.startswith(BUILT):
        return _cached(
            place(request.selector.removeprefix(BUILT)), request.selector.removeprefix(BUILT)
        )
    chosen = definition.load(request.selector)
    # One workspace a definition: a header that one's patches change would have all others' objects made again.
    source = sources.from_debian(chosen.source.debian_source, workspace=chosen.name)
    recipe = _definition_recipe(chosen, request)
    return _built(request.selector, source, recipe, (*chosen.patch_files(), *request.patches))


def fetch(selector: str) -> Path:
    """Get what the kernel called `selector` is made from, and build nothing; the directory that has it.

    Errors as those of obtain().
    """
    _check(KernelRequest(selector=selector))
    if selector.startswith("debian:"):
        return debian_image.obtain(selector).bzimage.parent
    if selector.startswith(checkout.PREFIX):
        with checkout.checked_out(selector) as tree:
            return tree
    series = (
        _series(selector)
        if selector.startswith(SOURCE)
        else definition.load(selector).source.debian_source
    )
    return sources.from_debian(series, workspace=selector.replace(":", "-")).root


def identify(request: KernelRequest) -> tuple[str, Path]:
    """The digest of the kernel that obtain() would give now, and the directory that the cache has it in, or will.

    Nothing is built, and of packages no more than lists is fetched. Errors as those of obtain().
    """
    _check(request)
    if request.bzimage is not None:
        given = image.obtain(request.bzimage, request.headers)
        return given.digest, given.bzimage.parent
    if request.tree is not None:
        digest = _tree_digest(sources.from_tree(request.tree), request)
    elif request.selector.startswith(checkout.PREFIX):
        with checkout.checked_out(request.selector) as tree:
            digest = _tree_digest(sources.from_tree(tree), request)
    elif request.selector.startswith("debian:"):
        return debian_image.identify(request.selector)
    elif request.selector.startswith(SOURCE):
        identity = sources.debian_identity(sources.debian_package(_series(request.selector)))
        need = compat.needed(compat.pair(_series(request.selector)))
        digest = _digest(identity, _tree_recipe(request, need), (*need.patches, *request.patches))
    elif request.selector.startswith(BUILT):
        digest = request.selector.removeprefix(BUILT)
    else:
        chosen = definition.load(request.selector)
        identity = sources.debian_identity(sources.debian_package(chosen.source.debian_source))
        series = (*chosen.patch_files(), *request.patches)
        digest = _digest(identity, _definition_recipe(chosen, request), series)
    return digest, place(digest)


def _check(request: KernelRequest) -> None:
    """Whatever can be said to be wrong before anything is fetched or built."""
    patches.read(request.patches)
    _texts(request.fragments)
    config.settings(request.settings)
    if request.bzimage and request.tree:
        raise UsageError(
            "--bzimage is a kernel that is built, --tree one to build: give one of them"
        )
    if request.headers and not request.bzimage:
        raise UsageError("--headers belongs to --bzimage: a tree and a package bring their own")
    if request.bzimage or (request.tree is None and request.selector.startswith("debian:")):
        if request.patches or request.fragments or request.settings:
            what = request.bzimage or request.selector
            raise UsageError(
                f"{what} is a finished image: patches and settings need a source (6.1-plain)"
            )
    elif request.tree is not None:
        sources.check_tree(request.tree)
    elif request.selector.startswith(checkout.PREFIX):
        checkout.parse(request.selector)
    elif request.selector.startswith(SOURCE):
        _series(request.selector)
    elif request.selector.startswith(BUILT):
        digest = request.selector.removeprefix(BUILT)
        if not re.fullmatch("[0-9a-f]{64}", digest) or not place(digest).is_dir():
            raise UsageError(f"{request.selector}: the cache has no kernel of that digest")
        if request.patches or request.fragments or request.settings:
            raise UsageError(
                f"{request.selector} is built: patches and settings need a source (6.1-plain)"
            )


def _series(selector: str) -> str:
    """`6.12` of `debian-source:6.12`."""
    series = selector.removeprefix(SOURCE)
    if not re.fullmatch(r"\d+\.\d+", series):
        raise UsageError(
            f"{selector}: Debian's source packages are named by series, such as {SOURCE}6.12"
        )
    return series


def _definition_recipe(chosen: definition.Definition, request: KernelRequest) -> Recipe:
    base = chosen.base()
    return Recipe(
        base=base.read_text() if isinstance(base, Path) else base,
        fragments=_texts((*chosen.fragment_files(), *request.fragments)),
        settings=request.settings,
        make=chosen.make,
    )


def _built_tree(name: str, source: Source, request: KernelRequest) -> Kernel:
    """The kernel of a source that no definition describes."""
    need = _needed(source)
    if need.why:
        source = replace(source, origin={**source.origin, "to build it today": "; ".join(need.why)})
    return _built(name, source, _tree_recipe(request, need), (*need.patches, *request.patches))


def _tree_digest(source: Source, request: KernelRequest) -> str:
    need = _needed(source)
    return _digest(source.identity, _tree_recipe(request, need), (*need.patches, *request.patches))


def _needed(source: Source) -> compat.Compat:
    makefile = (source.root / "Makefile").read_text(errors="replace")
    return compat.needed(compat.version(makefile), source.root)


def _tree_recipe(request: KernelRequest, need: compat.Compat) -> Recipe:
    ours = tuple((f"our {who}", text) for who, text in _texts((TREE_FRAGMENT,)))
    if need.config:
        ours = (*ours, (f"our {compat.FILE.name}", need.config))
    return Recipe(
        base=need.base,
        fragments=(*ours, *_texts(request.fragments)),
        settings=request.settings,
        wished=frozenset(who for who, _ in ours),
        make=dict(need.make),
    )


def _texts(fragments: tuple[Path, ...]) -> tuple[tuple[str, str], ...]:
    """(name, text) of each fragment, all of them checked to be such."""
    texts = []
    for fragment in fragments:
        if not fragment.is_file():
            raise UsageError(f"there is no config fragment {fragment}")
        text = fragment.read_text()
        config.parse(text, str(fragment))
        texts.append((fragment.name, text))
    return tuple(texts)


def _built(name: str, source: Source, recipe: Recipe, series: tuple[Path, ...]) -> Kernel:
    """The kernel of `source` with `series` applied, by `recipe`; built when the cache does not have it."""
    digest = _digest(source.identity, recipe, series)
    final = place(digest)

    def original(path: str) -> Path | None:
        return source.root / path if path in source.manifest else None

    def make(partial: Path) -> None:
        with workspace.opened(source.workspace) as work:
            # A tree of the user's is copied (1.5 GB), Debian's is linked; then objects and the result.
            need_space(work.root, 500 if work.used else 3000, f"building {name}")
            with ui.step(f"source of {name}, {len(series)} patches"):
                scratch = work.root / "patched"
                shutil.rmtree(scratch, ignore_errors=True)
                work.hold(source, patches.apply(series, original, scratch))
            lost = build.build(work, recipe, name, partial)
        origin = {
            **source.origin,
            "patches": ", ".join(file.name for file in series) or "none",
            "compiler": build.toolchain(),
            **({"options lost": ", ".join(one.option for one in lost)} if lost else {}),
        }
        told = {
            "name": name,
            "release": (partial / "release").read_text().strip(),
            "origin": origin,
        }
        told["make"] = dict(recipe.make)
        (partial / "kernel.json").write_text(json.dumps(told, indent=1))

    cached_dir(
        final, make, lambda: ui.console.print(f"  … waiting for another run's {name}", markup=False)
    )
    return _cached(final, digest, name)


def _digest(source: str, recipe: Recipe, series: tuple[Path, ...]) -> str:
    """What identifies the kernel of a source with this identity, with `series` applied, by `recipe`."""
    texts = [text for _, text in patches.read(series)]
    return hashlib.sha256(
        repr((source, texts, recipe.identity())).encode(errors="surrogateescape")
    ).hexdigest()


def place(digest: str) -> Path:
    """Where the cache keeps a kernel that was built, by its digest."""
    return cache_dir() / "kernels" / digest[:24]


def _cached(final: Path, digest: str, name: str | None = None) -> Kernel:
    """The kernel in `final`. name: as the user asks for it, None for what it was built as."""
    told = json.loads((final / "kernel.json").read_text())
    return Kernel(
        name=name or told["name"],
        release=told["release"],
        digest=digest,
        bzimage=final / "bzImage",
        config=final / "config",
        kbuild=final / "kbuild",
        vmlinux=final / "vmlinux",
        origin=told["origin"],
        make=told.get("make", {}),
    )
