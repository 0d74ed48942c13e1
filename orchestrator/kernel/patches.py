# SPDX-License-Identifier: GPL-2.0-only
"""Applies patches without touching the source tree: changed files go to a separate directory."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from orchestrator.errors import BuildError, UsageError, shortened
from orchestrator.host import proc, userfile
from orchestrator.kernel import mails


def listed(series: Path) -> list[Path]:
    """The patches in the file `series` (quilt's format: one a line, `#` begins a comment).

    Patches are beside the file or in patches/ beside it. Raises UsageError if one is missing.
    """
    patches: list[Path] = []
    for number, line in enumerate(userfile.read_text(series, "series").splitlines(), 1):
        if name := line.partition("#")[0].strip():
            places = (series.parent / name, series.parent / "patches" / name)
            patch = next((place for place in places if os.path.isfile(place)), None)  # noqa: PTH113
            if not patch:
                raise UsageError(f"{series}:{number}: there is no patch {shortened(name)}")
            if len(patches) == mails.MOST:
                raise UsageError(f"{series} lists more than {mails.MOST} patches")
            patches.append(patch)
    return patches


def read(files: Iterable[Path]) -> list[tuple[str, str]]:
    """(name, diff) of each patch in `files`, in order; the name of a mail includes its subject.

    Raises UsageError for a file that is missing or has no patch.
    """
    texts: list[tuple[str, str]] = []
    for file in files:
        raw = userfile.read_bytes(file, "patch", userfile.PATCH)
        patches = mails.diffs(raw, file)
        if patches is None:
            text = raw.decode(errors="surrogateescape").replace("\r\n", "\n")
            patches = [("", text)] if mails.DIFF.search(text) else []
        if not patches:
            raise UsageError(f"{file} is not a patch: it has no `+++ b/FILE` line")
        texts += [
            (f"{file} ({subject})" if subject else str(file), text) for subject, text in patches
        ]
    return texts


def touched(text: str) -> set[str]:
    """Paths that the patch may read or write.

    There may be too many, which is harmless: a line inside a hunk can look like a header.
    """
    paths = re.findall(r"^(?:---|\+\+\+) (?:[^/\s]+)/([^\t\n]+?)(?:\t.*)?$", text, re.MULTILINE)
    paths += re.findall(r"^(?:rename|copy) (?:from|to) (.+)$", text, re.MULTILINE)
    for both in re.findall(r"^diff --git a/(\S+) b/(\S+)$", text, re.MULTILINE):
        paths += both
    return {path for path in paths if not path.startswith("/") and ".." not in Path(path).parts}


def apply(
    patches: Iterable[Path], original: Callable[[str], Path | None], scratch: Path
) -> dict[str, Path | None]:
    """Apply `patches` to copies of the files they touch.

    original: finds the file in the source for a path, or None.
    scratch: directory for the copies, made if it does not exist.

    Returns path -> file in `scratch` for every path whose content changed, None for a deleted file.
    Offsets are accepted but fuzz is not: a hunk whose context differs may land in the wrong place.
    Raises BuildError with the patch, file and hunk that failed.
    """
    git = proc.need("git", "git")
    texts = read(patches)
    scratch.mkdir(parents=True, exist_ok=True)
    copied: set[str] = set()
    patch = scratch.with_name(f"{scratch.name}.patch")
    for name, text in texts:
        for path in touched(text) - copied:
            copied.add(path)
            source = original(path)
            if source is not None:
                (scratch / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, scratch / path)
        # If `scratch` is inside some git repository, git must not find it: it would silently skip
        # the untracked files.
        env = {"GIT_CEILING_DIRECTORIES": str(scratch.resolve().parent)}
        command = [git, "apply", "-p1", "--whitespace=nowarn"]
        patch.write_text(text, errors="surrogateescape")
        if proc.run([*command, patch.resolve()], cwd=scratch, env=env, check=False).returncode:
            command += ["--reject", "--verbose"]
            rejected = proc.run([*command, patch.resolve()], cwd=scratch, env=env, check=False)
            raise BuildError(f"{name} does not apply: {explain(rejected.stdout)}")
    patch.unlink(missing_ok=True)
    changed: dict[str, Path | None] = {}
    present = {str(path.relative_to(scratch)) for path in scratch.rglob("*") if path.is_file()}
    for path in sorted(copied | present):
        source = original(path)
        if path not in present:
            if source is not None:
                changed[path] = None
        elif source is None or _differ(source, scratch / path):
            changed[path] = scratch / path
    return changed


def explain(output: str) -> str:
    """`FILE: hunk #2 does not fit (near line 120)` for each failure.

    output: what `git apply --reject --verbose` printed.
    """
    problems: list[str] = []
    file = ""
    # git prints all errors before all rejects, both in the order of the hunks.
    lines: dict[str, list[str]] = {}
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
