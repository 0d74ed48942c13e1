# SPDX-License-Identifier: GPL-2.0-only
"""The faults that the kernel's log reports: a scan of the console's lines, without I/O.

Two questions are asked of each line. *Whose is it?* Programs of the guest write to the console too,
directly or through /dev/kmsg, and whatever they say is not the kernel's fault (_KernelLines).
*What is it?* Patterns are anchored at the start of the message, after the prefix that printk puts
there, because the same words occur in harmless places: `---[ end Kernel panic`, or for a fault of a
user program `traps: sh[50] general protection fault ip:...`.

The patterns were compared with the format strings of 3.10, 4.4, 4.14, 4.19, 5.6, 5.9, 5.14, 5.19,
6.1, 6.4, 6.9, 6.12, 6.18 and 7.3: what `BUG: ` or `WARNING: ` begins is most often no die().
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from orchestrator.text.functions import text_patching

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
    # A CPU does not answer an IPI, or does not give up a lock.
    "csd-stall": "hang",
    "lock-stall": "hang",
    # KASAN, KMSAN, KCSAN, KFENCE, kmemcheck.
    "kasan": "warn",
    "lockdep": "warn",
    "atomic": "warn",
    # Data that the kernel found to be damaged; it goes on nevertheless.
    "corruption": "warn",
    "warn": "warn",
    # The guest ran out of memory. It has as much as we gave it.
    "oom": "infra",
    "oom-panic": "infra",
    # The kernel's log buffer overflowed. No fault, but the scan has not seen everything.
    "lost": "infra",
}
"""Kind of finding -> outcome of the verdict."""

FATAL = frozenset({"panic", "oops", "int3", "bug", "hard-lockup", "reboot", "oom-panic"})
"""Kinds after which the guest cannot be expected to go on.

A soft lockup or an RCU stall is not one: on a busy host the guest may recover."""

LONGEST = 4096
"""Characters of a line that are looked at. printk's longest line is a quarter of that."""
MANY = 100
"""Findings of one kind that are kept. A guest may print for ever."""

# `<6>` is level plus 8 times the facility (printed with console_msg_format=syslog, since 4.16),
# `[    1.234567]` the time, and with CONFIG_PRINTK_CALLER `[  T123]` or `[    C1]` the task or CPU.
_PREFIX = re.compile(
    r"^(?:<(?P<priority>\d{1,3})>)?(?P<time>\[ *\d+\.\d+\](?:\[ *(?P<caller>[TC]\d+)\])? ?)?"
)
_TIME_INSIDE = re.compile(r"(?<!^)\[ *\d{1,9}\.\d{6}\]")
_PRIORITY_INSIDE = re.compile(r"(?<!^)<\d{1,3}>\[ *\d{1,9}\.\d{6}\]")

# The kernel prints one of these just before it starts init.
_LAST_OF_BOOT = re.compile(r"Freeing unused kernel |Run /\S+ as init process")

# Printed in front of the next message, and without a prefix: by the console, not from the log.
_DROPPED = re.compile(r"\*\* \d+ printk messages dropped \*\*")

# The header of die(): `invalid opcode: 0000 [#1] PREEMPT SMP`, preceded by `Oops: ` since 6.10.
_DIE = re.compile(r"(?:Oops: )?(?P<what>[A-Za-z][^\[]*): [0-9a-f]{4,} \[#\d+\]")


class _Head(NamedTuple):
    """The first line of a report."""

    kind: str
    pattern: re.Pattern[str]
    excuse: str = ""
    """Why the kernel is not blamed for it."""
    part: bool = False
    """Whether it may be one line of a WARN() or BUG(): its message, before or after the header."""


_RESTART = re.compile(
    r"(reboot: )?(Restarting system|machine restart)|(sysrq: |SysRq : )Resetting$"
)
"""What the kernel says before it resets the machine because a program asks for it."""


def _heads(*rows: tuple[str, str], excuse: str = "", part: bool = False) -> list[_Head]:
    return [_Head(kind, re.compile(pattern), excuse, part) for kind, pattern in rows]


