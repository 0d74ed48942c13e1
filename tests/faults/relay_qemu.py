# SPDX-License-Identifier: GPL-2.0-only
"""Stands in for QEMU: starts the real one and disturbs it or what it says.

$FAULT_QEMU says how, `MODE` or `MODE:SECONDS`; $FAULT_QEMU_REAL is how the real QEMU is started. A
QEMU that has no guest (to ask its version, to try a plugin) is left alone, unless MODE is about it.
"""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable

Change = Callable[[bytes], bytes]


def main() -> int:
    mode, _, number = os.environ["FAULT_QEMU"].partition(":")
    seconds = float(number or 0)
    words = shlex.split(os.environ["FAULT_QEMU_REAL"])
    start = next(at for at, word in enumerate(words) if "=" not in word)
    env = {**os.environ, **dict(word.split("=", 1) for word in words[:start])}
    command = [*words[start:], *sys.argv[1:]]
    if "--version" in command and mode in VERSIONS:
        return VERSIONS[mode]()
    if "-kernel" not in command:
        if mode == "refuses-plugins" and "-plugin" in command:
            print("qemu: -plugin: this QEMU has no plugins", file=sys.stderr)
            return 1
        os.execvpe(command[0], command, env)
    if mode in ARGUMENTS:
        command = ARGUMENTS[mode](command)
        os.execvpe(command[0], command, env)
    return _run(mode, seconds, command, env)


# -- lies about the version


def _version(text: str, status: int = 0) -> Callable[[], int]:
    def answer() -> int:
        print(text)
        return status

    return answer


def _hang() -> int:
    time.sleep(10_000)
    return 0


VERSIONS: dict[str, Callable[[], int]] = {
    "version-garbage": _version("QEMU emulator version \x00\x1b[31m..-1.x"),
    "version-huge": _version("QEMU emulator version " + "9" * 5000 + ".1"),
    "version-old": _version("QEMU emulator version 2.11.1"),
    "version-new": _version("QEMU emulator version 99.0.0"),
    "version-none": _version(""),
    "version-fails": _version("no", 1),
    "version-hangs": _hang,
}


# -- other arguments


def _without(option: str) -> Callable[[list[str]], list[str]]:
    def change(command: list[str]) -> list[str]:
        while option in command:
            at = command.index(option)
            command = command[:at] + command[at + 2 :]
        return command

    return change


def _with(option: str, value: str) -> Callable[[list[str]], list[str]]:
    return lambda command: [*_without(option)(command), option, value]


ARGUMENTS: dict[str, Callable[[list[str]], list[str]]] = {
    "no-recorder": _without("-plugin"),
    "one-cpu": _with("-smp", "1"),
    "little-memory": _with("-m", "24"),
    "wrong-initrd": _with("-initrd", "/dev/null"),
    "unknown-option": lambda command: [*command, "-no-such-option"],
    "old-cpu": _with("-cpu", "486"),
}


# -- a QEMU that is run through this process


def _run(mode: str, seconds: float, command: list[str], env: dict[str, str]) -> int:
    rng = random.Random(mode)
    relayed = {"qmp": "id=qmp", "line": "id=ssh"}
    fds: list[int] = []
    pumps: list[Callable[[], None]] = []
    started = time.monotonic()

    def due() -> bool:
        return time.monotonic() - started > seconds

    for channel, sign in relayed.items():
        if not mode.startswith(channel):
            continue
        at = next(at for at, word in enumerate(command) if f"{sign}," in word and "fd=" in word)
        head, _, old = command[at].rpartition("fd=")
        ours, theirs = socket.socketpair()
        theirs.set_inheritable(True)
        command[at] = f"{head}fd={theirs.fileno()}"
        outer = socket.socket(fileno=int(old))
        to_guest, from_guest = _changes(mode, due, rng, ours, outer)
        pumps += [_pump(outer, ours, to_guest), _pump(ours, outer, from_guest)]
        fds.append(theirs.fileno())
    kept = [int(word.rpartition("fd=")[2]) for word in command if ",fd=" in word]
    stdout: int | None = None
    if mode.startswith("console"):
        read, stdout = os.pipe()
        pumps.append(_console(mode, due, rng, read))
    for fd in kept:
        os.set_inheritable(fd, True)
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", *command],
        env=env,
        pass_fds=sorted({*kept, *fds}),
        stdout=stdout,
    )
    for fd in fds:
        os.close(fd)
    if stdout is not None:
        os.close(stdout)
        os.close(1)
    for pump in pumps:
        threading.Thread(target=pump, daemon=True).start()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: process.send_signal(number))
    return _wait(mode, due, process)


