# SPDX-License-Identifier: GPL-2.0-only
"""Which mirror this machine's apt is configured with, whatever it has downloaded."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import InfraError
from orchestrator.host import apt_sources, debian

pytestmark = pytest.mark.skipif(not shutil.which("apt-get"), reason="this is not a Debian")

ARCHIVE, SECURITY = "http://m.example.org/debian/", "http://m.example.org/debian-security/"
CONTAINER = """\
Types: deb
# http://snapshot.example.org/archive/debian/20250520T000000Z
URIs: http://m.example.org/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
# http://snapshot.example.org/archive/debian-security/20250520T000000Z
URIs: http://m.example.org/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""
CLASSIC = """\
# deb cdrom:[Debian GNU/Linux 12.0.0 _Bookworm_ - Official amd64]/ bookworm main
deb http://m.example.org/debian bookworm main contrib  # a comment
deb-src http://m.example.org/debian bookworm main

deb [ arch=amd64 ] http://m.example.org/debian-security/ bookworm-security main
deb http://m.example.org/debian bookworm-updates main
"""
VENDORS = """\
deb [signed-by=/etc/apt/keyrings/vendor.gpg arch=amd64] https://v.example.org/debian bookworm main
deb [arch=amd64] https://node.example.org/node_20.x nodistro main
deb https://cloud.example.org/apt cloud-sdk-bookworm main
deb https://docker.example.org/linux/debian bookworm stable
deb https://flat.example.org/repository ./
deb cdrom:[Debian GNU/Linux 12.0.0 _Bookworm_ - Official amd64]/ bookworm main
"""
EMBEDDED = """\
Types: deb deb-src
URIs: http://m.example.org/debian
Suites: sid
 experimental
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mDMEY8/aBRYJKwYBBAHaRw8BAQdA/abc
 -----END PGP PUBLIC KEY BLOCK-----
"""

CASES: dict[str, tuple[dict[str, str], str, str | None]] = {
    "a container of bookworm": ({"debian.sources": CONTAINER}, ARCHIVE, SECURITY),
    "one line each": ({"": CLASSIC}, ARCHIVE, SECURITY),
    "both, and others": ({"": VENDORS + CLASSIC, "a.list": VENDORS}, ARCHIVE, SECURITY),
    "others first, Debian later": (
        {"": VENDORS, "a.list": VENDORS, "z.sources": CONTAINER},
        ARCHIVE,
        SECURITY,
    ),
    "another vendor's repository without a key of its own": (
        {
            "a.list": "deb https://v.example.org/apt bookworm main\n",
            "z.list": "deb http://m.example.org/debian bookworm main\n",
        },
        ARCHIVE,
        None,
    ),
    "security on another host": (
        {"": CLASSIC.replace("http://m.example.org/debian-security/", "https://s.example.org")},
        ARCHIVE,
        "https://s.example.org/",
    ),
    "one folder for both": (
        {"": CLASSIC.replace("debian-security", "debian")},
        ARCHIVE,
        ARCHIVE,
    ),
    "no security updates": ({"": "deb http://m.example.org/debian trixie main\n"}, ARCHIVE, None),
    "a key in the file": ({"debian.sources": EMBEDDED}, ARCHIVE, None),
    "a snapshot": (
        {"": "deb [check-valid-until=no] http://s.example.org/debian/20250520T000000Z sid main"},
        "http://s.example.org/debian/20250520T000000Z/",
        None,
    ),
    "a file with mirrors": (
        {"d.sources": CONTAINER.replace("http://m.example.org", "mirror+file:///etc/apt/m.list")},
        "mirror+file:/etc/apt/m.list/debian/",
        "mirror+file:/etc/apt/m.list/debian-security/",
    ),
    "a folder of this machine": (
        {"": "deb [trusted=yes] file:/srv/debian bookworm main\n"},
        "file:/srv/debian/",
        None,
    ),
    "another architecture's mirror": (
        {"": f"deb [arch=i386] http://i.example.org/debian bookworm main\n{CLASSIC}"},
        ARCHIVE,
        SECURITY,
    ),
    "disabled entries": (
        {
            "a.sources": CONTAINER.replace("m.example", "off.example").replace(
                "Types: deb\n", "Types: deb\nEnabled: no\n"
            ),
            "b.sources.save": CONTAINER.replace("m.example", "saved.example"),
            "c.list.disabled": CLASSIC.replace("m.example", "disabled.example"),
            ".d.list": CLASSIC.replace("m.example", "hidden.example"),
            "e.list": "# deb http://comment.example.org/debian bookworm main\n",
            "z.sources": CONTAINER,
        },
        ARCHIVE,
        SECURITY,
    ),
    "several of each": (
        {
            "a.sources": CONTAINER.replace(
                "URIs: ", "URIs: https://first.example.org/debian\n  "
            ).replace("\n\nTypes: deb\n", "\n\n#\n# security\n\n# x\nEnabled: yes\ntypes: deb\n")
        },
        "https://first.example.org/debian/",
        "https://first.example.org/debian/",
    ),
}