# The first match counts.
_HEADS = [
    # -- not the kernel's fault
    *_heads(
        ("lockdep", r"BUG: MAX_(LOCKDEP_\w+|STACK_TRACE_ENTRIES) too low"),
        excuse="caused by the size of lockdep's own tables",
    ),
    *_heads(
        ("warn", r"BUG: (arch topology borken|EAS setup broken)"),
        excuse="caused by the topology of the machine",
    ),
    *_heads(
        ("warn", r"unchecked MSR access error: "),
        excuse="caused by an MSR that the machine lacks",
    ),
    *_heads(
        ("oom", r".{1,64}: (page allocation (failure|stall)|vmalloc(: allocation failure| error))"),
        ("oom", r"(vmalloc: allocation failure|SLUB: Unable to allocate memory)"),
        excuse="caused by a shortage of memory",
    ),
    *_heads(
        (
            "oom-panic",
            r"Kernel panic - not syncing: (Out of memory|System is deadlocked on memory)",
        ),
        ("oom", r".{1,64} invoked oom-killer: "),
        ("lost", rf"{_DROPPED.pattern}|BUG: recent printk recursion!"),
    ),
    # -- the end
    *_heads(
        ("panic", r"Kernel panic - not syncing"),
        # Early exceptions, and a double fault without a usable stack.
        ("panic", r"(traps: )?PANIC: "),
        ("panic", r" ?-- System halted"),  # from the decompressor
        ("bug", r"[Kk]ernel BUG at |BUG: failure at "),
        (
            "oops",
            r"BUG: (unable to handle |kernel NULL pointer|(\S+ )?stack guard page"
            r"|invalid or fatal FRED event)",
        ),
        ("oops", r"kernel tried to execute |unable to execute userspace code "),
    ),
    *_heads(
        ("bug", r"(jump_label: Fatal kernel bug, u|U)nexpected op at "),
        ("bug", r"unexpected static_call insn opcode "),
        part=True,
    ),
    # -- no progress
    *_heads(
        ("soft-lockup", r"((NMI )?watchdog: )?BUG: soft lockup"),
        ("soft-lockup", r"BUG: workqueue lockup"),
        ("hard-lockup", r"((NMI )?watchdog: )?(CPU\d+: )?Watchdog detected hard LOCKUP"),
        # `rcu_sched stall on CPU` is Tiny RCU's; a stall that ended before it was reported is none.
        ("rcu-stall", r"(rcu: )?INFO: \w+ (self-)?(detected )?(expedited )?stalls?\b(?! ended)"),
        # What the task is blocked on, and by whom, is said in lines of their own since 6.16.
        ("hung-task", r"INFO: task .{1,64}:\d+ blocked\b.{0,40} for more than "),
        ("hung-task", r"INFO: The task .{1,64} has been waiting for writeback "),
        ("csd-stall", r"(smp: )?csd: \w+ non-responsive CSD lock "),
        ("lock-stall", r"BUG: (spinlock|(read|write)-lock) lockup"),
    ),
    # -- the kernel's own checks
    *_heads(
        ("kasan", r"BUG: (KASAN|KFENCE|KCSAN|KMSAN): |WARNING: kmemcheck: "),
        (
            "atomic",
            r"BUG: (scheduling (while atomic|in a non-blocking)|sleeping function called|assuming "
            r"|using \w+\(\) in preemptible|workqueue leaked )"
            r"|bad: scheduling from the idle thread!|(softirq: )?huh, entered softirq ",
        ),
        (
            "lockdep",
            r"\[ (INFO|BUG): .{1,100} \]$|(INFO|BUG): trying to register non-static key"
            r"|(WARNING|INFO|BUG): (possible (circular|recursive|irq lock|deadlock)"
            r"|circular locking deadlock|inconsistent lock state|suspicious RCU usage|Nested lock"
            r"|bad (unlock balance|contention)|Invalid wait context|lock held |held lock freed"
            r"|chain_key collision|\S{1,64}-safe -> |.{1,64} still has locks held)"
            r"|BUG: (MAX_LOCK_DEPTH |looking up invalid subclass|key \S+ (not in|has not been) )",
        ),
        (
            "corruption",
            r"BUG: (Bad (page|rss-counter)|non-zero |spinlock |rwlock |Dentry |mempool )"
            r"|BUG .{1,64} \((Not tainted|Tainted: )|slab error in |Slab corruption "
            r"|slab: Internal |\S{1,200}:\d+: bad p[4gmu]d ",
        ),
    ),
    *_heads(
        ("corruption", r"list_(add|del) (corruption|double add)|refcount_t[: ]"),
        part=True,
    ),
    *_heads(
        # 3.10, 4.x to 6.x, and 7.x without CONFIG_DEBUG_BUGVERBOSE; then 7.x with it. Other lines
        # that begin like that are notices, and complaints of the unwinder: the stub in which we
        # hold a thread has no unwind data.
        ("warn", r"WARNING: (CPU: \d+ PID: \d+ )?at \S"),
        ("warn", r"WARNING: .{1,300} at .{1,200}, CPU#\d+: "),
        ("warn", r"WARN_ON|UBSAN: |(Kprobe smoke test: )?BUG: |BUG at \S+:\d+"),
    ),
]

