"""Scenarios: those that there are, selecting among them, and files that are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import InfraError, UsageError
from orchestrator.scenarios import scenario

GOOD = "title: t\npromise: p\nsite: nop5\n"


def test_those_that_there_are() -> None:
    known = scenario.load_all()
    assert [entry.order for entry in known] == sorted(entry.order for entry in known)
    assert {"nop5", "jmp32", "nop2", "one", "key"} <= {entry.name for entry in known}
    assert {entry.how for entry in known} == {"direct", "owner"}
    for entry in known:
        assert entry.title
        assert entry.promise.endswith(".")


def names(*patterns: str) -> list[str]:
    return [entry.name for entry in scenario.select(patterns)]


def test_select() -> None:
    everything = [entry.name for entry in scenario.load_all()]
    assert names() == everything
    assert names("*") == everything
    assert names("one", "nop5") == ["nop5", "one"], "in the order of a run, not of the request"
    assert names("one", "one", "on*") == ["one"]
    assert names("key", "key-d*") == ["key-direct", "key"]
    assert names("nop[25]") == ["nop5", "nop2"]


@pytest.mark.parametrize("pattern", ["", "no", "NOP5", "nop5 ", "key-*x", "["])
def test_an_unknown_name_is_wrong_usage(pattern: str) -> None:
    with pytest.raises(UsageError, match="no scenario is called") as caught:
        scenario.select(["nop5", pattern])
    assert caught.value.exit_status == 129
    assert "the scenarios are: nop5, line" in str(caught.value)


def test_the_nearest_name_is_suggested() -> None:
    with pytest.raises(UsageError, match=r"jump32 \(did you mean jmp32\?\)"):
        scenario.select(["jump32"])


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(scenario, "DIRECTORY", tmp_path)
    return tmp_path


def test_defaults(directory: Path) -> None:
    (directory / "a.yaml").write_text(GOOD)
    (entry,) = scenario.load_all()
    assert (entry.name, entry.how, entry.passes) == ("a", "direct", 1)


def test_order_then_name(directory: Path) -> None:
    for name, order in (("c", 1), ("b", 2), ("a", 2)):
        (directory / f"{name}.yaml").write_text(f"{GOOD}order: {order}\n")
    assert names() == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file"),
        ("- a list\n", "the file"),
        ("title: [\n", "the file"),
        ("title: t\npromise: p\n", "has a site or sysctls (NAME.yaml) or is code (NAME.c)"),
        (GOOD + "sites: nop5\n", "sites: Extra inputs"),
        (GOOD + "name: other\n", "the file"),
        (GOOD.replace("nop5", "nop6"), "site: Input should be 'nop5'"),
        (GOOD + "how: slowly\n", "how: Input should be"),
        (GOOD + "how: owner\n", "the site nop5 has no owner in the kernel"),
        (GOOD + "passes: 0\n", "passes: Input should be greater"),
        (GOOD + "passes: many\n", "passes: Input should be a valid integer"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(directory: Path, text: str, said: str) -> None:
    (directory / "wrong.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        scenario.load_all()
    assert str(caught.value).startswith("wrong.yaml: ")
    assert said in str(caught.value)


def test_no_scenario_at_all_is_no_run(directory: Path) -> None:
    with pytest.raises(InfraError, match="incomplete"):
        scenario.select([])


CODE = """// SPDX-License-Identifier: GPL-2.0
/*
 * title: t
 * promise: >-
 *   p.
 * symbols: [a, b]
 * companion: |
 *   if true; then
 *           exit 4
 *   fi
 */
#include "scenario.h"
"""


def test_code_says_in_its_first_comment_what_it_is(directory: Path) -> None:
    (directory / "some-code.c").write_text(CODE)
    (entry,) = scenario.load_all()
    assert (entry.name, entry.title, entry.promise, entry.symbols) == (
        "some-code",
        "t",
        "p.",
        ("a", "b"),
    )
    assert entry.companion == "if true; then\n        exit 4\nfi\n"
    assert entry.code == directory / "some-code.c"
    assert entry.parts == ("free",)
    assert entry.exclusive


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("int x;\n", "its first comment must have at least title and promise"),
        (CODE.replace("title", "titel"), "titel: Extra inputs"),
        (
            CODE.replace(" * symbols", " * site: nop5\n * symbols"),
            "a site or sysctls (NAME.yaml) or is code (NAME.c)",
        ),
    ],
)
def test_code_that_is_wrong_is_named_too(directory: Path, text: str, said: str) -> None:
    (directory / "wrong.c").write_text(text)
    with pytest.raises(UsageError) as caught:
        scenario.load_all()
    assert str(caught.value).startswith("wrong.c: ")
    assert said in str(caught.value)


def test_two_files_of_one_name(directory: Path) -> None:
    (directory / "one.c").write_text(CODE)
    (directory / "one.yaml").write_text(GOOD)
    with pytest.raises(UsageError, match="two scenarios called one"):
        scenario.load_all()


def _named(*names: str) -> list[scenario.Scenario]:
    return [one for one in scenario.load_all() if one.name in names]


@pytest.mark.parametrize("patterns", [(), ("*",)])
def test_sysctls_are_for_kernels_without_headers_and_for_who_asks(
    patterns: tuple[str, ...],
) -> None:
    everything = scenario.select(patterns)
    with_module = scenario.runnable(everything, patterns, headers=True)
    without = scenario.runnable(everything, patterns, headers=False)
    assert without and all(one.sysctls for one in without)
    assert len(with_module) + len(without) == len(everything) and not any(
        one.sysctls for one in with_module
    )
    assert scenario.runnable(_named("sysctl"), ("sysctl",), headers=True) == _named("sysctl")


@pytest.mark.parametrize(
    ("patterns", "headers", "said"),
    [
        (
            ("nop5",),
            False,
            "nop5 needs the test module, and the kernel has no headers to build it with",
        ),
        (
            ("nop*",),
            False,
            "nop*: all of these need the test module, and the kernel has no headers to build it with",
        ),
        (
            ("nop5", "sysctl"),
            True,
            "sysctl runs without the test module, so it cannot be combined with nop5",
        ),
    ],
)
def test_what_cannot_be_run_together_is_said(
    patterns: tuple[str, ...], headers: bool, said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        scenario.runnable(scenario.select(patterns), patterns, headers=headers)
    assert str(caught.value) == said
