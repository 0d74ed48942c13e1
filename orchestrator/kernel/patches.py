# SPDX-License-Identifier: GPL-2.0-only
"""Applies patches without touching the source tree: changed files go to a separate directory."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.errors import BuildError, UsageError, sentence, shortened
from orchestrator.host import proc, userfile
from orchestrator.host.paths import state_dir, write_whole
from orchestrator.kernel import diff, mails
from orchestrator.kernel.diff import Damaged
from orchestrator.kernel.inert import is_inert
from orchestrator.kernel.mails import Letter

STDIN = Path("-")
SUFFIXES = (".patch", ".diff", ".eml", ".mbox", ".mbx", ".gz", ".xz", ".bz2")
"""The files of a directory that may have patches."""


def argument(text: str) -> Path:
    """The file that `--patch TEXT` names. `-` is standard input, which is kept for repeat.sh."""
    if Path(text) != STDIN:
        return Path(text)
    if sys.stdin is None:  # closed
        raise UsageError("--patch -: there is no standard input")
    raw = sys.stdin.buffer.read(userfile.PATCH + 1)
    file = state_dir() / "patches" / f"stdin-{hashlib.sha256(raw).hexdigest()[:12]}.patch"
    file.parent.mkdir(exist_ok=True)
    write_whole(file, raw)
    return file


def listed(series: Path) -> list[Path]:
    """The patches in the file `series` (quilt's format: one a line, `#` begins a comment).

    Patches are beside the file or in patches/ beside it. Raises UsageError if one is missing.
    """
    patches: list[Path] = []
    for number, line in enumerate(userfile.read_text(series, "series").splitlines(), 1):
        if words := line.partition("#")[0].split():
            name, *options = words
            if strange := [word for word in options if word not in ("-p1", "-pab")]:
                raise UsageError(
                    f"{series}:{number}: the option {shortened(strange[0])} is not supported"
                )
            patch = _beside(series, name)
            if not patch:
                raise UsageError(f"{series}:{number}: there is no patch {shortened(name)}")
            if len(patches) == mails.MOST:
                raise UsageError(f"{series} lists more than {mails.MOST} patches")
            patches.append(patch)
    return patches


def _beside(series: Path, name: str) -> Path | None:
    places = (series.parent / name, series.parent / "patches" / name)
    return next((place for place in places if os.path.isfile(place)), None)  # noqa: PTH113


@dataclass(frozen=True)
class _Group:
    """Files whose mails are numbered together."""

    where: Path
    """For messages."""
    files: Sequence[Path]
    thread: bool = True
    """Whether there may be other mails among them than patches."""

    def letters(self) -> list[Letter]:
        return [letter for file in self.files for letter in _letters(file)]


def letters(files: Iterable[Path]) -> list[Letter]:
    """Each patch in `files`, in the order in which they apply.

    A file may be a diff, a mail, the mbox of a thread, any of them compressed, a directory of such
    files, or a series as quilt lists it.

    Raises UsageError for a file that is missing, damaged, or has no patch.
    """
    return [
        _checked(letter)
        for file in files
        for group in _groups(file)
        for letter in mails.choose(group.letters(), group.where, thread=group.thread)
    ]


def filed(letter: Letter, number: int) -> Path:
    """A file with this patch alone, for one that came with others. number: in its series."""
    words = re.sub(r"[^\w.]+", "-", re.sub(r"^(\s*\[[^]]*\])*", "", letter.subject)).strip("-")
    digest = hashlib.sha256(letter.text.encode(errors="surrogateescape")).hexdigest()[:8]
    file = state_dir() / "patches" / f"{number:04}-{words[:52] or 'patch'}-{digest}.patch"
    file.parent.mkdir(exist_ok=True)
    text = f"Subject: {letter.subject}\n\n{letter.text}"
    write_whole(file, text.encode(errors="surrogateescape"))
    return file


def read(files: Iterable[Path]) -> list[tuple[str, str]]:
    """(name, diff) of each patch in `files`, as letters(); a mail's name includes its subject."""
    return [
        (f"{letter.file} ({letter.subject})" if letter.subject else str(letter.file), letter.text)
        for letter in letters(files)
    ]


def canonical(files: Iterable[Path]) -> list[str]:
    """What each patch in `files` changes: the same for the same change as a mail and as a diff."""
    return [diff.canonical(text) for _, text in read(files)]


def base(files: Iterable[Path]) -> str | None:
    """The commit that `files` were made on, if a `base-commit:` says so (git format-patch --base).

    Raises UsageError if there is more than one.
    """
    groups = [group for file in files for group in _groups(file)]
    found = {letter.base for group in groups for letter in group.letters() if letter.base}
    if len(found) > 1:
        raise UsageError("the patches name more than one base-commit")
    return next(iter(found), None)


def _groups(file: Path) -> list[_Group]:
    try:
        return _groups_of(file)
    except OSError as error:
        raise UsageError(f"{file} cannot be read as a patch: {sentence(error)}") from error


def _groups_of(file: Path) -> list[_Group]:
    if not file.is_dir():
        series = _series(file)
        return [_Group(one, [one]) for one in (listed(file) if series else [file])]
    if (file / "series").is_file():
        return _groups(file / "series")
    maildir = [one for name in ("cur", "new") for one in (file / name).glob("[!.]*")]
    found = [one for one in sorted(file.iterdir()) if one.name.endswith(SUFFIXES)]
    members = sorted(maildir) or [one for one in found if one.is_file()]
    if not members:
        raise UsageError(f"{file} is a directory without a patch ({', '.join(SUFFIXES)})")
    if len(members) > mails.MOST:
        raise UsageError(f"{file} has more than {mails.MOST} files: keep only those to apply")
    return [_Group(file, members, thread=False)]


def _series(file: Path) -> bool:
    """Whether `file` lists patches, as quilt's series does, and is none itself."""
    if file.name == "series":
        return True
    start = userfile.read_bytes(file, "patch", userfile.PATCH)[: mails.HEAD].decode(
        errors="replace"
    )
    lines = (line.partition("#")[0].split() for line in start.splitlines())
    words = next((words for words in lines if words), [])
    named = file.suffix == ".series" or bool(words and _beside(file, words[0]))
    return named and not mails.DIFF.search(start)


def _letters(file: Path) -> list[Letter]:
    """All mails in `file`, or the diff that it is."""
    raw = userfile.read_bytes(file, "patch", userfile.PATCH)
    if raw.startswith(b"\x28\xb5\x2f\xfd"):
        raise UsageError(f"{file} is compressed with zstd: unpack it first")
    try:
        raw = diff.unpacked(raw, userfile.PATCH)
    except ValueError as error:
        raise UsageError(f"{file} is not a patch: {error}") from error
    if len(raw) > userfile.PATCH:
        raise UsageError(f"{file} has more than {userfile.PATCH >> 20} MiB unpacked")
    found = mails.letters(raw, file)
    if found is not None:
        return found
    text = raw.decode(errors="surrogateescape").replace("\r\n", "\n")
    if mails.DIFF.search(text):
        text += "" if text.endswith("\n") else "\n"  # lost when it was copied
        return [Letter(file=file, text=text, base=mails.base(text))]
    reason = "it only quotes one" if mails.QUOTED.search(text) else mails.NO_DIFF
    return [Letter(file=file, why_not=reason)]


def _checked(letter: Letter) -> Letter:
    try:
        diff.canonical(letter.text)
    except Damaged as error:
        what = f"{letter.file} ({letter.subject})" if letter.subject else str(letter.file)
        raise UsageError(
            f"{what} is damaged: {error}; mail programs that wrap lines or drop spaces do this"
        ) from error
    return letter


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
    What they do to files that cannot affect the kernel is left out, as these files are.
    Offsets are accepted but fuzz is not: a hunk whose context differs may land in the wrong place.
    Raises BuildError with the patch, file and hunk that failed.
    """
    git = proc.need("git", "git")
    texts = read(patches)
    scratch.mkdir(parents=True, exist_ok=True)
    copied: set[str] = set()
    patch = scratch.with_name(f"{scratch.name}.patch")
    for name, text in texts:
        paths = touched(text)
        left_out = {path for path in paths if is_inert(path)}
        for path in paths - copied - left_out:
            copied.add(path)
            source = original(path)
            if source is not None:
                (scratch / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, scratch / path)
        # If `scratch` is inside some git repository, git must not find it: it would silently skip
        # the untracked files.
        env = {"GIT_CEILING_DIRECTORIES": str(scratch.resolve().parent)}
        command = [git, "apply", "-p1", "--whitespace=nowarn"]
        command += [f"--exclude={glob.escape(path)}" for path in sorted(left_out)]
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
