# SPDX-License-Identifier: GPL-2.0-only
"""Patches as people send them: finds the diffs in a mail, or in the mbox of a whole thread.

Python's parser takes a mail apart, whatever it is made of; `git mailinfo --scissors` then separates
the patch from the prose, as `git am` does.
"""

from __future__ import annotations

import email
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from email.errors import MessageError
from email.header import decode_header, make_header
from email.message import Message
from pathlib import Path

from orchestrator.errors import InfraError, UsageError, shortened
from orchestrator.host import keeper, proc
from orchestrator.kernel import diff

DIFF = re.compile(r"^(\+\+\+ |diff --git |rename from )", re.MULTILINE)
QUOTED = re.compile(r"^>[> ]*(\+\+\+ |diff --git |@@ )", re.MULTILINE)
HEADER = re.compile(rb"(?:[\w-]+:.*\r?\n(?:[ \t].*\r?\n)*)*From:.*\r?\n", re.IGNORECASE)
"""The beginning of a mail without an mbox separator: header fields, including From:."""
HEAD = 64 << 10
"""Bytes at the beginning of a file in which From: is searched for."""
SEPARATOR = re.compile(rb"^From [^\n]*\n(?=[\w-]+:)", re.MULTILINE)
"""The line between two mails of an mbox: prose that begins with `From ` has no header after it."""
FIELD = re.compile(rb"^(subject|content-[\w-]+):.*(\n[ \t].*)*", re.MULTILINE | re.IGNORECASE)
"""A header field that is looked at."""
LONGEST = 8 << 10
"""Most bytes of such a field. The time to parse it grows with the square of its length."""
DEEPEST = 20
"""Most parts of a mail that have parts themselves."""
LARGEST = 8 << 20
"""Most bytes of an mbox. A series of 1000 patches has about 5 MB."""
MOST = 1000
"""Most mails of an mbox, and patches of a series."""
NUMBER = re.compile(r"\[[^]]*?\b0*(\d+)/0*(\d+)[^]]*\]")
VERSION = re.compile(r"\[[^]]*?\b[vV](\d+)\b")
TAG = re.compile(r"\[[^]]*(PATCH|RFC)[^]]*\]", re.IGNORECASE)
REPLY = re.compile(r"(re|aw|fwd?):", re.IGNORECASE)
NOTICE = re.compile(
    r"""\[tip:|\[(folded-)?merged|\[(withdrawn|obsolete|to-be-updated|nacked)\]
    |Patch\ ".*"\ has\ been\ added|FAILED:\ patch|[-+]\ \S+\.patch\ (added|removed|in)\b""",
    re.IGNORECASE | re.VERBOSE,
)
"""The subject of a program's mail that repeats the patch of somebody else: it was applied."""
BASE = re.compile(r"^base-commit: ([0-9a-f]{40,64})$", re.MULTILINE)
NO_DIFF = "it has no `+++ b/FILE` line"
SUBJECT = 500
"""Most characters of a subject that are used."""


@dataclass(frozen=True, kw_only=True)
class Letter:
    """A mail, a mail that is attached to one, or a file with a diff and nothing else."""

    file: Path
    """The file that it is in."""
    subject: str = ""
    """Empty if it is not a mail."""
    text: str = ""
    """The diff, empty if there is none."""
    base: str | None = None
    """The commit that its author made the series on, if it is named."""
    why_not: str = ""
    """Why there is no diff."""

    @property
    def rank(self) -> int:
        """0 for a patch that was sent as one, more for what only talks about patches."""
        if REPLY.match(self.subject):
            return 3
        if NOTICE.match(self.subject):
            return 2
        return 0 if TAG.search(self.subject) else 1

    @property
    def title(self) -> str:
        """The subject without what is in brackets in front of it."""
        return re.sub(r"^(\s*\[[^]]*\])*\s*", "", self.subject).lower()

    @property
    def number(self) -> tuple[int, int] | None:
        """3 and 7 of `[PATCH 3/7]`."""
        match = NUMBER.search(self.subject)
        return (int(match[1]), int(match[2])) if match else None

    @property
    def version(self) -> int:
        match = VERSION.search(self.subject)
        return int(match[1]) if match else 1


