# SPDX-License-Identifier: GPL-2.0-only
"""Which version a name stands for: chosen once, reported when it changes, kept when offline."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import ui
from orchestrator.errors import InfraError, UsageError
from orchestrator.host import debian
from orchestrator.host.debian import Package
from orchestrator.host.paths import PROJECT, state_dir
from orchestrator.kernel import compat, from_source, obtain, sources, versions
from orchestrator.kernel.compat import CompatEntry
from orchestrator.kernel.model import Kernel, KernelRequest
from orchestrator.many.children import Children, ChildResult
from orchestrator.many.sweep import task
from orchestrator.many.sweep.task import CellTask
from orchestrator.spec import RunSpec


def mirror(point: int, suite: str = "bookworm-security") -> list[Package]:
    """What a mirror offers at one time: 6.1.`point`, and an older one that stays."""
    return [
        Package("linux-source-6.1", "6.1.170-1", "bookworm"),
        Package("linux-image-6.1.0-40-amd64", "6.1.170-1", "bookworm"),
        Package("linux-headers-6.1.0-40-amd64", "6.1.170-1", "bookworm"),
        Package("linux-source-6.1", f"6.1.{point}-1", suite),
        Package(f"linux-image-6.1.0-{point}-amd64", f"6.1.{point}-1", suite),
        Package(f"linux-headers-6.1.0-{point}-amd64", f"6.1.{point}-1", suite),
    ]


class Mirror:
    """Stands in for the functions of host/debian.py that ask the mirror."""

    def __init__(self, packages: list[Package]) -> None:
        self.packages = packages
        self.down: set[str] = set()
        self.asked = 0

    def candidates(self, pattern: str, suites: tuple[str, ...]) -> list[Package]:
        self.asked += 1
        if self.down >= set(suites):
            raise InfraError("the mirror does not answer")
        return [
            package
            for package in self.packages
            if re.fullmatch(pattern, package.name) and package.suite in set(suites) - self.down
        ]

    def unsearched(self, suites: tuple[str, ...]) -> list[InfraError]:
        return [InfraError(f"no {suite}") for suite in suites if suite in self.down]


@pytest.fixture
def debians(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    fake = Mirror(mirror(176))
    monkeypatch.setattr(debian, "candidates", fake.candidates)
    monkeypatch.setattr(debian, "unsearched", fake.unsearched)
    monkeypatch.setattr(debian, "host_suites", lambda: ("bookworm",))
    return fake


NAMES = ("6.1-int3", "6.1-plain", "debian-source:6.1", "debian:6.1")


def digest(name: str) -> str:
    return obtain.identify(KernelRequest(selector=name))[0]


def new_process() -> None:
    os.environ[versions.VARIABLE] = "{}"


@pytest.mark.parametrize("name", NAMES)
def test_a_version_is_chosen_once_in_a_process(name: str, debians: Mirror) -> None:
    first = digest(name)
    debians.packages = mirror(192)
    asked = debians.asked
    assert digest(name) == first and debians.asked == asked
    new_process()
    assert digest(name) != first


@pytest.mark.parametrize("name", NAMES)
def test_a_change_is_reported_in_one_line(name: str, debians: Mirror) -> None:
    def output() -> str:
        new_process()
        with ui.console.capture() as captured:
            digest(name)
        return captured.get().strip()

    assert output() == ""
    debians.packages = mirror(192)
    package = "linux-image-6.1.0-192-amd64" if name == "debian:6.1" else "linux-source-6.1"
    assert output() == f"{name}: {package} 6.1.192-1 (was 6.1.176-1)"
    assert output() == ""


def test_names_with_the_same_package_have_the_same_version(debians: Mirror) -> None:
    digest("6.1-plain")
    debians.packages = mirror(192)
    digest("6.1-int3")
    assert versions.last("6.1-int3") == versions.last("6.1-plain")
    assert sources.debian_package("6.1", "6.1-int3").version == "6.1.176-1"


CHILD = """
import sys
from tests.unit.test_versions import Mirror, digest, mirror
from orchestrator.host import debian
fake = Mirror(mirror(192))
debian.candidates, debian.unsearched = fake.candidates, fake.unsearched
debian.host_suites = lambda: ("bookworm",)
print(digest(sys.argv[1]))
"""


def child(name: str, log: Path, **env: str) -> str:
    """The digest of `name` in a child of ours, for which the mirror offers 6.1.192."""
    status = Children().call(
        [sys.executable, "-c", CHILD, name], log, env={"PYTHONPATH": str(PROJECT), **env}
    )
    assert status == 0, log.read_text()
    return log.read_text().splitlines()[-1]


@pytest.mark.parametrize("name", NAMES)
def test_a_child_builds_what_its_parent_has_identified(
    name: str, debians: Mirror, tmp_path: Path
) -> None:
    """The two halves of a nightly, between which Debian publishes a new version."""
    identified = digest(name)
    assert child(name, tmp_path / "log") == identified
    assert "(was" not in (tmp_path / "log").read_text()
    new_process()
    assert child(name, tmp_path / "log") != identified


@pytest.mark.parametrize("name", NAMES)
def test_a_parent_can_choose_for_its_children_without_building(
    name: str, debians: Mirror, tmp_path: Path
) -> None:
    obtain.settle(KernelRequest(selector=name))
    assert child(name, tmp_path / "log") == digest(name)


def test_nothing_is_chosen_for_a_tree(tmp_path: Path, debians: Mirror) -> None:
    obtain.settle(KernelRequest(bzimage=tmp_path / "bzImage"))
    assert debians.asked == 0 and versions.inherited() == {versions.VARIABLE: "{}"}


def test_a_cell_on_another_machine_gets_the_versions(
    debians: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identified = digest("6.1-int3")
    cell = CellTask(
        spec=RunSpec(),
        built=None,
        program=task.program.digest(),
        directory=None,
        env=versions.inherited(),
    )
    new_process()
    digests = []

    def run(*_: object, env: dict[str, str], **__: object) -> ChildResult:
        digests.append(child("6.1-int3", tmp_path / "log", **env))
        return ChildResult(status=0, verdict=None, last_line="", seconds=0)

    monkeypatch.setattr(task.CHILDREN, "run", run)
    task.perform(cell)
    assert digests == [identified]


@pytest.mark.parametrize("name", NAMES)
def test_without_the_mirror_the_last_version_stays(name: str, debians: Mirror) -> None:
    debians.down = {"bookworm", "bookworm-security"}
    with pytest.raises(InfraError, match="does not answer"):
        digest(name)
    debians.down = set()
    first = digest(name)
    debians.down = {"bookworm", "bookworm-security"}
    new_process()
    with ui.console.capture() as output:
        assert digest(name) == first
    assert f"{name}: staying with linux-" in output.get()


@pytest.mark.parametrize("name", NAMES)
def test_a_suite_that_cannot_be_searched_does_not_bring_an_old_version_back(
    name: str, debians: Mirror
) -> None:
    first = digest(name)
    debians.down = {"bookworm-security"}
    new_process()
    assert digest(name) == first
    debians.packages = mirror(192, suite="bookworm")
    new_process()
    assert digest(name) != first, "what can be searched has a newer one"


def test_an_image_that_could_not_be_looked_for_is_no_wrong_usage(debians: Mirror) -> None:
    with pytest.raises(UsageError, match="the Debian mirror has no such image"):
        digest("debian:6.1.192")
    debians.down = {"bookworm-security"}
    with pytest.raises(InfraError, match="cannot be searched: no bookworm-security"):
        digest("debian:6.1.192")


def test_a_complete_mirror_may_go_back(debians: Mirror) -> None:
    digest("6.1-int3")
    debians.packages = mirror(171)
    new_process()
    with ui.console.capture() as output:
        digest("6.1-int3")
    assert output.get().strip() == "6.1-int3: linux-source-6.1 6.1.171-1 (was 6.1.176-1)"


@pytest.mark.parametrize("damage", [lambda file: file.write_text("{"), Path.unlink])
def test_a_damaged_memory_is_made_again(damage: Callable[[Path], None], debians: Mirror) -> None:
    first = digest("6.1-int3")
    damage(state_dir() / versions.MEMORY)
    assert versions.last("6.1-int3") == []
    new_process()
    assert digest("6.1-int3") == first
    assert versions.last("6.1-int3")


def test_a_wrong_variable_is_reported(debians: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(versions.VARIABLE, "6.1.176")
    with pytest.raises(InfraError, match=rf"\${versions.VARIABLE} is not JSON .*: unset it"):
        digest("6.1-int3")


def test_identify_and_obtain_of_a_debian_source_agree(
    debians: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if compat.yaml has an entry that depends on the text of the tree."""
    entry = CompatEntry.model_validate(
        {
            "from": "6.1",
            "before": "6.2",
            "why": "w",
            "lacks": {"Makefile": "x"},
            "base": "defconfig",
        }
    )
    monkeypatch.setattr(compat, "entries", lambda: (entry,))
    (tmp_path / "Makefile").write_text("VERSION = 6\nPATCHLEVEL = 1\n")
    monkeypatch.setattr(sources, "_unpacked", lambda *_: (tmp_path, {"Makefile": "- 1"}))
    places: list[Path] = []
    monkeypatch.setattr(from_source, "cached_dir", lambda place, *_, **__: places.append(place))

    def cached(digest: str, name: str) -> Kernel:
        return Kernel(name=name, release="", digest=digest, bzimage=tmp_path, config=None)

    monkeypatch.setattr(from_source, "cached", cached)
    request = KernelRequest(selector="debian-source:6.1")
    assert obtain.obtain(request).digest == obtain.identify(request)[0]
    assert places == [obtain.identify(request)[1]]