@pytest.fixture
def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Make apt use these files below sources.list.d; "" is sources.list."""
    monkeypatch.delenv(debian.MIRROR_VARIABLE, raising=False)
    debian._mirrors.cache_clear()

    def write(texts: dict[str, str]) -> None:
        parts = tmp_path / "sources.list.d"
        parts.mkdir()
        (tmp_path / "sources.list").write_text(texts.get("", ""))
        for name, text in texts.items():
            if name:
                (parts / name).write_text(text)
        (tmp_path / "apt.conf").write_text(
            f'Dir::Etc::sourcelist "{tmp_path}/sources.list";\nDir::Etc::sourceparts "{parts}";\n'
        )
        monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))

    return write


@pytest.mark.parametrize(("texts", "archive", "security"), CASES.values(), ids=CASES)
def test_the_mirror_is_found_in_the_sources(
    texts: dict[str, str],
    archive: str,
    security: str | None,
    configure: Callable[[dict[str, str]], None],
) -> None:
    configure(texts)
    assert debian._mirrors() == (archive, security)


@pytest.mark.parametrize("texts", [{}, {"": VENDORS}, {"a.sources": "\n# nothing\n"}], ids=str)
def test_sources_without_debian_are_explained(
    texts: dict[str, str], configure: Callable[[dict[str, str]], None]
) -> None:
    configure(texts)
    with pytest.raises(InfraError, match=f"name no Debian mirror: set {debian.MIRROR_VARIABLE}"):
        debian._mirrors()


def test_an_error_in_the_sources_is_passed_on(
    configure: Callable[[dict[str, str]], None],
) -> None:
    configure({"": "deb http://m.example.org/debian\n"})
    with pytest.raises(
        InfraError, match=r"apt cannot read this machine's sources: E: Malformed entry 1 in list"
    ):
        debian._mirrors()


def test_the_variable_wins(
    monkeypatch: pytest.MonkeyPatch, configure: Callable[[dict[str, str]], None]
) -> None:
    configure({"": CLASSIC})
    for value, expected in (
        ("http://a.example.org", ("http://a.example.org", None)),
        (
            "http://a.example.org http://s.example.org",
            ("http://a.example.org", "http://s.example.org"),
        ),
    ):
        monkeypatch.setenv(debian.MIRROR_VARIABLE, value)
        debian._mirrors.cache_clear()
        assert debian._mirrors() == expected


def test_what_was_downloaded_makes_no_difference(
    configure: Callable[[dict[str, str]], None],
) -> None:
    """`apt-get indextargets` by itself lists only sources whose package lists are there."""
    configure({"debian.sources": CONTAINER})
    plain = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)"], capture_output=True, text=True
    )
    assert ARCHIVE not in plain.stdout
    suites = {(source.uri, source.suite) for source in apt_sources.configured()}
    assert suites == {
        (ARCHIVE, "bookworm"),
        (ARCHIVE, "bookworm-updates"),
        (SECURITY, "bookworm-security"),
    }
