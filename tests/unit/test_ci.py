# SPDX-License-Identifier: GPL-2.0-only
"""The files for CI servers and container engines: what they call exists and takes it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator import cli
from orchestrator.host.paths import PROJECT

CONTAINERFILE = (PROJECT / "Containerfile").read_text()
WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))


def load(name: str) -> Any:
    return yaml.safe_load((PROJECT / name).read_text())


def accepted(line: str) -> None:
    """Parse the arguments of a command line; fails if the program would refuse them."""
    cli.parser().parse_args(shlex.split(line))


def run_steps(file: Path) -> list[str]:
    jobs = yaml.safe_load(file.read_text())["jobs"].values()
    return [step["run"] for job in jobs for step in job["steps"] if "run" in step]


def test_the_arguments_in_all_files_are_valid() -> None:
    action, gitlab = load("action.yml"), load("ci/gitlab.yml")
    accepted(action["inputs"]["arguments"]["default"])
    accepted(gitlab[".orchestrator"]["variables"]["ORCHESTRATOR"])
    for file in ("action.yml", "ci/gitlab.yml", "Containerfile", ".github/workflows/ci.yml"):
        text = (PROJECT / file).read_text().replace("\\\n#", "")
        for line in re.findall(r"(?:arguments|ORCHESTRATOR): (run [^}\n]*)", text):
            accepted(line)
        for line in re.findall(r"orchestrator (run .*)", text):
            accepted(line)


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_each_target_of_make_exists(file: Path) -> None:
    makefile = (PROJECT / "Makefile").read_text()
    targets = re.findall(r"^make (\S+)", "\n".join(run_steps(file)), re.MULTILINE)
    assert targets
    for target in targets:
        assert re.search(f"^{target}:", makefile, re.MULTILINE), target


def test_action_and_template_use_the_containerfile() -> None:
    steps = load("action.yml")["runs"]["steps"]
    assert any("docker build" in step.get("run", "") for step in steps)
    assert all("shell" in step for step in steps if "run" in step)
    gitlab = load("ci/gitlab.yml")
    assert "--file Containerfile" in " ".join(gitlab["orchestrator-image"]["script"])


def test_no_input_of_the_action_is_pasted_into_a_script() -> None:
    # It may come from the title of a pull request.
    for step in load("action.yml")["runs"]["steps"]:
        assert "${{" not in step.get("run", "")


def test_the_cache_is_saved_when_a_kernel_fails() -> None:
    # actions/cache saves only after a success, so a failing kernel would be built every time.
    for file in (PROJECT / "action.yml", *WORKFLOWS):
        text = file.read_text()
        assert "uses: actions/cache@" not in text
        for save in re.finditer(r"actions/cache/save", text):
            assert "if: always()" in text[: save.start()].splitlines()[-2]


def test_a_container_keeps_its_caches_where_its_volumes_are() -> None:
    assert "XDG_CACHE_HOME=/var/cache" in CONTAINERFILE
    assert "--volume orchestrator:/var/cache" in CONTAINERFILE
    action = (PROJECT / "action.yml").read_text()
    assert "~/.cache/orchestrator:/var/cache/orchestrator" in action
