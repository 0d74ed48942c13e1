"""What the console says about the kernel: a scan of its lines, without I/O.

The patterns are anchored at the start of the message, behind whatever printk puts before it, because the same words
occur in harmless places: `---[ end Kernel panic`, `traps: sh[50] general protection fault ip:...` (a user program).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

BOOT = "Linux version "
READY = "orchestrator: guest ready"
"""What guest/init/init says when the guest can be worked with."""

OUTCOMES = {
    "panic": "panic",
    "oops": "oops",  # page fault, general protection, invalid opcode, double fault ...: anything that ends in die()
    "int3": "oops",  # a breakpoint that nobody claimed: what a wrong int3 protocol ends in first of all
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
    "lost": "infra",  # the kernel's own log buffer overflowed: not a fault, but the scan did not see everything
}
"""Every kind of finding, and the word of the verdict that it stands for."""

FATAL = frozenset({"panic", "oops", "int3", "bug", "hard-lockup", "reboot"})
"""The guest cannot be expected to go on. A soft lockup or an RCU stall may pass, on a host that is busy elsewhere."""

# `<6>` or `[    1.234567]`, and with CONFIG_PRINTK_CALLER the task or CPU: `[  T123]`, `[    C1]`.
_PREFIX = re.compile(r"^(?:<\d+>)?(?:\[ *\d+\.\d+\](?:\[ *([TC]\d+)\])? ?)?")

# The header of die(): `invalid opcode: 0000 [#1] PREEMPT SMP`, since 6.12 with `Oops: ` before it.
_DIE = re.compile(r"(?:Oops: )?(?P<what>[A-Za-z][^\[]*): [0-9a-f]{4,} \[#\d+\]")

_HEADS = [
    (kind, re.compile(pattern))
    for kind, pattern in (
        ("panic", r"Kernel panic - not syncing"),
        (
            "panic",
            r"(traps: )?PANIC: ",
        ),  # early exceptions; a double fault on a stack that cannot be used
        ("panic", r"-- System halted"),  # the decompressor's last words
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
            r"(possible (circular|recursive|irq lock|deadlock)|inconsistent lock state|bad unlock balance"
            r"|suspicious RCU usage|Nested lock|Invalid wait context|(HARD|SOFT)IRQ-|lock held when returning"
            r"|held lock freed|.* still has locks held|trying to register non-static key)",
        ),
        ("lockdep", r"INFO: trying to register non-static key"),
        (
            "oops",
            r"BUG: (unable to handle|kernel NULL pointer|\w+ stack guard page|Bad |spinlock|rwlock)",
        ),
        ("oops", r"(kernel tried to execute|general protection fault(?! ip:))"),
        ("oops", r"BUG: "),
        ("warn", r"WARNING: .* at |WARN_ON|UBSAN: |unchecked MSR access error"),
        ("lost", r"\*\* \d+ printk messages dropped \*\*"),
    )
]

# Warnings that are the host's doing: what the kernel must have said before, and the warning. Up to 5.2 a kernel that
# could not measure the TSC, on a busy host, warns of a loop in setup_local_APIC() whose limit is cpu_khz.
_EXCUSED = [
    (
        re.compile(r"tsc: .*could not calculate TSC khz"),
        re.compile(r"WARNING: .*\bsetup_local_APIC\b"),
    )
]

# What follows a head and belongs to it.
_BODY = re.compile(
    r"\s|$|</?[A-Z]+>|[A-Z][A-Z0-9]{1,8}: |Call Trace|Code: |Modules linked|Hardware name|Workqueue|Tainted|Stack"
    r"|Kernel |#PF|Oops|CPU \d|task:|Sending NMI|NMI backtrace|rcu: |\(detected|hardirqs|softirqs|irq event|Shutting"
    r"|\S+ invoked|---|===|other info|stack backtrace|the existing|which lock|but task|\S+/\d+ |#\d|\d+ locks? held|>\S"
    r"|Write of|Read of|Allocated|Freed|The buggy|Memory state|page:|raw:|flags:|\"echo 0|\[ (end|cut) |note: |Last "
)
_END = re.compile(r"---\[ end ")
GAP = 8
"""Lines that may come in between (from other CPUs) before a report counts as finished."""


@dataclass
class Finding:
    """kind: one of OUTCOMES. line, last: numbers of its first and last line, from 1. text: the first without prefix."""

    kind: str
    line: int
    text: str
    last: int

    @property
    def outcome(self) -> str:
        return OUTCOMES[self.kind]

    @property
    def fatal(self) -> bool:
        return self.kind in FATAL


@dataclass
class _OpenReport:
    """One that may still go on. died: it has its header of die(), so that another one begins another report."""

    finding: Finding
    died: bool


@dataclass
class Scanner:
    """Feeds on the console's lines in their order and collects findings.

    An oops is one finding although several of its lines look like one, and a panic that follows from it is another.
    Those that are the host's doing are put aside as excused.

    Reports of several CPUs that run into each other are told apart where the kernel names the caller
    (CONFIG_PRINTK_CALLER), and otherwise by their first lines alone.
    """

    findings: list[Finding] = field(default_factory=list)
    excused: list[Finding] = field(default_factory=list)
    lines: int = 0
    boots: int = 0
    ready: bool = False
    _open: dict[str, _OpenReport] = field(default_factory=dict)
    _excuses: list[re.Pattern[str]] = field(default_factory=list)

    @property
    def fatal(self) -> list[Finding]:
        """Those after which the guest cannot be expected to go on."""
        return [finding for finding in self.findings if finding.fatal]

    @property
    def stalls(self) -> list[Finding]:
        """Those that say that something did not go on; with a wait that has run out, the kernel hangs."""
        return [finding for finding in self.findings if finding.outcome == "hang"]

    @property
    def blind(self) -> str:
        """Why the absence of findings proves nothing, in one sentence without a full stop; empty if it does."""
        if not self.boots:
            return "the console does not show the kernel's first line, so it was not scanned from the start"
        if not self.ready:
            return "the console does not show that the guest's init was reached"
        if any(finding.kind == "lost" for finding in self.findings):
            return "the kernel has dropped messages that the console could not take in time"
        return ""

    def feed(self, line: str) -> None:
        """Take the next line, with or without its line end."""
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


def scan(lines: Iterable[str]) -> Scanner:
    """A Scanner that has been fed with all of `lines`."""
    scanner = Scanner()
    for line in lines:
        scanner.feed(line)
    return scanner


# In QEMU's standard error: what makes a run prove nothing about the kernel.
_EMULATOR = re.compile(
    r"KVM internal error|kvm run failed|Assertion .* failed|terminating on signal|could not |ERROR:"
)


def scan_emulator(lines: Iterable[str]) -> list[str]:
    """Lines of QEMU's standard error that tell of trouble of its own."""
    return [line.rstrip() for line in lines if _EMULATOR.search(line)]
