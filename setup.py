# SPDX-License-Identifier: GPL-2.0-only
"""What pyproject.toml has no words for: the program's data, its commit and its man pages.

guest/ and kernels/ are at the top of a checkout, and in orchestrator/data/ of a wheel
(orchestrator/host/paths.py). An sdist has the layout of a checkout. Both carry the commit that they
were built from in a file of its own, for `orchestrator --version`.
"""

import argparse
import shutil
import sys
from pathlib import Path

from argparse_manpage.manpage import Manpage
from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

TOP = Path(__file__).resolve().parent
sys.path.insert(0, str(TOP))

from orchestrator import __version__  # noqa: E402
from orchestrator.commands.parser import COMMANDS, parser  # noqa: E402
from orchestrator.host import version  # noqa: E402

MAN = Path("build", "man")
"""Where the man pages are made, relative to the top of the source."""
PAGES = ["orchestrator", *(f"orchestrator-{name}" for name in COMMANDS)]


class BuildWithData(build_py):
    """Copies the modules, and the data unless the checkout itself is installed (--editable)."""

    def run(self) -> None:
        make_man_pages(TOP / MAN)
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


def make_man_pages(directory: Path) -> None:
    """Write a man page for the program and for each command, from their parsers."""
    directory.mkdir(parents=True, exist_ok=True)
    top = parser()
    parsers = {"orchestrator": top, **commands_of(top)}
    for page in PAGES:
        (directory / f"{page}.1").write_text(man_page(page, parsers[page]))


def commands_of(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (action,) = (one for one in top._actions if isinstance(one, argparse._SubParsersAction))
    return {f"orchestrator-{name}": child for name, child in action.choices.items()}


def man_page(name: str, source: argparse.ArgumentParser) -> str:
    epilog, source.epilog = source.epilog, None
    source.man_short_description = str(source.description).partition(".")[0].splitlines()[0]
    source._manpage = []
    for part in (epilog or "").split("\n\n"):
        heading, _, text = part.partition(":\n")
        if text:  # its lines stay as they are
            lines = text.replace("\\", "\\e").replace("-", "\\-").splitlines()
            content = "\n".join(["", ".nf", *(f"\\&{line}" for line in lines), ".fi"])
            source._manpage.append({"heading": heading, "content": content})
    page = Manpage(source)
    page.prog, page.source, page.manual = name, f"orchestrator {__version__}", "User Commands"
    return str(page)


setup(
    cmdclass={"build_py": BuildWithData, "sdist": SdistWithCommit},
    data_files=[("share/man/man1", [str(MAN / f"{page}.1") for page in PAGES])],
)