# Warnings that the host causes: a line that the kernel must have printed before, and the warning.
# If a kernel up to 5.2 cannot measure the TSC, as on a busy host, it warns about a loop in
# setup_local_APIC() whose limit is cpu_khz.
_NO_CLOCK = (
    re.compile(r"tsc: .*could not calculate TSC khz"),
    re.compile(r"WARNING: .*\bsetup_local_APIC\b"),
    "caused by a missing clock",
)

# Lines that may follow the first line, and belong to the same report.
_BODY = re.compile(
    r"\s|$|</?[A-Z]+>|[A-Z][A-Z0-9]{1,8}: |Call Trace|Code: |Modules linked|Hardware name"
    r"|Workqueue|Tainted|Stack|Kernel |#PF|Oops|CPU \d|task:|Sending NMI|NMI backtrace|rcu: "
    r"|\(detected|hardirqs|softirqs|irq event|Shutting|\S+ invoked|---|===|other info"
    r"|stack backtrace|the existing|which lock|but task|\S+/\d+ |#\d|\d+ locks? held|>\S"
    r"|Write of|Read of|Allocated|Freed|The buggy|Memory state|page:|raw:|flags:|\"echo 0"
    r"|\[ (end|cut) |note: |Last |(smp: )?csd: |INFO: |FIX |Object |Redzone |Padding |ftrace "
    r"|Mem-Info|Out of memory: |oom-kill:|Disabling lock debugging|turning off the locking"
)
_PROGRAM = "printed by a program of the guest"
_CUT = "------------[ cut here ]------------"
_END = re.compile(r"---\[ end ")
GAP = 8
"""Foreign lines (from other CPUs) that may interrupt a report; after more it counts as finished."""

# Where a report says the kernel was: the instruction pointer, an entry of the call trace that is
# not marked as doubtful (`? name`), the place of a WARN() or of what a sanitizer found.
_NAME = r"([A-Za-z_][\w.]*)\+0x[0-9a-f]+/0x[0-9a-f]+"
_PLACE = re.compile(
    rf"(?:R?IP:? (?:[0-9a-f]{{4}}:)?)?\s*(?:\[<[0-9a-f]+>\]\s+)*{_NAME}"
    r"(?: \[[^\]]{1,80}\]| RSP: [0-9a-f]+)*\s*$"
    rf"|(?:WARNING|BUG): .{{0,300}}?\b(?:at|in) (?:\S{{1,200}}:\d+ )?{_NAME}"
)
PLACES = 64
"""Places of a report that are kept."""


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
    places: list[str] = field(default_factory=list)
    """Functions in which the kernel was by this report: of its instruction pointers and traces."""
    excuse: str = ""
    """Why the kernel is not blamed for it, as in `excused`: "caused by ..."; empty if it is."""
    guest: str = ""
    """Whose console it is: the name of a branch, empty if there is one guest only."""

    @property
    def outcome(self) -> str:
        return OUTCOMES[self.kind]

    @property
    def fatal(self) -> bool:
        return self.kind in FATAL

    @property
    def patching(self) -> str:
        """What the kernel was patching, such as "jump labels"; empty if it was not."""
        return text_patching(self.text, self.places)


