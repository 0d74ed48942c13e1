# SPDX-License-Identifier: GPL-2.0-only
"""`debian:VERSION[-FLAVOUR]`: one of Debian's kernel images, unpacked with its headers."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from orchestrator import ui
from orchestrator.errors import InfraError, UsageError, nearest
from orchestrator.host import debian
from orchestrator.host.debian import Package
from orchestrator.host.notices import waiting_for, warn
from orchestrator.host.paths import cache_dir, cached_dir, need_space
from orchestrator.kernel import debian_mirror, foreign_headers, versions
from orchestrator.kernel.kinds.kind import Kind, refuse_changes, register
from orchestrator.kernel.model import Kernel, KernelRequest
from orchestrator.kernel.record import FILE, KernelRecord

LAYOUT = 4
"""Part of the digest. Increase it whenever the unpacked files are treated differently."""
IMAGES = ("boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz", "lib/modules/*/vmlinuz")
CONFIGS = ("boot/config-*", "usr/lib/modules/*/config", "lib/modules/*/config")
"""Where the packages of various releases have the kernel's image and its .config."""
SELECTOR = re.compile(r"debian:(?P<series>\d+\.\d+)(?P<point>\.\d+)?(?:-(?P<flavour>\w+))?")


@register
class DebianImageKind(Kind):
    """A selector names one version (`debian:6.1.192`) or the newest of a series (`debian:6.1`).

    For a series that is the newest version that still has headers: without them, only the boot and
    the kernel's own pokes can be tested.
    """

    prefix = debian_mirror.PREFIX

    def check(self, request: KernelRequest) -> None:
        refuse_changes(request, request.selector)
        _parse(request.selector)

    def settle(self, request: KernelRequest) -> None:
        _choose(request.selector)

    def identify(self, request: KernelRequest) -> tuple[str, Path]:
        return _identity(*_choose(request.selector))

    def fetch(self, selector: str) -> Path:
        return _obtain(selector).bzimage.parent

    def obtain(self, request: KernelRequest) -> Kernel:
        return _obtain(request.selector)


def _obtain(selector: str) -> Kernel:
    image, headers = _choose(selector)
    if not headers:
        warn(f"{image.name} has no headers in the mirror: no module can be built for it")
    return _unpacked(selector, image, headers)


def _parse(selector: str) -> tuple[str, str | None, str]:
    """(series, version, flavour) of `selector`. The version is None if it names only a series."""
    match = SELECTOR.fullmatch(selector)
    if not match or (match["flavour"] or "amd64") not in debian_mirror.FLAVOURS:
        raise UsageError(
            f"{selector}: write debian:VERSION, "
            "such as debian:6.1, debian:6.1.192 or debian:6.12-cloud"
        )
    version = match["series"] + match["point"] if match["point"] else None
    return match["series"], version, match["flavour"] or "amd64"


def _choose(selector: str) -> tuple[Package, Package | None]:
    """The image package that `selector` names, and its headers package if the mirror has one."""
    series, version, flavour = _parse(selector)
    image, *headers = versions.chosen(
        selector,
        selector,
        debian_mirror.suites(series),
        lambda: _newest(selector, series, version, flavour),
    )
    return image, headers[0] if headers else None


def _newest(selector: str, series: str, version: str | None, flavour: str) -> list[Package]:
    """The newest image of the mirror that fits, and its headers if there are any."""
    available = debian_mirror.images(series, flavour)
    matching = [image for image in available if version in (None, image.upstream)]
    if not matching and (failures := debian.unsearched(debian_mirror.suites(series))):
        raise InfraError(f"{selector} may be in a suite that cannot be searched: {failures[0]}")
    if not matching:
        names = sorted({f"debian:{image.upstream}" for image in available})
        offered = ", ".join(name.removeprefix("debian:") for name in names)
        raise UsageError(
            f"{selector}: the Debian mirror has no such image{nearest(selector, names)}; "
            + (f"of {series} there are {offered}" if names else debian_mirror.AVAILABLE)
        )
    for image in reversed(matching):
        if headers := debian_mirror.headers(image):
            return [image, headers]
    return [matching[-1]]


def _identity(image: Package, headers: Package | None) -> tuple[str, Path]:
    """The digest of the kernel in `image`, and its directory in the cache."""
    identity = f"{image.name} {image.version} {headers is not None} layout {LAYOUT}"
    digest = hashlib.sha256(identity.encode()).hexdigest()
    return digest, cache_dir() / "stock" / f"{image.upstream}-{digest[:16]}"


