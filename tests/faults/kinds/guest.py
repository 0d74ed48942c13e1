# SPDX-License-Identifier: GPL-2.0-only
"""Guests that lie, crash, flood their lines or stop: a script in the guest's init does it.

The script runs beside the test, from a random moment on. What user space prints, breaks or asks for
is no fault of the kernel; what provoke.ko makes the kernel report is.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from faults.fault import BLAMED, BROKEN, EITHER, HEALTHY, INFRA, NOTICED, SURVIVED, Fault
from faults.trial import Trial

MARK = "orchestrator-fault: now"
"""What the script says in the kernel's log when it begins."""
INIT = "guest/init/init"
PROVOKE = "/run/provoke.ko"

MODULE = "while ! [ -e /dev/orchestrator ]; do sleep 0.1; done"
POKED = "while ! [ -s /run/plan ] && ! grep -q '^ok' /dev/orchestrator; do sleep 0.1; done"
"""Before that a fault of the kernel outside of its patching is a boot-error."""
WAITS = {"module": MODULE, "poked": f"{MODULE}\n{POKED}", "ready": ":"}


@dataclass(frozen=True, kw_only=True)
class Script:
    """A shell script for the guest; busybox is all there is."""

    text: str
    allowed: frozenset[int | str] = NOTICED
    kernel: str = EITHER
    at: str = "module"
    """When: up to 2 s after the guest was `ready`, the test `module` was loaded, or the first step
    has ended (`poked`); or in init itself, before the guest says that it is ready (`boot`)."""
    silence: float = 100
    limit: float = 240


INFRA_ONLY = frozenset({INFRA})
NOT_A_PASS: frozenset[int | str] = frozenset({1, INFRA})

PANIC = "Kernel panic - not syncing: Fatal exception"
OOPS = r"""BUG: unable to handle page fault for address: 0000000000001234
#PF: supervisor write access in kernel mode
Oops: 0002 [#1] PREEMPT SMP NOPTI
RIP: 0010:text_poke_bp+0x1/0x2
Call Trace:
---[ end trace 0000000000000000 ]---"""
WARN = r"""------------[ cut here ]------------
WARNING: CPU: 0 PID: 1 at arch/x86/kernel/alternative.c:1 text_poke_bp+0x1/0x2
---[ end trace 0000000000000000 ]---"""
LOCKUP = "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [hammer/0:42]"
STALL = "rcu: INFO: rcu_preempt self-detected stall on CPU"
KTAP = "not ok 1 nop5.direct.on\nnot ok 2 nop5.direct.off\nnot ok 3 nop5.free\nBail out!"
READY = "orchestrator: guest ready: cpus=64 online=0-63 release=9.9.9"


def _print(text: str, target: str) -> str:
    return "\n".join(f'echo "{line}" >{target}' for line in text.splitlines())


def _instead(path: str, script: str) -> str:
    """Replace a program of the guest by a script."""
    return f"rm -f {path}\ncat >{path} <<'EOF'\n#!/bin/busybox sh\n{script}\nEOF\nchmod 755 {path}"


def _lie(path: str, content: str) -> str:
    """Have a file of the kernel's say something else."""
    return f"{content} >/run/lie\nmount --bind /run/lie {path} || mount -o bind /run/lie {path}"


def _provoked(how: str, before: str = ":") -> str:
    return f"{before}; insmod {PROVOKE} how={how} cpu=1"


FAKES = {"panic": PANIC, "oops": OOPS, "warn": WARN, "lockup": LOCKUP, "stall": STALL, "ktap": KTAP}


def _healthy(text: str, at: str = "module") -> Script:
    return Script(text=text, kernel=HEALTHY, at=at)


def _ends(text: str) -> Script:
    """A script that ends the guest. It runs early, so that there is no verdict yet."""
    return Script(text=text, at="ready", allowed=INFRA_ONLY, kernel=HEALTHY)


