# SPDX-License-Identifier: GPL-2.0-only
"""What distribution this host runs, and how its packages are called.

Only Debian is tested. The names for the others are theirs at the time of writing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

OS_RELEASE = Path("/etc/os-release")
INSTALL = {
    "debian": "apt-get install -y --no-install-recommends",
    "fedora": "dnf install -y",
    "arch": "pacman -S --needed",
    "suse": "zypper install -y",
}
"""The command that installs packages, by family of distributions."""
FAMILIES = {
    "fedora": ("fedora", "rhel", "centos"),
    "arch": ("arch",),
    "suse": ("suse", "opensuse"),
    "debian": ("debian", "ubuntu"),
}
"""Words of ID and ID_LIKE in os-release(5)."""
NAMES: dict[str, dict[str, str]] = {
    "libc6-dev": {"fedora": "glibc-devel glibc-static", "arch": "glibc", "suse": "glibc-devel-static"},  # noqa: E501
    "libelf-dev": {"fedora": "elfutils-libelf-devel", "arch": "libelf", "suse": "libelf-devel"},
    "libssl-dev": {"fedora": "openssl-devel", "arch": "openssl", "suse": "libopenssl-devel"},
    "xz-utils": {"fedora": "xz", "arch": "xz", "suse": "xz"},
    "debian-archive-keyring": {"fedora": "debian-keyring"},
    "qemu-system-x86": {"fedora": "qemu-system-x86-core", "suse": "qemu-x86"},
    "busybox-static": {"fedora": "busybox", "arch": "busybox"},
    "dropbear-bin": {"fedora": "dropbear", "arch": "dropbear", "suse": "dropbear"},
}  # fmt: skip
"""Debian's name -> another family's, where it differs."""


def fields() -> dict[str, str]:
    """The fields of os-release(5); empty if there is no such file."""
    text = OS_RELEASE.read_text(errors="replace") if OS_RELEASE.is_file() else ""
    return {
        name: value.strip("\"'")
        for name, value in re.findall(r"^(\w+)=(.*?)\s*$", text, re.MULTILINE)
    }


def family() -> str:
    """The family of this host's distribution, a key of INSTALL; empty for one not known here."""
    found = fields()
    words = [found.get("ID", ""), *found.get("ID_LIKE", "").split()]
    for name, members in FAMILIES.items():
        if any(word.startswith(members) for word in words if word):
            return name
    return ""


def install_line(packages: Iterable[str]) -> str:
    """The command that installs `packages`, given by Debian's names, on this host."""
    own = family()
    if own not in INSTALL:
        return f"install what corresponds to Debian's {' '.join(packages)}"
    names = [NAMES.get(package, {}).get(own, package) for package in packages]
    return f"{INSTALL[own]} {' '.join(names)}"
