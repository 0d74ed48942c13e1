# SPDX-License-Identifier: GPL-2.0-only
"""Patches as people send them: extracts the diffs from a mail or from an mbox with a series."""

from __future__ import annotations

import email
import mailbox
import re
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

from orchestrator.errors import UsageError

DIFF = re.compile(r"^(\+\+\+ |diff --git |rename from )", re.MULTILINE)
HEADER = re.compile(rb"(?:[\w-]+:.*\r?\n(?:[ \t].*\r?\n)*)*From:.*\r?\n", re.IGNORECASE)
"""The beginning of a mail without an mbox separator: header fields, including From:."""
NUMBER = re.compile(r"\[[^]]*?\b0*(\d+)/0*(\d+)[^]]*\]")
REPLY = re.compile(r"(re|aw|fwd?):", re.IGNORECASE)


def diffs(file: Path) -> list[tuple[str, str]] | None:
    """(subject, diff) of each patch in `file`, ordered by number ([PATCH v2 3/7]).

    Returns None if the file is neither a mail nor an mbox. Replies and mails without a diff (the
    cover letter, the discussion) are skipped. Raises UsageError unless the mails are exactly one
    complete series: the user has to decide which patches to apply.
    """
    raw = file.read_bytes()
    if raw.startswith(b"From "):
        messages: list[Any] = list(mailbox.mbox(file, factory=_parsed))
    elif HEADER.match(raw):
        messages = [email.message_from_bytes(raw, policy=default)]
    else:
        return None
    patches: list[tuple[str, str]] = []
    for message in messages:
        subject = " ".join(str(message["Subject"] or "no subject").split())
        text = _text(message)
        if DIFF.search(text) and not REPLY.match(subject):
            patches.append((subject, text))
    return _ordered(file, patches)


def _parsed(handle: Any) -> Any:
    return email.message_from_binary_file(handle, policy=default)


def _text(message: EmailMessage) -> str:
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
    missing = sorted({*range(1, totals.pop() + 1)} - {number for number, _ in numbers})
    if missing and len(patches) > 1:
        raise UsageError(f"{file} lacks patch {', '.join(map(str, missing))} of the series")
    return [
        patch for _, patch in sorted(zip(numbers, patches, strict=True), key=lambda item: item[0])
    ]
