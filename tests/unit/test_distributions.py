# SPDX-License-Identifier: GPL-2.0-only
"""Hosts that are no Debian: what they are told to install, and what can be fetched there."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator import doctor
from orchestrator.errors import InfraError
from orchestrator.host import debian, distributions

HOSTS = {
    "debian": "ID=debian\nVERSION_CODENAME=bookworm\n",
    "ubuntu": 'ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME=noble\nPRETTY_NAME="Ubuntu 24.04"\n',
    "fedora": 'ID=fedora\nVERSION_CODENAME=""\nPRETTY_NAME="Fedora Linux 43"\n',
    "rocky": 'ID="rocky"\nID_LIKE="rhel centos fedora"\n',
    "arch": "ID=arch\nPRETTY_NAME='Arch Linux'\n",
    "tumbleweed": 'ID="opensuse-tumbleweed"\nID_LIKE="opensuse suse"\n',
    "alpine": "ID=alpine\n",
}


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    (tmp_path / "os-release").write_text(HOSTS[name])
    monkeypatch.setattr(distributions, "OS_RELEASE", tmp_path / "os-release")
    return name


@pytest.mark.parametrize(
    ("host", "line"),
    [
        ("debian", "apt-get install -y --no-install-recommends gdb libelf-dev xz-utils"),
        ("ubuntu", "apt-get install -y --no-install-recommends gdb libelf-dev xz-utils"),
        ("fedora", "dnf install -y gdb elfutils-libelf-devel xz"),
        ("rocky", "dnf install -y gdb elfutils-libelf-devel xz"),
        ("arch", "pacman -S --needed gdb libelf xz"),
        ("tumbleweed", "zypper install -y gdb libelf-devel xz"),
        ("alpine", "install what corresponds to Debian's gdb libelf-dev xz-utils"),
    ],
    indirect=["host"],
)
def test_what_to_install_is_said_in_the_words_of_the_distribution(host: str, line: str) -> None:
    assert distributions.install_line(["gdb", "libelf-dev", "xz-utils"]) == line


@pytest.mark.parametrize("host", ["ubuntu", "fedora", "rocky", "arch", "alpine"], indirect=True)
def test_programs_of_debian_are_not_run_elsewhere(host: str) -> None:
    # A host without a codename was taken for sid.
    with pytest.raises(InfraError, match="not a Debian"):
        debian.host_suites()
    probes = doctor.HostProbes()
    probes.__dict__.update(offline="")
    assert "do not run on another distribution" in probes.no_programs


@pytest.mark.parametrize("text", ["ID=debian\n", ""])
def test_a_debian_without_a_codename_is_sid(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "os-release").write_text(text)
    monkeypatch.setattr(distributions, "OS_RELEASE", tmp_path / "os-release")
    assert debian.host_suites() == ("sid",)