def _wait(mode: str, due: Callable[[], bool], process: subprocess.Popen[bytes]) -> int:
    while process.poll() is None:
        time.sleep(0.02)
        if not due():
            continue
        if mode == "stderr-flood":
            os.write(2, b"qemu: something is odd\n" * 1000)
        if mode.startswith("dies-"):
            process.kill()
            how = mode.removeprefix("dies-")
            if how.isdigit():
                return int(how)
            os.kill(os.getpid(), getattr(signal, f"SIG{how}"))
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _pump(source: socket.socket, target: socket.socket, change: Change) -> Callable[[], None]:
    def pump() -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(change(data))
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    return pump


def _same(data: bytes) -> bytes:
    return data


def _changes(
    mode: str,
    due: Callable[[], bool],
    rng: random.Random,
    ours: socket.socket,
    outer: socket.socket,
) -> tuple[Change, Change]:
    """What happens to the bytes on their way to QEMU, and from it."""
    once = [True]

    def first() -> bool:
        """True the first time that it is asked when the moment has come."""
        if due() and once:
            once.clear()
            return True
        return False

    def later(action: Callable[[], object]) -> None:
        def wait() -> None:
            while not due():
                time.sleep(0.02)
            action()

        threading.Thread(target=wait, daemon=True).start()

    def hang(data: bytes) -> bytes:
        while due():
            time.sleep(1)
        return data

    def slow(data: bytes) -> bytes:
        time.sleep(0.5)
        return data

    def garbage(data: bytes) -> bytes:
        return rng.randbytes(500) + b"\n" + data if first() else data

    def huge(data: bytes) -> bytes:
        return b'{"event": "' + b"x" * 30_000_000 + b'"}\n' + data if first() else data

    def flipped(data: bytes) -> bytes:
        if not first():
            return data
        at = rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]

    def dropped(data: bytes) -> bytes:
        return data[len(data) // 2 :] if first() else data

    def twice(data: bytes) -> bytes:
        return data + data if first() else data

    def no_events(data: bytes) -> bytes:
        return b"".join(line for line in data.splitlines(True) if b'"event"' not in line)

    def deep(data: bytes) -> bytes:
        return b"[" * 200_000 + b"\n" + data if first() else data

    def no_quit(data: bytes) -> bytes:
        return b"" if b'"quit"' in data else data

    def command(line: bytes) -> None:
        later(lambda: ours.sendall(line))

    what = mode.partition("-")[2]
    match what:
        case "cut":
            later(lambda: outer.shutdown(socket.SHUT_RDWR))
        case "reset":
            command(b'{"execute": "system_reset"}\n')
        case "paused":
            command(b'{"execute": "stop"}\n')
        case "nmi":
            command(b'{"execute": "inject-nmi"}\n' * 20)
        case "powerdown":
            command(b'{"execute": "system_powerdown"}\n')
    to_guest = {"quit-ignored": no_quit, "in-hangs": hang, "in-slow": slow, "in-flipped": flipped}
    from_guest = {
        "out-hangs": hang, "out-slow": slow, "out-garbage": garbage, "out-huge": huge,
        "out-flipped": flipped, "out-dropped": dropped, "out-twice": twice, "no-events": no_events,
        "out-deep": deep,
    }  # fmt: skip
    return to_guest.get(what, _same), from_guest.get(what, _same)


def _console(
    mode: str, due: Callable[[], bool], rng: random.Random, read: int
) -> Callable[[], None]:
    outer = os.dup(1)

    def pump() -> None:
        garbled = False
        while data := os.read(read, 65536):
            if mode == "console-cut" and due():
                os.close(outer)
                break
            if mode == "console-garbage" and due() and not garbled:
                garbled = True
                data = rng.randbytes(2_000_000).replace(b"\n", b"") + data
            while data:
                data = data[os.write(outer, data) :]
        else:
            os.close(outer)
        while os.read(read, 65536):
            pass

    return pump


if __name__ == "__main__":
    sys.exit(main())
