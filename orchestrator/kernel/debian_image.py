"""Debian's own kernel images as they are: image, modules and headers, unpacked privately and made usable from there."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

from orchestrator import ui
from orchestrator.errors import InfraError, UsageError, nearest
from orchestrator.host import debian
from orchestrator.host.debian import Package
from orchestrator.host.paths import cache_dir, cached_dir, need_space
from orchestrator.kernel import foreign_headers
from orchestrator.kernel.model import Kernel

FLAVOURS = ("amd64", "cloud", "rt")
"""`amd64` is what a selector without a suffix means; `-cloud` and `-rt` name the others."""
SUITES: dict[str, tuple[str, ...]] = {
    "5.10": ("bullseye", "bullseye-security"),
    "6.1": ("bookworm", "bookworm-security"),
    "6.12": ("bookworm-backports", "bookworm-security", "trixie", "trixie-security"),
}
"""Where Debian has the series it maintains for years; everything else passes through NEWER."""
NEWER = ("trixie-backports", "sid")
SERIES = "series to be had are 5.10, 6.1, 6.12 and, for a while each, those from 6.16 on"
LAYOUT = 3
"""Part of the digest; goes up when what is done to the unpacked files changes."""
IMAGE = re.compile(r"linux-image-(?P<abi>\d+\.\d+\.\d+\S*?)-(?:(?P<flavour>cloud|rt)-)?amd64")


def versions(series: str, flavour: str = "amd64") -> list[Package]:
    """The image packages of `series` (`6.1`), newest last; of the same version first what suits this machine least."""
    pattern = rf"linux-image-{re.escape(series)}\.\d+\S*-amd64"
    found = [
        package
        for package in debian.candidates(pattern, SUITES.get(series, NEWER))
        if (match := IMAGE.fullmatch(package.name)) and (match["flavour"] or "amd64") == flavour
    ]
    try:
        codename = debian.host_suites()[0]
    except InfraError:
        codename = "none"
    # A build for this machine's release comes last: its headers want the compiler and the libraries that are here.
    return sorted(
        found, key=lambda package: (_numbers(package.upstream), codename in package.suite, package)
    )


def obtain(selector: str) -> Kernel:
    """The kernel that `debian:VERSION[-FLAVOUR]` names: exactly that version, or the newest of a series (`debian:6.1`).

    A series means its newest version that still has headers, as without them nothing can be tested but the boot.
    """
    package, headers = _chosen(selector)
    if not headers:
        ui.console.print(
            f"  ! {package.name} has no headers in the mirror: no module can be built for it",
            markup=False,
        )
    return _unpacked(selector, package, headers)


def identify(selector: str) -> tuple[str, Path]:
    """The digest of the kernel that obtain() gives for `selector`, and the directory in the cache that is its own."""
    return _identity(*_chosen(selector))


def _chosen(selector: str) -> tuple[Package, Package | None]:
    """The image package that `selector` names, and its headers."""
    match = re.fullmatch(
        r"debian:(?P<series>\d+\.\d+)(?P<point>\.\d+)?(?:-(?P<flavour>\w+))?", selector
    )
    if not match or (match["flavour"] or "amd64") not in FLAVOURS:
        raise UsageError(
            f"{selector}: write debian:VERSION, as debian:6.1, debian:6.1.192 or debian:6.12-cloud"
        )
    series, flavour = match["series"], match["flavour"] or "amd64"
    known = versions(series, flavour)
    wanted = [
        package
        for package in known
        if not match["point"] or package.upstream == series + match["point"]
    ]
    if not wanted:
        names = sorted({f"debian:{package.upstream}" for package in known})
        raise UsageError(
            f"{selector}: the Debian mirror has no such image{nearest(selector, names)}; "
            + (
                f"of {series} there are {', '.join(name[7:] for name in names)}"
                if names
                else SERIES
            )
        )
    for package in reversed(wanted):
        if headers := _headers(package):
            return package, headers
    return wanted[-1], None


def _identity(image: Package, headers: Package | None) -> tuple[str, Path]:
    identity = f"{image.name} {image.version} {headers is not None} layout {LAYOUT}"
    digest = hashlib.sha256(identity.encode()).hexdigest()
    return digest, cache_dir() / "stock" / f"{image.upstream}-{digest[:16]}"


def _headers(image: Package) -> Package | None:
    """The headers package that belongs to `image`, if its suite has it."""
    name = image.name.replace("linux-image-", "linux-headers-", 1)
    found = debian.candidates(re.escape(name), (image.suite,))
    return next((package for package in found if package.version == image.version), None)


def _unpacked(selector: str, image: Package, headers: Package | None) -> Kernel:
    """Unpack `image`, `headers` and the kernel packages these need below one prefix in the cache."""
    digest, prefix = _identity(image, headers)
    origin = {
        "kind": "Debian binary package",
        "package": image.name,
        "version": image.version,
        "suite": image.suite,
        "headers": headers.name if headers else "none",
    }

    def make(partial: Path) -> None:
        debs = _with_depends(image, r"linux-(image|binary|modules|base)-\d.*")
        if headers:
            debs += _with_depends(headers, r"linux-(headers|kbuild)-\d.*")
        with ui.step(f"unpack {image.name}"):
            need_space(prefix.parent, 1500, f"unpacking {image.name}")
            for deb in debs:
                debian.unpack(deb, partial)
            _relocate(partial)
        if headers:
            with ui.step(f"adapt {headers.name} to this machine"):
                foreign_headers.adapt(partial, prefix, image.suite)
        told = {"name": exactly(image), "release": _release(_bzimage(partial)), "origin": origin}
        (partial / "kernel.json").write_text(json.dumps(told, indent=1))

    cached_dir(
        prefix,
        make,
        lambda: ui.console.print(f"  … waiting for another run's {image.name}", markup=False),
    )
    bzimage = _bzimage(prefix)
    return Kernel(
        name=selector,
        release=_release(bzimage),
        digest=digest,
        bzimage=bzimage,
        config=_first(
            prefix, ("boot/config-*", "usr/lib/modules/*/config", "lib/modules/*/config")
        ),
        kbuild=_only(prefix, ("usr/src/linux-headers-*amd64",), "headers") if headers else None,
        origin=origin,
    )


def exactly(image: Package) -> str:
    """The selector that names this image and no other."""
    match = IMAGE.fullmatch(image.name)
    return "-".join(filter(None, (f"debian:{image.upstream}", match["flavour"] if match else None)))


def _bzimage(prefix: Path) -> Path:
    return _only(
        prefix,
        ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz", "lib/modules/*/vmlinuz"),
        "kernel image",
    )


def _release(bzimage: Path) -> str:
    return bzimage.name.partition("-")[2] or bzimage.parent.name


def _with_depends(package: Package, pattern: str) -> list[Path]:
    """The .deb of `package` and of all it depends on, directly or not, whose names match `pattern`."""
    debs: dict[str, Path] = {package.name: debian.download(package)}
    queue = [debs[package.name]]
    while queue:
        for name, version in debian.depends(queue.pop()):
            if name in debs or not re.fullmatch(pattern, name):
                continue
            found = debian.candidates(re.escape(name), (package.suite,))
            exact = [other for other in found if other.version == (version or package.version)]
            if not found and name.startswith(("linux-base-", "linux-modules-")):
                ui.say(
                    f"{name} is gone from the mirror; it has nothing that a run cannot do without"
                )
                continue
            if not found:
                raise InfraError(
                    f"{package.name} depends on {name}, which {package.suite} of the mirror does not have"
                )
            debs[name] = debian.download(debian.newest_of(exact or found))
            queue.append(debs[name])
    return list(debs.values())


def _relocate(prefix: Path) -> None:
    """Make headers usable from `prefix`, wherever that is moved: they are made for /usr/src and one compiler."""
    for directory, folders, files in os.walk(prefix):
        for name in (*folders, *files):
            link = Path(directory, name)
            if link.is_symlink() and (target := os.readlink(link)).startswith("/"):  # noqa: PTH115 (not resolved)
                link.unlink()
                link.symlink_to(os.path.relpath(prefix / target[1:], directory))
    for source in prefix.glob("usr/src/linux-headers-*"):
        # The file being read is the last of MAKEFILE_LIST; its real directory is PREFIX/usr/src/linux-headers-X/.
        here = "$(dir $(realpath $(lastword $(MAKEFILE_LIST))))../../../"
        _edit(source / "Makefile", r"^(-?include )/(?=usr/)", rf"\1{here}")
        _edit(
            source / "Makefile", r"^(KBUILD_OUTPUT\s*):?=\s*/(?=usr/)", rf"\1:={here}"
        )  # since 6.16
        # The compiler is pinned to one (gcc-12) that this machine may not have; what any gcc makes loads as well.
        # `2>` is for make to run this through the shell: `command` is built into that.
        either = r"$(or $(shell command -v \1 2>/dev/null),$(CROSS_COMPILE)gcc)"
        _edit(source / ".kernelvariables", r"(\$\(CROSS_COMPILE\)gcc-\d+)", either)
        # Type information for a module's debugging is of no use here and would need pahole. Since 6.12 it is made
        # whenever make's side of the configuration says so; the compiler's side (struct module) must stay as it is.
        _edit(source / "include/config/auto.conf", r"^CONFIG_DEBUG_INFO_BTF_MODULES=y\n", "")


def _edit(file: Path, pattern: str, replacement: str) -> None:
    """Replace `pattern` in `file` where there is such a file."""
    if file.is_file():
        file.write_text(re.sub(pattern, replacement, file.read_text(), flags=re.MULTILINE))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _first(prefix: Path, patterns: tuple[str, ...]) -> Path | None:
    return next((file for pattern in patterns for file in sorted(prefix.glob(pattern))), None)


def _only(prefix: Path, patterns: tuple[str, ...], what: str) -> Path:
    found = _first(prefix, patterns)
    if found is None:
        raise InfraError(f"{prefix} holds no {what}: this package's layout is not known")
    return found
