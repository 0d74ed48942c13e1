# SPDX-License-Identifier: GPL-2.0-only
"""What failed in a run, in a form that can be compared with other runs."""

from __future__ import annotations

import re

from orchestrator.verdict.checks import KERNEL_FAILED
from orchestrator.verdict.model import NAMED
from orchestrator.verdict.result import VerdictRecord

LINE = re.compile(r"^line [0-9]+: ")
"""How each detail of the console check begins."""
SCENARIO = re.compile(r", in scenario (\S+)$")
"""How the console check's text ends when the kernel went down in a scenario."""
NUMBER = re.compile(r"\b(0x)?[0-9a-f]*[0-9][0-9a-f]*\b")


def signatures(record: VerdictRecord) -> tuple[str, ...]:
    """Fingerprints of what failed. The same fault has the same fingerprint in every run.

    A broken claim is its name alone, because the CPU, site and scenario that
    show it differ between runs. Any other failed check is its name and text without numbers and
    addresses. The console check gives one fingerprint for each of its findings.
    """
    found: list[str] = []
    for check in record.with_status("fail"):
        if check.check in NAMED:
            found.append(check.check)
        elif check.check == "console":
            found += [f"console: {_without_numbers(LINE.sub('', line))}" for line in check.details]
        else:
            found.append(f"{check.check}: {_without_numbers(check.text)}")
    if not found and record.outcome in KERNEL_FAILED:
        # A hang that only our own deadline noticed fails no check.
        found.append(f"{record.outcome}: {_without_numbers(record.reason)}")
    return tuple(dict.fromkeys(found))


def failed_checks(record: VerdictRecord) -> tuple[str, ...]:
    """The failed checks by name, the most specific name first.

    Where the scenario is known, guest/SCENARIO precedes `guest`, and console/SCENARIO precedes
    `console`.
    """
    names: list[str] = []
    for check in record.with_status("fail"):
        if check.check == "guest":
            # Each detail begins with the step's name, SCENARIO.PART.
            names += [f"guest/{line.partition(':')[0].split('.')[0]}" for line in check.details]
        if check.check == "console" and (scenario := SCENARIO.search(check.text)):
            names.append(f"console/{scenario[1]}")
        names.append(check.check)
    return tuple(dict.fromkeys(names))


def _without_numbers(text: str) -> str:
    """Strip what differs between two runs of the same fault: numbers, addresses, offsets."""
    return NUMBER.sub("#", text)
