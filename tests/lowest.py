# SPDX-License-Identifier: GPL-2.0-only
"""Prints the lowest versions that pyproject.toml allows, as constraints for pip: NAME==VERSION.

`make test-lowest` runs the unit tests with them, so that no lower bound is a guess.
"""

import re
import tomllib
from pathlib import Path

FILE = Path(__file__).resolve().parent.parent / "pyproject.toml"


def lowest(requirements: list[str]) -> dict[str, str]:
    """The lower bound of each requirement that has one."""
    bounds = {}
    for requirement in requirements:
        if match := re.fullmatch(r"([\w.-]+)>=([\w.]+)", requirement):
            bounds[match[1]] = match[2]
    return bounds


def main() -> None:
    project = tomllib.loads(FILE.read_text())["project"]
    requirements = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        requirements += extra
    for name, version in sorted(lowest(requirements).items()):
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
