# SPDX-License-Identifier: GPL-2.0-only
"""Kernel sources: Debian's packages and tarballs, unpacked once, and trees, which are only read."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from orchestrator import ui
from orchestrator.errors import BuildError, InfraError, UsageError
from orchestrator.host import archive, debian, files, keeper, proc, seal
from orchestrator.host.archive import ArchiveError
from orchestrator.host.notices import waiting_for, warn
from orchestrator.host.paths import cache_dir, cached_dir, need_space, real
from orchestrator.host.seal import fingerprint
from orchestrator.kernel import debian_mirror, versions
from orchestrator.kernel.checkout import View, git, resolve, view
from orchestrator.kernel.inert import is_inert

Manifest = dict[str, str]
"""Path relative to the source's root -> seal.fingerprint() of the file."""

TREE_PATHS = ("Makefile", "Kconfig", "arch/x86/kernel", "scripts/kconfig")
"""Paths that exist in every kernel tree since 2008."""
TARBALL = re.compile(r"\.(tar(\.(gz|xz|bz2|zst))?|tgz|txz)$")
IGNORED_AT_TOP = (
    "!/*", "/.*", "/vmlinux*", "/System.map", "/*.symvers", "/modules.*", "/*.o", "/*.a",
    "/*.patch", "/debian",
)  # fmt: skip
"""Patterns for `git ls-files -x` at the top of a tree without git.

The first one is needed because the .gitignore in Debian's tarballs ignores everything (`/*`).
"""
IGNORED_PRODUCTS = (
    "*.o", "*.a", "*.ko", ".*.cmd", ".*.d", "*.mod", "*.mod.c", "*.so", "*.so.dbg", "*.order",
    "*.symvers", "bzImage", "/include/config", "/include/generated", "/arch/*/include/generated",
)  # fmt: skip
"""Patterns for build products, which are no source files, for trees without a .gitignore."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source to build from. It is fetched and unpacked when its files are first needed."""

    identity: str
    """Text that is the same exactly for the same content."""
    workspace: str
    """Name of the workspace to build in."""
    fetch: Callable[[], tuple[Path, Manifest]]
    """Returns root and manifest."""
    frozen: bool
    """Whether the files in root never change, so that they can be hard-linked."""
    origin: dict[str, str] = field(default_factory=dict)
    """Becomes part of Kernel.origin."""

    @cached_property
    def _fetched(self) -> tuple[Path, Manifest]:
        return self.fetch()

    @property
    def root(self) -> Path:
        return self._fetched[0]

    @property
    def manifest(self) -> Manifest:
        return self._fetched[1]


def from_debian(series: str, workspace: str, name: str | None = None) -> Source:
    """Debian's source package of a series, unpacked in the cache.

    It takes about 1.5 GB, and 20 s the first time.

    name: what the version is remembered for, see debian_package(); by default the workspace's.
    """
    package = debian_package(series, name or workspace)
    final = cache_dir() / "sources" / f"linux-{package.version.replace(':', '_')}"

    def make(partial: Path) -> None:
        need_space(final.parent, 4000, f"unpacking {package.name} and building it")
        deb = debian.download(package)
        with ui.step(f"unpack {package.name} {package.version}"):
            packed = partial / ".package"
            debian.unpack(deb, packed)
            tarballs = list(packed.glob("usr/src/linux-source-*.tar.*"))
            if not tarballs:
                raise InfraError(
                    f"{deb.name} has no source tarball: the layout of this package is unknown"
                )
            proc.need("xz", "xz-utils")
            try:
                archive.unpack(tarballs[0], partial, strip=1)
            except ArchiveError as error:
                raise InfraError(
                    f"{tarballs[0].name} does not unpack: {str(error)[-300:]}"
                ) from error
            shutil.rmtree(packed)

    return Source(
        identity=f"{package.name} {package.version}",
        workspace=workspace,
        fetch=lambda: _unpacked(final, make, package.name),
        frozen=True,
        origin={
            "kind": "Debian source package",
            "package": package.name,
            "version": package.version,
        },
    )


