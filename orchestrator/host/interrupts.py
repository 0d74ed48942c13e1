# SPDX-License-Identifier: GPL-2.0-only
"""SIGINT, SIGTERM and their like: each ends the program in order, with status 128 plus its number.

The first one raises Interrupted in the main thread, and the program unwinds: guests, GDB and make
are ended, and a run writes its verdict. Where the program ends anyway, or must not stop half-way,
the signal is held: only noted. Others are then ignored for PATIENCE seconds, because many who send
a signal send it twice: timeout(1), a terminal that goes away, an impatient user. The next one after
that ends the program at once, and host/keeper.py removes what is left.

cli.py imports this before anything heavy, so it imports next to nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from orchestrator.errors import EXIT_SIGNAL, INTERRUPTED, SIGNALS, Interrupted, TimeUp

PATIENCE = 5.0
"""Seconds that the program has to end in order."""
CALM = 6
"""After so many looks, REPEAT seconds apart, at a thread that does not unwind, its exception is
lost."""
REPEAT = 0.05
"""Seconds until a signal that got lost, or its exception, is sent again."""

_received: int | None = None
"""The number of the first signal."""
_raised = False
"""Whether it was raised, and not only noted."""
_since = 0.0
"""When it came."""
_held = 0
"""How many sections that hold signals we are in."""
_answers = 0
"""How many times Python has called one of our handlers."""


def install() -> None:
    """Handle the signals, apart from those that whoever started us ignores (nohup)."""
    global _unraisable
    # Registered first and so called last: after it Python takes our handlers away.
    atexit.register(_ignore)
    _unraisable, sys.unraisablehook = sys.unraisablehook, _on_unraisable
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), name="signals", daemon=True).start()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # bin/orchestrator blocks them


def block() -> None:
    """Keep the signals for the program that takes the place of this one and calls install()."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _watch(reader: int) -> None:
    """Send a signal again that has no effect, for one of two reasons.

    One that comes after Python looked for signals and before the main thread sleeps in a lock, a
    read or a wait does not wake it, and that sleep may have no end. And its exception gets lost
    where Python code was called by C code that takes every exception for an answer.
    """
    global _raised
    main, seen, calm = threading.main_thread().ident, _answers, 0
    assert main is not None
    while True:
        waits = REPEAT if _raised and not _held else None
        if select.select([reader], [], [], waits)[0]:
            numbers = os.read(reader, 64)  # signal.set_wakeup_fd(): a byte a signal
            time.sleep(REPEAT)
            if seen == _answers:
                for number in SIGNALS.keys() & set(numbers):
                    signal.pthread_kill(main, number)  # which writes to our pipe, too
            seen, calm = _answers, 0
        elif _received is not None:
            calm = 0 if _unwinds(main) else calm + 1
            if calm == CALM:
                _raised, calm = False, 0
                signal.pthread_kill(main, _received)


def _unwinds(thread: int) -> bool:
    """Whether a thread handles an Interrupted, or one that came of it, at this moment."""
    known: Any = sys._current_exceptions().get(thread)
    error = known[1] if isinstance(known, tuple) else known  # a tuple up to Python 3.11
    while error is not None and not isinstance(error, Interrupted):
        error = error.__context__
    return error is not None


def hold() -> None:
    """From now on only note signals: the program is about to end."""
    global _held
    _held += 1


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Only note signals while the block runs. One that came is raised at its end.

    Does nothing in other threads than the main one, where no signal is ever raised.
    """
    global _held
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _held += 1
    try:
        yield
    finally:
        _held -= 1
        _raise_noted()


@contextlib.contextmanager
def ending_with_ctrl_c() -> Iterator[None]:
    """Raise signals although they are held. Ctrl-C ends the block, and not the program."""
    global _held, _received, _raised
    before, _held = _held, 0
    try:
        _raise_noted()
        yield
    except Interrupted:
        if _received != signal.SIGINT:
            raise
    finally:
        _held = before
        if _received == signal.SIGINT:
            _received, _raised = None, False


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeUp in the block when it takes longer; 0 is no limit. Waits while signals are held.

    Does nothing in other threads than the main one.
    """
    if not seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_alarm(number: int, frame: object) -> None:
        global _answers
        _answers += 1
        if _held:
            signal.setitimer(signal.ITIMER_REAL, REPEAT)
        else:
            raise TimeUp(seconds)

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def sigint_for_another() -> Iterator[None]:
    """Do nothing on Ctrl-C in the block: the terminal sends it to a program of ours as well.

    With an empty handler and not SIG_IGN, because that program would inherit an ignored signal.
    """

    def on_sigint(number: int, frame: object) -> None:
        global _answers
        _answers += 1

    before = signal.signal(signal.SIGINT, on_sigint)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def received() -> Interrupted | None:
    """The signal that the program has to end with, if there was one."""
    return None if _received is None else Interrupted(_received)


def _ignore() -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is _on_signal:
            signal.signal(number, signal.SIG_IGN)


def _raise_noted() -> None:
    global _raised
    if _received is not None and not _raised and not _held:
        _raised = True
        raise Interrupted(_received)


def _on_signal(number: int, frame: object) -> None:
    global _answers, _received, _since
    _answers += 1
    if _received is None:
        _received, _since = number, time.monotonic()
    elif time.monotonic() - _since > PATIENCE:
        with contextlib.suppress(OSError):
            name = SIGNALS[number]
            os.write(2, f"orchestrator: {INTERRUPTED}{name} while it was ending\n".encode())
        os._exit(EXIT_SIGNAL + _received)
    _raise_noted()


_unraisable: Callable[[Any], object] = sys.__unraisablehook__


def _on_unraisable(unraisable: Any) -> None:
    """Python drops an exception that is raised in a destructor. Raise ours again a bit later."""
    global _received, _raised
    if isinstance(unraisable.exc_value, TimeUp):
        signal.setitimer(signal.ITIMER_REAL, REPEAT)
        return
    if not isinstance(unraisable.exc_value, Interrupted):
        _unraisable(unraisable)
        return
    number, _received, _raised = _received, None, False
    repeat = threading.Timer(REPEAT, os.kill, (os.getpid(), number))
    repeat.daemon = True
    repeat.start()
