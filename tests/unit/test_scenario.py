# SPDX-License-Identifier: GPL-2.0-only
"""Scenarios: the existing ones, selection, and invalid files."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import InfraError, UsageError
from orchestrator.scenarios import scenario

GOOD = "title: t\npromise: p\nsite: nop5\n"


def test_the_scenarios_of_the_project_are_valid() -> None:
    known = scenario.load_all()
    assert [entry.order for entry in known] == sorted(entry.order for entry in known)
    assert {"nop5", "jmp32", "nop2", "one", "key"} <= {entry.name for entry in known}
    assert {entry.how for entry in known} == {"direct", "owner"}
    for entry in known:
        assert entry.title
        assert entry.promise.endswith(".")


def names(*patterns: str) -> list[str]:
    return [entry.name for entry in scenario.select(patterns)]


def test_select_takes_patterns() -> None:
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


def test_default_values(directory: Path) -> None:
    (directory / "a.yaml").write_text(GOOD)
    (entry,) = scenario.load_all()
    assert (entry.name, entry.how, entry.passes) == ("a", "direct", 1)


def test_scenarios_are_sorted_by_order_and_then_by_name(directory: Path) -> None:
    for name, order in (("c", 1), ("b", 2), ("a", 2)):
        (directory / f"{name}.yaml").write_text(f"{GOOD}order: {order}\n")
    assert names() == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("text", "reason"),
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
def test_an_invalid_file_is_named_with_the_reason(directory: Path, text: str, reason: str) -> None:
    (directory / "wrong.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        scenario.load_all()
    assert str(caught.value).startswith("wrong.yaml: ")
    assert reason in str(caught.value)


def test_an_installation_without_scenarios_is_an_infra_error(directory: Path) -> None:
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


def test_the_first_comment_of_a_code_scenario_has_its_fields(directory: Path) -> None:
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
    ("text", "reason"),
    [
        ("int x;\n", "its first comment must have at least title and promise"),
        (CODE.replace("title", "titel"), "titel: Extra inputs"),
        (
            CODE.replace(" * symbols", " * site: nop5\n * symbols"),
            "a site or sysctls (NAME.yaml) or is code (NAME.c)",
        ),
    ],
)
def test_an_invalid_code_file_is_named_with_the_reason(
    directory: Path, text: str, reason: str
) -> None:
    (directory / "wrong.c").write_text(text)
    with pytest.raises(UsageError) as caught:
        scenario.load_all()
    assert str(caught.value).startswith("wrong.c: ")
    assert reason in str(caught.value)


def test_two_files_of_the_same_name_are_refused(directory: Path) -> None:
    (directory / "one.c").write_text(CODE)
    (directory / "one.yaml").write_text(GOOD)
    with pytest.raises(UsageError, match="two scenarios called one"):
        scenario.load_all()


def _named(*names: str) -> list[scenario.Scenario]:
    return [entry for entry in scenario.load_all() if entry.name in names]


@pytest.mark.parametrize("patterns", [(), ("*",)])
def test_sysctls_run_without_headers_or_on_request(
    patterns: tuple[str, ...],
) -> None:
    everything = scenario.select(patterns)
    with_module = scenario.runnable(everything, patterns, headers=True)
    without = scenario.runnable(everything, patterns, headers=False)
    assert without and all(entry.sysctls for entry in without)
    assert len(with_module) + len(without) == len(everything) and not any(
        entry.sysctls for entry in with_module
    )
    assert scenario.runnable(_named("sysctl"), ("sysctl",), headers=True) == _named("sysctl")


@pytest.mark.parametrize(
    ("patterns", "headers", "reason"),
    [
        (
            ("nop5",),
            False,
            "nop5 needs the test module, and it cannot be built for this kernel",
        ),
        (
            ("nop*",),
            False,
            "nop*: all of these need the test module, and it cannot be built for this kernel",
        ),
        (
            ("nop5", "sysctl"),
            True,
            "sysctl runs without the test module, so it cannot be combined with nop5",
        ),
    ],
)
def test_scenarios_that_cannot_run_together_are_refused(
    patterns: tuple[str, ...], headers: bool, reason: str
) -> None:
    with pytest.raises(UsageError) as caught:
        scenario.runnable(scenario.select(patterns), patterns, headers=headers)
    assert str(caught.value) == reason