@dataclass
class _OpenReport:
    """A report that further lines may still belong to."""

    finding: Finding
    died: bool = False
    """Whether it has its header of die(). Another such header begins another report."""
    part: bool = False
    """Whether it began with the message of a WARN() or BUG() whose header is yet to come."""


class _Line(NamedTuple):
    text: str
    """Without printk's prefix."""
    caller: str
    """Task or CPU that printed it; empty if the kernel does not say."""
    kernel: bool
    """Whether the kernel printed it. If not, a program of the guest did."""


class _KernelLines:
    """Tells the kernel's lines from those that programs of the guest write.

    Before there are programs, every line is the kernel's: most by printk, the first and the worst
    ones without a prefix. From these lines it is learned what printk's prefix has. Later a line
    without such a prefix is a program's that has written to the console, and one with a facility
    other than 0 was written to /dev/kmsg. Only a program that imitates the prefix is not found out
    here; excuse_programs() is for that.
    """

    def __init__(self) -> None:
        self._programs = False
        self._time = False
        self._priority = False

    def split(self, raw: str) -> Iterator[_Line]:
        """The lines in a line: what a program writes may end without a newline, and printk goes on
        in the middle of the line. So may printk itself, after a part of a line (before 4.10).
        """
        inside = _PRIORITY_INSIDE if self._priority else _TIME_INSIDE
        begins = [match.start() for match in inside.finditer(raw)] if self._time else []
        for start, end in zip([0, *begins], [*begins, len(raw)], strict=True):
            yield self._line(raw[start:end])

    def _line(self, raw: str) -> _Line:
        prefix = _PREFIX.match(raw)
        assert prefix is not None  # it matches the empty string
        text = raw[prefix.end() :].rstrip()
        priority, has_time = prefix["priority"], bool(prefix["time"])
        kernel = int(priority or 0) < 8
        if self._programs:
            kernel = kernel and has_time >= self._time and bool(priority) >= self._priority
        else:
            self._time |= has_time
            self._priority |= bool(priority)
        self._programs |= READY in text or bool(kernel and _LAST_OF_BOOT.match(text))
        kernel = kernel or bool(_DROPPED.match(text))
        return _Line(text, prefix["caller"] or "", kernel)


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
    """What looks like a finding, but is not held against the kernel."""
    lines: int = 0
    """Number of lines so far."""
    boots: int = 0
    """Number of boots so far: 1 unless the guest has reset."""
    restart: str = ""
    """The kernel's line about a reset that somebody asked it for; empty if nobody did.
    After a triple fault there is none."""
    ready: bool = False
    """Whether the guest's init has reported READY."""
    _source: _KernelLines = field(default_factory=_KernelLines)
    _open: dict[str, _OpenReport] = field(default_factory=dict)  # by caller
    _cut: dict[str, Finding] = field(default_factory=dict)  # by caller, not known to be a finding
    _counts: Counter[str] = field(default_factory=Counter)
    _no_clock: bool = False

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
        for part in self._source.split(line[:LONGEST]):
            self.ready = self.ready or READY in part.text
            if part.kernel:
                self._take(part.caller, part.text)
            else:
                self._take_foreign(part.text)

    def excuse(self, findings: Sequence[Finding], why: str) -> None:
        """Do not hold these against the kernel any more."""
        for finding in findings:
            finding.excuse = why
            self.findings.remove(finding)
            self.excused.append(finding)

    def _take(self, caller: str, text: str) -> None:
        self._no_clock = self._no_clock or _NO_CLOCK[0].match(text) is not None
        report = self._open.get(caller)
        ended = report and (
            self.lines - report.finding.last > GAP or (text == _CUT and not report.part)
        )
        if ended:
            report = None
        if _RESTART.match(text):
            self.restart = text
        if text.startswith(BOOT):
            self.boots += 1
            if self.boots > 1:
                self._begin(caller, "reboot", text)
        elif die := _DIE.match(text):
            if report and not report.died and report.finding.kind in ("oops", "bug"):
                report.died = True
                self._continue(report, text)
            else:
                kind = "int3" if die["what"] == "int3" else "oops"
                self._begin(caller, kind, text).died = True
        elif (head := _head(text)) and not (report and self._is_part(report, head, text)):
            self._begin(caller, head.kind, text, self._excuse(head, text)).part = head.part
        elif report and (head or _BODY.match(text) or _PLACE.match(text)):
            self._continue(report, text)
            if _END.match(text):
                del self._open[caller]
        else:
            self._take_unknown(caller, text)

    def _is_part(self, report: _OpenReport, head: _Head, text: str) -> bool:
        """Whether a line that could begin a report is one more line of the open one."""
        if head.part and not report.died:
            return True
        if report.part and head.kind in ("warn", "bug") and self.lines - report.finding.line <= 2:
            # The header of the message that was printed first.
            report.part = False
            report.finding.kind = max(report.finding.kind, head.kind, key=FATAL.__contains__)
            return True
        return False

    def _take_unknown(self, caller: str, text: str) -> None:
        """A line that belongs to no report: perhaps one that was begun in words we do not know."""
        if text == _CUT:
            self._cut[caller] = Finding("warn", self.lines, "", self.lines)
        elif (cut := self._cut.get(caller)) and self.lines - cut.last <= GAP:
            cut.text = cut.text or text
            cut.last = self.lines
            if place := _PLACE.match(text):
                cut.places += [name for name in place.groups() if name]
            if _END.match(text):
                del self._cut[caller]
                self._add(cut)

    def _take_foreign(self, text: str) -> None:
        """A line of a program of the guest."""
        head = _head(text)
        if kind := head.kind if head else "oops" if _DIE.match(text) else "":
            self._add(Finding(kind, self.lines, text, self.lines, excuse=_PROGRAM))

    def _excuse(self, head: _Head, text: str) -> str:
        if self._no_clock and head.kind == "warn" and _NO_CLOCK[1].match(text):
            return _NO_CLOCK[2]
        return head.excuse

    def _begin(self, caller: str, kind: str, text: str, excuse: str = "") -> _OpenReport:
        finding = Finding(kind, self.lines, text, self.lines, excuse=excuse)
        self._add(finding)
        self._cut.pop(caller, None)
        if len(self._open) > MANY:
            self._open.clear()
        report = self._open[caller] = _OpenReport(finding)
        self._continue(report, text)
        return report

    def _continue(self, report: _OpenReport, text: str) -> None:
        report.finding.last = self.lines
        if (place := _PLACE.match(text)) and len(report.finding.places) < PLACES:
            report.finding.places += [name for name in place.groups() if name]

    def _add(self, finding: Finding) -> None:
        into = self.excused if finding.excuse else self.findings
        self._counts[finding.kind + finding.excuse] += 1
        if self._counts[finding.kind + finding.excuse] <= MANY:
            into.append(finding)


def _head(text: str) -> _Head | None:
    return next((head for head in _HEADS if head.pattern.match(text)), None)


def scan(lines: Iterable[str]) -> FaultScanner:
    """A FaultScanner that has taken all of `lines`."""
    scanner = FaultScanner()
    for line in lines:
        scanner.feed(line)
    return scanner


def excuse_programs(scanner: FaultScanner, known: Sequence[Finding], log: Iterable[str]) -> None:
    """Excuse those of the `known` findings that a program of the guest has printed.

    log: lines of the kernel's own log with their facility, as `dmesg -r` prints them, read after
    `known` was found. It has what the kernel said, and what was written to /dev/kmsg under another
    facility; nothing that was written to the console. So if the kernel reports nothing of a kind
    in it, the kernel did not report it at all. A log that is not whole proves nothing.
    """
    own = scan(log)
    kinds = {finding.kind for finding in own.findings} | {"reboot", "lost"}  # not in the log
    if own.boots:
        scanner.excuse([found for found in known if found.kind not in kinds], _PROGRAM)