def _filtered(command: str) -> Script:
    """What `cat` says goes through `command` first."""
    return Script(text=_instead("/bin/cat", f'/bin/busybox cat "$@" | /bin/busybox {command}'))


def _booting(path: str, content: str) -> Script:
    """While booting, have a file of the kernel's say something else."""
    return Script(text=_lie(path, content), at="boot")


ONLINE = "/sys/devices/system/cpu/online"
KALLSYMS = "/proc/kallsyms"
ADDRESS = "s/^[0-9a-f]*"

SCRIPTS: dict[str, Script] = {
    # -- prints what only the kernel may say
    **{f"prints-{what}": _healthy(_print(text, "/dev/console")) for what, text in FAKES.items()},
    **{f"kmsg-{what}": _healthy(_print(text, "/dev/kmsg")) for what, text in FAKES.items()},
    "kmsg-panic-level-0": _healthy(f'echo "<0>{PANIC}" >/dev/kmsg'),
    "prints-panic-while-booting": _healthy(_print(PANIC, "/dev/console"), at="boot"),
    "prints-ready-too-early": Script(text=_print(READY, "/dev/kmsg"), at="boot"),
    "prints-ready-again": Script(text=_print(READY, "/dev/console"), allowed=SURVIVED),
    # -- floods and garbage
    "console-flood": Script(text="(while :; do echo y; done >/dev/console) & sleep 3; kill $!"),
    "kmsg-flood": Script(text="(while :; do echo y >/dev/kmsg; done) & sleep 3; kill $!"),
    "console-long-line": Script(text="head -c 3000000 /dev/zero | tr '\\0' A >/dev/console"),
    "console-binary": Script(text="head -c 200000 /dev/urandom >/dev/console"),
    "console-escapes": Script(
        text=r"printf '\033[2J\033]0;x\007\r\r\0\0\377\376\n[bold]x[/nope]\n' >/dev/console",
        allowed=SURVIVED,
    ),
    "line-flood": Script(text="cat /dev/urandom >/dev/ttyS1 & sleep 2; kill $!"),
    "line-flood-without-end": Script(text="cat /dev/urandom >/dev/ttyS1"),
    "line-zeros": Script(text="cat /dev/zero >/dev/ttyS1 & sleep 2; kill $!"),
    "line-short-frames": Script(text=r"printf 'A\0\0H\001\0xA\001\0\0D\0\0C\0\0' >/dev/ttyS1"),
    "line-huge-counts": Script(
        text=r"printf 'A\004\0\377\377\377\377H\004\0\377\377\377\377' >/dev/ttyS1"
    ),
    "line-long-frame": Script(text=r"printf 'D\377\377' >/dev/ttyS1"),
    "line-stolen": Script(text="cat /dev/ttyS1 >/dev/null"),
    "line-slow": Script(text="stty 300 <>/dev/ttyS1"),
    "line-cooked": Script(text="stty sane <>/dev/ttyS1"),
    # -- ends
    "halt": _ends("halt -f"),
    "poweroff": _ends("poweroff -f"),
    "reboot": _ends("reboot -f"),
    "sysrq-reset": _ends("echo b >/proc/sysrq-trigger"),
    "sysrq-off": Script(text="echo o >/proc/sysrq-trigger"),
    "sysrq-kill-all": Script(text="echo i >/proc/sysrq-trigger"),
    "halt-while-booting": Script(text="halt -f", at="boot", allowed=INFRA_ONLY),
    "init-ends": Script(text="exit 1", at="boot", allowed=INFRA_ONLY),
    "dropbear-killed": Script(text="killall -9 dropbear"),
    "dropbear-killed-again-and-again": Script(text="while sleep 0.2; do killall -9 dropbear; done"),
    "dropbear-stopped": Script(text="killall -STOP dropbear", at="poked"),
    "ttylink-killed": Script(text="killall -9 ttylink"),
    "ttylink-killed-again-and-again": Script(text="while sleep 0.2; do killall -9 ttylink; done"),
    "ttylink-stopped": Script(text="killall -STOP ttylink", at="poked"),
    "everything-stopped": Script(text="kill -STOP -1", at="poked"),
    "steps-stopped": Script(text="while ! killall -STOP steps; do sleep 0.1; done", at="poked"),
    "steps-killed": Script(text="while ! killall -9 steps; do sleep 0.1; done"),
    # -- resources
    "tmp-full": Script(text="for d in tmp run; do dd if=/dev/zero of=/$d/filler bs=1M; done"),
    "out-of-memory": Script(text="tail /dev/zero"),
    "processes": Script(
        text="for i in $(seq 60); do (while :; do :; done) & done; sleep 4; kill $(jobs -p)"
    ),
    "cpu-offline": Script(text="echo 0 >/sys/devices/system/cpu/cpu1/online"),
    "clock-jumps": Script(text="date -s 2031-01-01", allowed=SURVIVED),
    "module-unloaded": Script(text="rmmod -f orch; rmmod orch"),
    "device-removed": Script(text="rm /dev/orchestrator"),
    "console-quiet": Script(text="dmesg -n 1"),
    # -- programs that lie
    "cat-garbage": Script(text=_instead("/bin/cat", "/bin/busybox head -c 30000 /dev/urandom")),
    "cat-nothing": Script(text=_instead("/bin/cat", "exit 0")),
    "cat-fails": Script(text=_instead("/bin/cat", "exit 1")),
    "cat-hangs": Script(text=_instead("/bin/cat", "exec /bin/busybox sleep 1000")),
    "cat-twice": Script(text=_instead("/bin/cat", '/bin/busybox cat "$@" "$@"')),
    "cat-half": _filtered("head -c 700"),
    "cat-long-numbers": _filtered(f"sed s/=[0-9]*/={'9' * 5000}/g"),
    "cat-negative-numbers": _filtered("sed 's/=\\([0-9]\\)/=-\\1/g'"),
    "cat-huge": _filtered("awk '{ print; for (i = 0; i < 9999; i++) print \"# x=1\" }'"),
    "steps-refuses": Script(text=_instead("/sbin/steps", "echo refused; exit 1")),
    "steps-does-nothing": Script(text=_instead("/sbin/steps", "exit 0"), at="ready"),
    "steps-hangs": Script(text=_instead("/sbin/steps", "exec /bin/busybox sleep 1000"), at="ready"),
    "steps-babbles": Script(
        text=_instead("/sbin/steps", "exec /bin/busybox yes companion x y z"), at="ready"
    ),
    "insmod-fails": Script(text=_instead("/sbin/insmod", "echo no; exit 1"), at="boot"),
    "insmod-does-nothing": Script(text=_instead("/sbin/insmod", "exit 0"), at="boot"),
    "grep-fails": Script(text=_instead("/bin/grep", "exit 2"), at="boot"),
    "no-shell": Script(text="rm /bin/sh"),
    # -- files that lie
    "online-huge": _booting(ONLINE, "echo 0-3000000000"),
    "online-nonsense": _booting(ONLINE, "echo 1-0,x,-,0-"),
    "online-empty": _booting(ONLINE, "printf ''"),
    "online-more": _booting(ONLINE, "echo 0-63"),
    "online-fewer": _booting(ONLINE, "echo 0"),
    "kallsyms-empty": _booting(KALLSYMS, "printf ''"),
    "kallsyms-garbage": _booting(KALLSYMS, "head -c 90000 /dev/urandom"),
    "kallsyms-zeros": _booting(KALLSYMS, f"sed '{ADDRESS}/0000000000000000/' {KALLSYMS}"),
    "kallsyms-odd": _booting(KALLSYMS, f"sed '{ADDRESS}/zz$(id)%s;/' {KALLSYMS}"),
    "cmdline-lies": _booting("/proc/cmdline", "head -c 5000 /dev/urandom"),
    "sections-lie": Script(
        text="mkdir /run/s\n"
        "for n in .text .data .bss .init.text; do echo '0x0 $(id); shell id' >/run/s/$n; done\n"
        "mount -o bind /run/s /sys/module/orch/sections",
    ),
    "device-is-a-file": Script(text=_lie("/dev/orchestrator", "echo KTAP version 1")),
    # -- faults of the kernel
    **{
        f"kernel-{how}": Script(text=_provoked(how), allowed=BLAMED, kernel=BROKEN, at="poked")
        for how in ("warn", "bug", "null", "int3", "gpf", "panic", "doublefault", "everywhere")
    },
    "kernel-softlockup": Script(  # each gate of each step waits in vain for a CPU
        text=_provoked("softlockup"), allowed=NOT_A_PASS, kernel=BROKEN, at="poked",
        silence=700, limit=800,
    ),
    "kernel-irqsoff": Script(
        text=_provoked("irqsoff"), allowed=NOT_A_PASS, kernel=BROKEN, at="poked"
    ),
    "kernel-warn-unheard": Script(
        text=_provoked("warn", "dmesg -n 1"), allowed=NOT_A_PASS, kernel=BROKEN
    ),
}  # fmt: skip