def _unpacked(final: Path, make: Callable[[Path], None], name: str) -> tuple[Path, Manifest]:
    """Root and manifest of an unpacked source in the cache."""
    # 79,000 files: reading them takes seconds, which is done once a day.
    cached_dir(final, make, waiting_for(f"another run's {name}"), vital=())
    manifest = seal.fingerprints(final)
    return final, {path: printed for path, printed in manifest.items() if not is_inert(path)}


def debian_package(series: str, name: str) -> debian.Package:
    """The linux-source-`series` for `name`: the newest of the mirror, see versions.chosen()."""
    package, suites = f"linux-source-{series}", debian_mirror.suites(series)

    def choose() -> list[debian.Package]:
        if not debian.candidates(re.escape(package), suites) and not debian.unsearched(suites):
            raise UsageError(
                f"{name}: the Debian mirror has no {package}; {debian_mirror.AVAILABLE}"
            )
        return [debian.newest(package, suites)]

    return versions.chosen(name, package, suites, choose)[0]


def from_tree(tree: Path) -> Source:
    """The kernel tree or tarball `tree` as it is now.

    Uncommitted changes and new files are included, build products are left out.
    """
    tree = real(tree)
    check_tree(tree)
    if tree.is_file():
        return _from_tarball(tree)
    workspace = f"tree-{hashlib.sha256(str(tree).encode()).hexdigest()[:16]}"
    with ui.step(f"look at {tree}"):
        manifest = scan(tree, _listed(tree), cache_dir() / "work" / workspace / "scan")
    identity = hashlib.sha256(
        "".join(f"{path}\0{manifest[path]}\n" for path in sorted(manifest)).encode()
    ).hexdigest()
    origin = {"kind": "tree", "tree": str(tree), "content": identity}
    if state := described(tree):
        origin["git"] = state
        origin["commit"] = resolve(tree, "HEAD")
    return Source(
        identity=f"tree {identity}",
        workspace=workspace,
        fetch=lambda: (tree, manifest),
        frozen=False,
        origin=origin,
    )


def _from_tarball(file: Path) -> Source:
    """The source in the tarball `file`, unpacked once and cached by its content."""
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    final = cache_dir() / "sources" / f"tarball-{digest[:24]}"

    def make(partial: Path) -> None:
        need_space(final.parent, 4000, f"unpacking {file.name} and building it")
        with ui.step(f"unpack {file.name}"):
            try:
                left_out = archive.unpack(file, partial, strip=1)
            except ArchiveError as error:
                raise UsageError(f"{file} does not unpack: {str(error)[-300:]}") from error
        if left_out:
            warn(
                f"{file.name}: {len(left_out)} devices, pipes or links that lead out of it "
                f"are left out, such as {left_out[0]}"
            )
        if missing := [path for path in TREE_PATHS if not (partial / path).exists()]:
            raise UsageError(
                f"{file} is not a kernel source tree in one directory: it has no {missing[0]}"
            )

    unpacked = _unpacked(final, make, file.name)
    return Source(
        identity=f"tarball {digest}",
        workspace=f"tarball-{digest[:16]}",
        fetch=lambda: unpacked,
        frozen=True,
        origin={"kind": "tarball", "tree": file.name, "content": digest},
    )


def check_tree(tree: Path) -> None:
    """Raise UsageError unless `tree` is the top of a kernel source tree, or a tarball."""
    if tree.is_file() and TARBALL.search(tree.name):
        return
    if not tree.is_dir():
        raise UsageError(
            f"{tree} is not a directory: --tree takes the top of a kernel source tree, or a tarball"
        )
    missing = [path for path in TREE_PATHS if not (tree / path).exists()]
    if missing:
        raise UsageError(f"{tree} is not a kernel source tree: it has no {missing[0]}")


