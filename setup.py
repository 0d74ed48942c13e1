# SPDX-License-Identifier: GPL-2.0-only
"""What pyproject.toml has no words for: the program's data and its commit go into the packages.

guest/ and kernels/ are at the top of a checkout, and in orchestrator/data/ of a wheel
(orchestrator/host/paths.py). An sdist has the layout of a checkout. Both carry the commit that they
were built from in a file of its own, for `orchestrator --version`.
"""

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

TOP = Path(__file__).resolve().parent
sys.path.insert(0, str(TOP))

from orchestrator.host import version  # noqa: E402


class BuildWithData(build_py):
    """Copies the modules, and the data unless the checkout itself is installed (--editable)."""

    def run(self) -> None:
        if not self.editable_mode:
            # setuptools never removes what an earlier build has left there.
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        if self.editable_mode:
            return
        data = Path(self.build_lib, "orchestrator", "data")
        for folder in ("guest", "kernels"):
            ignored = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(TOP / folder, data / folder, ignore=ignored)
        (data / version.FILE).write_text(f"{version.commit()}\n")


class SdistWithCommit(sdist):
    """Adds the commit, as an sdist is no git repository."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        # It may be a hard link to the file of another sdist.
        file = Path(base_dir, version.FILE)
        file.unlink(missing_ok=True)
        file.write_text(f"{version.commit()}\n")


setup(cmdclass={"build_py": BuildWithData, "sdist": SdistWithCommit})
