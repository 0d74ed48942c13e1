"""Applying patches to a source tree without touching it: the result is the changed files, in a folder of their own."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from orchestrator.errors import BuildError, UsageError
from orchestrator.host import proc
from orchestrator.kernel import mails


def listed(series: Path) -> list[Path]:
    """The patches that the file `series` lists, one a line (quilt): beside it or in patches/ beside it."""
    if not series.is_file():
        raise UsageError(f"there is no series {series}")
    found: list[Path] = []
    for number, line in enumerate(series.read_text().splitlines(), 1):
        if name := line.partition("#")[0].strip():
            places = (series.parent / name, series.parent / "patches" / name)
            patch = next((place for place in places if place.is_file()), None)
            if not patch:
                raise UsageError(f"{series}:{number}: there is no patch {name}")
            found.append(patch)
    return found


def read(files: Iterable[Path]) -> list[tuple[str, str]]:
    """(name, diff) of each patch, in order. A mail's name has its subject. A file without any is wrong usage."""
    texts: list[tuple[str, str]] = []
    for file in files:
        if not file.is_file():
            raise UsageError(f"there is no patch {file}")
        sent = mails.diffs(file)
        if sent is None:
            text = file.read_text(errors="surrogateescape")
            sent = [("", text)] if mails.DIFF.search(text) else []
        if not sent:
            raise UsageError(f"{file} is not a patch: it has no `+++ b/FILE` line")
        texts += [(f"{file} ({subject})" if subject else str(file), text) for subject, text in sent]
    return texts


def touched(text: str) -> set[str]:
    """Paths that the patch may read or write. A line inside a hunk may be taken for a header: too many do no harm."""
    paths = re.findall(r"^(?:---|\+\+\+) (?:[^/\s]+)/([^\t\n]+?)(?:\t.*)?$", text, re.MULTILINE)
    paths += re.findall(r"^(?:rename|copy) (?:from|to) (.+)$", text, re.MULTILINE)
    paths += [
        path
        for pair in re.findall(r"^diff --git a/(\S+) b/(\S+)$", text, re.MULTILINE)
        for path in pair
    ]
    return {path for path in paths if not path.startswith("/") and ".." not in Path(path).parts}


def apply(
    patches: Iterable[Path], original: Callable[[str], Path | None], scratch: Path
) -> dict[str, Path | None]:
    """Apply `patches` in order to copies in `scratch` of the files that `original(path)` finds in the source.

    Returns every path whose content is now different, with its file in `scratch`, None where it was deleted. Offsets
    are accepted, fuzz is not: a hunk whose context differs may land in the wrong place. BuildError says which patch,
    file and hunk failed.
    """
    git = proc.need("git", "git")
    texts = read(patches)
    scratch.mkdir(parents=True, exist_ok=True)
    fetched: set[str] = set()
    letter = scratch.with_name(f"{scratch.name}.patch")
    for name, text in texts:
        for path in touched(text) - fetched:
            fetched.add(path)
            source = original(path)
            if source is not None:
                (scratch / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, scratch / path)
        # The scratch folder may lie inside somebody's repository, which would make git skip "untracked" files.
        env = {"GIT_CEILING_DIRECTORIES": str(scratch.resolve().parent)}
        command = [git, "apply", "-p1", "--whitespace=nowarn"]
        letter.write_text(text, errors="surrogateescape")
        if proc.run([*command, letter.resolve()], cwd=scratch, env=env, check=False).returncode:
            said = proc.run(
                [*command, "--reject", "--verbose", letter.resolve()],
                cwd=scratch,
                env=env,
                check=False,
            )
            raise BuildError(f"{name} does not apply: {explain(said.stdout)}")
    letter.unlink(missing_ok=True)
    changed: dict[str, Path | None] = {}
    present = {str(path.relative_to(scratch)) for path in scratch.rglob("*") if path.is_file()}
    for path in sorted(fetched | present):
        source = original(path)
        if path not in present:
            if source is not None:
                changed[path] = None
        elif source is None or _differ(source, scratch / path):
            changed[path] = scratch / path
    return changed


def explain(output: str) -> str:
    """`FILE: hunk #2 (near line 120)` for each failure in the output of `git apply --reject --verbose`."""
    problems: list[str] = []
    file = ""
    lines: dict[
        str, list[str]
    ] = {}  # all errors come before all rejects, both in the order of the hunks
    for text in output.splitlines():
        if match := re.match(r"Applying patch (.+?)(?: with \d+ rejects?)?\.\.\.$", text):
            file = match[1]
        elif match := re.match(r"error: patch failed: (.+):(\d+)$", text):
            lines.setdefault(match[1], []).append(f" (near line {match[2]})")
        elif match := re.match(r"Rejected hunk #(\d+)\.$", text):
            place = lines[file].pop(0) if lines.get(file) else ""
            problems.append(f"{file}: hunk #{match[1]} does not fit{place}")
        elif match := re.match(
            r"error: (.+): (No such file or directory|already exists in working directory)$", text
        ):
            problems.append(f"{match[1]}: {match[2].lower().replace(' in working directory', '')}")
    if not problems:
        problems = [text for text in output.splitlines() if text.startswith(("error:", "fatal:"))]
    more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
    return ("; ".join(problems[:4]) + more) or output.strip()[-300:]


def _differ(left: Path, right: Path) -> bool:
    return left.read_bytes() != right.read_bytes() or left.stat().st_mode != right.stat().st_mode