def top(tree: Path) -> Path:
    """The kernel tree that `tree` is in, or is an O= directory of; `tree` itself if it is none."""
    if not tree.is_dir():
        return tree
    here = real(tree)
    for folder in (here, *here.parents):
        if all((folder / path).exists() for path in TREE_PATHS):
            return tree if folder == here else folder
        if (folder / "source").is_symlink() and (folder / "Makefile").is_file():
            return top(folder / "source")
    return tree


def scan(root: Path, paths: Iterable[str], memory: Path) -> Manifest:
    """Fingerprints of `paths` below `root`.

    memory: a file that this function keeps, so that it need not read files again whose size, times
    and inode are unchanged.
    """
    known: dict[str, list[int | str]] = files.load(memory) or {}
    # A file written during the scan may be written again without a change of its timestamp, whose
    # resolution is limited. Such recent files are not remembered.
    settled = time.time_ns() - 2_000_000_000
    manifest: Manifest = {}
    remembered: dict[str, list[int | str]] = {}
    for path in paths:
        if is_inert(path):
            continue
        file = f"{root}/{path}"
        try:
            status = os.lstat(file)
            if stat.S_ISDIR(status.st_mode):  # a submodule or a nested repository
                continue
            stamp: list[int | str] = [
                status.st_size,
                status.st_mtime_ns,
                status.st_ctime_ns,
                status.st_ino,
            ]
            previous = known.get(path)
            if previous and previous[:4] == stamp:
                printed = str(previous[4])
            else:
                printed = fingerprint(Path(file))
        except FileNotFoundError:  # tracked, but deleted in the working tree
            continue
        manifest[path] = printed
        if status.st_mtime_ns < settled and status.st_ctime_ns < settled:
            remembered[path] = [*stamp, printed]
    if remembered != known:
        files.remember(memory, remembered)
    return manifest


def _listed(tree: Path) -> list[str]:
    """The source files of `tree`: those that git tracks or does not ignore.

    Without git, the files that .gitignore does not exclude; a kernel's .gitignore files name all
    build products. Raises BuildError if git fails.
    """
    listing = ("ls-files", "-z", "--others", "--exclude-standard")
    try:
        if _has_git(tree):
            with view(tree) as ours:
                names = ours.git(*listing, "--cached").stdout
        else:
            products = () if (tree / ".gitignore").is_file() else IGNORED_PRODUCTS
            exclude = [
                token for pattern in (*IGNORED_AT_TOP, *products) for token in ("-x", pattern)
            ]
            with keeper.temporary_directory() as empty:
                git(tree, "init", "-q", "--bare", str(empty))
                names = View(empty, tree, tree).git(*listing, *exclude).stdout
    except subprocess.CalledProcessError as error:
        reason = " / ".join(error.output.strip().splitlines()[-2:])
        raise BuildError(f"git cannot list the files of {tree}: {reason}") from error
    paths = {path for path in names.split("\0") if path}
    # The directories of O=, which all have a link to the tree. .gitignore knows no names for them.
    outputs = tuple(
        path.removesuffix("source")
        for path in paths
        if path.endswith("/source") and real(tree / path) == real(tree)
    )
    return sorted(path for path in paths if not path.startswith(outputs))


def described(tree: Path) -> str:
    """`v6.12-3-g0123456789ab with changes`; empty if there is no git, or no commit."""
    if not tree.is_dir() or not _has_git(tree):
        return ""
    described = git(tree, "describe", "--always", "--abbrev=12", check=False)
    if described.returncode:
        return ""
    # Not `describe --dirty`, which runs what the tree's own configuration names. A submodule would
    # be asked with its own configuration.
    status = ("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=all")
    try:
        with view(tree) as ours:
            changes = ours.git(*status).stdout.strip()
    except subprocess.CalledProcessError:
        changes = ""
    return described.stdout.strip() + (" with changes" if changes else "")


def _has_git(tree: Path) -> bool:
    inside = git(tree, "rev-parse", "--is-inside-work-tree", check=False)
    return inside.returncode == 0 and inside.stdout.strip() == "true"
