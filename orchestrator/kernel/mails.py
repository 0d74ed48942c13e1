# SPDX-License-Identifier: GPL-2.0-only
"""Patches as people send them: extracts the diffs from a mail or from an mbox with a series."""

from __future__ import annotations

import email
import re
from email.errors import MessageError
from email.header import decode_header, make_header
from email.message import Message
from pathlib import Path

from orchestrator.errors import UsageError

DIFF = re.compile(r"^(\+\+\+ |diff --git |rename from )", re.MULTILINE)
HEADER = re.compile(rb"(?:[\w-]+:.*\r?\n(?:[ \t].*\r?\n)*)*From:.*\r?\n", re.IGNORECASE)
"""The beginning of a mail without an mbox separator: header fields, including From:."""
HEAD = 64 << 10
"""Bytes at the beginning of a file in which From: is searched for."""
SEPARATOR = re.compile(rb"^From .*\n", re.MULTILINE)
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
REPLY = re.compile(r"(re|aw|fwd?):", re.IGNORECASE)
SUBJECT = 500
"""Most characters of a subject that are used."""


def diffs(raw: bytes, file: Path) -> list[tuple[str, str]] | None:
    """(subject, diff) of each patch in `raw`, ordered by number ([PATCH v2 3/7]).

    file: where `raw` comes from, for messages.

    Returns None if it is neither a mail nor an mbox. Replies and mails without a diff (the
    cover letter, the discussion) are skipped. Raises UsageError unless the mails are exactly one
    complete series: the user has to decide which patches to apply.
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
    patches: list[tuple[str, str]] = []
    for mail in mails:
        _check_fields(mail, file)
        try:
            message = email.message_from_bytes(mail)
            text = _text(message)
        except (MessageError, RecursionError, ValueError, LookupError) as error:
            raise UsageError(f"{file} has a mail that cannot be read: {error}") from error
        subject = _subject(message)
        if DIFF.search(text) and not REPLY.match(subject):
            patches.append((subject, text))
    return _ordered(file, patches)


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


def _text(message: Message) -> str:
    """The decoded text of the mail, including attached patches; only parts with a diff, if any."""
    parts: list[str] = []
    for part in message.walk():
        if part.get_content_type() in ("text/plain", "text/x-patch", "text/x-diff"):
            data = part.get_payload(decode=True)
            if isinstance(data, bytes):
                # The charset is ignored: a diff must keep the bytes of the file.
                parts.append(data.decode(errors="surrogateescape").replace("\r\n", "\n"))
    with_diff = [text for text in parts if DIFF.search(text)]
    return "\n".join(with_diff or parts)


def _ordered(file: Path, patches: list[tuple[str, str]]) -> list[tuple[str, str]]:
    numbers = [
        (int(match[1]), int(match[2]))
        for subject, _ in patches
        if (match := NUMBER.search(subject))
    ]
    if len(numbers) < len(patches) or not patches:
        return patches  # a single patch, or unnumbered ones: keep their order
    totals = {total for _, total in numbers}
    if len(totals) > 1 or len(set(numbers)) < len(numbers):
        raise UsageError(
            f"{file} has more than one series, or more than one version of it: "
            "keep only the mails to apply"
        )
    total = totals.pop()
    if total > MOST and len(patches) > 1:
        raise UsageError(f"{file} belongs to a series of more than {MOST} patches")
    if len(patches) > 1:
        missing = sorted({*range(1, total + 1)} - {number for number, _ in numbers})
        if missing:
            raise UsageError(f"{file} lacks patch {', '.join(map(str, missing))} of the series")
    return [
        patch for _, patch in sorted(zip(numbers, patches, strict=True), key=lambda item: item[0])
    ]
