# SPDX-License-Identifier: GPL-2.0-only
"""The faults that the kernel's log reports: a scan of the console's lines, without I/O.

Patterns are anchored at the start of the message, after the prefix that printk puts there, because
the same words occur in harmless places: `---[ end Kernel panic`, or for a fault of a user program
`traps: sh[50] general protection fault ip:...`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

BOOT = "Linux version "
READY = "orchestrator: guest ready"
"""The line by which guest/init/init reports that the guest can be used."""

OUTCOMES = {
    "panic": "panic",
    # Anything that ends in die(): page fault, general protection, invalid opcode, double fault ...
    "oops": "oops",
    # A breakpoint that no handler claimed: the most likely result of a wrong int3 protocol.
    "int3": "oops",
    "bug": "oops",
    "reboot": "lost-vm",
    "soft-lockup": "hang",
    "hard-lockup": "hang",
    "rcu-stall": "hang",
    "hung-task": "hang",
    "kasan": "warn",
    "lockdep": "warn",
    "atomic": "warn",
    "warn": "warn",
    # The kernel's log buffer overflowed. No fault, but the scan has not seen everything.
    "lost": "infra",
}
"""Kind of finding -> outcome of the verdict."""

FATAL = frozenset({"panic", "oops", "int3", "bug", "hard-lockup", "reboot"})
"""Kinds after which the guest cannot be expected to go on.

A soft lockup or an RCU stall is not one: on a busy host the guest may recover."""

# `<6>` or `[    1.234567]`; with CONFIG_PRINTK_CALLER also the task or CPU: `[  T123]`, `[    C1]`.
_PREFIX = re.compile(r"^(?:<\d+>)?(?:\[ *\d+\.\d+\](?:\[ *([TC]\d+)\])? ?)?")

# The header of die(): `invalid opcode: 0000 [#1] PREEMPT SMP`, preceded by `Oops: ` since 6.12.
_DIE = re.compile(r"(?:Oops: )?(?P<what>[A-Za-z][^\[]*): [0-9a-f]{4,} \[#\d+\]")

# The first line of a report. The first match counts.
_HEADS = [
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("panic", r"Kernel panic - not syncing"),
        # Early exceptions, and a double fault without a usable stack.
        ("panic", r"(traps: )?PANIC: "),
        ("panic", r"-- System halted"),  # from the decompressor
        ("bug", r"kernel BUG at |jump_label: Fatal kernel bug"),
        ("kasan", r"BUG: (KASAN|KFENCE|KCSAN): "),
        (
            "atomic",
            r"BUG: (scheduling while atomic|sleeping function called|using \w+\(\) in preemptible)",
        ),
        ("soft-lockup", r"((NMI )?watchdog: )?BUG: soft lockup"),
        ("soft-lockup", r"BUG: workqueue lockup"),
        ("hard-lockup", r"(CPU\d+: |(NMI )?watchdog: )?Watchdog detected hard LOCKUP"),
        ("rcu-stall", r"(rcu: )?INFO: (rcu_\w+|\w+) (self-)?detected (expedited )?stalls? on "),
        ("hung-task", r"INFO: task .* blocked for more than "),
        ("hung-task", r"INFO: task .* blocked (on|in) .* for more than "),
        (
            "lockdep",
            r"(WARNING|INFO|BUG|\[ (INFO|BUG)): "
            r"(possible (circular|recursive|irq lock|deadlock)|inconsistent lock state"
            r"|bad unlock balance|suspicious RCU usage|Nested lock|Invalid wait context"
            r"|(HARD|SOFT)IRQ-|lock held when returning|held lock freed|.* still has locks held"
            r"|trying to register non-static key)",
        ),
        ("lockdep", r"INFO: trying to register non-static key"),
        (
            "oops",
            r"BUG: (unable to handle|kernel NULL pointer|\w+ stack guard page"
            r"|Bad |spinlock|rwlock)",
        ),
        ("oops", r"(kernel tried to execute|general protection fault(?! ip:))"),
        ("oops", r"BUG: "),
        ("warn", r"WARNING: .* at |WARN_ON|UBSAN: |unchecked MSR access error"),
        ("lost", r"\*\* \d+ printk messages dropped \*\*"),
    )
]

# Warnings that the host causes: a line that the kernel must have printed before, and the warning.
# If a kernel up to 5.2 cannot measure the TSC, as on a busy host, it warns about a loop in
# setup_local_APIC() whose limit is cpu_khz.
_EXCUSED = [
    (
        re.compile(r"tsc: .*could not calculate TSC khz"),
        re.compile(r"WARNING: .*\bsetup_local_APIC\b"),
    )
]

# Lines that may follow the first line, and belong to the same report.
_BODY = re.compile(
    r"\s|$|</?[A-Z]+>|[A-Z][A-Z0-9]{1,8}: |Call Trace|Code: |Modules linked|Hardware name"
    r"|Workqueue|Tainted|Stack|Kernel |#PF|Oops|CPU \d|task:|Sending NMI|NMI backtrace|rcu: "
    r"|\(detected|hardirqs|softirqs|irq event|Shutting|\S+ invoked|---|===|other info"
    r"|stack backtrace|the existing|which lock|but task|\S+/\d+ |#\d|\d+ locks? held|>\S"
    r"|Write of|Read of|Allocated|Freed|The buggy|Memory state|page:|raw:|flags:|\"echo 0"
    r"|\[ (end|cut) |note: |Last "
)
_END = re.compile(r"---\[ end ")
GAP = 8
"""Foreign lines (from other CPUs) that may interrupt a report; after more it counts as finished."""


@dataclass
class Finding:
    """One report of the kernel."""

    kind: str
    """A key of OUTCOMES."""
    line: int
    """Number of its first line on the console, from 1."""
    text: str
    """Its first line, without printk's prefix."""
    last: int
    """Number of its last line."""

    @property
    def outcome(self) -> str:
        return OUTCOMES[self.kind]

    @property
    def fatal(self) -> bool:
        return self.kind in FATAL


