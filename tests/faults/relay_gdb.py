# SPDX-License-Identifier: GPL-2.0-only
"""Stands in for GDB: starts the real one and disturbs what it is told or what it says.

$FAULT_GDB says how, `MODE` or `MODE:NUMBER`; $FAULT_GDB_REAL is the real GDB.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable


def main() -> int:
    mode, _, text = os.environ["FAULT_GDB"].partition(":")
    number = float(text or 0)
    command = [os.environ["FAULT_GDB_REAL"], *sys.argv[1:]]
    if mode == "ends-at-once":
        return 1
    if "--version" in command:
        os.execv(command[0], command)
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    assert process.stdin and process.stdout
    signal.signal(signal.SIGINT, lambda *_: process.send_signal(signal.SIGINT))
    say = _Output(mode, number)
    threading.Thread(target=_input, args=(mode, number, process, say), daemon=True).start()
    while line := process.stdout.readline():
        if mode == "no-stops" and line.startswith(b"*stopped"):
            continue
        say(line)
    return process.wait()


class _Output:
    """Our standard output, which two threads write to."""

    def __init__(self, mode: str, number: float) -> None:
        self._lock = threading.Lock()
        self._mode, self._number = mode, number
        self._start = time.monotonic()
        self._once = False

    def __call__(self, line: bytes) -> None:
        with self._lock:
            due = time.monotonic() - self._start > self._number and not self._once
            if due and self._mode in GARBAGE:
                self._once = True
                os.write(1, GARBAGE[self._mode])
            while due and self._mode == "silent":
                time.sleep(1)
            os.write(1, line)


GARBAGE: dict[str, bytes] = {
    "garbage": bytes(range(128, 256)) * 20 + b"\n",
    "bad-records": b'^done,x={y=[\n*stopped,reason=\n=x,"\n99999999^done\n^error\n',
    "flood": b'~"' + b"x" * 3_000_000 + b'"\n',
}


def _input(
    mode: str, number: float, process: subprocess.Popen[bytes], say: Callable[[bytes], None]
) -> None:
    assert process.stdin
    seen = 0
    swallowed = 0
    start = time.monotonic()
    for line in sys.stdin.buffer:
        seen += 1
        token = line[: len(line) - len(line.lstrip(b"0123456789"))]
        if mode == "slow":
            time.sleep(1)
        if mode == "dies-after" and seen > number:
            process.kill()
        if mode == "dies" and time.monotonic() - start > number:
            process.kill()
        if mode == "hangs-after" and seen > number:
            time.sleep(10_000)
        if mode == "interrupt-lost" and b"-exec-interrupt" in line and swallowed < number:
            swallowed += 1
            say(token + b"^done\n")
            continue
        if mode == "refuses" and seen > number:
            say(token + b'^error,msg="Cannot access memory at address 0x1"\n')
            continue
        if mode == "refuses-breakpoints" and b"break" in line.lower():
            say(token + b'^error,msg="No hardware breakpoint support in the target."\n')
            continue
        if mode == "no-python" and b"python" in line:
            say(token + b'^error,msg="Python scripting is not supported in this copy of GDB."\n')
            continue
        if mode == "wrong-tokens" and seen > number:
            line = b"7" + line
        process.stdin.write(line)
    process.stdin.close()


if __name__ == "__main__":
    sys.exit(main())