def _unpacked(selector: str, image: Package, headers: Package | None) -> Kernel:
    """The kernel in `image`, unpacked into the cache with `headers` and what both depend on."""
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
        name, release = debian_mirror.exact_selector(image), _release(_bzimage(partial))
        KernelRecord(name=name, release=release, origin=origin).write(partial)

    cached_dir(
        prefix, make, waiting_for(f"another run's {image.name}"), vital=(*IMAGES, *CONFIGS, FILE)
    )
    bzimage = _bzimage(prefix)
    return Kernel(
        name=selector,
        release=_release(bzimage),
        digest=digest,
        bzimage=bzimage,
        config=_first(prefix, CONFIGS),
        kbuild=_only(prefix, ("usr/src/linux-headers-*amd64",), "headers") if headers else None,
        origin=origin,
        pinned=debian_mirror.exact_selector(image),
    )


def _bzimage(prefix: Path) -> Path:
    return _only(prefix, IMAGES, "kernel image")


def _release(bzimage: Path) -> str:
    return bzimage.name.partition("-")[2] or bzimage.parent.name


def _with_depends(package: Package, pattern: str) -> list[Path]:
    """The .debs of `package` and of all its dependencies whose names match `pattern`."""
    debs: dict[str, Path] = {package.name: debian.download(package)}
    queue = [debs[package.name]]
    while queue:
        for name, version in debian.depends(queue.pop()):
            if name in debs or not re.fullmatch(pattern, name):
                continue
            available = debian.candidates(re.escape(name), (package.suite,))
            exact = [other for other in available if other.version == (version or package.version)]
            if not available and name.startswith(("linux-base-", "linux-modules-")):
                ui.say(f"{name} is no longer in the mirror; a run does not need it")
                continue
            if not available:
                raise InfraError(
                    f"{package.name} depends on {name}, "
                    f"which {package.suite} of the mirror does not have"
                )
            debs[name] = debian.download(debian.newest_of(exact or available))
            queue.append(debs[name])
    return list(debs.values())


def _relocate(prefix: Path) -> None:
    """Make the headers usable wherever `prefix` is moved; they expect /usr/src and one compiler."""
    for source in prefix.glob("usr/src/linux-headers-*"):
        # While make reads a file, that file is the last of MAKEFILE_LIST. Its real directory is
        # PREFIX/usr/src/linux-headers-X/.
        here = "$(dir $(realpath $(lastword $(MAKEFILE_LIST))))../../../"
        _edit(source / "Makefile", r"^(-?include )/(?=usr/)", rf"\1{here}")
        # since 6.16
        _edit(source / "Makefile", r"^(KBUILD_OUTPUT\s*):?=\s*/(?=usr/)", rf"\1:={here}")
        # The headers pin one compiler (gcc-12), which this machine may not have. Modules built with
        # any other gcc load as well. The redirection makes make use a shell, since `command` is a
        # shell builtin.
        either = r"$(or $(shell command -v \1 2>/dev/null),$(CROSS_COMPILE)gcc)"
        _edit(source / ".kernelvariables", r"(\$\(CROSS_COMPILE\)gcc-\d+)", either)
        # BTF of modules is of no use here and would need pahole. Since 6.12 make generates it
        # whenever auto.conf has this option; the compiler's view of the option (autoconf.h) must
        # stay as it is, because it changes the layout of struct module.
        _edit(source / "include/config/auto.conf", r"^CONFIG_DEBUG_INFO_BTF_MODULES=y\n", "")


def _edit(file: Path, pattern: str, replacement: str) -> None:
    """Replace `pattern` in `file`, if it exists."""
    if file.is_file():
        file.write_text(re.sub(pattern, replacement, file.read_text(), flags=re.MULTILINE))


def _first(prefix: Path, patterns: tuple[str, ...]) -> Path | None:
    return next((file for pattern in patterns for file in sorted(prefix.glob(pattern))), None)


def _only(prefix: Path, patterns: tuple[str, ...], what: str) -> Path:
    file = _first(prefix, patterns)
    if file is None:
        raise InfraError(f"{prefix} has no {what}: the layout of this package is unknown")
    return file
