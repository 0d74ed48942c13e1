# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's command line: our parameters, and those that the user asks for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from orchestrator.errors import UsageError, shortened

WORD = re.compile(r'(?:[^\s"]|"[^"]*"?)+')
"""A parameter as the kernel splits them (lib/cmdline.c, next_arg())."""
OPPOSITE = {"kaslr": "nokaslr", "pti": "nopti"}
"""A parameter that takes away one of ours which has another name."""
NO_PARAMETER = ("kaslr",)
"""Words of ours: no kernel knows a parameter of that name."""
VITAL = ("rdinit", "init", "console", "panic")
"""Parameters that a run depends on."""
LONGEST = 1024
"""Most characters. The kernel cuts its command line at 2048."""


def words(texts: Iterable[str]) -> list[str]:
    """The parameters in the texts of --append, one each."""
    return [word for text in texts for word in WORD.findall(text)]


def check(texts: Sequence[str]) -> None:
    """Raise UsageError for parameters that no run can have."""
    if len(" ".join(texts)) > LONGEST:
        raise UsageError(f"--append takes at most {LONGEST} characters")
    for word in words(texts):
        if name(word) in VITAL or word == "--" or word.count('"') % 2:
            raise UsageError(
                f"--append {shortened(word, 80)}: a run depends on its own {name(word)}"
                if name(word) in VITAL
                else f"--append takes no {shortened(word, 80)}"
            )


def name(word: str) -> str:
    """The name of a parameter. To the kernel, `-` and `_` are the same in it."""
    return word.partition("=")[0].replace("-", "_")


def combined(ours: Sequence[str], texts: Iterable[str]) -> tuple[str, ...]:
    """Our parameters without those that the user's replace, and then the user's."""
    theirs = words(texts)
    gone = {name(word) for word in theirs}
    gone |= {OPPOSITE[name(word)] for word in theirs if name(word) in OPPOSITE}
    kept = (word for word in ours if name(word) not in gone)
    return (*kept, *(word for word in theirs if word not in NO_PARAMETER))