SHORT = ("prints-panic", "kmsg-oops", "halt", "kernel-warn", "cat-garbage")


def faults() -> Iterator[Fault]:
    for name, script in SCRIPTS.items():
        yield Fault(
            name=f"guest/{name}",
            prepare=_with(script, broken_by_edit=not name.startswith("kernel-")),
            allowed=script.allowed,
            kernel=script.kernel,
            silence=script.silence,
            limit=script.limit,
            short=name in SHORT,
        )


def _with(script: Script, *, broken_by_edit: bool) -> Callable[[Trial], None]:
    def prepare(trial: Trial) -> None:
        program = trial.world.private_program(trial.directory)
        trial.env["PYTHONPATH"] = str(program)
        trial.arguments += ["--duration", "2"]
        delay = trial.rng.uniform(0, 2)
        trial.note = f"{script.at}+{delay:.1f}"
        init = program / INIT
        init.write_text(_init(init.read_text(), script, delay, trial))
        trial.edited = broken_by_edit
        # One that may or may not be seen has no line of its own that must be on the console.
        loud = not broken_by_edit and script.allowed == BLAMED
        # A double fault may leave the kernel no time to say who it was, or anything at all. Its
        # endless recursion may also run into the next stack, and make another task's return fail.
        signs = f"{MARK}.*(provoke|PANIC: double fault|general protection fault|BUG: )"
        happened = re.compile(signs if loud else MARK, re.DOTALL)
        trial.happened = lambda: (
            bool(happened.search(trial.consoles())) or "Triple fault" in trial.text("qemu.log")
        )

    return prepare


def _init(text: str, script: Script, delay: float, trial: Trial) -> str:
    """The guest's init with the script in it."""
    lines = text.splitlines(keepends=True)
    (at,) = [
        number
        for number, line in enumerate(lines)
        if "guest ready" in line and not line.lstrip().startswith("#")
    ]
    provoke = ""
    if PROVOKE in script.text:
        encoded = base64.encodebytes(trial.world.provoke()).decode()
        provoke = f"base64 -d >{PROVOKE} <<'EOF'\n{encoded}EOF\n"
    mark = f'echo "{MARK}" >/dev/kmsg\n'
    if script.at == "boot":
        lines.insert(at, f"{mark}{script.text}\n")
    else:
        inner = f"{WAITS[script.at]}\nsleep {delay:.2f}\n{mark}{script.text}\n"
        lines.insert(at + 1, f"{provoke}(\n{inner}) </dev/null >/dev/null 2>&1 &\n")
    return "".join(lines)