def letters(raw: bytes, file: Path) -> list[Letter] | None:
    """All mails in `raw`, with or without a patch; None if it is neither a mail nor an mbox.

    file: where `raw` comes from, for messages. Raises UsageError for what cannot be read.
    """
    if raw.startswith(b"From "):
        mails = SEPARATOR.split(raw, MOST + 1)[1:]
        if len(mails) > MOST:
            raise UsageError(f"{file} has more than {MOST} mails: keep only those to apply")
    elif HEADER.match(raw[:HEAD]):
        mails = [raw]
    else:
        return None
    if len(raw) > LARGEST:
        raise UsageError(f"{file} has more than {LARGEST >> 20} MiB: keep only the mails to apply")
    return [letter for mail in mails for letter in _letters(mail, file)]


def choose(found: Sequence[Letter], file: Path, *, thread: bool = True) -> list[Letter]:
    """The patches to apply out of the mails `found` in `file`, in the order of their numbers.

    Replies and mails without a diff (the cover letter, the discussion) are left out, and so is what
    repeats a patch: a copy of a mail, or the message of a program that it was applied.

    thread: whether there may be other mails among them than patches.

    Raises UsageError unless the patches are exactly one complete series: the user has to decide
    which patches to apply.
    """
    patches = _distinct(letter for letter in found if letter.text)
    if not patches:
        reasons = [letter.why_not for letter in found if letter.why_not]
        raise UsageError(
            f"{file} is not a patch: {reasons[0] if reasons else 'no mail has a diff'}"
        )
    best = min(letter.rank for letter in patches)
    highest = best if thread else max(best, 1)
    patches = [letter for letter in patches if letter.rank <= highest]
    if best > 1 and len(patches) > 1:
        kind = "replies" if best == 3 else "messages of programs"
        raise UsageError(
            f"{file} has {len(patches)} patches, all in {kind}: keep only the one to apply"
        )
    return _ordered(file, patches)


def base(text: str) -> str | None:
    """The commit that the text names as the base of a series."""
    match = BASE.search(text)
    return match[1] if match else None


# -- one mail


def _letters(mail: bytes, file: Path) -> list[Letter]:
    """The mail, and the mails with a diff that are attached to it."""
    _check_fields(mail, file)
    try:
        message = email.message_from_bytes(mail)
        parts = [part for part in message.walk() if not part.is_multipart()]
        contents = [(part, _content(part)) for part in parts]
    except (MessageError, RecursionError, ValueError, LookupError) as error:
        raise UsageError(f"{file} has a mail that cannot be read: {error}") from error
    subject = _subject(message)
    attached: list[Letter] = []
    diffs: list[str] = []
    texts: list[str] = []
    others: list[str] = []
    for part, content in contents:
        name = part.get_filename()
        html = part.get_content_type() == "text/html" and not name
        text = content.decode(errors="surrogateescape").replace("\r\n", "\n")
        if html or not DIFF.search(text):
            texts += [text] if part.get_content_type() == "text/plain" and not name else []
            if name or html:
                what = f"its attachment {shortened(name, 80)} is" if name else "its text is only"
                others.append(f"{what} {shortened(part.get_content_type(), 80)}")
            continue
        inner = (letters(content, file) or []) if name and not _is_bare(content) else []
        if any(letter.text for letter in inner):
            attached += inner
        elif name or part.get_content_maintype() != "text":
            diffs.append(text)
        else:
            subject, patch = _mailinfo(subject, text, part, file)
            diffs += [patch] if DIFF.search(patch) else []
            texts.append(text)
    everything = "\n".join(texts)
    letter = Letter(
        file=file,
        subject=subject,
        text="\n".join({diff.key(one): one for one in diffs}.values()),
        base=base("\n".join((everything, *diffs))),
    )
    if attached and not letter.text:
        return [*attached, letter]
    if not letter.text:
        quoting = f"the mail “{shortened(subject, 80)}” only quotes one"
        reasons = [quoting] if QUOTED.search(everything) else others
        letter = replace(letter, why_not=(reasons or [NO_DIFF])[0])
    return [letter, *attached]


def _is_bare(content: bytes) -> bool:
    return not content.startswith(b"From ") and not HEADER.match(content[:HEAD])