@dataclass
class _OpenReport:
    """A report that further lines may still belong to."""

    finding: Finding
    died: bool
    """Whether it has its header of die(). Another such header begins another report."""


@dataclass
class FaultScanner:
    """Takes the console's lines in order, and collects findings.

    An oops is one finding although several of its lines look like the start of one. A panic that
    follows from it is another finding.

    Reports of several CPUs may be interleaved. They are told apart by the caller if the kernel
    prints it (CONFIG_PRINTK_CALLER), and otherwise only by their first lines.
    """

    findings: list[Finding] = field(default_factory=list)
    excused: list[Finding] = field(default_factory=list)
    """Warnings that the host causes. They are not in `findings`."""
    lines: int = 0
    """Number of lines so far."""
    boots: int = 0
    """Number of boots so far: 1 unless the guest has reset."""
    ready: bool = False
    """Whether the guest's init has reported READY."""
    _open: dict[str, _OpenReport] = field(default_factory=dict)  # by caller
    _excuses: list[re.Pattern[str]] = field(default_factory=list)

    @property
    def fatal(self) -> list[Finding]:
        """Findings after which the guest cannot be expected to go on."""
        return [finding for finding in self.findings if finding.fatal]

    @property
    def stalls(self) -> list[Finding]:
        """Findings that something makes no progress. If a wait times out too, the kernel hangs."""
        return [finding for finding in self.findings if finding.outcome == "hang"]

    @property
    def blind(self) -> str:
        """Why a lack of findings proves nothing, as a sentence without a full stop.

        Empty if it does prove that the kernel reported no fault.
        """
        if not self.boots:
            return (
                "the console does not show the kernel's first line, "
                "so it was not scanned from the start"
            )
        if not self.ready:
            return "the console does not show that the guest's init was reached"
        if any(finding.kind == "lost" for finding in self.findings):
            return "the kernel has dropped messages that the console could not take in time"
        return ""

    def feed(self, line: str) -> None:
        """Take the next line, with or without its newline."""
        self.lines += 1
        prefix = _PREFIX.match(line)
        assert prefix is not None  # it matches the empty string
        caller = prefix[1] or ""
        text = line[prefix.end() :].rstrip()
        self.ready = self.ready or READY in text
        self._excuses += [warning for before, warning in _EXCUSED if before.match(text)]
        report = self._open.get(caller)
        if report and self.lines - report.finding.last > GAP:
            report = None
        if text.startswith(BOOT):
            self.boots += 1
            if self.boots > 1:
                self._begin(caller, "reboot", text)
        elif die := _DIE.match(text):
            if report and not report.died and report.finding.kind in ("oops", "bug"):
                report.died = True
                report.finding.last = self.lines
            else:
                self._begin(caller, "int3" if die["what"] == "int3" else "oops", text, died=True)
        elif kind := next((kind for kind, pattern in _HEADS if pattern.match(text)), None):
            self._begin(caller, kind, text)
        elif report and _BODY.match(text):
            report.finding.last = self.lines
            if _END.match(text):
                del self._open[caller]

    def _begin(self, caller: str, kind: str, text: str, died: bool = False) -> None:
        finding = Finding(kind, self.lines, text, self.lines)
        excused = kind == "warn" and any(warning.match(text) for warning in self._excuses)
        (self.excused if excused else self.findings).append(finding)
        self._open[caller] = _OpenReport(finding, died)


def scan(lines: Iterable[str]) -> FaultScanner:
    """A FaultScanner that has taken all of `lines`."""
    scanner = FaultScanner()
    for line in lines:
        scanner.feed(line)
    return scanner
