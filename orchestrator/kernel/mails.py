"""Patches as people send them: a mail, or an mbox with a series, to the diffs in the order in which they apply."""

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
SENT = re.compile(rb"(?:[\w-]+:.*\r?\n(?:[ \t].*\r?\n)*)*From:.*\r?\n", re.IGNORECASE)
"""How a mail begins that has no mbox separator before it: header fields, the sender's among them."""
NUMBER = re.compile(r"\[[^]]*?\b0*(\d+)/0*(\d+)[^]]*\]")
REPLY = re.compile(r"(re|aw|fwd?):", re.IGNORECASE)


def diffs(file: Path) -> list[tuple[str, str]] | None:
    """(subject, diff) of each patch in `file`, in the order of their numbers ([PATCH v2 3/7]); None when it is no mail.

    What holds no diff is passed over (the cover letter, the discussion), and so are replies. UsageError when the mails
    are not one whole series: which to take is for the user to say.
    """
    raw = file.read_bytes()
    if raw.startswith(b"From "):
        messages: list[Any] = list(mailbox.mbox(file, factory=_parsed))
    elif SENT.match(raw):
        messages = [email.message_from_bytes(raw, policy=default)]
    else:
        return None
    found: list[tuple[str, str]] = []
    for message in messages:
        subject = " ".join(str(message["Subject"] or "no subject").split())
        text = _text(message)
        if DIFF.search(text) and not REPLY.match(subject):
            found.append((subject, text))
    return _ordered(file, found)


def _parsed(handle: Any) -> Any:
    return email.message_from_binary_file(handle, policy=default)


def _text(message: EmailMessage) -> str:
    """What the mail says, decoded: its text, and patches that are attached."""
    parts: list[str] = []
    for part in message.walk():
        if part.get_content_type() in ("text/plain", "text/x-patch", "text/x-diff"):
            data = part.get_payload(decode=True)
            if isinstance(data, bytes):
                # Whatever the charset: a diff's bytes are those of the file.
                parts.append(data.decode(errors="surrogateescape").replace("\r\n", "\n"))
    with_diff = [text for text in parts if DIFF.search(text)]
    return "\n".join(with_diff or parts)


def _ordered(file: Path, found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    numbers = [
        (int(match[1]), int(match[2])) for subject, _ in found if (match := NUMBER.search(subject))
    ]
    if len(numbers) < len(found) or not found:
        return found  # one patch, or some that nobody has numbered: as they come
    totals = {total for _, total in numbers}
    if len(totals) > 1 or len(set(numbers)) < len(numbers):
        raise UsageError(
            f"{file} holds more than one series, or one version of it: keep only what is to be applied"
        )
    missing = sorted({*range(1, totals.pop() + 1)} - {number for number, _ in numbers})
    if missing and len(found) > 1:
        raise UsageError(f"{file} lacks patch {', '.join(map(str, missing))} of the series")
    return [
        patch for _, patch in sorted(zip(numbers, found, strict=True), key=lambda pair: pair[0])
    ]
