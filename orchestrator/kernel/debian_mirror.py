# SPDX-License-Identifier: GPL-2.0-only
"""The kernels that Debian's mirror has: suites, image packages, headers and selectors."""

from __future__ import annotations

import re

from orchestrator.errors import InfraError
from orchestrator.host import debian
from orchestrator.host.debian import Package

PREFIX = "debian:"
"""What the selector of a Debian image starts with."""
FLAVOURS = ("amd64", "cloud", "rt")
"""A selector without a suffix means `amd64`; the suffixes `-cloud` and `-rt` name the others."""
LONG_TERM: dict[str, tuple[str, ...]] = {
    "5.10": ("bullseye", "bullseye-security"),
    "6.1": ("bookworm", "bookworm-security"),
    "6.12": ("bookworm-backports", "bookworm-security", "trixie", "trixie-security"),
}
"""The suites of each series that Debian maintains for years."""
PASSING = ("trixie-backports", "sid")
"""The suites that every other series passes through."""
AVAILABLE = "the mirror has 5.10, 6.1, 6.12 and, for a while each, the series from 6.16 on"
IMAGE = re.compile(r"linux-image-(?P<abi>\d+\.\d+\.\d+\S*?)-(?:(?P<flavour>cloud|rt)-)?amd64")
"""The name of an image package."""


def suites(series: str) -> tuple[str, ...]:
    """The suites that may have the kernel series `series` (`6.1`)."""
    return LONG_TERM.get(series, PASSING)


def all_suites() -> list[str]:
    """Every suite that may have a kernel."""
    return list(dict.fromkeys(suite for known in (*LONG_TERM.values(), PASSING) for suite in known))


def images(series: str, flavour: str = "amd64") -> list[Package]:
    """The image packages of `series` (`6.1`), the newest last.

    Packages of the same version are in the order in which they suit this machine, the best last.
    """
    pattern = rf"linux-image-{re.escape(series)}\.\d+\S*-amd64"
    packages = [
        package
        for package in debian.candidates(pattern, suites(series))
        if (match := IMAGE.fullmatch(package.name)) and (match["flavour"] or "amd64") == flavour
    ]
    try:
        codename = debian.host_suites()[0]
    except InfraError:
        codename = "none"
    # A build for this machine's release is best: its headers need the compiler and the libraries
    # that this machine has.
    return sorted(
        packages,
        key=lambda package: (version_key(package), codename in package.suite, package),
    )


def headers(image: Package) -> Package | None:
    """The headers package that belongs to `image`, if its suite has it."""
    name = headers_name(image)
    packages = debian.candidates(re.escape(name), (image.suite,))
    return next((package for package in packages if package.version == image.version), None)


def headers_name(image: Package) -> str:
    """The name of the headers package that belongs to `image`."""
    return image.name.replace("linux-image-", "linux-headers-", 1)


def exact_selector(image: Package) -> str:
    """The selector that names this image and no other, such as `debian:6.1.192-cloud`."""
    match = IMAGE.fullmatch(image.name)
    suffix = match["flavour"] if match else None
    return "-".join(filter(None, (f"{PREFIX}{image.upstream}", suffix)))


def version_key(image: Package) -> tuple[int, ...]:
    """The upstream version of `image` as numbers, to sort by."""
    return tuple(int(part) for part in re.findall(r"\d+", image.upstream))
