# SPDX-License-Identifier: GPL-2.0-only
"""kernels/*.yaml: what is accepted, and that each mistake is reported with file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.kernel import definition

GOOD = """
name: mine
description: a test
source: {debian-source: "6.1"}
config: {base: tinyconfig, fragments: [extra.config]}
series: queue/series
make: {KCFLAGS: -g1}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "extra.config").write_text("CONFIG_SMP=y\n")
    (tmp_path / "queue").mkdir()
    (tmp_path / "queue/series").write_text("# comment\n0001.patch # why\n\n0002.patch\n")
    (tmp_path / "queue/0001.patch").write_text("")
    (tmp_path / "queue/patches").mkdir()
    (tmp_path / "queue/patches/0002.patch").write_text("")
    return tmp_path


def _read(folder: Path, text: str) -> definition.Definition:
    (folder / "mine.yaml").write_text(text)
    return definition.read(folder / "mine.yaml")


def test_a_good_definition_finds_its_files(folder: Path) -> None:
    loaded = _read(folder, GOOD)
    assert loaded.source.debian_source == "6.1"
    assert [path.name for path in loaded.patch_files()] == ["0001.patch", "0002.patch"]
    assert loaded.fragment_files() == (folder / "extra.config",)
    assert loaded.base() == "tinyconfig"
    assert loaded.make == {"KCFLAGS": "-g1"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("series:", "serie:", "serie: unknown key (did you mean series?)"),
        ("fragments:", "fragment:", "config.fragment: unknown key (did you mean fragments?)"),
        (
            "debian-source:",
            "debian_source:",
            "source.debian_source: unknown key (did you mean debian-source?)",
        ),
        (
            '"6.1"',
            "6.1",
            'source.debian-source: 6.1 is a number to YAML, write it in quotes: "6.1"',
        ),
        ("description: a test\n", "", "description: is missing"),
        ("[extra.config]", "extra.config", "config.fragments: Input should be a valid list"),
        ("extra.config", "other.config", "config.fragments: there is no file"),
        ("tinyconfig", "tinyconf", "nor is it one of tinyconfig, defconfig"),
        ("name: mine", "name: yours", "name: is yours, must be mine"),
        ("queue/series", "queue/list", "series: there is no file"),
        ("name: mine", "name: [mine", "not YAML"),
    ],
)
def test_each_mistake_is_named(folder: Path, old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(UsageError) as caught:
        _read(folder, GOOD.replace(old, new))
    assert message in str(caught.value)
    assert str(folder / "mine.yaml") in str(caught.value)


def test_a_missing_patch_of_the_series_is_named_with_its_line(folder: Path) -> None:
    (folder / "queue/0001.patch").unlink()
    with pytest.raises(UsageError, match=r"series:2: there is no patch 0001\.patch"):
        _read(folder, GOOD)


def test_a_file_that_is_no_mapping_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="is a mapping"):
        _read(folder, "- 6.1\n")


def test_an_unknown_kernel_suggests_the_nearest() -> None:
    with pytest.raises(
        UsageError,
        match=r"unknown kernel 6\.1-int \(did you mean 6\.1-int3\?\): `orchestrator kernels",
    ):
        definition.load("6.1-int")


@pytest.mark.parametrize("name", definition.names())
def test_our_own_definitions_are_good(name: str) -> None:
    loaded = definition.load(name)
    assert all(path.is_file() for path in (*loaded.patch_files(), *loaded.fragment_files()))
