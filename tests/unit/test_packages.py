# SPDX-License-Identifier: GPL-2.0-only
"""sdist and wheel: what is in them, and that the program works from a wheel as from a checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import lowest
import pytest

from orchestrator.commands.parser import COMMANDS
from orchestrator.host import version
from orchestrator.host.paths import PROJECT
from orchestrator.many import program

COMMIT = "0123456789ab"
OLD = int(metadata.version("setuptools").split(".")[0]) < 77
pytestmark = pytest.mark.skipif(OLD, reason="setuptools is too old to build this project")


def git_files(*folders: str) -> set[str]:
    """All files of the checkout, but for those that git ignores."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    names = {name for name in done.stdout.splitlines() if (PROJECT / name).is_file()}
    if not names:
        pytest.skip("this is no git repository")
    return names


def build(kind: str, source: Path, target: Path) -> Path:
    """Build the `kind` of package of `source` without the network."""
    script = f"import sys, setuptools.build_meta as b; print(b.build_{kind}(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(target)], cwd=source, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist of the checkout as it is, unpacked."""
    directory = tmp_path_factory.mktemp("sdist")
    copy = directory / "copy"
    for name in git_files():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((PROJECT / name).read_bytes())
    (copy / version.FILE).write_text(f"{COMMIT}\n")  # as the copy is no git repository
    with tarfile.open(build("sdist", copy, directory)) as archive:
        archive.extractall(directory / "unpacked", filter="data")
    (root,) = (directory / "unpacked").iterdir()
    return root


@pytest.fixture(scope="module")
def installed(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of the wheel that the sdist makes."""
    directory = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(build("wheel", sdist, directory)) as archive:
        archive.extractall(directory / "installed")
    return directory / "installed"


def call(installed: Path, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the installed program from anywhere."""
    env = {
        **os.environ,
        "PYTHONPATH": str(installed),
        "XDG_CACHE_HOME": str(cwd / "cache"),
        "XDG_STATE_HOME": str(cwd / "state"),
    }
    return subprocess.run(
        [sys.executable, "-P", *command], cwd=cwd, env=env, capture_output=True, text=True
    )


def files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_the_sdist_has_every_file_of_the_checkout(sdist: Path) -> None:
    assert git_files() - files(sdist) == set()


def test_the_wheel_has_the_program_and_its_data_and_nothing_else(installed: Path) -> None:
    data = "orchestrator/data"
    names = {name for name in files(installed) if ".dist-info/" not in name}
    expected = git_files("orchestrator")
    expected |= {f"{data}/{name}" for name in git_files("guest", "kernels")}
    own = "int3_orchestrator-0.1.0.data"
    expected |= {f"{data}/commit", f"{own}/scripts/orchestrator"}
    pages = ["orchestrator", *(f"orchestrator-{name}" for name in COMMANDS)]
    expected |= {f"{own}/data/share/man/man1/{page}.1" for page in pages}
    assert names == expected


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_a_man_page(installed: Path, name: str) -> None:
    (page,) = installed.rglob(f"orchestrator-{name}.1")
    text = page.read_text()
    assert ".SH EXAMPLES" in text and ".SH EXIT STATUS" in text and "129" in text
    if shutil.which("groff"):
        command = ["groff", "-man", "-Tutf8", "-ww", str(page)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
        assert f"orchestrator {name}" in " ".join(re.sub("\x1b[^m]*m", "", done.stdout).split())


def test_the_wheel_knows_the_commit(installed: Path, tmp_path: Path) -> None:
    done = call(installed, "-m", "orchestrator", "--version", cwd=tmp_path)
    assert done.stdout == f"orchestrator 0.1.0 ({COMMIT})\n"


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["scenarios"], 0, "nop5 "),
        (["mutants", "--only", "no-int4"], 129, "no-int3"),
        (["run", "--kernel", "6.1-int4"], 129, "6.1-int3"),
        (["doctor"], None, f"{COMMIT}), complete"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_commands_find_their_data(
    installed: Path, tmp_path: Path, arguments: Sequence[str], status: int | None, text: str
) -> None:
    done = call(installed, "-m", "orchestrator", *arguments, cwd=tmp_path)
    assert status in (None, done.returncode), done.stderr
    assert text in done.stdout + done.stderr


def test_a_wheel_is_the_same_program_as_its_checkout(installed: Path, tmp_path: Path) -> None:
    # A worker of a sweep refuses to run cells for another program.
    script = "from orchestrator.many import program; print(program.__file__, program.digest())"
    path, digest = call(installed, "-c", script, cwd=tmp_path).stdout.split()
    assert Path(path).is_relative_to(installed)
    assert digest == program.digest()


def test_every_requirement_has_a_lower_bound_that_can_be_tested() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    bounds = lowest.lowest(project["dependencies"])
    assert len(bounds) == len(project["dependencies"])
    for requirements in project["optional-dependencies"].values():
        pinned = [name for name in requirements if "~=" in name or name.startswith("types-")]
        assert len(lowest.lowest(requirements)) == len(requirements) - len(pinned)
