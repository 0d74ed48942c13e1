# SPDX-License-Identifier: GPL-2.0-only
"""Waiting for a guest without overlooking that it has gone, and reading what it sends.

Every wait of a run is until(), whatever it waits for: the console, ssh, QMP or GDB. While it waits
it calls Machine.check(), which asks all observers.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

from orchestrator.machine.faults import Silent

POLL = 0.05
"""Interval between two checks of a condition, in seconds."""
SETTLE_SECONDS = 1.0
"""Time within which the cause of a broken channel becomes known. QEMU's sockets close before the
process has ended, and the console's last lines may not have been read yet."""
LONGEST_LAP = 1.0
"""Most seconds that may count between two polls. If more have passed, this process was stopped or
did something else than wait."""
LISTEN_SECONDS = 0.5
"""Interval between two looks at the signs of life."""
SILENCE_SECONDS = 60
"""Limit for a time without a console line, a GDB event or an int3 anywhere. A gated step takes less
than a second, and the guest's own gate gives up after 30 seconds of guest time."""


class Stopwatch:
    """Counts the seconds that are spent waiting. Somebody has to poll it."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._last = time.monotonic()

    def poll(self) -> float:
        """Count the time since the last call, and return the sum."""
        now = time.monotonic()
        self.seconds += min(now - self._last, LONGEST_LAP)
        self._last = now
        return self.seconds


def until(
    predicate: Callable[[], bool],
    timeout: float,
    check: Callable[[], None],
    pause: float = POLL,
) -> bool:
    """Wait until `predicate()`. Returns False if that takes more than `timeout` seconds.

    check: called in every turn. An exception from it ends the wait.
    pause: seconds between two turns; 0 if the predicate itself waits for a moment.
    """
    watch = Stopwatch()
    while not predicate():
        check()
        if watch.poll() > timeout:
            return False
        if pause:
            time.sleep(pause)
    return True


def settle(check: Callable[[], None]) -> None:
    """Give `check` the time to raise what explains a broken channel better than its own error."""
    until(lambda: False, SETTLE_SECONDS, check)


class Silence:
    """Notices when nobody hears from the guest any more.

    Only time counts in which somebody waits for the guest, because a guest with nothing to do may
    be silent.
    """

    def __init__(self) -> None:
        self.signs: list[Callable[[], int]] = []
        """The signs of life. Each number changes when its observer has seen something new."""
        self._limit: float | None = None
        self._watch = Stopwatch()
        self._heard: list[int] = []
        self._listened = 0.0

    @contextlib.contextmanager
    def limit(self, seconds: float | None) -> Iterator[None]:
        """Limit the silence during the block. None lifts the limit, for a guest that is stopped."""
        before = self._limit
        self._limit = seconds
        self._start_over()
        try:
            yield
        finally:
            self._limit = before
            self._start_over()

    def listen(self) -> None:
        """Called in every wait. Raises Silent when the limit is exceeded."""
        if self._limit is None:
            return
        silent = self._watch.poll()
        if time.monotonic() - self._listened < LISTEN_SECONDS:
            return
        self._listened = time.monotonic()
        heard = [sign() for sign in self.signs]
        if heard != self._heard:
            self._start_over()
            self._heard = heard
        elif silent > self._limit:
            raise Silent(self._limit)

    def _start_over(self) -> None:
        self._watch = Stopwatch()
        self._heard = []


class Reader:
    """A thread that reads what the guest or QEMU sends, for as long as they do."""

    def __init__(self, name: str, read: Callable[[], None]) -> None:
        self.lost = ""
        """Why it did not read everything, as a sentence without a full stop; empty if it did."""
        self._name = name
        self._read = read
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def join(self, timeout: float) -> None:
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def lose(self, why: str | Exception) -> None:
        """Note that it has missed something. The first reason counts."""
        if isinstance(why, Exception):
            why = f"{self._name} is no longer read: {type(why).__name__}: {why}"
        self.lost = self.lost or why

    def _run(self) -> None:
        try:
            self._read()
        except Exception as error:
            self.lose(error)