def _content(part: Message) -> bytes:
    """The decoded content of a part, unpacked if it is compressed."""
    data = part.get_payload(decode=True)
    # The charset is ignored: a diff must keep the bytes of the file.
    return diff.unpacked(data, LARGEST) if isinstance(data, bytes) else b""


def _mailinfo(subject: str, text: str, part: Message, file: Path) -> tuple[str, str]:
    """The subject and the patch of a mail with this text, as `git am --scissors` sees them."""
    flowed = part.get_param("format") == "flowed"
    delsp = "; delsp=yes" if part.get_param("delsp") == "yes" else ""
    head = ["From: a <a@example.org>", "Subject: ."]
    head += [f"Content-Type: text/plain; format=flowed{delsp}"] if flowed else []
    mail = "\n".join((*head, "", text)).encode(errors="surrogateescape")
    with keeper.temporary_directory() as directory:
        command = [proc.need("git", "git"), "mailinfo", "-n", "-k", "--scissors", "msg", "patch"]
        done = subprocess.run(proc.mortal(command), cwd=directory, input=mail, capture_output=True)
        proc.check_not_killed(command, done.returncode)  # as by the limit of a file's size
        if done.returncode:
            reason = done.stderr.decode(errors="replace").strip()
            if proc.host_trouble(reason):
                raise InfraError(f"git cannot unpack {file}: {shortened(reason)}")
            raise UsageError(f"{file} has a mail that git cannot read: {shortened(reason)}")
        patch = (directory / "patch").read_bytes().decode(errors="surrogateescape")
    fields = re.findall(r"^Subject: (.*\S)", done.stdout.decode(errors="replace"), re.MULTILINE)
    return (subject if not fields or fields[-1] == "." else fields[-1][:SUBJECT]), patch


def _check_fields(mail: bytes, file: Path) -> None:
    """Raise UsageError for a mail that would take long to parse."""
    fields = [field[0] for field in FIELD.finditer(mail)]
    if any(len(field) > LONGEST for field in fields):
        raise UsageError(f"{file} has a header field of more than {LONGEST >> 10} KiB")
    if sum(b"multipart/" in field.lower() for field in fields) > DEEPEST:
        raise UsageError(f"{file} has a mail with more than {DEEPEST} parts inside of each other")


def _subject(message: Message) -> str:
    raw = str(message["Subject"] or "no subject")
    try:
        decoded = str(make_header(decode_header(raw)))
    except (MessageError, ValueError, LookupError):  # a wrong encoding, or an unknown one
        decoded = raw
    return " ".join(decoded.split())[:SUBJECT]


# -- many mails


def _distinct(patches: Iterable[Letter]) -> list[Letter]:
    """`patches` without those that repeat another one, of which the lowest rank is kept."""
    kept: dict[tuple[object, ...], Letter] = {}
    for letter in sorted(patches, key=lambda letter: letter.rank):
        place = (letter.number, letter.version) if letter.rank < 2 else ()
        kept.setdefault((diff.key(letter.text), *place), letter)
    return list(kept.values())


def _ordered(file: Path, patches: list[Letter]) -> list[Letter]:
    numbers = [letter.number for letter in patches if letter.number]
    unnumbered = [letter for letter in patches if not letter.number]
    several = (
        f"{file} has more than one series, or more than one version of it: "
        "keep only the mails to apply"
    )
    titles = [letter.title for letter in unnumbered if letter.title]
    if len(set(titles)) < len(titles):
        raise UsageError(several)
    if not numbers:
        return patches  # keep their order
    if unnumbered:
        raise UsageError(
            f"{file} has a series and other patches as well, such as "
            f"“{shortened(unnumbered[0].subject, 80)}”: keep only the mails to apply"
        )
    totals = {total for _, total in numbers}
    versions = {letter.version for letter in patches}
    if len(totals) > 1 or len(versions) > 1 or len(set(numbers)) < len(numbers):
        raise UsageError(several)
    total = totals.pop()
    if total > MOST and len(patches) > 1:
        raise UsageError(f"{file} belongs to a series of more than {MOST} patches")
    if len(patches) > 1:
        missing = sorted({*range(1, total + 1)} - {number for number, _ in numbers})
        if missing:
            raise UsageError(f"{file} lacks patch {', '.join(map(str, missing))} of the series")
    return sorted(patches, key=lambda letter: letter.number or (0, 0))
